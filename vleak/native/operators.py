"""The operators of the inner loop under one name: passes over parameters and pixels, and their backends."""

from vleak.native.backend import backend, use_reference
from vleak.native.descend import descend, descend_with, step_settings
from vleak.native.gradient_match import gradient_match
from vleak.native.total_variation import total_variation

__all__ = [
    "backend",
    "descend",
    "descend_with",
    "gradient_match",
    "step_settings",
    "total_variation",
    "use_reference",
]
