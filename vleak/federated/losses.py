"""Losses of the clients, each a mean over the samples of the batch, in which samples do not interact."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vleak.federated.gradients import Loss

#: Weight of the sparsity and of the smoothness of an anomalous bag's scores, as Sultani et al. have it.
REGULARISATION = 8e-5


def bce(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean binary cross-entropy, where every segment carries the label of its bag.

    Args:
        scores: (N, S, 1) in [0, 1].
        labels: (N,), 1 for anomalous and 0 for normal.
    """
    targets = labels.to(scores.dtype)[:, None, None].expand_as(scores)
    return F.binary_cross_entropy(scores, targets)


def ranking(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean ranking loss of pairs of bags (Sultani et al., CVPR 2018, arXiv 1801.04264).

    A hinge wants the highest score of the anomalous bag 1 above that of the normal one; the anomalous bag's
    scores are drawn to 0 and to those of their neighbours. So of the normal bag the highest segment alone
    has a gradient; of the anomalous bag every segment has, all but the highest one of the order 8e-5.

    Args:
        scores: (N, 2, S, 1) in [0, 1], the anomalous bag of each pair first.
        labels: ignored; the position in the pair is the label.
    """
    anomalous, normal = scores[:, 0, :, 0], scores[:, 1, :, 0]
    hinge = (1 - anomalous.max(1).values + normal.max(1).values).relu()
    smooth = anomalous.diff(dim=1).square().sum(1)
    return (hinge + REGULARISATION * (anomalous.sum(1) + smooth)).mean()


LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "bce": bce, "ranking": ranking}
"""Losses by name."""

UNITS: dict[str, str] = {"cross_entropy": "one clip", "bce": "one clip", "ranking": "one bag pair"}
"""What one row of a batch is, and so what a defense that protects rows protects."""

_OUTPUTS = {
    "cross_entropy": "logits (clip, class)",
    "bce": "scores (clip, segment, 1)",
    "ranking": "scores (pair, 2, segment, 1)",
}


def expected_output(loss: str) -> str:
    """Return in words what a model has to return for a loss."""
    return _OUTPUTS[loss]


def output_fits(loss: str, output: Tensor, batch: int) -> bool:
    """Return whether an output has the shape that a loss takes, with a row a sample."""
    shape = tuple(output.shape)
    if loss == "cross_entropy":
        return len(shape) == 2 and shape[0] == batch
    front = (batch, 2) if loss == "ranking" else (batch,)
    return shape[:-2] == front and shape[-1:] == (1,)
