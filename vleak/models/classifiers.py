"""Classifiers of raw frames: clips (N, 3, T, H, W) in [0, 1] to logits (N, classes).

The models normalise their input themselves; clips are in [0, 1] everywhere else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vleak.errors import InputError


class C3DTiny(nn.Module):
    """Strided 3-D convolutions and a linear head, after C3D (Tran et al., ICCV 2015, arXiv 1412.0767).

    The input of the head determines how much leaks: ``pool=False`` flattens the last feature map, as in C3D;
    ``pool=True`` averages it over space and time, as in residual networks.
    """

    def __init__(
        self, frames: int, size: int, classes: int, *, pool: bool = False, width: int = 32, depth: int = 3
    ) -> None:
        """Build the layers for clips (3, frames, size, size).

        Args:
            frames, size: T, and height and width, of the clips.
            classes: number of logits.
            pool: whether the last feature map is averaged.
            width: channels of every convolution but the last, which has twice as many.
            depth: convolutions, 1 to 8. The first and the last halve time and space, the second of three
                space alone; further ones keep the size.

        Raises:
            InputError: width or depth is out of range.
        """
        check_range("width", width, 1024)
        check_range("depth", depth, 8)
        super().__init__()
        # A single stride of (1, 2, 2) in the middle, so that a deeper network keeps some frames and pixels.
        middle = [(1, 2, 2), *[(1, 1, 1)] * (depth - 3)] if depth > 2 else []
        strides = [(2, 2, 2), *middle, (2, 2, 2)] if depth > 1 else [(2, 2, 2)]
        channels = [3, *[width] * (depth - 1), 2 * width]
        layers: list[nn.Module] = []
        for before, after, stride in zip(channels, channels[1:], strides, strict=False):
            layers += [nn.Conv3d(before, after, 3, stride=stride, padding=1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        positions = halved(frames, min(depth, 2)) * halved(size, min(depth, 3)) ** 2
        self.pool = nn.AdaptiveAvgPool3d(1) if pool else nn.Identity()
        self.head = nn.Linear(2 * width * (1 if pool else positions), classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (N, classes) of clips (N, 3, T, H, W) in [0, 1]."""
        logits: Tensor = self.head(self.pool(self.features(clips * 2 - 1)).flatten(1))
        return logits


class LRCN(nn.Module):
    """A small CNN on every frame and an LSTM over time (Donahue et al., CVPR 2015, arXiv 1411.4389)."""

    def __init__(self, frames: int, size: int, classes: int, *, width: int = 64, depth: int = 1) -> None:
        """Build the layers for frames (3, size, size), any number of them.

        Args:
            frames, size: T, and height and width, of the clips.
            classes: number of logits.
            width: hidden units of the LSTM; the two convolutions have a quarter and half as many channels.
            depth: layers of the LSTM, 1 to 8.

        Raises:
            InputError: width or depth is out of range.
        """
        check_range("width", width, 1024, low=4)
        check_range("depth", depth, 8)
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width // 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 4, width // 2, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.lstm = nn.LSTM(width // 2 * halved(size, 2) ** 2, width, num_layers=depth, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (N, classes) of clips (N, 3, T, H, W) in [0, 1]."""
        frames = (clips * 2 - 1).transpose(1, 2)  # (N, T, 3, H, W)
        features = self.features(frames.flatten(0, 1)).flatten(1).unflatten(0, frames.shape[:2])
        sequence, _ = self.lstm(features)
        logits: Tensor = self.head(sequence[:, -1])
        return logits


def check_range(setting: str, value: int, high: int, *, low: int = 1) -> None:
    """Check that a size of a network is in range.

    Raises:
        InputError: it is not; the message names the setting and the range.
    """
    if not low <= value <= high:
        raise InputError(f"{setting} is {value}, expected a whole number from {low} to {high}")


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Initialise a model as PyTorch does, from an explicit generator; the process-wide one is not used."""
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


def halved(length: int, times: int) -> int:
    """Return the length of an axis after ``times`` convolutions of stride 2, kernel 3, padding 1."""
    for _ in range(times):
        length = (length + 1) // 2
    return length
