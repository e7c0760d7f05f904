"""Networks that video classifiers are published as, one file a family, of any width and depth."""

from __future__ import annotations

from collections.abc import Callable

from vleak.models.networks.base import Network
from vleak.models.networks.factorised import vit_factorised
from vleak.models.networks.recurrent import CnnGru
from vleak.models.networks.resnet import MC3, R3D, R2Plus1D
from vleak.models.networks.s3d import S3D
from vleak.models.networks.slowfast import SlowFast
from vleak.models.networks.tubelet import TubeletVit
from vleak.models.networks.x3d import X3D

__all__ = ["NETWORKS", "Network"]

NETWORKS: dict[str, Callable[..., Network]] = {
    "r3d_18": R3D,
    "mc3_18": MC3,
    "r2plus1d_18": R2Plus1D,
    "s3d": S3D,
    "x3d_s": X3D,
    "slowfast": SlowFast,
    "vit_tubelet": TubeletVit,
    "vit_factorised": vit_factorised,
    "cnn_gru": CnnGru,
}
"""Networks by name, called with (frames, size, classes); the defaults are the published widths and depths."""
