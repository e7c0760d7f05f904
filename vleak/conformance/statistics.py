"""Statistical tests of randomness, each with the chance that it rejects what is true."""

from __future__ import annotations

import math

from scipy import stats
from torch import Tensor

__all__ = ["is_binomial", "is_standard_normal", "mean_is_zero"]


def is_standard_normal(rows: Tensor, false_alarm: float) -> str:
    """Return why numbers are not independent and standard normal; empty where nothing speaks against it.

    Looked at are the mean square of every row and of all, the mean, the distribution (Kolmogorov and
    Smirnov), and the correlation of neighbours within a row and of one row with the next.

    Args:
        rows: (K, P), K >= 2 and P >= 2, float64.
        false_alarm: chance in (0, 1) of a reason where there is none, over all of these together.
    """
    each = false_alarm / (len(rows) + 5)
    for row in rows:
        why = _mean_square(row, each, "noise of one message")
        if why:
            return why
    whole = rows.flatten()
    why = _mean_square(whole, each, "noise")
    if why:
        return why
    neighbours, others = rows[:, 1:] * rows[:, :-1], rows[1:] * rows[:-1]
    for numbers, what in ((whole, "mean"), (neighbours, "correlation of entries"), (others, "of messages")):
        z = float(numbers.sum()) / math.sqrt(numbers.numel())
        if 2 * stats.norm.sf(abs(z)) < each:
            return f"the {what} is {z:+.1f} standard errors from 0"
    p = float(stats.kstest(whole.numpy(), "norm").pvalue)
    return f"its distribution is not normal (p = {p:.1g})" if p < each else ""


def mean_is_zero(numbers: Tensor, false_alarm: float) -> str:
    """Return why independent numbers do not have mean zero, by Student's t; empty where they may.

    Args:
        numbers: (K,), K >= 3, float64.
        false_alarm: chance in (0, 1) of a reason where there is none, for numbers that are nearly normal.
    """
    spread = float(numbers.std())
    mean = float(numbers.mean())
    if spread <= 1e-6 * abs(mean):
        return f"is {mean:.2g} in every message"
    t = mean / (spread / math.sqrt(len(numbers)))
    p = 2 * float(stats.t.sf(abs(t), len(numbers) - 1))
    return f"is {t:+.1f} standard errors from 0" if p < false_alarm else ""


def is_binomial(hits: int, draws: int, rate: float, false_alarm: float) -> str:
    """Return why a number of hits does not come from coins of one rate; empty where it may."""
    p = float(stats.binomtest(hits, draws, rate).pvalue)
    return f"{hits} of {draws}, expected {rate:.3g} of them" if p < false_alarm else ""


def _mean_square(numbers: Tensor, false_alarm: float, what: str) -> str:
    total, degrees = float(numbers.square().sum()), numbers.numel()
    p = 2 * min(float(stats.chi2.sf(total, degrees)), float(stats.chi2.cdf(total, degrees)))
    return f"the {what} has {math.sqrt(total / degrees):.3f} of its deviation" if p < false_alarm else ""
