"""Certificates: upper bounds that a defense proves, printed beside the measured leak."""

from vleak.certificates.gaussian import (
    gaussian_delta,
    gaussian_epsilon,
    identification_bound,
    training_epsilon,
)

__all__ = ["gaussian_delta", "gaussian_epsilon", "identification_bound", "training_epsilon"]
