"""SlowFast: two pathways of one clip, at two frame rates (ICCV 2019, arXiv 1812.03982)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.errors import InputError
from vleak.models.classifiers import check_range
from vleak.models.networks.base import check_share, normalise_by
from vleak.models.networks.bottleneck import Bottleneck, BottleneckNetwork, Stage

__all__ = ["SlowFast"]

_DEPTHS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks of the stages by the number of layers."""
_TIME = ((1, 1, 3, 3), (3, 3, 3, 3))
"""Frames that a block looks at, by pathway and stage."""
_STEMS = (1, 5)
"""Frames that the first layer of a pathway looks at."""


class SlowFast(BottleneckNetwork):
    """SlowFast R50: a slow and a fast pathway, both made of one clip (ICCV 2019, arXiv 1812.03982).

    The fast pathway sees every frame, the slow one every alpha-th, from the first on. The tensors of its
    state dict have the names of pytorchvideo's.
    """

    def __init__(
        self,
        frames: int,
        size: int,
        classes: int,
        *,
        width: int = 64,
        depth: int = 50,
        alpha: int = 4,
        beta: int = 8,
        dropout: float = 0.5,
        norm: str = "batch",
    ) -> None:
        """Build the layers for clips of any frames and size.

        Args:
            frames, size: T, and height and width, of the clips.
            classes: number of logits.
            width: channels of the slow pathway's first layer.
            depth: layers of a pathway: 14, 26, 50 or 101.
            alpha: the slow pathway has every alpha-th frame.
            beta: the fast pathway has 1 / beta of the slow one's channels.
            dropout: share of features that are dropped in train mode; 0 for the native engine there.
            norm: "batch", or "group" for group normalisation, which `dp` needs.

        Raises:
            InputError: a setting is out of range.
        """
        check_range("width", width, 512)
        check_range("alpha", alpha, 64)
        check_range("beta", beta, 64)
        check_share("dropout", dropout)
        if depth not in _DEPTHS:
            raise InputError(f"depth is {depth}, expected one of {', '.join(map(str, _DEPTHS))}")
        super().__init__()
        self.alpha = alpha
        # Fast channels before the next stage: the slow pathway has them doubled beside its own.
        slow, fast = width, max(1, width // beta)
        stems = [_Stem(own, time) for own, time in zip((slow, fast), _STEMS, strict=True)]
        self.blocks = nn.ModuleList([_Pathways(stems, fast, alpha)])
        for index, blocks in enumerate(_DEPTHS[depth]):
            channels = (slow + 2 * fast, fast)
            inner = (width * 2**index, max(1, width * 2**index // beta))
            slow, fast = 4 * inner[0], 4 * inner[1]
            stages = [
                _stage(before, within, time[index], blocks, stride=2 if index else 1)
                for before, within, time in zip(channels, inner, _TIME, strict=True)
            ]
            self.blocks.append(_Pathways(stages, fast if index < 3 else 0, alpha))
        self.blocks.append(_Means())
        self.blocks.append(_Head(slow + fast, classes, dropout))
        normalise_by(self, norm)

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (N, classes) of clips (N, 3, T, H, W) in [0, 1]."""
        x = self.normalised(clips)
        slow, fast = x[:, :, :: self.alpha], x
        for block in self.blocks[:5]:
            slow, fast = block(slow, fast)
        logits: Tensor = self.blocks[6](self.blocks[5](slow, fast))
        return logits


class _Pathways(nn.Module):
    """The same part of both pathways, and the way from the fast one to the slow one behind it."""

    def __init__(self, parts: Sequence[nn.Module], fast: int, alpha: int) -> None:
        """Take the parts, and the fast pathway's channels behind them; 0 for no way across."""
        super().__init__()
        self.multipathway_blocks = nn.ModuleList(parts)
        self.multipathway_fusion = _Fusion(fast, alpha) if fast else None

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        slow, fast = self.multipathway_blocks[0](slow), self.multipathway_blocks[1](fast)
        if self.multipathway_fusion is not None:
            slow = torch.cat([slow, self.multipathway_fusion(fast)], 1)
        return slow, fast


class _Fusion(nn.Module):
    """A convolution over time that brings the fast pathway to the frames of the slow one."""

    def __init__(self, channels: int, alpha: int) -> None:
        super().__init__()
        self.conv_fast_to_slow = nn.Conv3d(
            channels, 2 * channels, (7, 1, 1), stride=(alpha, 1, 1), padding=(3, 0, 0), bias=False
        )
        self.norm = nn.BatchNorm3d(2 * channels)

    def forward(self, fast: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv_fast_to_slow(fast)))


class _Stem(nn.Module):
    def __init__(self, width: int, time: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, width, (time, 7, 7), stride=(1, 2, 2), padding=(time // 2, 3, 3), bias=False)
        self.norm = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(torch.relu(self.norm(self.conv(x))), (1, 3, 3), (1, 2, 2), (0, 1, 1))


def _stage(channels: int, inner: int, time: int, blocks: int, *, stride: int) -> nn.Module:
    """Return the blocks of one stage of one pathway."""
    first = _block(channels, inner, time, stride)
    return Stage([first, *(_block(4 * inner, inner, time, 1) for _ in range(blocks - 1))])


def _block(channels: int, inner: int, time: int, stride: int) -> Bottleneck:
    space = (1, stride, stride)
    branch = nn.Sequential(
        OrderedDict(
            conv_a=nn.Conv3d(channels, inner, (time, 1, 1), padding=(time // 2, 0, 0), bias=False),
            norm_a=nn.BatchNorm3d(inner),
            act_a=nn.ReLU(),
            conv_b=nn.Conv3d(inner, inner, (1, 3, 3), stride=space, padding=(0, 1, 1), bias=False),
            norm_b=nn.BatchNorm3d(inner),
            act_b=nn.ReLU(),
            conv_c=nn.Conv3d(inner, 4 * inner, 1, bias=False),
            norm_c=nn.BatchNorm3d(4 * inner),
        )
    )
    return Bottleneck(channels, 4 * inner, stride, branch, norm=True)


class _Means(nn.Module):
    """The means of both pathways over space and time, side by side."""

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        return torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], 1)


class _Head(nn.Module):
    def __init__(self, features: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.proj = nn.Dropout(dropout), nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.proj(self.dropout(x))
        return logits
