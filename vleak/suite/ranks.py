"""Ranks of defenses with simultaneous intervals, from paired tests over clips."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.seeds import generator

__all__ = ["Rank", "ranks_of"]

_EXACT = 14
"""Clips up to which all flips of signs are gone through."""
_FLIPS = 10_000
"""Flips that are drawn for more clips."""
_ROUNDING = 1e-9


class Rank(NamedTuple):
    """Rank of a defense, 1 for the one that leaks least; equal means share one.

    Attributes:
        rank: by the mean.
        low, high: ends of its interval. All intervals hold together.
    """

    rank: int
    low: int
    high: int


def ranks_of(leakage: Tensor, error: float = 0.05) -> list[Rank]:
    """Ranks by mean leakage, each with an interval; with a chance of 1 - error all hold the true rank.

    Every two defenses are compared clip by clip. Where they leak alike, the sign of a clip's difference is as
    likely one as the other, so that the largest of all standardised differences is compared with its
    distribution over flips of the signs of whole clips (max-T, Westfall and Young 1993; step-down is left
    out). A rank is at least one more than the number of defenses that leak less beyond doubt, and at most
    what those that leak more leave (simultaneous confidence sets for ranks, Mogstad et al. 2024, Review of
    Economic Studies 91). It is exact where differences of clips are symmetric about their mean, and clips
    independent.

    Args:
        leakage: (clips, defenses), more is more leakage; the same clips for all.
        error: in (0, 1).

    Raises:
        InputError: fewer than two clips, or a number that is not finite.
    """
    if leakage.ndim != 2 or len(leakage) < 2 or not bool(torch.isfinite(leakage).all()):
        raise InputError(
            f"ranks: expected finite figures of two clips or more, got shape {tuple(leakage.shape)}"
        )
    values = leakage.double()
    means, count = values.mean(0), values.shape[1]
    less = _less_beyond_doubt(values, error)
    below = (means[:, None] < means[None, :] - _ROUNDING).sum(0)
    return [
        Rank(1 + int(below[j]), 1 + int(less[:, j].sum()), count - int(less[j].sum())) for j in range(count)
    ]


def _less_beyond_doubt(values: Tensor, error: float) -> Tensor:
    """Return (defenses, defenses), whether the one of the row leaks less than the one of the column."""
    count = values.shape[1]
    rows, columns = torch.triu_indices(count, count, 1)
    result = torch.zeros(count, count, dtype=torch.bool)
    if not len(rows):
        return result
    differences = values[:, rows] - values[:, columns]
    # Over the root of the sum of squares, which no flip of signs changes.
    scale = differences.square().sum(0).sqrt()
    standard = torch.where(scale > _ROUNDING, differences / scale.clamp(min=_ROUNDING), 0.0)
    statistic = standard.sum(0)
    largest = (_signs(len(values)) @ standard).abs().amax(1)
    chance = (largest[:, None] >= statistic.abs()[None, :] - _ROUNDING).double().mean(0)
    sure = chance <= error
    result[rows, columns] = sure & (statistic < 0)
    result[columns, rows] = sure & (statistic > 0)
    return result


def _signs(clips: int) -> Tensor:
    """Return flips of the signs of clips, (flips, clips), the one that flips none first.

    The first clip keeps its sign: flipping all of them changes no size.
    """
    if clips <= _EXACT:
        numbers = torch.arange(2 ** (clips - 1))
        bits = (numbers[:, None] >> torch.arange(clips - 1)) & 1
    else:
        bits = torch.randint(2, (_FLIPS, clips - 1), generator=generator("suite", "flips", clips))
        bits[0] = 0
    first = torch.ones(len(bits), 1, dtype=torch.float64)
    return torch.cat((first, 1.0 - 2.0 * bits.double()), 1)
