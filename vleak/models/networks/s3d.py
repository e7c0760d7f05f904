"""S3D: Inception with separable 3-D convolutions (Xie et al., ECCV 2018, arXiv 1712.04851)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.models.classifiers import check_range
from vleak.models.networks.base import Network, check_clip, check_share, normalise_by, scaled

__all__ = ["S3D"]

_STAGES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
"""Channels of the Inception blocks: first branch, inside and behind the two in the middle, last branch."""
_WINDOW = (2, 7, 7)
"""Frames, height and width that are averaged before the logits are computed at each place."""


class S3D(Network):
    """S3D: Inception blocks with separable 3-D convolutions (ECCV 2018, arXiv 1712.04851).

    The tensors of its state dict have the names of torchvision's.
    """

    def __init__(
        self,
        frames: int,
        size: int,
        classes: int,
        *,
        width: int = 64,
        depth: int = 5,
        dropout: float = 0.2,
        norm: str = "batch",
    ) -> None:
        """Build the layers for clips of at least 5 frames of 17 x 17.

        Args:
            frames, size: T, and height and width, of the clips.
            classes: number of logits.
            width: channels of the first layer; all others are in proportion.
            depth: Inception blocks a stage at most, 1 to 5; 5 keeps the published 2, 5 and 2.
            dropout: share of features that are dropped in train mode; 0 for the native engine there.
            norm: "batch", or "group" for group normalisation, which `dp` needs.

        Raises:
            InputError: a setting is out of range, or the clip is too small.
        """
        check_range("width", width, 512)
        check_range("depth", depth, 5)
        check_share("dropout", dropout)
        check_clip("s3d", frames, size, least_frames=5, least_size=17)
        super().__init__()
        stem, middle = width, scaled(192, width, 64)
        layers: list[nn.Module] = [
            _separable(3, stem, 7, stride=2),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            _layer(stem, stem),
            _separable(stem, middle, 3),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        ]
        channels = middle
        for index, stage in enumerate(_STAGES):
            if index:
                layers.append(nn.MaxPool3d(3, 2, 1) if index == 1 else nn.MaxPool3d(2, 2))
            for shape in stage[:depth]:
                block = _Inception(channels, [scaled(part, width, 64) for part in shape])
                layers.append(block)
                channels = block.channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Conv3d(channels, classes, 1))
        normalise_by(self, norm)

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (N, classes) of clips (N, 3, T, H, W) in [0, 1]."""
        maps = self.features(self.normalised(clips))
        window = [min(most, length) for most, length in zip(_WINDOW, maps.shape[2:], strict=True)]
        logits: Tensor = self.classifier(F.avg_pool3d(maps, window, 1)).mean((2, 3, 4))
        return logits


class _Inception(nn.Module):
    """Four branches side by side: a convolution, two separable ones, and a maximum."""

    def __init__(self, channels: int, shape: list[int]) -> None:
        super().__init__()
        first, inside_1, second, inside_2, third, last = shape
        self.branch0 = _layer(channels, first)
        self.branch1 = nn.Sequential(_layer(channels, inside_1), _separable(inside_1, second, 3))
        self.branch2 = nn.Sequential(_layer(channels, inside_2), _separable(inside_2, third, 3))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), _layer(channels, last))
        self.channels = first + second + third + last

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], 1)


def _layer(
    channels: int,
    width: int,
    kernel: tuple[int, int, int] = (1, 1, 1),
    stride: tuple[int, int, int] = (1, 1, 1),
) -> nn.Sequential:
    """Return a convolution that keeps the size at stride 1, its normalisation and a ReLU."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(
        nn.Conv3d(channels, width, kernel, stride=stride, padding=padding, bias=False),
        nn.BatchNorm3d(width, eps=0.001, momentum=0.001),
        nn.ReLU(),
    )


def _separable(channels: int, width: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    """Return a convolution over space and one over time."""
    return nn.Sequential(
        _layer(channels, width, (1, kernel, kernel), (1, stride, stride)),
        _layer(width, width, (kernel, 1, 1), (stride, 1, 1)),
    )
