"""E-values of privacy claims: how often a true claim is refuted at any stop, and how soon a false one is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vleak.certificates import CurveTest, NoiseTest
from vleak.errors import InputError


def curve_stop(claimed: float, deviation: float, seed: int, most: int, gap: float = 1.0) -> int:
    """Return after how many pairs the e-value reached 20; ``most`` where it did not."""
    numbers, test = np.random.default_rng(seed), CurveTest(claimed)
    for pair in range(1, most):
        inside, outside = gap + deviation * numbers.normal(), deviation * numbers.normal()
        if test.observe(inside, outside) >= math.log(20):
            return pair
    return most


def noise_stop(deviation: float, seed: int, most: int, mean: float = 0.0) -> int:
    numbers, test = np.random.default_rng(seed), NoiseTest(2.0)
    return next(
        (
            draw
            for draw in range(1, most)
            if test.observe(mean + deviation * numbers.normal()) >= math.log(20)
        ),
        most,
    )


@pytest.mark.parametrize(
    "noise", [pytest.param(0.25, marks=pytest.mark.slow), 1.0, pytest.param(3.0, marks=pytest.mark.slow)]
)
def test_true_curve_survives_looking_after_every_pair(noise: float) -> None:
    alarms = sum(curve_stop(noise, noise, seed, 250) < 250 for seed in range(200))
    assert alarms <= 0.05 * 200


def test_true_curve_of_another_mechanism_survives() -> None:
    # Scores that grow in jumps: a coarse function of what was sent is no less private.
    for seed in range(40):
        numbers, test = np.random.default_rng(seed), CurveTest(1.0)
        pairs = np.round(numbers.normal((1.0, 0.0), size=(250, 2)))
        assert max(test.observe(*pair) for pair in pairs) < math.log(200)


@pytest.mark.parametrize(("noise", "median"), [(0.25, 300), (0.5, 250), (1.0, 500)])
def test_four_fifths_of_the_noise_break_the_curve(noise: float, median: int) -> None:
    assert np.median([curve_stop(noise, 0.8 * noise, seed, 1500) for seed in range(21)]) <= median


def test_gross_violations_break_the_curve_at_once() -> None:
    assert curve_stop(1.0, 0.5, 0, 500) < 120
    assert curve_stop(1.0, 0.0, 0, 500) < 40  # no noise at all


def test_a_claim_of_hardly_any_noise_is_beyond_counting() -> None:
    assert curve_stop(1e-3, 1e-5, 0, 200) == 200


@pytest.mark.parametrize(
    ("deviation", "mean"),
    [
        (2.0, 0.0),
        pytest.param(2.5, 0.0, marks=pytest.mark.slow),
        pytest.param(2.0, 1.0, marks=pytest.mark.slow),
    ],
)
def test_noise_of_the_claimed_deviation_survives(deviation: float, mean: float) -> None:
    alarms = sum(noise_stop(deviation, seed, 500, mean) < 500 for seed in range(200))
    assert alarms <= 0.05 * 200


def test_four_fifths_of_the_noise_are_found_within_five_hundred_draws() -> None:
    stops = [noise_stop(1.6, seed, 1000) for seed in range(200)]
    assert max(stops) <= 500
    assert np.median(stops) <= 120
    assert noise_stop(0.0, 0, 50) <= 3


def test_e_values_are_not_expected_to_grow() -> None:
    # The mean of e-values of a true claim is at most 1; a tenth is four standard errors and more.
    ends = []
    for seed in range(2000):
        numbers, test = np.random.default_rng(seed), NoiseTest(1.0)
        ends.append(math.exp([test.observe(value) for value in numbers.normal(size=3)][-1]))
    assert 0.3 < np.mean(ends) < 1.1


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_refusals(value: float) -> None:
    with pytest.raises(InputError, match="noise_multiplier is"):
        CurveTest(value)
    with pytest.raises(InputError, match="deviation is"):
        NoiseTest(value)
