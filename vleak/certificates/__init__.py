"""Certificates: upper bounds that a defense proves, and lower bounds on epsilon from what it sends."""

from vleak.certificates.ceilings import (
    cramer_rao_floor,
    fano_bound,
    gaussian_bits,
    no_prior_floor,
    psnr_ceiling,
    van_trees_floor,
)
from vleak.certificates.gaussian import (
    gaussian_delta,
    gaussian_epsilon,
    identification_bound,
    replacement_epsilon,
    training_epsilon,
)
from vleak.certificates.jacobian import jacobian_energy
from vleak.certificates.lower_bounds import (
    ASSUMPTIONS,
    LEAST_DRAWS,
    METHODS,
    LowerBound,
    clopper_pearson_bound,
    gaussian_bound,
    gaussian_dp_bound,
    least_draws,
    lower_bounds,
)
from vleak.certificates.sequential import CurveTest, NoiseTest

__all__ = [
    "ASSUMPTIONS",
    "LEAST_DRAWS",
    "METHODS",
    "CurveTest",
    "LowerBound",
    "NoiseTest",
    "clopper_pearson_bound",
    "cramer_rao_floor",
    "fano_bound",
    "gaussian_bits",
    "gaussian_bound",
    "gaussian_delta",
    "gaussian_dp_bound",
    "gaussian_epsilon",
    "identification_bound",
    "jacobian_energy",
    "least_draws",
    "lower_bounds",
    "no_prior_floor",
    "psnr_ceiling",
    "replacement_epsilon",
    "training_epsilon",
    "van_trees_floor",
]
