import math

import numpy as np
import pytest
from scipy import stats

from vleak.errors import InputError
from vleak.results.statistics import MIN_CLIPS, binomial_interval, mean_interval


def test_mean_interval_by_hand():
    interval = mean_interval([1, 2, 3, 4, 5, 6, 7, 8, 9])  # mean 5, sd sqrt(7.5), t(8, .975) = 2.306004
    half = 2.306004 * math.sqrt(7.5) / 3
    assert interval.mean == 5.0
    assert interval.low == pytest.approx(5 - half, abs=1e-5)
    assert interval.high == pytest.approx(5 + half, abs=1e-5)
    assert (interval.n, interval.reason) == (9, None)


def test_mean_interval_agrees_with_scipy():
    values = np.random.default_rng(1).normal(size=11)
    low, high = stats.t.interval(0.9, 10, loc=values.mean(), scale=stats.sem(values))
    interval = mean_interval(values.tolist(), confidence=0.9)
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_equal_values_give_a_point():
    interval = mean_interval([0.0] * 8)
    assert (interval.mean, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_too_few_clips_have_a_mean_and_a_reason():
    interval = mean_interval([1.0, 2.0, 6.0])
    assert (interval.mean, interval.low, interval.high, interval.n) == (3.0, None, None, 3)
    assert interval.reason == "few_clips"
    assert mean_interval([1.0] * MIN_CLIPS).reason is None
    assert mean_interval([]).mean is None


def test_nan_is_refused():
    with pytest.raises(InputError, match="NaN"):
        mean_interval([1.0, math.nan] * 8)


def test_binomial_interval_has_known_values():
    interval = binomial_interval(0, 12)
    assert (interval.low, interval.mean) == (0.0, 0.0)
    assert interval.high == pytest.approx(1 - 0.025 ** (1 / 12))
    interval = binomial_interval(12, 12)
    assert interval.low == pytest.approx(0.025 ** (1 / 12))
    assert interval.high == 1.0


@pytest.mark.parametrize(("successes", "n"), [(1, 1), (3, 12), (1, 20), (19, 20), (50, 100)])
def test_binomial_interval_agrees_with_scipy(successes: int, n: int):
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="exact")
    interval = binomial_interval(successes, n)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-10)


def test_binomial_interval_without_clips_and_with_nonsense():
    assert binomial_interval(0, 0).reason == "no_clips"
    for successes, n in ((3, 2), (-1, 2)):
        with pytest.raises(InputError, match="successes"):
            binomial_interval(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_in_per_cent_is_refused(confidence: float):
    with pytest.raises(InputError, match="between 0 and 1"):
        mean_interval([1.0] * 9, confidence)
    with pytest.raises(InputError, match="between 0 and 1"):
        binomial_interval(1, 9, confidence)


@pytest.mark.parametrize("n", [8, 12, 20])
def test_the_t_interval_covers_as_often_as_it_says(n: int):
    draws = np.random.default_rng(n).normal(3.0, 2.0, size=(4000, n)).tolist()
    covered = sum((i := mean_interval(row)).low <= 3.0 <= i.high for row in draws)
    assert abs(covered / 4000 - 0.95) < 0.012  # 3.5 standard errors of the simulation


@pytest.mark.parametrize("share", [1 / 12, 0.35, 0.9])
def test_the_exact_interval_never_covers_less_than_it_says(share: float):
    """Not simulated: the coverage is a finite sum over the twelve clips' outcomes."""
    n = 12
    intervals = [binomial_interval(k, n) for k in range(n + 1)]
    inside = [i.low <= share <= i.high for i in intervals]
    assert stats.binom.pmf(np.arange(n + 1), n, share)[inside].sum() >= 0.95
