"""X3D: depthwise 3-D convolutions, squeeze-excitation, swish (Feichtenhofer, CVPR 2020, arXiv 2004.04730)."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from vleak.errors import InputError
from vleak.models.classifiers import check_range
from vleak.models.networks.base import check_share, normalise_by
from vleak.models.networks.bottleneck import Bottleneck, BottleneckNetwork, Stage

__all__ = ["X3D"]

_DEPTHS, _EXPANSION, _SQUEEZE = (1, 2, 5, 3), 2.25, 0.0625
"""Blocks a stage for a depth of 1, width inside a block, and share of the channels that excite."""


class X3D(BottleneckNetwork):
    """X3D-S: depthwise 3-D convolutions, squeeze-excitation, swish (CVPR 2020, arXiv 2004.04730).

    X3D-XS and X3D-M are the same network on clips of another size. The tensors of its state dict have the
    names of pytorchvideo's.
    """

    def __init__(
        self,
        frames: int,
        size: int,
        classes: int,
        *,
        width: int = 24,
        depth: float = 2.2,
        features: int = 2048,
        dropout: float = 0.5,
        norm: str = "batch",
    ) -> None:
        """Build the layers for clips of any frames and size.

        Args:
            frames, size: T, and height and width, of the clips.
            classes: number of logits.
            width: channels of the stem and of the first stage; each further one has twice as many.
            depth: factor on the 1, 2, 5 and 3 blocks of the stages; 5 makes X3D-L.
            features: width of the layer before the logits.
            dropout: share of features that are dropped in train mode; 0 for the native engine there.
            norm: "batch", or "group" for group normalisation, which `dp` needs.

        Raises:
            InputError: a setting is out of range.
        """
        check_range("width", width, 512)
        check_range("features", features, 16384)
        check_share("dropout", dropout)
        if not 0 < depth <= 10:
            raise InputError(f"depth is {depth}, expected a number above 0 and up to 10")
        super().__init__()
        self.blocks = nn.ModuleList([_Stem(width)])
        channels = width
        for index, blocks in enumerate(_DEPTHS):
            wide = width * 2**index
            shapes = [(channels if not block else wide, block) for block in range(math.ceil(blocks * depth))]
            self.blocks.append(Stage([_block(before, wide, block) for before, block in shapes]))
            channels = wide
        self.blocks.append(_Head(channels, features, classes, dropout))
        normalise_by(self, norm)

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (N, classes) of clips (N, 3, T, H, W) in [0, 1]."""
        x = self.normalised(clips)
        for block in self.blocks:
            x = block(x)
        return x


class _Stem(nn.Module):
    """A convolution over space, and a depthwise one over time. The names are swapped in pytorchvideo, too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        space = nn.Conv3d(3, width, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(width, width, (5, 1, 1), padding=(2, 0, 0), groups=width, bias=False)
        self.conv = nn.Sequential(OrderedDict(conv_t=space, conv_xy=time))
        self.norm = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class _Squeeze(nn.Module):
    """Squeeze-excitation (CVPR 2018, arXiv 1709.01507): a factor a channel, from the means of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = _rounded(width * _SQUEEZE)
        self.block = nn.Sequential(
            nn.Conv3d(width, narrow, 1), nn.ReLU(), nn.Conv3d(narrow, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        factors: Tensor = self.block(x.mean((2, 3, 4), keepdim=True))
        return x * factors


def _block(channels: int, width: int, index: int) -> Bottleneck:
    """Return one block of a stage; the first halves height and width, every other one excites."""
    inner, stride = int(_EXPANSION * width), 1 if index else 2
    depthwise = nn.Conv3d(inner, inner, 3, stride=(1, stride, stride), padding=1, groups=inner, bias=False)
    squeeze = nn.Identity() if index % 2 else _Squeeze(inner)
    branch = nn.Sequential(
        OrderedDict(
            conv_a=nn.Conv3d(channels, inner, 1, bias=False),
            norm_a=nn.BatchNorm3d(inner),
            act_a=nn.ReLU(),
            conv_b=depthwise,
            norm_b=nn.Sequential(nn.BatchNorm3d(inner), squeeze),
            act_b=nn.SiLU(),
            conv_c=nn.Conv3d(inner, width, 1, bias=False),
            norm_c=nn.BatchNorm3d(width),
        )
    )
    return Bottleneck(channels, width, stride, branch, norm=channels != width)


class _Head(nn.Module):
    """A wider layer, the mean over space and time, a still wider one, and the logits."""

    def __init__(self, channels: int, features: int, classes: int, dropout: float) -> None:
        super().__init__()
        inner = int(_EXPANSION * channels)
        self.pool = nn.Sequential(
            OrderedDict(
                pre_conv=nn.Conv3d(channels, inner, 1, bias=False),
                pre_norm=nn.BatchNorm3d(inner),
                pre_act=nn.ReLU(),
                pool=nn.AdaptiveAvgPool3d(1),
                post_conv=nn.Conv3d(inner, features, 1, bias=False),
                post_act=nn.ReLU(),
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.proj(self.dropout(self.pool(x).flatten(1)))
        return logits


def _rounded(width: float) -> int:
    """Return a width as a multiple of 8, at least 8, and not below nine tenths of it."""
    multiple = max(8, int(width + 4) // 8 * 8)
    return multiple + 8 if multiple < 0.9 * width else multiple
