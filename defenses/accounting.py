"""Accounting that defenses with Gaussian noise share: ranges of its settings, and the certificate."""

from __future__ import annotations

from vleak.certificates.gaussian import gaussian_epsilon, training_epsilon
from vleak.errors import InputError
from vleak.federated import Privacy

__all__ = ["LEAST_NOISE", "check_accounting", "check_least", "gaussian_privacy"]

LEAST_NOISE = 1e-200
"""Least noise multiplier but 0, which the accountants can tell from 0."""
_MOST_ROUNDS = 1e12


def check_accounting(name: str, *, delta: float, rounds: int, sample_rate: float) -> None:
    """Check what a training run's epsilon depends on beside the noise.

    Args:
        name: of the defense, for messages.
        delta, rounds, sample_rate: its settings, as `DpSgd` has them.

    Raises:
        InputError: a value is out of its range, or one that the accountants cannot tell from 0 or infinity.
    """
    if not 0 < delta < 1:
        raise InputError(f"{name}: delta is {delta}, expected a number between 0 and 1, such as 1e-5")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise InputError(f"{name}: rounds is {rounds}, expected a whole number from 1")
    if not 0 < sample_rate <= 1:
        raise InputError(f"{name}: sample_rate is {sample_rate}, expected a number in (0, 1]")
    check_least(name, "delta", delta, 1e-300)
    check_least(name, "sample_rate", sample_rate, 1e-12)
    if rounds > _MOST_ROUNDS:
        raise InputError(f"{name}: rounds is {rounds}, expected at most {_MOST_ROUNDS:g}")


def check_least(name: str, setting: str, value: float, least: float, *, zero: bool = False) -> None:
    """Refuse a positive value that is next to 0; ``zero`` says that 0 itself is allowed.

    Raises:
        InputError: it is below ``least``.
    """
    if 0 < value < least:
        also = "0 or " if zero else ""
        raise InputError(f"{name}: {setting} is {value}, expected {also}at least {least:g}")


def gaussian_privacy(
    noise_multiplier: float, *, unit: str, delta: float, rounds: int, sample_rate: float
) -> Privacy | None:
    """Return epsilon of one release (analytic Gaussian) and of the run; None without noise.

    Args:
        noise_multiplier: noise standard deviation over the norm to which ``unit`` is clipped.
        unit: what a neighbour replaces by zero, such as "one clip".
        delta, rounds, sample_rate: checked by `check_accounting`.
    """
    if noise_multiplier == 0:
        return None
    total, accountant = training_epsilon(noise_multiplier, delta, rounds, sample_rate)
    return Privacy(
        epsilon=gaussian_epsilon(noise_multiplier, delta),
        delta=delta,
        noise_multiplier=noise_multiplier,
        unit=unit,
        adjacency="zero out",
        rounds=rounds,
        sample_rate=sample_rate,
        training_epsilon=total,
        accountant=accountant,
    )
