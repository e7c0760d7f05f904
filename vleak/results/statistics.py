"""Confidence intervals over clips, and when there are too few clips for one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import betainc, betaincinv, stdtrit

from vleak.errors import InputError

__all__ = [
    "MIN_CLIPS",
    "Interval",
    "Refusal",
    "binomial_excess",
    "binomial_interval",
    "difference_interval",
    "mean_interval",
]

Refusal = Literal["no_clips", "few_clips"]
"""Reason why there is no interval: no value at all, or fewer than ``MIN_CLIPS``."""

MIN_CLIPS = 8
"""Fewest clips for an interval of a mean: on real clips a nominal 95 % held 88 % at 5."""


@dataclass(frozen=True)
class Interval:
    """Mean or share with its confidence interval.

    Attributes:
        mean: the estimate, None without a value.
        low: lower end, None when the interval is refused.
        high: upper end, None when the interval is refused.
        n: number of clips (not frames, not seeds).
        reason: why there is no interval; None where there is one.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    reason: Refusal | None = None


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean over clips with Student's t interval.

    Args:
        values: one number a clip; frames of one clip are not independent and must be averaged before.
        confidence: nominal coverage in (0, 1).

    Returns:
        The interval; below ``MIN_CLIPS`` values the mean alone, with the reason.

    Raises:
        InputError: a value is NaN or infinite, or the confidence is not in (0, 1).
    """
    _check_confidence(confidence)
    if not all(math.isfinite(value) for value in values):
        raise InputError("mean_interval: a value is NaN or infinite; leave failed cells out before averaging")
    n = len(values)
    if n == 0:
        return Interval(None, None, None, 0, "no_clips")
    mean = math.fsum(values) / n
    if n < MIN_CLIPS:
        return Interval(mean, None, None, n, "few_clips")
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * spread / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def difference_interval(
    values: Sequence[float], others: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Difference of the means of two samples of other clips, with Welch's interval (1947, Biometrika 34).

    Args:
        values, others: one number a clip. The difference is the mean of the first less that of the second.
        confidence: nominal coverage in (0, 1).

    Returns:
        The interval, ``n`` that of the smaller sample; below ``MIN_CLIPS`` values the difference alone.

    Raises:
        InputError: as `mean_interval`.
    """
    one, other = mean_interval(values, confidence), mean_interval(others, confidence)
    n = min(one.n, other.n)
    if one.mean is None or other.mean is None:
        return Interval(None, None, None, 0, "no_clips")
    change = one.mean - other.mean
    if n < MIN_CLIPS:
        return Interval(change, None, None, n, "few_clips")
    parts = [_squared_error(sample) for sample in (values, others)]
    total = math.fsum(parts)
    if total == 0:
        return Interval(change, change, change, n)
    lengths = (len(values), len(others))
    freedom = total**2 / math.fsum(p**2 / (m - 1) for p, m in zip(parts, lengths, strict=True))
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * math.sqrt(total)
    return Interval(change, change - half, change + half, n)


def _squared_error(values: Sequence[float]) -> float:
    """Squared standard error of a mean."""
    n = len(values)
    mean = math.fsum(values) / n
    return math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n


def binomial_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Share of successes with the exact interval (Clopper and Pearson 1934, Biometrika 26).

    Exact at any n: the coverage is at least the nominal one, so no count is refused but zero.

    Args:
        successes: number of clips that were recognised, 0 to n.
        n: number of clips.
        confidence: nominal coverage in (0, 1).

    Raises:
        InputError: successes outside 0..n, or the confidence is not in (0, 1).
    """
    _check_confidence(confidence)
    if not 0 <= successes <= n:
        raise InputError(f"binomial_interval: {successes} successes of {n}; expected 0 <= successes <= n")
    if n == 0:
        return Interval(None, None, None, 0, "no_clips")
    tail = (1 - confidence) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return Interval(successes / n, low, high, n)


def binomial_excess(successes: int, n: int, share: float) -> float:
    """Return the probability of so many successes or more of n, each of them with a probability of ``share``.

    Where the probabilities differ and ``share`` is their mean, more than n * share + 1 successes are less
    likely still (Hoeffding 1956, Annals of Mathematical Statistics 27), so that the test holds.

    Args:
        successes: 0 to n.
        n: number of trials.
        share: in [0, 1].

    Raises:
        InputError: a number is out of its range.
    """
    if not 0 <= successes <= n or not 0 <= share <= 1:
        raise InputError(
            f"binomial_excess: {successes} successes of {n} at a share of {share}; expected 0 <= successes "
            "<= n and a share from 0 to 1"
        )
    return float(betainc(successes, n - successes + 1, share)) if successes else 1.0


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence}: expected a number between 0 and 1, such as 0.95")
