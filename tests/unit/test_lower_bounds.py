"""Lower bounds on epsilon: how often they are true, how near they come, and another library's figures."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import nct

from vleak.certificates import (
    ASSUMPTIONS,
    METHODS,
    LowerBound,
    clopper_pearson_bound,
    gaussian_bound,
    gaussian_dp_bound,
    gaussian_epsilon,
    lower_bounds,
)
from vleak.errors import InputError

DELTA = 1e-5
BOUNDS: dict[str, Callable[..., LowerBound]] = {
    "clopper-pearson": clopper_pearson_bound,
    "gaussian-dp": gaussian_dp_bound,
    "gaussian": gaussian_bound,
    "gaussian-known": lambda *arguments: gaussian_bound(*arguments, deviation=1.0),
}


def worlds(mu: float, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(seed)
    return numbers.normal(mu, 1, draws), numbers.normal(0, 1, draws)


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("mu", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
def test_coverage_of_a_thousand_runs(method: str, mu: float) -> None:
    runs, true = 1000, gaussian_epsilon(1 / mu, DELTA) if mu else 0.0
    misses = sum(BOUNDS[method](*worlds(mu, 200, seed), DELTA, 0.95).epsilon > true for seed in range(runs))
    # The two at thresholds are cautious; the others are exact, 49 and 47 to 49 misses of these runs.
    assert misses <= 0.05 * runs
    if method.startswith("gaussian") and method != "gaussian-dp":
        assert misses > 0.03 * runs


def test_clopper_pearson_covers_a_mechanism_that_is_not_gaussian() -> None:
    # Randomised response: exactly epsilon 1 at delta 0, and no Gaussian curve fits below it at a small delta.
    numbers, keep, misses = np.random.default_rng(0), math.e / (1 + math.e), 0
    for _ in range(300):
        inside, outside = numbers.random(400) < keep, numbers.random(400) >= keep
        misses += clopper_pearson_bound(inside, outside, DELTA).epsilon > 1.0
    assert misses <= 0.05 * 300
    inside, outside = numbers.random(20000) < keep, numbers.random(20000) >= keep
    assert clopper_pearson_bound(inside, outside, DELTA).epsilon > 0.9


@pytest.mark.parametrize("noise", [0.25, 0.5, 1.0])
def test_five_thousand_draws_reach_nine_tenths(noise: float) -> None:
    reached = [
        [
            bound.epsilon / gaussian_epsilon(noise, DELTA)
            for bound in lower_bounds(*worlds(1 / noise, 5000, seed), DELTA, 0.95)
        ]
        for seed in range(20)
    ]
    any_mechanism, curve, scores = np.median(reached, axis=0)
    assert 0.2 < any_mechanism < 0.5
    assert curve > 0.88
    assert scores > 0.95
    assert np.min(reached, axis=0)[2] > 0.9


@pytest.mark.parametrize(
    ("mu", "clopper_pearson", "curve", "all_thresholds"),
    [(1.0, 1.901224842, 3.953660491, 3.694452558), (2.0, 3.901031037, 9.372443371, 9.040044037),
     (4.0, 6.545361928, 22.95264059, 22.26603021)],
)  # fmt: skip
def test_bounds_are_those_of_jax_privacy(
    mu: float, clopper_pearson: float, curve: float, all_thresholds: float
) -> None:
    # By CanaryScoreAuditor of google-deepmind/jax_privacy at 8967688, on the nine tenths of these scores that
    # do not choose the threshold, at that threshold; the last column is its bound over all thresholds.
    outside = ndtri((np.arange(5000) * 1009 % 5000 + 0.5) / 5000)
    inside = outside[::-1] + mu
    assert clopper_pearson_bound(inside, outside, DELTA).epsilon == pytest.approx(clopper_pearson, rel=1e-8)
    assert gaussian_dp_bound(inside, outside, DELTA).epsilon == pytest.approx(curve, rel=1e-8)
    assert curve > all_thresholds


@pytest.mark.parametrize(("mu", "draws"), [(1.0, 30), (1.0, 300), (4.0, 5000)])
def test_gaussian_bound_is_the_limit_of_the_noncentral_t(mu: float, draws: int) -> None:
    inside, outside = worlds(mu, draws, 3)
    found = gaussian_bound(inside, outside, DELTA)
    pooled = math.sqrt((inside.var(ddof=1) + outside.var(ddof=1)) / 2)
    t = (inside.mean() - outside.mean()) / (pooled * math.sqrt(2 / draws))
    freedom, root = 2 * draws - 2, math.sqrt(draws / 2)
    limit = brentq(lambda m: nct.sf(t, freedom, m * root) - 0.05, -1.0, mu + 1)
    assert found.epsilon == pytest.approx(gaussian_epsilon(1 / limit, DELTA), rel=1e-4)


def test_scores_without_noise_prove_as_much_as_the_draws_allow() -> None:
    inside, outside = np.ones(1000), np.zeros(1000)
    any_mechanism, curve, scores = lower_bounds(inside, outside, DELTA, 0.95)
    assert math.log(200) < any_mechanism.epsilon < math.log(1000)
    assert gaussian_epsilon(1 / 5, DELTA) < curve.epsilon < gaussian_epsilon(1 / 6, DELTA)
    assert scores.epsilon == math.inf
    assert [bound.epsilon for bound in lower_bounds(inside, inside, DELTA, 0.95)] == [0.0, 0.0, 0.0]
    assert [bound.epsilon for bound in lower_bounds(outside, inside, DELTA, 0.95)] == [0.0, 0.0, 0.0]


def test_a_claimed_deviation_repeats_the_claim_and_a_measured_one_does_not() -> None:
    inside, outside = worlds(2.0, 2000, 0)  # half of the noise that a clipping norm of 2 and sigma 1 have
    claimed = gaussian_bound(inside / 2, outside / 2, DELTA, deviation=1.0)
    assert claimed.epsilon < gaussian_epsilon(1.0, DELTA) < gaussian_bound(inside, outside, DELTA).epsilon
    assert claimed.method == "gaussian-known"


def test_bounds_name_what_they_assume() -> None:
    bounds = lower_bounds(*worlds(1.0, 100, 0), DELTA, 0.9)
    assert [bound.method for bound in bounds] == ["clopper-pearson", "gaussian-dp", "gaussian"]
    assert len(bounds) == METHODS
    assert all((b.delta, b.confidence, b.draws) == (DELTA, 0.9, 100) for b in bounds)
    assert [bound.assumption for bound in bounds] == [ASSUMPTIONS[bound.method] for bound in bounds]
    assert bounds[0].assumption == "none"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: clopper_pearson_bound(np.zeros(19), np.zeros(30), DELTA),
            "at least 20 draws, got shape \\(19,\\)",
        ),
        (
            lambda: gaussian_dp_bound(np.zeros(30), np.zeros((30, 2)), DELTA),
            "scores outside: expected one axis",
        ),
        (lambda: gaussian_bound(np.full(30, np.nan), np.zeros(30), DELTA), "scores inside hold NaN"),
        (lambda: gaussian_bound(np.zeros(30), np.zeros(30), 0.0), "delta is 0.0"),
        (lambda: gaussian_bound(np.zeros(30), np.zeros(30), DELTA, 1.0), "confidence is 1.0"),
        (lambda: gaussian_bound(np.zeros(30), np.zeros(30), DELTA, deviation=0.0), "deviation is 0.0"),
    ],
)
def test_refusals(call: Callable[[], LowerBound], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
