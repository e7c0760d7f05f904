"""Gradient matching, its weights against noise, and the variables that it descends in."""

from vleak.attacks.matching.adaptive import AdaptiveWeights, adaptive_weights
from vleak.attacks.matching.background import BackgroundModel
from vleak.attacks.matching.denoised import DENOISERS
from vleak.attacks.matching.feature_space import FeatureSpace
from vleak.attacks.matching.matching import Matching, NonAdaptiveMatching

__all__ = [
    "DENOISERS",
    "AdaptiveWeights",
    "BackgroundModel",
    "FeatureSpace",
    "Matching",
    "NonAdaptiveMatching",
    "adaptive_weights",
]
