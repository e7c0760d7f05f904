"""Bags of segments: which classes count as anomalous, and pairs of bags for the ranking loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vleak.data import ClipSet
from vleak.errors import InputError

__all__ = ["anomalous_classes", "bag_pairs", "labels_of", "public_pairs"]


def anomalous_classes(classes: Sequence[str]) -> list[bool]:
    """Anomalous or normal, by class, for losses that know only these two.

    Whatever is not called normal is anomalous, as in UCF-Crime; where no class or every class is called so,
    the second half of the list is.
    """
    normal = ["normal" in name.lower() for name in classes]
    if any(normal) and not all(normal):
        return [not is_normal for is_normal in normal]
    return [index >= len(classes) // 2 for index in range(len(classes))]


def labels_of(data: ClipSet, loss: str) -> tuple[Tensor, Tensor]:
    """Labels (N,) of the private clips and (M,) of the public ones as a loss sees them, int64.

    Args:
        data: the clips.
        loss: a key of `vleak.federated.LOSSES`; all but "cross_entropy" know only two kinds of clips.
    """
    if loss == "cross_entropy":
        return data.labels, data.public_labels
    anomalous = torch.tensor(anomalous_classes(data.classes))
    return anomalous[data.labels].long(), anomalous[data.public_labels].long()


def bag_pairs(bags: Tensor, labels: Tensor) -> tuple[Tensor, list[int]]:
    """Pair every bag with one of the other kind.

    Args:
        bags: (N, S, F), a matrix of features each.
        labels: (N,) int64, 1 for anomalous and 0 for normal.

    Returns:
        the pair of every bag (N, 2, S, F), anomalous first, and the position of the bag in its pair.

    Raises:
        InputError: all bags are of one kind.
    """
    kinds = [torch.nonzero(labels == label).flatten().tolist() for label in (0, 1)]
    if not all(kinds):
        raise InputError(
            "loss 'ranking': expected normal and anomalous clips, found only one kind; give more clips, or "
            "another loss"
        )
    # The companion of the k-th normal bag is the k-th anomalous one, whose own is the next normal one: no two
    # pairs are alike.
    pairs, next_companion = [], [0, 1]
    for bag, label in zip(bags, labels.tolist(), strict=True):
        others = kinds[1 - label]
        companion = bags[others[next_companion[label] % len(others)]]
        next_companion[label] += 1
        pairs.append(torch.stack([bag, companion] if label else [companion, bag]))
    return torch.stack(pairs), [1 - label for label in labels.tolist()]


def public_pairs(bags: Tensor, labels: Tensor) -> Tensor:
    """Pairs (M, 2, S, F) of public bags (M, S, F); none where all bags are of one kind."""
    if not bool((labels == 0).any() and (labels == 1).any()):
        return bags.new_empty(0, 2, *bags.shape[1:])
    return bag_pairs(bags, labels)[0]
