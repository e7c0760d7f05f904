"""Heads on frozen features: what a client of the feature pipeline trains, and whose update leaks.

A head takes feature matrices (N, S, F): S segments of a clip with F features each. Built for classes it
returns logits (N, classes), the mean over the segments; built for scores it returns how anomalous each
segment is, in [0, 1], of shape (N, S, 1), or (N, 1, 1) where it pools the segments first.
"""

from __future__ import annotations

from torch import Tensor, nn

from vleak.models.build import build_module
from vleak.models.classifiers import check_range
from vleak.registry import Registry

__all__ = ["HEADS", "BagPair", "build_head"]


class Head(nn.Module):
    """Base of the heads: subclasses answer segment by segment, or for all of them at once.

    Attributes:
        outputs: number of logits; None for scores.
    """

    def __init__(self, outputs: int | None) -> None:
        """Take the number of logits, or None."""
        super().__init__()
        self.outputs = outputs

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, classes), or scores (N, S or 1, 1) in [0, 1], of features (N, S, F)."""
        answers = self.answer(features)
        return answers.sigmoid() if self.outputs is None else answers.mean(1)

    def answer(self, features: Tensor) -> Tensor:
        """Return what is squashed or averaged, (N, S or 1, outputs), of features (N, S, F)."""
        raise NotImplementedError


class LinearHead(Head):
    """One linear layer on every segment."""

    def __init__(self, segments: int, features: int, outputs: int | None) -> None:
        """Size it for `features` numbers a segment; any number of segments will do."""
        super().__init__(outputs)
        self.layer = nn.Linear(features, outputs or 1)

    def answer(self, features: Tensor) -> Tensor:
        """See the base."""
        answers: Tensor = self.layer(features)
        return answers


class MLPHead(Head):
    """Linear layers with ReLU between them, on every segment."""

    def __init__(
        self, segments: int, features: int, outputs: int | None, *, depth: int = 2, width: int = 64
    ) -> None:
        """Size it for `features` numbers a segment; any number of segments will do.

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
        """See the base."""
        answers: Tensor = self.layers(features)
        return answers


class SultaniHead(Head):
    """The anomaly detector of Sultani et al. (CVPR 2018, arXiv 1801.04264), as its authors' code has it.

    Linear to 512, ReLU, dropout, linear to 32 without activation, dropout, linear to 1, sigmoid.
    """

    def __init__(self, segments: int, features: int, outputs: int | None) -> None:
        """Size it for `features` numbers a segment; any number of segments will do."""
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
        """See the base."""
        answers: Tensor = self.layers(features)
        return answers


class AttentionHead(Head):
    """Gated attention over the segments, one answer a clip (Ilse et al., ICML 2018, arXiv 1802.04712)."""

    def __init__(self, segments: int, features: int, outputs: int | None, *, width: int = 64) -> None:
        """Size it for `features` numbers a segment; any number of segments will do.

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
        """See the base."""
        embedded = self.embed(features).relu()
        attention = self.weigh(self.content(embedded).tanh() * self.gate(embedded).sigmoid()).softmax(1)
        answers: Tensor = self.classify((attention * embedded).sum(1, keepdim=True))
        return answers


class LSTMHead(Head):
    """An LSTM over the segments and a linear layer on what it says at each."""

    def __init__(self, segments: int, features: int, outputs: int | None, *, width: int = 64) -> None:
        """Size it for `features` numbers a segment; any number of segments will do.

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
        """See the base."""
        sequence, _ = self.lstm(features)
        answers: Tensor = self.classify(sequence)
        return answers


class BagPair(nn.Module):
    """A head of scores, asked about pairs of bags: what the ranking loss compares is one private sample.

    The unit of privacy then is the pair, and gradients a sample, clipping and batch sizes mean what they
    mean for clips; a loss that ranked bags of different samples would void the guarantee of any of them.
    """

    def __init__(self, head: nn.Module) -> None:
        """Take a head from (N, S, F) to scores (N, S or 1, 1)."""
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
"""Heads on features: those built in are made of (segments, features, outputs)."""


def build_head(name: str, *, segments: int, features: int, outputs: int | None, seed: int) -> nn.Module:
    """Return a head with freshly drawn weights, in eval mode on the CPU.

    Args:
        name: a name of ``HEADS``, with settings where others than the default ones are wanted, such as
            ``mlp:depth=3,width=256``; or ``package.module:factory``. A factory from outside is called with
            its settings and those of ``segments``, ``features`` and ``outputs`` that it names.
        segments, features: S and F of the feature matrices that it will see.
        outputs: number of logits for "cross_entropy"; None for the scores that "bce" and "ranking" take.
        seed: the weights depend on this number and on the name alone.

    Raises:
        InputError: the name or a setting is unknown, or the factory cannot be imported, raises, or returns
            no module.
    """
    arguments = {"segments": segments, "features": features, "outputs": outputs}
    reference = HEADS.parse(name)
    return build_module(reference, (segments, features, outputs), arguments, seed, "head weights").eval()
