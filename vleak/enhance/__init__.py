"""Enhancement of what an attack rebuilt: twice the resolution, less noise, and no new evidence.

Nothing in here sees the truth; `vleak.metrics.score_enhanced` says what it was worth.
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
