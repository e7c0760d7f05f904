"""Lower bounds on epsilon, from the scores of two worlds: one with a canary in the batch, one without.

A defense that is (epsilon, delta)-private keeps every test of the two worlds from being too good; a test
that is better refutes it. Each bound holds with the stated confidence if its assumption does:

- `clopper_pearson_bound`: for any mechanism;
- `gaussian_dp_bound`: the trade-off curve is at least that of some Gaussian mechanism, as of clipped sums
  with Gaussian noise, whatever is computed from them;
- `gaussian_bound`: the scores themselves are Gaussian, with one deviation in both worlds.

The stronger the assumption, the nearer the bound comes to the true epsilon with the same number of draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, chdtri, ndtr, ndtri

from vleak.certificates.gaussian import gaussian_epsilon
from vleak.errors import InputError

__all__ = [
    "ASSUMPTIONS",
    "LEAST_DRAWS",
    "METHODS",
    "LowerBound",
    "clopper_pearson_bound",
    "gaussian_bound",
    "gaussian_dp_bound",
    "least_draws",
    "lower_bounds",
]

ASSUMPTIONS = {
    "clopper-pearson": "none",
    "gaussian-dp": "the trade-off curve is that of a Gaussian mechanism, or better",
    "gaussian": "the scores are Gaussian, with one deviation in both worlds",
    "gaussian-known": "the scores are Gaussian, with the given deviation in both worlds",
}
"""What each bound assumes of the mechanism, by the name of its method."""

METHODS = 3
"""Number of bounds that `lower_bounds` returns, among which a failure probability is shared."""

LEAST_DRAWS = 20
"""Fewest scores of each world: of fewer, a tenth does not choose a threshold."""

Scores = NDArray[np.float64]
# Part of the scores that chooses the threshold, and with which no bound is computed.
_PILOT = 0.1
_NODES = 4000


@dataclass(frozen=True)
class LowerBound:
    """Lower bound on epsilon.

    Attributes:
        epsilon: in nats, at least 0; infinity where the scores of both worlds do not vary and differ.
        delta: at which epsilon is bounded.
        confidence: probability of a true bound, in (0, 1).
        method: a key of `ASSUMPTIONS`.
        draws: scores of the world that has fewer.
        threshold: score from which on the test says "in"; None where there is no threshold.
    """

    epsilon: float
    delta: float
    confidence: float
    method: str
    draws: int
    threshold: float | None = None

    @property
    def assumption(self) -> str:
        """What has to hold of the mechanism for the bound to hold."""
        return ASSUMPTIONS[self.method]


def least_draws(confidence: float) -> int:
    """Return how many scores of each world a bound above 0 needs, however well they are told apart.

    Tests at a threshold prove nothing before the limits of Clopper and Pearson on two rates, of which no
    error was seen, are below one half; a tenth of the scores chooses the threshold.

    Args:
        confidence: of one bound, in (0, 1).

    Raises:
        InputError: it is out of its range.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}, expected a number between 0 and 1")
    counted = math.floor(math.log2(2 / (1 - confidence))) + 1
    return max(LEAST_DRAWS, math.ceil(counted / (1 - _PILOT)) + 1)


def lower_bounds(inside: ArrayLike, outside: ArrayLike, delta: float, confidence: float) -> list[LowerBound]:
    """Return the bounds that need no knowledge of the scores, the least assuming first.

    Args:
        inside, outside: (n,) and (m,), as of `clopper_pearson_bound`.
        delta: failure probability of the guarantee, in (0, 1).
        confidence: of each bound by itself, in (0, 1).

    Raises:
        InputError: too few scores, scores that are not finite, or a number out of its range.
    """
    bounds = (clopper_pearson_bound, gaussian_dp_bound, gaussian_bound)
    return [bound(inside, outside, delta, confidence) for bound in bounds]


def clopper_pearson_bound(
    inside: ArrayLike, outside: ArrayLike, delta: float, confidence: float = 0.95
) -> LowerBound:
    """Return a lower bound on epsilon that holds for any mechanism.

    The test "canary in where the score is at least t" has true positive rate at most
    ``e^epsilon FPR + delta``, and likewise with the worlds exchanged (Jagielski, Ullman and Oprea, NeurIPS
    2020, arXiv 2006.07709; Nasr et al., S&P 2021, arXiv 2101.04535). A tenth of the scores chooses t; the
    rates of the others are bounded by Clopper and Pearson, each with half of the failure probability.
    However many draws, it stays below ``log(draws)``.

    Args:
        inside: (n,) scores of independent draws with the canary in the batch; larger says "in".
        outside: (m,) scores of independent draws with its contribution replaced by zero.
        delta: failure probability of the guarantee, in (0, 1).
        confidence: in (0, 1).

    Raises:
        InputError: fewer than 20 scores, scores that are not finite, or a number out of its range.
    """
    first, second = _checked(inside, outside, delta, confidence)

    def epsilon(false_positive: Scores, false_negative: Scores) -> Scores:
        # A rate that leaves nothing above delta proves nothing.
        with np.errstate(divide="ignore"):
            forward = np.log(np.clip(1 - false_negative - delta, 0, None)) - np.log(false_positive)
            backward = np.log(np.clip(1 - false_positive - delta, 0, None)) - np.log(false_negative)
        larger: Scores = np.maximum(forward, backward)
        return larger

    found, threshold = _at_a_threshold(first, second, confidence, epsilon)
    draws = min(len(first), len(second))
    return LowerBound(max(0.0, found), delta, confidence, "clopper-pearson", draws, threshold)


def gaussian_dp_bound(
    inside: ArrayLike, outside: ArrayLike, delta: float, confidence: float = 0.95
) -> LowerBound:
    """Return a lower bound on epsilon of a mechanism whose trade-off curve is a Gaussian one.

    Rates of a threshold's test as in `clopper_pearson_bound`; by Dong, Roth and Su (JRSS-B 2022, arXiv
    1905.02383) a mu-GDP mechanism has ``Phi^-1(1 - FPR) - Phi^-1(FNR) <= mu``, and mu has its epsilon at
    delta (Nasr et al., USENIX Security 2023, arXiv 2302.07956). Scores may be any function of what was sent.
    Of a mechanism that is private, but less than every Gaussian one with these rates, the bound is not true.

    Args and raises are those of `clopper_pearson_bound`.
    """
    first, second = _checked(inside, outside, delta, confidence)
    mu, threshold = _at_a_threshold(first, second, confidence, lambda fpr, fnr: -ndtri(fpr) - ndtri(fnr))
    draws = min(len(first), len(second))
    return LowerBound(_epsilon_of(mu, delta), delta, confidence, "gaussian-dp", draws, threshold)


def gaussian_bound(
    inside: ArrayLike,
    outside: ArrayLike,
    delta: float,
    confidence: float = 0.95,
    deviation: float | None = None,
) -> LowerBound:
    """Return a lower bound on epsilon of a mechanism with Gaussian scores, as of a projection of noise.

    The bound is that of mu, the difference of the means over the deviation: exact from the noncentral t
    distribution, or the normal one where the deviation is known. Take a deviation as known where it was
    measured apart; one that is only claimed makes the bound repeat the claim.

    Args:
        inside, outside, delta, confidence: as of `clopper_pearson_bound`.
        deviation: standard deviation of a score in either world, above 0; None to estimate it.

    Raises:
        InputError: as `clopper_pearson_bound`, or a deviation that is none.
    """
    first, second = _checked(inside, outside, delta, confidence)
    draws, scale = min(len(first), len(second)), math.sqrt(1 / len(first) + 1 / len(second))
    gap = float(first.mean() - second.mean())
    if deviation is not None:
        if not 0 < deviation < math.inf:
            raise InputError(f"deviation is {deviation}, expected a finite number above 0, or None")
        mu = gap / deviation - float(ndtri(confidence)) * scale
        return LowerBound(_epsilon_of(mu, delta), delta, confidence, "gaussian-known", draws)
    freedom = len(first) + len(second) - 2
    pooled = math.sqrt(
        (np.square(first - first.mean()).sum() + np.square(second - second.mean()).sum()) / freedom
    )
    if pooled == 0:
        mu = math.inf if gap > 0 else 0.0
    else:
        mu = scale * _noncentrality(gap / (pooled * scale), freedom, confidence)
    return LowerBound(_epsilon_of(mu, delta), delta, confidence, "gaussian", draws)


def _epsilon_of(mu: float, delta: float) -> float:
    """Return the epsilon at delta of a mu-GDP mechanism."""
    if mu <= 0:
        return 0.0
    return math.inf if mu == math.inf else gaussian_epsilon(1 / mu, delta)


def _checked(inside: ArrayLike, outside: ArrayLike, delta: float, confidence: float) -> tuple[Scores, Scores]:
    for name, value in (("delta", delta), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"{name} is {value}, expected a number between 0 and 1")
    return _scores("inside", inside), _scores("outside", outside)


def _scores(name: str, values: ArrayLike) -> Scores:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) < LEAST_DRAWS:
        raise InputError(
            f"scores {name}: expected one axis of at least {LEAST_DRAWS} draws, got shape {scores.shape}; "
            "draw more (1,000 a side say something, 5,000 nearly all)"
        )
    if not np.isfinite(scores).all():
        raise InputError(f"scores {name} hold NaN or infinity; a message that is not finite has no score")
    return scores


def _at_a_threshold(
    inside: Scores, outside: Scores, confidence: float, value: Callable[[Scores, Scores], Scores]
) -> tuple[float, float]:
    """Return a lower bound on what a threshold's test proves by its (FPR, FNR), and the threshold.

    The threshold is chosen on the first tenth, by what it and two Gaussians fitted to it let expect of the
    others; a bad choice costs strength, not validity.
    """
    failure = (1 - confidence) / 2
    a, b = math.ceil(_PILOT * len(inside)), math.ceil(_PILOT * len(outside))
    pilot, other, inside, outside = inside[:a], outside[:b], inside[a:], outside[b:]
    thresholds = np.linspace(min(pilot.min(), other.min()), max(pilot.max(), other.max()), 61)
    least = 1e-9 * (thresholds[-1] - thresholds[0]) + 1e-300
    # The fit reaches into tails that a tenth has no scores in; the counts hold where it is bad.
    positive = ndtr((other.mean() - thresholds) / max(other.std(), least))
    positive = np.maximum(positive, (other >= thresholds[:, None]).mean(1))
    negative = ndtr((thresholds - pilot.mean()) / max(pilot.std(), least))
    negative = np.maximum(negative, (pilot < thresholds[:, None]).mean(1))
    expected = value(
        _upper(positive * len(outside), len(outside), failure),
        _upper(negative * len(inside), len(inside), failure),
    )
    threshold = float(thresholds[int(np.argmax(expected))])
    rates = (
        _upper(np.sum(outside >= threshold), len(outside), failure),
        _upper(np.sum(inside < threshold), len(inside), failure),
    )
    return float(value(*rates)), threshold


def _upper(events: ArrayLike, trials: int, failure: float) -> Scores:
    """Return the one-sided upper limit of Clopper and Pearson on the probability of an event."""
    events = np.minimum(np.asarray(events, dtype=np.float64), trials)
    limit = betaincinv(events + 1, np.maximum(trials - events, 1e-300), 1 - failure)
    upper: Scores = np.where(events < trials, limit, 1.0)
    return upper


@lru_cache(maxsize=8)
def _chi_nodes(freedom: int) -> Scores:
    """Return quantiles of chi over the root of its degrees of freedom, at equal steps of probability."""
    nodes: Scores = np.sqrt(chdtri(freedom, 1 - (np.arange(_NODES) + 0.5) / _NODES) / freedom)
    return nodes


def _noncentrality(t: float, freedom: int, confidence: float) -> float:
    """Return the lower confidence limit of the noncentrality of a t statistic."""
    nodes = t * _chi_nodes(freedom)

    def excess(noncentrality: float) -> float:
        return float(ndtr(noncentrality - nodes).mean()) - (1 - confidence)

    reach = 10.0 + abs(t) * 10 / math.sqrt(freedom)
    return float(brentq(excess, t - reach, t + reach, xtol=1e-9 * (1 + abs(t))))
