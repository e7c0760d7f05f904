"""Raw-frame classifiers: clips (N, 3, T, H, W) in [0, 1] to logits (N, classes).

Normalisation belongs to the model, so that clips are in [0, 1] everywhere else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class C3DTiny(nn.Module):
    """Three strided 3-D convolutions and a linear head, after C3D (Tran et al., ICCV 2015, arXiv 1412.0767).

    The head decides how much leaks: ``pool=False`` flattens the last feature map, as C3D does,
    ``pool=True`` averages it over space and time, as residual networks do.
    """

    def __init__(self, frames: int, size: int, classes: int, *, pool: bool = False) -> None:
        """Size the head for clips (3, frames, size, size); `classes` is the number of logits."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv3d(3, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv3d(32, 32, 3, stride=(1, 2, 2), padding=1),
            nn.ReLU(),
            nn.Conv3d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        positions = _halved(frames, 2) * _halved(size, 3) ** 2
        self.pool = nn.AdaptiveAvgPool3d(1) if pool else nn.Identity()
        self.head = nn.Linear(64 if pool else 64 * positions, classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (N, classes) of clips (N, 3, T, H, W) in [0, 1]."""
        logits: Tensor = self.head(self.pool(self.features(clips * 2 - 1)).flatten(1))
        return logits


class LRCN(nn.Module):
    """A small CNN on every frame, an LSTM over time (Donahue et al., CVPR 2015, arXiv 1411.4389)."""

    def __init__(self, frames: int, size: int, classes: int) -> None:
        """Size the LSTM for frames (3, size, size); any number of frames will do."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.lstm = nn.LSTM(32 * _halved(size, 2) ** 2, 64, batch_first=True)
        self.head = nn.Linear(64, classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (N, classes) of clips (N, 3, T, H, W) in [0, 1]."""
        frames = (clips * 2 - 1).transpose(1, 2)  # (N, T, 3, H, W)
        features = self.features(frames.flatten(0, 1)).flatten(1).unflatten(0, frames.shape[:2])
        sequence, _ = self.lstm(features)
        logits: Tensor = self.head(sequence[:, -1])
        return logits


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw PyTorch's default weights from an explicit generator; the process-wide one is not touched."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own:
            bound = _default_bound(module)
            for parameter in own:
                nn.init.uniform_(parameter, -bound, bound, generator=generator)


def _default_bound(module: nn.Module) -> float:
    """Return PyTorch's bound 1/sqrt(fan in) for a layer, 1/sqrt(hidden) for an LSTM."""
    if isinstance(module, nn.LSTM):
        return math.sqrt(1 / module.hidden_size)
    weight = module.get_parameter("weight")
    return math.sqrt(1 / weight[0].numel())


def _halved(length: int, times: int) -> int:
    """Return what is left of a length after convolutions of stride 2, kernel 3, padding 1."""
    for _ in range(times):
        length = (length + 1) // 2
    return length
