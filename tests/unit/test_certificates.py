"""Certificates against 60-digit arithmetic, closed forms and the Bayes-optimal attacker."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from opacus.accountants import GaussianAccountant, PRVAccountant
from scipy.stats import binom

from vleak.certificates.gaussian import (
    gaussian_delta,
    gaussian_epsilon,
    identification_bound,
    replacement_epsilon,
    training_epsilon,
)
from vleak.errors import InputError
from vleak.seeds import generator


@pytest.mark.parametrize(
    ("epsilon", "noise", "delta"),
    [  # Q(e/mu - mu/2) - exp(e) Q(e/mu + mu/2) in 60 digits, mu = 1/noise
        (0.0, 1.0, 0.382924922548026),
        (1.0, 1.0, 0.126936737506644),
        (10.0, 0.5, 9.94020281611815e-6),
        (0.001, 1000.0, 8.33571321252085e-5),
        (5e7, 1e-4, 0.499960105772168),
        (5.01e7, 1e-4, 7.61216611248538e-24),
        (30.0, 1.0, 4.70932631809752e-193),
    ],
)
def test_delta_matches_high_precision(epsilon: float, noise: float, delta: float) -> None:
    assert gaussian_delta(epsilon, noise) == pytest.approx(delta, rel=1e-10)


@pytest.mark.parametrize(
    ("noise", "delta", "epsilon"),
    [  # by bisection in 60 digits
        (1e-4, 1e-5, 50042647.9081524),
        (1e-3, 1e-5, 504263.892920654),
        (1e-2, 0.3, 5051.4426970123),
        (0.1, 1e-5, 91.8172896246637),
        (0.5, 1e-5, 9.9972561464343),
        (1.0, 1e-5, 4.37717809568122),
        (1.3, 1e-5, 3.23879903547342),
        (1.3, 0.3, 0.0),
        (100.0, 1e-9, 0.0488663930157033),
        (1000.0, 1e-5, 0.00193872496986011),
    ],
)
def test_epsilon_matches_high_precision(noise: float, delta: float, epsilon: float) -> None:
    assert gaussian_epsilon(noise, delta) == pytest.approx(epsilon, rel=1e-11, abs=0)


def test_epsilon_and_delta_are_inverse_and_monotone() -> None:
    noises = np.logspace(-4, 3, 57)
    epsilons = [gaussian_epsilon(float(noise), 1e-5) for noise in noises]
    assert all(later < earlier for earlier, later in pairwise(epsilons))
    for noise, epsilon in zip(noises, epsilons, strict=True):
        assert gaussian_delta(epsilon, float(noise)) == pytest.approx(1e-5, rel=1e-6)


def test_releases_compose_like_less_noise() -> None:
    assert gaussian_epsilon(2.0, 1e-5, releases=16) == pytest.approx(gaussian_epsilon(0.5, 1e-5), rel=1e-12)
    assert identification_bound(12, 2.0, releases=4) == pytest.approx(
        identification_bound(12, 1.0), rel=1e-12
    )


def test_no_noise_proves_nothing() -> None:
    assert gaussian_epsilon(0.0, 1e-5) == math.inf
    assert gaussian_delta(5.0, 0.0) == 1.0
    assert identification_bound(12, 0.0) == 1.0
    assert training_epsilon(0.0, 1e-5, 10, 0.1) == (math.inf, "analytic")


def _bayes_hits(signals: torch.Tensor, noise: float, releases: int, draws: int, *seed: object) -> int:
    """Hits of the attacker who knows the N signals (N, d), each of norm 1, and picks the most likely one."""
    random = generator("bayes", noise, releases, *seed)
    truth = torch.randint(len(signals), (draws,), generator=random)
    total = sum(
        signals[truth] + noise * torch.randn(draws, signals.shape[1], generator=random)
        for _ in range(releases)
    )
    likelihood = (total / releases) @ signals.T - signals.square().sum(1) / 2
    return int((likelihood.argmax(1) == truth).sum())


@pytest.mark.parametrize(("noise", "releases"), [(2.0, 1), (1.0, 1), (0.5, 1), (2.0, 4)])
def test_bound_holds_for_the_best_attacker_and_is_not_vacuous(noise: float, releases: int) -> None:
    draws, candidates = 20000, 12
    signals = torch.linalg.qr(torch.randn(30, candidates, generator=generator("signals")))[0].T
    hits = _bayes_hits(signals, noise, releases, draws)
    bound = identification_bound(candidates, noise, releases)
    # True success is at least 0.85 of the bound and 0.014 below it: four standard errors and more.
    assert 0.82 * bound < hits / draws < bound < 0.75
    assert hits / draws > 2 / candidates


@pytest.mark.parametrize(("noise", "releases"), [(2.0, 1), (1.0, 1), (3.0, 4)])
def test_bound_is_reached_by_two_opposite_clips(noise: float, releases: int) -> None:
    draws = 20000
    hits = _bayes_hits(torch.tensor([[1.0], [-1.0]]), noise, releases, draws, "opposite")
    low, high = binom.ppf([1e-6, 1 - 1e-6], draws, identification_bound(2, noise, releases))
    assert low <= hits <= high


def test_bound_runs_from_chance_to_certainty() -> None:
    assert identification_bound(20, 1e6) == pytest.approx(1 / 20, rel=1e-4)
    assert identification_bound(20, 0.01) == 1.0
    assert identification_bound(1, 5.0) == 1.0


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.1), (0.6, 0.02), (2.0, 0.5)])
def test_sampled_round_matches_the_closed_form(noise: float, rate: float) -> None:
    # One round: delta(e) = q delta_gauss(log(1 + (exp(e) - 1)/q)), solved for e.
    exact = math.log1p(rate * math.expm1(gaussian_epsilon(noise, 1e-5 / rate)))
    epsilon, accountant = training_epsilon(noise, 1e-5, 1, rate)
    assert accountant == "prv"
    assert exact <= epsilon <= exact + 0.03


def test_training_epsilon_lies_between_sampling_and_none() -> None:
    epsilon, accountant = training_epsilon(1.0, 1e-5, 100, 0.01)
    assert (epsilon, accountant) == (pytest.approx(0.728, abs=0.001), "prv")
    assert training_epsilon(1.0, 1e-5, 100) == (gaussian_epsilon(0.1, 1e-5), "analytic")


@pytest.mark.parametrize(("noise", "rounds", "rate", "epsilon", "accountant"), [
    (0.6, 1000, 0.02, 14.049, "prv"),  # 15.825 by RDP; without sampling 1,613, which PRV never sees
    pytest.param(0.5, 1000, 0.02, 24.317, "prv", marks=pytest.mark.slow),
    (1.0, 10**9, 0.02, 362595.0, "rdp"),  # a grid of more points than fit a machine
])  # fmt: skip
def test_prv_is_tried_wherever_its_own_losses_fit(
    noise: float, rounds: int, rate: float, epsilon: float, accountant: str
) -> None:
    assert training_epsilon(noise, 1e-5, rounds, rate) == (pytest.approx(epsilon, rel=1e-3), accountant)


def test_replacement_moves_the_sum_twice_as_far() -> None:
    assert replacement_epsilon(1.0, 1e-5) == gaussian_epsilon(0.5, 1e-5) == pytest.approx(10.0, abs=0.01)
    assert replacement_epsilon(0.0, 1e-5) == math.inf
    with pytest.raises(InputError, match="noise_multiplier is -2"):
        replacement_epsilon(-2.0, 1e-5)


def test_training_epsilon_falls_back_to_rdp(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: PRVAccountant, delta: float) -> float:
        raise RuntimeError("Discrete mean differs significantly from continuous mean.")

    training_epsilon.cache_clear()
    monkeypatch.setattr(PRVAccountant, "get_epsilon", refuse)
    assert training_epsilon(1.0, 1e-5, 100, 0.01) == (pytest.approx(1.2141, abs=1e-3), "rdp")
    training_epsilon.cache_clear()


def test_training_epsilon_of_little_noise_neither_overflows_nor_warns() -> None:
    # PRV would overflow on both; where RDP is looser than no sampling at all, the latter is quoted.
    assert training_epsilon(0.1, 1e-5, 100, 0.01) == (pytest.approx(1041.146, abs=0.001), "rdp")
    assert training_epsilon(0.01, 1e-5, 10, 0.01) == (gaussian_epsilon(0.01, 1e-5, 10), "analytic")


def test_gdp_accountant_is_what_we_refuse_to_quote() -> None:
    with pytest.warns(UserWarning, match="underestimate privacy"):
        approximate = GaussianAccountant()
    approximate.history = [(0.6, 0.01, 10)]
    assert training_epsilon(0.6, 1e-5, 10, 0.01)[0] > 2 * approximate.get_epsilon(1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gaussian_epsilon(-1.0, 1e-5), "noise_multiplier is -1.0"),
        (lambda: gaussian_epsilon(math.nan, 1e-5), "noise_multiplier is nan"),
        (lambda: gaussian_epsilon(1.0, 0.0), "delta is 0.0"),
        (lambda: gaussian_epsilon(1.0, 1.0), "delta is 1.0"),
        (lambda: gaussian_epsilon(1.0, 1e-5, 0), "releases is 0"),
        (lambda: gaussian_delta(-0.1, 1.0), "epsilon is -0.1"),
        (lambda: identification_bound(0, 1.0), "candidates is 0"),
        (lambda: identification_bound(12, math.inf), "noise_multiplier is inf"),
        (lambda: training_epsilon(1.0, 1e-5, 10, 0.0), "sample_rate is 0.0"),
        (lambda: training_epsilon(1.0, 1e-5, 10, 1.5), "sample_rate is 1.5"),
    ],
)
def test_refusals(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
