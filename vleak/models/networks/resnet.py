"""Residual networks on volumes: R3D-18, MC3-18 and R(2+1)D-18 (Tran et al., CVPR 2018, arXiv 1711.11248)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vleak.models.classifiers import check_range
from vleak.models.networks.base import Network, normalise_by, residual_weights, scaled

__all__ = ["MC3", "R3D", "R2Plus1D"]

_Kind = Literal["volume", "frame", "split"]
"""Convolutions over space and time, over space alone, or over space and then over time."""
_Stride = tuple[int, int, int]


class VideoResNet(Network):
    """A stem, four stages of residual blocks, the mean over space and time, and a linear layer.

    The tensors of its state dict have the names of torchvision's.
    """

    stages: ClassVar[tuple[_Kind, _Kind, _Kind, _Kind]] = ("volume", "volume", "volume", "volume")

    def __init__(
        self, frames: int, size: int, classes: int, *, width: int = 64, depth: int = 2, norm: str = "batch"
    ) -> None:
        """Build the layers for clips of any frames and size.

        Args:
            frames, size: T, and height and width, of the clips.
            classes: number of logits.
            width: channels of the first stage; each further one has twice as many.
            depth: residual blocks a stage, 1 to 8; 2 make 18 layers.
            norm: "batch", or "group" for group normalisation, which `dp` needs.

        Raises:
            InputError: width or depth is out of range.
        """
        check_range("width", width, 512)
        check_range("depth", depth, 8)
        super().__init__()
        split = self.stages[0] == "split"
        self.stem = _split_stem(width) if split else _stem(width)
        channels = width
        for index, kind in enumerate(self.stages):
            blocks = []
            for block in range(depth):
                stride = 2 if index and not block else 1
                blocks.append(_Block(channels, width * 2**index, kind, stride))
                channels = width * 2**index
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)
        normalise_by(self, norm)

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (N, classes) of clips (N, 3, T, H, W) in [0, 1]."""
        x = self.stem(self.normalised(clips))
        for index in range(len(self.stages)):
            x = self.get_submodule(f"layer{index + 1}")(x)
        logits: Tensor = self.fc(x.mean((2, 3, 4)))
        return logits

    def draw_layer(self, module: nn.Module, generator: torch.Generator) -> None:
        """Draw as residual networks do."""
        residual_weights(module, generator)


class R3D(VideoResNet):
    """R3D-18: residual 3-D convolutions (Tran et al., CVPR 2018, arXiv 1711.11248)."""


class MC3(VideoResNet):
    """MC3-18: one stage of 3-D convolutions, then 2-D ones (Tran et al., CVPR 2018, arXiv 1711.11248)."""

    stages = ("volume", "frame", "frame", "frame")


class R2Plus1D(VideoResNet):
    """R(2+1)D-18: residual convolutions over space, then time (Tran et al., CVPR 2018, arXiv 1711.11248)."""

    stages = ("split", "split", "split", "split")


class _Block(nn.Module):
    """Two convolutions with a way past them."""

    def __init__(self, channels: int, width: int, kind: _Kind, stride: int) -> None:
        super().__init__()
        middle = channels * width * 27 // (channels * 9 + 3 * width)  # as many weights as undivided ones
        first, second = _layers(channels, width, kind, stride, middle), _layers(width, width, kind, 1, middle)
        self.conv1 = nn.Sequential(first, nn.BatchNorm3d(width), nn.ReLU())
        self.conv2 = nn.Sequential(second, nn.BatchNorm3d(width))
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != width:
            strides = (1 if kind == "frame" else stride, stride, stride)
            shortcut = nn.Conv3d(channels, width, 1, stride=strides, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(width))

    def forward(self, x: Tensor) -> Tensor:
        past = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.conv2(self.conv1(x)) + past)


def _layers(channels: int, width: int, kind: _Kind, stride: int, middle: int) -> nn.Module:
    """Return a convolution with kernels of 3, over the axes of its kind."""
    if kind == "volume":
        return nn.Conv3d(channels, width, 3, stride=stride, padding=1, bias=False)
    space = (1, stride, stride)
    if kind == "frame":
        return nn.Conv3d(channels, width, (1, 3, 3), stride=space, padding=(0, 1, 1), bias=False)
    return nn.Sequential(
        nn.Conv3d(channels, middle, (1, 3, 3), stride=space, padding=(0, 1, 1), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(),
        nn.Conv3d(middle, width, (3, 1, 1), stride=(stride, 1, 1), padding=(1, 0, 0), bias=False),
    )


def _stem(width: int) -> nn.Sequential:
    layer = nn.Conv3d(3, width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)
    return nn.Sequential(layer, nn.BatchNorm3d(width), nn.ReLU())


def _split_stem(width: int) -> nn.Sequential:
    middle = scaled(45, width, 64)
    return nn.Sequential(
        nn.Conv3d(3, middle, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(),
        nn.Conv3d(middle, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(),
    )
