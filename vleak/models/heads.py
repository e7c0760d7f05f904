"""Heads on frozen features: the trained part of the feature pipeline, whose update is sent.

A head maps feature matrices (N, S, F), S segments of a clip with F features a segment, to logits or scores.
Logits (N, classes) are the mean over the segments; scores are the anomaly scores of the segments in [0, 1],
(N, S, 1), or (N, 1, 1) for a head that pools the segments first.
"""

from __future__ import annotations

from torch import Tensor, nn

from vleak.models.build import build_module, on_trial
from vleak.models.classifiers import check_range
from vleak.registry import Registry

__all__ = ["HEADS", "BagPair", "build_head"]


class Head(nn.Module):
    """Base class of the heads; subclasses give one answer a segment, or one for all segments.

    Attributes:
        outputs: number of logits; None for scores.
    """

    def __init__(self, outputs: int | None) -> None:
        """Store the number of logits, or None for scores."""
        super().__init__()
        self.outputs = outputs

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, classes), or scores (N, S or 1, 1) in [0, 1], of features (N, S, F)."""
        answers = self.answer(features)
        return answers.sigmoid() if self.outputs is None else answers.mean(1)

    def answer(self, features: Tensor) -> Tensor:
        """Return answers (N, S or 1, outputs) of features (N, S, F), before the sigmoid or the mean."""
        raise NotImplementedError


class LinearHead(Head):
    """Head of one linear layer, applied to every segment."""

    def __init__(self, segments: int, features: int, outputs: int | None) -> None:
        """Build the layers for `features` numbers a segment, any number of segments."""
        super().__init__(outputs)
        self.layer = nn.Linear(features, outputs or 1)

    def answer(self, features: Tensor) -> Tensor:
        """Return the answers of all segments, see `Head.answer`."""
        answers: Tensor = self.layer(features)
        return answers


class MLPHead(Head):
    """Head of linear layers with ReLU between them, applied to every segment."""

    def __init__(
        self, segments: int, features: int, outputs: int | None, *, depth: int = 2, width: int = 64
    ) -> None:
        """Build the layers for `features` numbers a segment, any number of segments.

        Args:
            segments, features: S and F of the feature matrices.
            outputs: number of logits; None for scores.
            depth: linear layers, 1 to 4.
            width: units of each layer but the last.

        Raises:
            InputError: width or depth is out of range.
        """
        check_range("width", width, 8192)
        check_range("depth", depth, 4)
        super().__init__(outputs)
        sizes = [features, *[width] * (depth - 1), outputs or 1]
        layers: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
        for index in range(1, depth):
            layers += [nn.ReLU(), nn.Linear(sizes[index], sizes[index + 1])]
        self.layers = nn.Sequential(*layers)

    def answer(self, features: Tensor) -> Tensor:
        """Return the answers of all segments, see `Head.answer`."""
        answers: Tensor = self.layers(features)
        return answers


class SultaniHead(Head):
    """Anomaly detector of Sultani et al. (CVPR 2018, arXiv 1801.04264), as in its authors' code.

    Linear to 512, ReLU, dropout, linear to 32 without activation, dropout, linear to 1, sigmoid.
    """

    def __init__(self, segments: int, features: int, outputs: int | None) -> None:
        """Build the layers for `features` numbers a segment, any number of segments."""
        super().__init__(outputs)
        self.layers = nn.Sequential(
            nn.Linear(features, 512),
            nn.ReLU(),
            nn.Dropout(0.6),
            nn.Linear(512, 32),
            nn.Dropout(0.6),
            nn.Linear(32, outputs or 1),
        )

    def answer(self, features: Tensor) -> Tensor:
        """Return the answers of all segments, see `Head.answer`."""
        answers: Tensor = self.layers(features)
        return answers


class AttentionHead(Head):
    """Gated attention over the segments, one answer a clip (Ilse et al., ICML 2018, arXiv 1802.04712)."""

    def __init__(self, segments: int, features: int, outputs: int | None, *, width: int = 64) -> None:
        """Build the layers for `features` numbers a segment, any number of segments.

        Args:
            segments, features: S and F of the feature matrices.
            outputs: number of logits; None for scores.
            width: units of the embedding and of the attention.

        Raises:
            InputError: width is out of range.
        """
        check_range("width", width, 8192)
        super().__init__(outputs)
        self.embed = nn.Linear(features, width)
        self.content = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.weigh = nn.Linear(width, 1)
        self.classify = nn.Linear(width, outputs or 1)

    def answer(self, features: Tensor) -> Tensor:
        """Return the answers of all segments, see `Head.answer`."""
        embedded = self.embed(features).relu()
        attention = self.weigh(self.content(embedded).tanh() * self.gate(embedded).sigmoid()).softmax(1)
        answers: Tensor = self.classify((attention * embedded).sum(1, keepdim=True))
        return answers


class LSTMHead(Head):
    """Head with an LSTM over the segments and a linear layer on its output at every segment."""

    def __init__(self, segments: int, features: int, outputs: int | None, *, width: int = 64) -> None:
        """Build the layers for `features` numbers a segment, any number of segments.

        Args:
            segments, features: S and F of the feature matrices.
            outputs: number of logits; None for scores.
            width: hidden units.

        Raises:
            InputError: width is out of range.
        """
        check_range("width", width, 8192)
        super().__init__(outputs)
        self.lstm = nn.LSTM(features, width, batch_first=True)
        self.classify = nn.Linear(width, outputs or 1)

    def answer(self, features: Tensor) -> Tensor:
        """Return the answers of all segments, see `Head.answer`."""
        sequence, _ = self.lstm(features)
        answers: Tensor = self.classify(sequence)
        return answers


class BagPair(nn.Module):
    """Head of scores, applied to pairs of bags: the two bags that the ranking loss compares are one sample.

    The unit of privacy is then the pair, and per-sample gradients, clipping and batch sizes have the same
    meaning as for clips; a loss that ranked bags of different samples would void their guarantees.
    """

    def __init__(self, head: nn.Module) -> None:
        """Wrap a head that maps (N, S, F) to scores (N, S or 1, 1)."""
        super().__init__()
        self.head = head

    def forward(self, pairs: Tensor) -> Tensor:
        """Return scores (N, 2, S or 1, 1) of pairs (N, 2, S, F), the anomalous bag first."""
        scores: Tensor = self.head(pairs.flatten(0, 1))
        return scores.reshape(-1, 2, *scores.shape[1:])


HEADS: Registry[nn.Module] = Registry(
    "head",
    {
        "linear": LinearHead,
        "mlp": MLPHead,
        "sultani": SultaniHead,
        "attention": AttentionHead,
        "lstm": LSTMHead,
    },
)
"""Heads on features; the built-in ones are called with (segments, features, outputs)."""


def build_head(name: str, *, segments: int, features: int, outputs: int | None, seed: int) -> nn.Module:
    """Return a head with freshly drawn weights, in eval mode on the CPU.

    Args:
        name: a name of ``HEADS``, optionally with settings, such as ``mlp:depth=3,width=256``; or
            ``package.module:factory``. A factory of a plug-in is called with its settings and those of
            ``segments``, ``features`` and ``outputs`` that it accepts.
        segments, features: S and F of the input feature matrices.
        outputs: number of logits for "cross_entropy"; None for the scores that "bce" and "ranking" take.
        seed: the weights depend on this number and on the name alone.

    Raises:
        InputError: the name or a setting is unknown, or the factory cannot be imported, raises, or returns
            no module.
    """
    arguments = {"segments": segments, "features": features, "outputs": outputs}

    def make() -> nn.Module:
        reference = HEADS.parse(name)
        return build_module(reference, (segments, features, outputs), arguments, seed, "head weights")

    return on_trial(HEADS, name, make).eval()
