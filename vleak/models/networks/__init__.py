"""Networks that video classifiers are published as, one file a family, of any width and depth."""

from __future__ import annotations

from collections.abc import Callable

from vleak.models.networks.base import Network
from vleak.models.networks.resnet import MC3, R3D, R2Plus1D
from vleak.models.networks.tubelet import TubeletVit
from vleak.models.networks.x3d import X3D

__all__ = ["MC3", "NETWORKS", "R3D", "X3D", "Network", "R2Plus1D", "TubeletVit"]

NETWORKS: dict[str, Callable[..., Network]] = {
    "r3d_18": R3D,
    "mc3_18": MC3,
    "r2plus1d_18": R2Plus1D,
    "x3d_s": X3D,
    "vit_tubelet": TubeletVit,
}
"""Networks by name, called with (frames, size, classes); the defaults are the published widths and depths."""
