"""Candidates of identification: the clips among which one is to be told from the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from vleak.data import equal_to

__all__ = ["rivals"]


def rivals(contents: Sequence[Tensor], labels: Tensor | None) -> Callable[[int], list[int]]:
    """Return what tells for a clip the positions of its candidates, itself among them.

    Clips that are equal to it are left out, since nothing could tell it from them.

    Args:
        contents: what clips are told apart by, each (N, ...); two that are equal in one of them are equal.
        labels: (N,) int64, where only clips of the same label are candidates; None where all are.
    """
    equal = [set().union(*others) for others in zip(*map(equal_to, contents), strict=True)]
    kinds = [0] * len(equal) if labels is None else labels.tolist()

    def candidates(clip: int) -> list[int]:  # of one at a time: of many clips all pairs would fill memory
        return [other for other, its in enumerate(kinds) if its == kinds[clip] and other not in equal[clip]]

    return candidates
