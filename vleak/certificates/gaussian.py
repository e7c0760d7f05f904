"""Certificates of Gaussian noise: epsilon of a release, and a bound on identifying one clip among N.

``noise_multiplier`` is the standard deviation of the noise divided by the clipping norm. Adjacency is
"zero-out": two batches are neighbours if the contribution of one clip to the sum is replaced by zero, so that
the sensitivity is one clipping norm. The batch size is public and the same for both.
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import erfcx, ndtr, ndtri

from vleak.errors import InputError

# The PRV accountant exponentiates privacy losses, which float64 can do up to e^709.
_PRV_LARGEST_LOSS = 700.0
# Points of its grid: half a gigabyte and some seconds.
_PRV_MOST_POINTS = 6e6
_PRV_EPSILON_ERROR = 0.01  # the default of Opacus


def gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """Return the smallest delta for which one Gaussian release is (epsilon, delta)-private.

    The exact curve of Balle and Wang (ICML 2018, arXiv 1805.06083), Theorem 8 with sensitivity 1.

    Args:
        epsilon: privacy loss in nats, at least 0.
        noise_multiplier: noise standard deviation over clipping norm, at least 0; 0 gives 1.

    Returns:
        delta in [0, 1]; values below 1e-307 are returned as 0.

    Raises:
        InputError: an argument is outside its range.
    """
    _at_least_zero("epsilon", epsilon)
    _at_least_zero("noise_multiplier", noise_multiplier)
    if noise_multiplier == 0:
        return 1.0
    mu = 1.0 / noise_multiplier
    return math.exp(_log_delta(epsilon / mu - mu / 2, mu))


def gaussian_epsilon(noise_multiplier: float, delta: float, releases: int = 1) -> float:
    """Return the smallest epsilon for which Gaussian releases are (epsilon, delta)-private.

    The analytic Gaussian mechanism (Balle and Wang, ICML 2018, arXiv 1805.06083). T releases of the full
    batch compose exactly into one with noise multiplier ``noise_multiplier / sqrt(T)``.

    Args:
        noise_multiplier: noise standard deviation over clipping norm, at least 0; 0 gives infinity.
        delta: failure probability in (0, 1).
        releases: how many noisy messages about the same clip leave, at least 1.

    Returns:
        epsilon in nats, at least 0, correct to about nine digits.

    Raises:
        InputError: an argument is outside its range.
    """
    _at_least_zero("noise_multiplier", noise_multiplier)
    _open_unit("delta", delta)
    _at_least_one("releases", releases)
    if noise_multiplier == 0:
        return math.inf
    mu = math.sqrt(releases) / noise_multiplier
    target = math.log(delta)
    # The unknown is a = epsilon/mu - mu/2, which stays near 0 while epsilon itself reaches 5e7.
    # At a = -40, delta is 1 to all digits; at the upper end it is below half the target.
    low, high = max(-mu / 2, -40.0), math.sqrt(-2.0 * target)
    if _log_delta(low, mu) <= target:
        return 0.0
    a = brentq(lambda value: _log_delta(value, mu) - target, low, high, xtol=1e-13, rtol=1e-14)
    return max(0.0, mu * (float(a) + mu / 2))


def replacement_epsilon(noise_multiplier: float, delta: float, releases: int = 1) -> float:
    """Return epsilon against the other adjacency: one clip is replaced by another, not by zero.

    The sum then moves by up to two clipping norms, so this is `gaussian_epsilon` at half the noise: at noise
    multiplier 1 and delta 1e-5 it is 10.0, where zero-out has 4.38.

    Args:
        noise_multiplier, delta, releases: as of `gaussian_epsilon`.

    Raises:
        InputError: an argument is outside its range.
    """
    _at_least_zero("noise_multiplier", noise_multiplier)
    return gaussian_epsilon(noise_multiplier / 2, delta, releases)


def identification_bound(candidates: int, noise_multiplier: float, releases: int = 1) -> float:
    """Return the highest probability with which any attacker identifies the clip among N equally likely ones.

    ``Phi(Phi^-1(1/N) + sqrt(T)/s)``: each candidate's release is compared with the release that has zero in
    its place through the trade-off curve of the Gaussian mechanism (Dong, Roth and Su, JRSS-B 2022,
    arXiv 1905.02383), and the curve is concave, so the mean over candidates is at most its value at 1/N.
    An attacker who can exclude candidates beforehand (by a granted label, for example) has fewer: pass that
    number.

    Args:
        candidates: N, at least 1.
        noise_multiplier: noise standard deviation over clipping norm, at least 0; 0 bounds nothing (1.0).
        releases: T, how many noisy messages about the same clip leave, at least 1.

    Returns:
        probability in [1/N, 1].

    Raises:
        InputError: an argument is outside its range.
    """
    _at_least_one("candidates", candidates)
    _at_least_zero("noise_multiplier", noise_multiplier)
    _at_least_one("releases", releases)
    if candidates == 1 or noise_multiplier == 0:
        return 1.0
    return float(ndtr(ndtri(1.0 / candidates) + math.sqrt(releases) / noise_multiplier))


@lru_cache(maxsize=64)  # called once a cell, and PRV takes a second
def training_epsilon(
    noise_multiplier: float, delta: float, rounds: int, sample_rate: float = 1.0
) -> tuple[float, str]:
    """Return epsilon of a training run with Poisson-sampled batches, and the accountant that computed it.

    ``sample_rate`` 1 is exact (analytic). Below 1: Opacus' PRV accountant (Gopi et al., NeurIPS 2021,
    arXiv 2106.02848); its RDP accountant where PRV fails, would overflow or would take more than half a
    gigabyte; never the ``gdp`` one, which approximates epsilon from below. Sampling never reduces privacy, so
    the analytic epsilon is an upper bound too, and the smallest of them is returned. The benefit of sampling
    assumes an attacker who cannot infer from the batch size of a round which clips were in it.

    Args:
        noise_multiplier: noise standard deviation over clipping norm, at least 0; 0 gives infinity.
        delta: failure probability in (0, 1).
        rounds: releases in the run, at least 1.
        sample_rate: probability of a clip to be in a round's batch, in (0, 1].

    Returns:
        (epsilon in nats, "analytic" | "prv" | "rdp"). Sampling does not protect against an attacker who
        knows that the clip was in the batch: report ``gaussian_epsilon`` of one release as well.

    Raises:
        InputError: an argument is outside its range.
    """
    if not 0 < sample_rate <= 1:
        raise InputError(f"sample_rate is {sample_rate}, expected a number in (0, 1]; 1 means every round")
    exact = gaussian_epsilon(noise_multiplier, delta, rounds)
    if sample_rate == 1 or exact in (0.0, math.inf):
        return exact, "analytic"
    # Imported here because Opacus takes seconds to import.
    from opacus.accountants import RDPAccountant

    rdp = RDPAccountant()
    rdp.history = [(noise_multiplier, sample_rate, rounds)]
    with warnings.catch_warnings():
        # An optimal order at the end of the list only means a looser bound.
        warnings.filterwarnings("ignore", message="Optimal order is", category=UserWarning)
        found = [(exact, "analytic"), (float(rdp.get_epsilon(delta)), "rdp")]
        # PRV cuts off the privacy losses where RDP leaves a thousandth of delta, and needs a finer grid the
        # more rounds there are.
        largest = float(rdp.get_epsilon(delta / 4000))
        points = 2 * largest / _PRV_EPSILON_ERROR * math.sqrt(rounds * math.log(12000 / delta) / 2)
        if largest < _PRV_LARGEST_LOSS and points < _PRV_MOST_POINTS:
            found.append((_prv_epsilon(noise_multiplier, delta, rounds, sample_rate), "prv"))
    return min(found)


def _prv_epsilon(noise_multiplier: float, delta: float, rounds: int, sample_rate: float) -> float:
    """Return epsilon by Opacus' PRV accountant; infinity where it fails."""
    from opacus.accountants import PRVAccountant

    prv = PRVAccountant()
    prv.history = [(noise_multiplier, sample_rate, rounds)]
    try:
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            epsilon = float(prv.get_epsilon(delta))
    except (ArithmeticError, RuntimeError, ValueError, MemoryError):
        return math.inf  # RDP stands in: looser, but still an upper bound.
    return epsilon if math.isfinite(epsilon) else math.inf


def _log_delta(a: float, mu: float) -> float:
    """Return log of Q(a) - e^epsilon Q(a + mu) at epsilon = mu (a + mu/2), Q the normal upper tail.

    With b = a + mu, e^epsilon Q(b) is computed as exp(-a^2/2) erfcx(b/sqrt 2)/2, since b^2 - a^2 = 2 epsilon;
    this cannot overflow.
    """
    scaled = float(erfcx((a + mu) / math.sqrt(2.0)))
    if a >= 0:
        difference, exponent = (float(erfcx(a / math.sqrt(2.0))) - scaled) / 2, -a * a / 2
    else:
        difference, exponent = float(ndtr(-a)) - 0.5 * math.exp(-a * a / 2) * scaled, 0.0
    return exponent + math.log(difference) if difference > 0 else -math.inf


def _at_least_zero(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise InputError(f"{name} is {value}, expected a finite number that is 0 or more")


def _at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value}, expected a whole number that is 1 or more")


def _open_unit(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} is {value}, expected a number between 0 and 1, such as 1e-5")
