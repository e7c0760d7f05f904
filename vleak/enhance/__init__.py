"""Enhancement of rebuilt clips: twice the resolution and less noise, but no new evidence.

No enhancer sees the private clip; `vleak.metrics.score_enhanced` scores the effect.
"""

from vleak.enhance.base import Enhanced, Enhancer, plain
from vleak.enhance.build import ENHANCERS, build_enhancer, enhance
from vleak.enhance.classical import estimate_noise
from vleak.enhance.network import cached_network, train_network

__all__ = [
    "ENHANCERS",
    "Enhanced",
    "Enhancer",
    "build_enhancer",
    "cached_network",
    "enhance",
    "estimate_noise",
    "plain",
    "train_network",
]
