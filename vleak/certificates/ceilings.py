"""Further ceilings: on identification by the bits of a message, and on fidelity by what noise leaves.

Only `fano_bound` holds for every attacker. The others are of attackers who are as they say: without a prior,
or with the prior that is stated. A real attacker knows more of clips than that, and may do better
(arXiv 2403.07588): a figure above one of these accuses nobody.
"""

from __future__ import annotations

import math

from vleak.errors import InputError

__all__ = [
    "cramer_rao_floor",
    "fano_bound",
    "gaussian_bits",
    "no_prior_floor",
    "psnr_ceiling",
    "van_trees_floor",
]


def fano_bound(candidates: int, bits: float) -> float:
    """Return the highest probability of identifying one of N equally likely clips from so many bits.

    Fano's inequality (Cover and Thomas, Elements of Information Theory, 2.10): ``(I + 1) / log2 N``. It
    assumes nothing of attacker or defense but that the message tells at most I bits of the clip.

    Args:
        candidates: N, at least 1.
        bits: I, at least 0; infinity bounds nothing. A message of b bits tells at most b.

    Returns:
        probability in [0, 1], at least 1/N.

    Raises:
        InputError: a number is out of its range.
    """
    if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 1:
        raise InputError(f"candidates is {candidates}, expected a whole number that is 1 or more")
    if not bits >= 0:
        raise InputError(f"bits is {bits}, expected a number that is 0 or more")
    return 1.0 if candidates == 1 else min(1.0, (bits + 1) / math.log2(candidates))


def gaussian_bits(noise_multiplier: float, entries: int, releases: int = 1) -> float:
    """Return how many bits a clipped sum with Gaussian noise tells of one clip, at most.

    Capacity of P parallel Gaussian channels with the power of one clipping norm (Cover and Thomas, 9.4):
    ``T P / 2 log2(1 + 1 / (P s^2))``, below ``0.72 T / s^2`` however large the model is. It assumes that the
    other clips of the batch are known.

    Args:
        noise_multiplier: s, noise standard deviation over clipping norm, at least 0; 0 gives infinity.
        entries: P, of one message, at least 1.
        releases: T, how many messages about the clip leave, at least 1.

    Raises:
        InputError: a number is out of its range.
    """
    _check(noise_multiplier, releases)
    if isinstance(entries, bool) or not isinstance(entries, int) or entries < 1:
        raise InputError(f"entries is {entries}, expected a whole number that is 1 or more")
    if noise_multiplier == 0:
        return math.inf
    return releases * entries / 2 * math.log1p(1 / (entries * noise_multiplier**2)) / math.log(2)


def no_prior_floor(noise_multiplier: float, norm: float, releases: int = 1) -> float:
    """Return the mean squared error of a clip that an attacker without prior is left with by Gaussian noise.

    ``s^2 |x|^2 / T`` (Ziller et al. 2024, arXiv 2402.12861): the best that the model can do for him is to
    send the clip itself, scaled to the clipping norm, and of a Gaussian around it nothing but the message is
    the answer. It assumes that he knows the length of the clip and nothing else of it, not even that its
    numbers lie in [0, 1], and that the clipped gradient moves with the clip no faster than the clip itself
    does. Gradients of networks may move faster: where `cramer_rao_floor` is lower, they do.

    Args:
        noise_multiplier: s, noise standard deviation over clipping norm, at least 0.
        norm: |x|, root of the sum of squares of the clip, above 0.
        releases: T, at least 1.

    Returns:
        expected squared error of one number of the clip.

    Raises:
        InputError: a number is out of its range.
    """
    _check(noise_multiplier, releases)
    _positive("norm", norm)
    return (noise_multiplier * norm) ** 2 / releases


def cramer_rao_floor(information: float) -> float:
    """Return the mean squared error of unbiased attackers, from the Fisher information of the message.

    ``n / tr(J' J / s^2)`` for the Jacobian J of what is sent by the clip: by the inequality of Cramér and Rao
    the error is at least ``tr((J' J / s^2)^-1) / n``, and that is at least this, as the harmonic mean of
    eigenvalues is below the arithmetic one. It assumes an attacker whose answers are right in the mean,
    whatever the clip is, as of one without a prior (Ziller et al. 2024, arXiv 2402.12861).

    Args:
        information: trace of the Fisher information over n, a number of the clip; at least 0.

    Returns:
        expected squared error of one number of the clip; infinity without information.

    Raises:
        InputError: it is out of its range.
    """
    if not 0 <= information < math.inf:
        raise InputError(f"information is {information}, expected a finite number that is 0 or more")
    return math.inf if information == 0 else 1 / information


def van_trees_floor(information: float, variance: float) -> float:
    """Return the mean squared error of any attacker with a stated prior (Bayesian Cramér-Rao).

    The inequality of van Trees (1968; Gill and Levit, Bernoulli 1, 1995) in its trace form:
    ``1 / (E tr(J' J / s^2) / n + 1 / V)``. The prior is Gaussian, its numbers independent of each other and
    of variance V. It holds for all attackers, biased or not, in the mean over clips of that prior; clips are
    smoother than it, which whoever knows more of them makes use of.

    Args:
        information: mean over the prior of the trace of the Fisher information, over n; at least 0.
        variance: V, above 0.

    Returns:
        expected squared error of one number of the clip, at most V.

    Raises:
        InputError: a number is out of its range.
    """
    if not 0 <= information < math.inf:
        raise InputError(f"information is {information}, expected a finite number that is 0 or more")
    _positive("variance", variance)
    return 1 / (information + 1 / variance)


def psnr_ceiling(error: float) -> float | None:
    """Return the PSNR in dB of an expected squared error of clips in [0, 1]; None where it says nothing.

    Args:
        error: at least 0; 0 and infinity say nothing.
    """
    return -10 * math.log10(error) if 0 < error < math.inf else None


def _check(noise_multiplier: float, releases: int) -> None:
    if not 0 <= noise_multiplier < math.inf:
        raise InputError(
            f"noise_multiplier is {noise_multiplier}, expected a finite number that is 0 or more"
        )
    if isinstance(releases, bool) or not isinstance(releases, int) or releases < 1:
        raise InputError(f"releases is {releases}, expected a whole number that is 1 or more")


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{name} is {value}, expected a finite number above 0")
