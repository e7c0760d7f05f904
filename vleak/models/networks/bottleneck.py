"""Bottleneck blocks and their stages, which X3D and SlowFast are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vleak.models.networks.base import HALF, Network, residual_weights

__all__ = ["Bottleneck", "BottleneckNetwork", "Stage"]


class Bottleneck(nn.Module):
    """Three convolutions, the middle one of them strided, and a way past them."""

    def __init__(self, channels: int, width: int, stride: int, branch: nn.Module, *, norm: bool) -> None:
        """Take the branch from `channels` to `width`.

        Args:
            channels, width: before and behind the block.
            stride: in height and width.
            branch: the three convolutions; its last normalisation is ``norm_c``.
            norm: whether the way past is normalised where it is a convolution.
        """
        super().__init__()
        self.branch1_conv: nn.Module | None = None
        self.branch1_norm: nn.Module | None = None
        if stride > 1 or channels != width:
            self.branch1_conv = nn.Conv3d(channels, width, 1, stride=(1, stride, stride), bias=False)
            self.branch1_norm = nn.BatchNorm3d(width) if norm else None
        self.branch2 = branch

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps (N, width, T, H / stride, W / stride)."""
        past = x if self.branch1_conv is None else self.branch1_conv(x)
        past = past if self.branch1_norm is None else self.branch1_norm(past)
        return torch.relu(self.branch2(x) + past)


class Stage(nn.Module):
    """Blocks of one width, the first of which changes channels and size."""

    def __init__(self, blocks: list[Bottleneck]) -> None:
        """Take the blocks in order."""
        super().__init__()
        self.res_blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps of the last block."""
        for block in self.res_blocks:
            x = block(x)
        return x


class BottleneckNetwork(Network):
    """A network of such blocks, normalised and drawn as pytorchvideo does."""

    statistics = HALF

    def draw(self, generator: torch.Generator) -> None:
        """Draw as residual networks do, with blocks that begin as nothing: the last weight of a branch is 0.

        So do residual networks that learn in large batches (Goyal et al., 2017, arXiv 1706.02677). In an
        untrained network the convolutions of the branches then have gradients of 0.
        """
        super().draw(generator)
        for block in self.modules():
            if isinstance(block, Bottleneck):
                nn.init.zeros_(block.branch2.get_parameter("norm_c.weight"))

    def draw_layer(self, module: nn.Module, generator: torch.Generator) -> None:
        """Draw as residual networks do."""
        residual_weights(module, generator)
