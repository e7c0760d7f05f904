"""Likelihood ratios of ranks: e-processes against "tonight's figures are no larger than the baseline's".

One clip has K figures of the baseline and one of every night. While nothing changed, all of them are draws
of one
distribution, whatever it is, in whatever order: exchangeable. The likelihood of their ranks is then known,
also
over many nights, although all nights share the K figures: it is that of Polya's urn. The likelihood if the
nights' figures are drawn from F^theta instead of F (Lehmann, Annals of Mathematical Statistics 1953; in
closed
form: Savage 1956) over it is a martingale, and as it only falls where a figure falls, an e-process for all
nights whose figures are no larger than the baseline's in distribution. Clips have randomness of their own, so
that the ratios of clips multiply. (Likelihood ratios as e-processes: Ramdas et al., arXiv 2210.01948.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

__all__ = ["Ranks", "log_e_values", "rank_nights"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_EXPONENTS = (2.0, 4.0, 20.0)
"""Alternatives: the largest of so many draws of the baseline (F^theta); and, from the other end, figures of
which
so many have the baseline's as their smallest. Small ones find small shifts in time, the largest shifts of
figures
without any noise at once."""


@dataclass(frozen=True)
class Ranks:
    """Places of nights' figures among the sorted figures of the baseline, clip by clip.

    Attributes:
        below: (nights, ..., clips), figures of the baseline that are smaller. tied: that are equal.
        draws: K, figures of the baseline for each clip.
    """

    below: Counts
    tied: Counts
    draws: int


def rank_nights(baseline: Floats, nights: Floats) -> Ranks:
    """Rank nights' figures among the baseline's.

    Args:
        baseline: (K, ..., clips), finite.
        nights: (nights, ..., clips); one that is -inf is below all: a figure that could not be measured did
            not rise.
    """
    below = (baseline[None] < nights[:, None]).sum(1)
    return Ranks(below, (baseline[None] == nights[:, None]).sum(1), len(baseline))


def log_e_values(ranks: Ranks, starts: Counts) -> Floats:
    """Logarithms of e-values, each on the nights from a start on to the last.

    Ties are broken in all ways, with equal weight: a mean of e-values is one.

    Args:
        ranks: of all nights.
        starts: (S,) positions of nights.

    Returns:
        (S, ...).
    """
    draws = np.arange(ranks.draws)
    above = (ranks.below + ranks.tied)[..., None] <= draws  # nights (of a clip) below the draw
    tied = (ranks.below[..., None] <= draws) & ~above
    below_draw, tied_with_draw = (_to_the_last(events)[starts] for events in (above, tied))
    nights = np.broadcast_to(
        (len(above) - starts).reshape(-1, *[1] * (above.ndim - 2)), below_draw.shape[:-1]
    )
    of = _of_distinct if tied.any() else _log_ratios
    ratios = of(nights, below_draw, tied_with_draw).sum(-2)  # over clips
    return np.asarray(logsumexp(ratios, axis=-1) - math.log(ratios.shape[-1]))


def _to_the_last(events: NDArray[np.bool_]) -> Counts:
    """(nights, ..., clips, K), whether a night had the event, to how many did from that night on."""
    return np.cumsum(events[::-1], 0, dtype=np.int64)[::-1]


def _of_distinct(nights: Counts, below: Counts, tied: Counts) -> Floats:
    """`_log_ratios`, of equal counts once: of figures that are yes or no, few are distinct."""
    rows, draws = np.concatenate([nights[..., None], below, tied], -1), below.shape[-1]
    distinct, place = np.unique(rows.reshape(-1, rows.shape[-1]), axis=0, return_inverse=True)
    ratios = _log_ratios(distinct[:, 0], distinct[:, 1 : 1 + draws], distinct[:, 1 + draws :])
    return ratios[place.reshape(-1)].reshape(*nights.shape, -1)


def _log_ratios(nights: Counts, below: Counts, tied: Counts) -> Floats:
    """(..., alternatives) of nights (...), and those below each draw and tied with it (..., K)."""
    # From the other end: draws in falling order, nights above each.
    above = (nights[..., None] - below - tied)[..., ::-1]
    sides = [(exponent, below, tied) for exponent in _EXPONENTS]
    sides += [(1 / exponent, above, tied[..., ::-1]) for exponent in _EXPONENTS]
    return np.stack([_of_one(nights, *side) for side in sides], -1)


def _of_one(nights: Counts, exponent: float, below: Counts, tied: Counts) -> Floats:
    draws, most = below.shape[-1], int(nights.max(initial=0))
    constants, terms = _tables(draws, _room(most), exponent)
    sums = np.cumsum(np.pad(np.exp(-terms), ((0, 0), (1, 0))), 1)
    each = np.arange(draws)
    # A draw that ties with some nights stands before, between or after them, each with equal weight.
    means = (sums[each, below + tied + 1] - sums[each, below]) / (tied + 1)
    logs = np.asarray(constants[nights] + np.log(means).sum(-1))
    equal = (tied[..., 1:] > 0) & (tied[..., 1:] == tied[..., :-1]) & (below[..., 1:] == below[..., :-1])
    rows = equal.any(-1)
    if rows.any():
        cases = zip(below[rows], tied[rows], strict=True)
        logs[rows] = constants[nights[rows]] + np.array([_over_ties(*case, exponent) for case in cases])
    return logs


def _room(nights: int) -> int:
    """Nights that a table is made for, so that few are made."""
    return int(2 ** max(1, nights).bit_length())


@cache
def _tables(draws: int, most: int, exponent: float) -> tuple[Floats, Floats]:
    """Parts of the ratio: a constant by the number of nights, and a term of each draw by the nights below it.

    Going through all figures from the smallest on, each one adds its weight, 1 of the baseline and theta of a
    night, to a sum S; the ratio is theta^nights times the product of (place / S).
    """
    counts = np.arange(most + 1)
    sums = np.stack([_log_sums(draw, counts, exponent) for draw in range(draws + 1)])
    terms = sums[:-1] - sums[1:] + np.log(np.arange(1, draws + 1)[:, None] + exponent * counts)
    constants = counts * math.log(exponent) + gammaln(draws + counts + 1) - sums[-1]
    return constants, terms


def _log_sums(draw: int, counts: Counts, exponent: float) -> Floats:
    """Sum of log(draw + exponent * m) for m = 1..count, of every count."""
    return np.concatenate([[0.0], np.cumsum(np.log(draw + exponent * counts[1:]))])


def _over_ties(below: Counts, tied: Counts, exponent: float) -> float:
    """Logarithm of the mean, over all orders of equal figures, of exp(- sum of terms)."""
    total, draw, draws = 0.0, 0, len(below)
    while draw < draws:
        last = draw + 1  # draws that tie with the same nights are equal themselves
        while tied[draw] and last < draws and below[last] == below[draw] and tied[last] == tied[draw]:
            last += 1
        total += _over_one_tie(exponent, draw, last, int(below[draw]), int(tied[draw]))
        draw = last
    return total


@lru_cache(2**17)
def _over_one_tie(exponent: float, draw: int, last: int, below: int, tied: int) -> float:
    """The same for equal draws, of so many nights below them and tied with them."""
    _, every = _tables(last, _room(below + tied), exponent)
    terms = every[draw:, below : below + tied + 1]
    smallest = terms.min(1, keepdims=True)
    factors = np.exp(smallest - terms)
    paths = factors[0]
    for row in factors[1:]:
        paths = np.cumsum(paths) * row
    orders = math.comb(last - draw + tied, tied)
    return float(math.log(paths.sum()) - math.log(orders) - smallest.sum())
