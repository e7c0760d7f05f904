"""Evidence over the nights of a year: e-processes from every night on, and when they alarm.

Every test and every night of a year begins an e-process of its own, so that a change late in the year is
found as
soon as an early one. An e-process ever reaches 1 / a with a chance of at most a (Ville's inequality), so that
with ``a = alarm / (tests * nights)`` there is any false alarm in a year with a chance of at most ``alarm``: a
union, which asks nothing of how tests and nights depend on each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from vleak.regression.ratios import Counts, Floats, Ranks, log_e_values
from vleak.regression.records import Promise

__all__ = [
    "ALARM",
    "YEAR",
    "Standing",
    "bound_log_e_values",
    "enough_samples",
    "promise",
    "soonest",
    "standing",
]

ALARM, YEAR = 0.05, 365
"""Chance of any false alarm in so many nights."""

_EVERY_NIGHT, _WEEK = 28, 7
"""Nights back to which every start is kept; of earlier ones one a week is."""
_STAKES = (0.25, 0.5, 0.75)
"""Parts of the wealth that are bet against a certificate."""
_MOST_SAMPLES = 100


@dataclass(frozen=True)
class Standing:
    """Where a test stands after a night.

    Attributes:
        log_e: logarithm of the largest e-value. start: position of the night that it begins with.
        opened: position of the first night that later evidence may begin with.
        alarm: whether an alarm is in force.
    """

    log_e: float
    start: int
    opened: int
    alarm: bool


def promise(tests: int) -> Promise:
    """Promise for so many tests a night, at least one."""
    threshold = math.log(tests * YEAR / ALARM)
    return Promise(alarm=ALARM, nights=YEAR, tests=tests, log_threshold=threshold)


def starts(nights: int, opened: int) -> Counts:
    """Positions of the nights that evidence on so many nights begins with; the last is always among them."""
    return np.array(
        [start for start in range(opened, nights) if nights - start <= _EVERY_NIGHT or start % _WEEK == 0],
        dtype=np.int64,
    )


def standing(
    values: Floats, begun: Counts, *, threshold: float, alarm: bool, opened: int, counts: bool = True
) -> Standing:
    """Judge the e-values of a night.

    An alarm needs the evidence, and a night that by itself points the same way. It stays in force until a
    night does not; evidence then begins anew, as the level is back.

    Args:
        values: (S,) logarithms of e-values. begun: (S,) the nights that they begin with; the last one is
            tonight.
        threshold: logarithm of the e-value that alarms.
        alarm, opened: of the night before.
        counts: whether tonight's difference is one that counts.
    """
    best, alone = int(values.argmax()), float(values[-1])
    reached = bool(values[best] >= threshold) and counts
    now = (reached or alarm) and alone > 0
    if alarm and not now:
        opened = int(begun[-1]) + 1
    return Standing(float(values[best]), int(begun[best]), opened, now)


def bound_log_e_values(shares: Floats, samples: int, bound: float, begun: Counts) -> Floats:
    """Logarithms of e-values against "a share of at most ``bound`` is expected every night".

    A bet on each sample of a night (Waudby-Smith and Ramdas, JRSS-B 2024, arXiv 2010.09686); the mean over
    samples is bounded, not each one, which by the inequality of means is enough.

    Args:
        shares: (nights,) of samples that were identified. samples: of a night.
        bound: in (0, 1).
        begun: (S,) positions of nights.
    """
    hits = np.round(shares * samples)
    nightly = np.stack(
        [hits * math.log1p(stake * (1 - bound) / bound) + (samples - hits) * math.log1p(-stake)
         for stake in _STAKES]
    )  # fmt: skip
    sums = np.cumsum(nightly[:, ::-1], 1)[:, ::-1][:, begun]
    return np.asarray(np.logaddexp.reduce(sums, axis=0) - math.log(len(_STAKES)))


@cache
def soonest(draws: int, samples: int, threshold: float) -> int | None:
    """Nights until an alarm if every sample is always worse than in every draw; None for over a year."""
    below = np.full((YEAR, samples), draws, dtype=np.int64)
    values = log_e_values(Ranks(below, np.zeros_like(below), draws), np.arange(YEAR))[::-1]
    reached = np.flatnonzero(values >= threshold)
    return int(reached[0]) + 1 if len(reached) else None


def enough_samples(draws: int, threshold: float) -> int | None:
    """Fewest samples with which a test may ever alarm within a year; None for more than anyone has."""
    counts = range(1, _MOST_SAMPLES + 1)
    return next((count for count in counts if soonest(draws, count, threshold) is not None), None)
