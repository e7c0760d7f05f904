"""Simulated years of nights: the e-values of `vleak.regression` for many years and cells at once.

The ratios are worked out here once more, from their definition: sorted figures of baseline and nights add
their weights, 1 and theta, to a sum; the ratio is theta^nights times the product of place over sum. What it
needs of a clip are counts, so that tables replace most of the work. `test_regression_evidence` compares them
with the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from vleak.regression.evidence import starts

__all__ = ["EXPONENTS", "Seen", "binary_years", "ranked_years"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Seen = Callable[[int, Floats], None]
"""Called every night with its number and the logarithms of the e-values, (starts, years), tonight's last."""

EXPONENTS = (2.0, 4.0, 20.0)


def _parts(draws: int, nights: int, theta: float) -> tuple[Floats, Floats]:
    """Constant by the number of nights, and the term of every draw by the number of nights below it."""
    counts = np.arange(nights + 1)
    sums = np.zeros((draws + 1, nights + 1))
    for draw in range(draws + 1):
        sums[draw, 1:] = np.cumsum(np.log(draw + theta * counts[1:]))
    terms = sums[1:] - sums[:-1] - np.log(np.arange(1, draws + 1)[:, None] + theta * counts)
    return counts * math.log(theta) + gammaln(draws + counts + 1) - sums[-1], terms


def _over_orders(terms: Floats) -> Floats:
    """Logarithm of the mean over all orders of equal draws and 0, 1, ... nights, (nights + 1,)."""
    draws, count = terms.shape
    if not draws:
        return np.zeros(count)
    paths = terms[0]
    for row in terms[1:]:
        paths = np.logaddexp.accumulate(paths) + row
    nights = np.arange(count)
    orders = gammaln(draws + nights + 1) - gammaln(draws + 1) - gammaln(nights + 1)
    return np.logaddexp.accumulate(paths) - orders


def _binary_table(draws: int, ones: int, nights: int, theta: float) -> Floats:
    """Ratio by nights that are no and nights that are yes, of a baseline of so many yes."""
    constants, terms = _parts(draws, nights, theta)
    zeros = draws - ones
    below = _over_orders(terms[:zeros])
    table = np.full((nights + 1, nights + 1), -np.inf)
    for no in range(nights + 1):
        left = nights - no
        table[no, : left + 1] = constants[no:] + below[no] + _over_orders(terms[zeros:, no:])
    return table


def _binary_tables(draws: int, nights: int) -> NDArray[np.float32]:
    """(alternatives, ones of the baseline, no, yes), from both ends."""
    sides = [[_binary_table(draws, ones, nights, e) for ones in range(draws + 1)] for e in EXPONENTS]
    sides += [
        [_binary_table(draws, draws - ones, nights, 1 / e).T for ones in range(draws + 1)] for e in EXPONENTS
    ]
    return np.array(sides, dtype=np.float32)


def _mixed(ratios: list[Floats]) -> Floats:
    return np.logaddexp.reduce(np.stack(ratios), axis=0) - math.log(len(ratios))


def binary_years(baseline: Counts, nights: Counts, seen: Seen) -> None:
    """Go through nights of figures that are yes or no.

    Args:
        baseline: (draws, years, clips) of 0 and 1. nights: (nights, years, clips), likewise.
        seen: called every night.
    """
    count, width = len(nights), len(nights) + 1
    tables = _binary_tables(len(baseline), count).reshape(2 * len(EXPONENTS), -1)
    place = baseline.sum(0) * width * width
    yes = np.concatenate([np.zeros((1, *nights.shape[1:]), np.int64), np.cumsum(nights, 0)])
    for night in range(1, count + 1):
        begun = starts(night, 0)
        ones = yes[night] - yes[begun]
        at = place + ((night - begun)[:, None, None] - ones) * width + ones
        seen(night, _mixed([np.take(table, at).sum(-1, dtype=np.float64) for table in tables]))


def ranked_years(baseline: Floats, nights: Floats, seen: Seen) -> None:
    """Go through nights of figures of which no two are equal.

    Args:
        baseline: (draws, years, clips). nights: (nights, years, clips).
        seen: called every night.
    """
    draws, count = len(baseline), len(nights)
    lower = np.sort(baseline, axis=0)[:, None] > nights  # (draws, nights, years, clips)
    below = np.cumsum(np.pad(lower, ((0, 0), (1, 0), (0, 0), (0, 0))), 1, dtype=np.int16)
    ends = [(_parts(draws, count, e), False) for e in EXPONENTS]
    ends += [(_parts(draws, count, 1 / e), True) for e in EXPONENTS]
    for night in range(1, count + 1):
        begun = starts(night, 0)
        length = night - begun
        from_below = below[:, night, None] - below[:, begun]  # (draws, starts, years, clips)
        ratios = []
        for (constants, terms), turned in ends:
            total = constants[length][:, None] * nights.shape[2]
            for draw in range(draws):
                row = from_below[draws - 1 - draw] if turned else from_below[draw]
                at = length[:, None, None] - row if turned else row
                total = total + np.take(terms[draw], at).sum(-1)
            ratios.append(total)
        seen(night, _mixed(ratios))
