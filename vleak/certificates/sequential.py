"""Sequential tests of a privacy claim: e-values that may be looked at after every draw.

An e-value is the wealth of a bettor against the claim who started with 1: while the claim is true his wealth
is not expected to grow, whenever he stops, so that it ever reaches 20 has a probability of at most 1/20
(Ville's inequality; Ramdas et al., Statistical Science 2023, arXiv 2210.01948).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import log_ndtr, ndtr

from vleak.errors import InputError

__all__ = ["CurveTest", "NoiseTest"]

# Pairs before the first bet, and pairs between two choices of the threshold.
_FIRST_PAIRS, _CHOICE_EVERY = 10, 10
# Parts of the wealth that a pair can lose, and pairs after which half of the best bet is dared.
_STAKES, _CAUTION = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.9]), 10.0
_SHRINKAGES = (0.95, 0.8, 0.5, 0.1, 0.001)


class CurveTest:
    """E-value against "the trade-off curve is at least the Gaussian one of this noise multiplier".

    Each pair of scores, one of a draw with the canary in the batch and one without, is bet on at a threshold
    t that earlier pairs choose. With ``G(a) = Phi(Phi^-1(a) + mu)``, the largest true positive rate under the
    claim, and its tangent ``G(a0) + k (a - a0)`` above it, the claim implies that
    ``[in >= t] - k [out >= t] - (G(a0) - k a0)`` has a mean of at most 0; so it is a bet that is not in the
    bettor's favour. Nothing else is assumed, of the scores least of all. (Betting on bounded means:
    Waudby-Smith and Ramdas, JRSS-B 2024, arXiv 2010.09686; trade-off curves: Dong, Roth and Su, arXiv
    1905.02383; sequential audits by e-values: arXiv 2509.07055.)
    """

    def __init__(self, noise_multiplier: float) -> None:
        """Take the claim: noise standard deviation over clipping norm, above 0.

        Raises:
            InputError: it is out of its range.
        """
        _positive("noise_multiplier", noise_multiplier)
        mu = 1.0 / noise_multiplier
        # Points of the tangents; beyond 600 / mu a slope would overflow.
        quantiles = np.linspace(-min(4.0, 600 / mu), 1.0, 21) - mu / 2
        logarithms = -mu * (mu / 2 + quantiles)
        self._slopes = np.exp(logarithms)
        self._offsets = ndtr(quantiles + mu) - np.exp(logarithms + log_ndtr(quantiles))
        # A pair loses at most slope + offset of the stake.
        self._stakes = 1 / (self._slopes + self._offsets)
        self._pairs, self._sums, self._squares = 0, np.zeros(2), np.zeros(2)
        self._bet = (0.0, 0.0, 0.0, 0.0)
        self.log_e = 0.0
        """Logarithm of the e-value so far."""

    def observe(self, inside: float, outside: float) -> float:
        """Bet on a pair of scores, and return the logarithm of the e-value after it."""
        if self._pairs >= _FIRST_PAIRS:
            if self._pairs % _CHOICE_EVERY == 0:
                self._bet = self._choose()
            stake, threshold, slope, offset = self._bet
            won = float(inside >= threshold) - slope * float(outside >= threshold) - offset
            self.log_e += math.log1p(stake * won)
        pair = np.array([inside, outside])
        self._pairs, self._sums, self._squares = self._pairs + 1, self._sums + pair, self._squares + pair**2
        return self.log_e

    def _choose(self) -> tuple[float, float, float, float]:
        """Return (stake, threshold, slope, offset) with the fastest growth for Gaussians of one deviation.

        The point of the tangent is chosen with them: far out the slope, and with it the loss, is steep.
        """
        means = self._sums / self._pairs
        variance = np.maximum(self._squares / self._pairs - means**2, 1e-12 * (1 + means**2)).mean()
        deviation = math.sqrt(variance)
        thresholds = np.linspace(means.min() - 2 * deviation, means.max() + 2 * deviation, 41)
        true, false = (ndtr((mean - thresholds) / deviation)[:, None, None] for mean in means)
        slopes, offsets, stakes = (
            array[None, :, None] for array in (self._slopes, self._offsets, self._stakes)
        )
        stakes = _STAKES * stakes
        growth = (
            true * false * np.log1p(stakes * (1 - slopes - offsets))
            + true * (1 - false) * np.log1p(stakes * (1 - offsets))
            + (1 - true) * false * np.log1p(-stakes * (slopes + offsets))
            + (1 - true) * (1 - false) * np.log1p(-stakes * offsets)
        )
        t, tangent, part = np.unravel_index(int(growth.argmax()), growth.shape)
        stake = float(stakes[0, tangent, part]) * self._pairs / (self._pairs + _CAUTION)
        if growth.max() <= 0:
            stake = 0.0
        return stake, float(thresholds[t]), float(self._slopes[tangent]), float(self._offsets[tangent])


class NoiseTest:
    """E-value against "the noise is Gaussian, with at least this standard deviation".

    The mean of the likelihood ratios of some smaller deviations. Each ratio falls with ``|value|``, so that
    its mean under a larger deviation, or around another mean than 0, is smaller still: it is an e-value for
    all of them.
    """

    def __init__(self, deviation: float) -> None:
        """Take the claim, a standard deviation above 0.

        Raises:
            InputError: it is out of its range.
        """
        _positive("deviation", deviation)
        self._deviation, self._ratios = deviation, np.zeros(len(_SHRINKAGES))

    def observe(self, noise: float) -> float:
        """Take a draw of noise that the batch adds nothing to; return the logarithm of the e-value so far."""
        shrinkages = np.array(_SHRINKAGES)
        self._ratios = (
            self._ratios - np.log(shrinkages) - (noise / self._deviation) ** 2 / 2 * (shrinkages**-2 - 1)
        )
        return self.log_e

    @property
    def log_e(self) -> float:
        """Logarithm of the e-value so far."""
        return float(np.logaddexp.reduce(self._ratios)) - math.log(len(_SHRINKAGES))


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{name} is {value}, expected a finite number above 0")
