"""Models that a user might bring and that vleak has to refuse, or to run in spite of what they are."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """A plain classifier of 3 x 4 x 16 x 16 clips, with places for what a test wants to be odd."""

    def __init__(self, activation: nn.Module | None = None, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, stride=2, padding=1)
        self.norm = norm or nn.Identity()
        self.activation = activation or nn.ReLU()
        self.head = nn.Linear(4 * 2 * 8 * 8, 6)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.activation(self.norm(self.conv(clips))).flatten(1))


class Nested(Small):
    def forward(self, clips: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"out": super().forward(clips)}


class TwoClasses(Small):
    def forward(self, clips: Tensor) -> Tensor:
        return super().forward(clips)[:, :2]


class Detached(Small):
    def forward(self, clips: Tensor) -> Tensor:
        return super().forward(clips.detach())


class NoWeights(nn.Module):
    def forward(self, clips: Tensor) -> Tensor:
        return clips.mean((2, 3, 4)).repeat(1, 2)


class TwoSpeeds(Small):
    def forward(self, clips: Tensor, fast: Tensor) -> Tensor:
        return super().forward(clips) + fast


def frozen() -> nn.Module:
    return Small().requires_grad_(False)


def plain() -> nn.Module:
    return Small()


def batch_norm() -> nn.Module:
    return Small(norm=nn.BatchNorm3d(4))


def hard() -> nn.Module:
    return Small(activation=nn.Hardsigmoid())


def nan_weights() -> nn.Module:
    model = Small()
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0, 0] = torch.nan
    return model


def raising() -> nn.Module:
    raise KeyError("weights")


def no_module() -> list[int]:
    return [1, 2, 3]


def leaves() -> nn.Module:
    os._exit(3)


constant = 7
