"""More public clips out of few: what a camera could as well have seen."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(clips: Tensor, copies: int, generator: torch.Generator) -> Tensor:
    """Return the clips, followed by copies - 1 altered versions of all of them.

    Each is mirrored, turned (where frames are square), played backwards, shifted by up to a quarter of the
    frame with reflected edges, and raised to a power that differs a little by channel: brightness and colour.

    Args:
        clips: (M, C, T, H, W) in [0, 1].
        copies: versions of each clip, itself included, at least 1.
        generator: CPU generator.

    Returns:
        (copies * M, C, T, H, W) in [0, 1]; row i comes from clip i modulo M.
    """
    altered = [torch.stack([_alter(clip, generator) for clip in clips]) for _ in range(copies - 1)]
    return torch.cat([clips, *altered])


def _alter(clip: Tensor, generator: torch.Generator) -> Tensor:
    coins = torch.rand(4, generator=generator) < 0.5
    clip = clip.flip([axis for axis, coin in zip((1, 2, 3), coins, strict=False) if coin])
    if coins[3] and clip.shape[-1] == clip.shape[-2]:
        clip = clip.transpose(-1, -2)
    clip = _shift(_shift(clip, 2, generator), 3, generator)
    powers = 0.1 * torch.randn(len(clip), 1, 1, 1, generator=generator)
    return clip.clamp(0, 1) ** (powers + 0.25 * torch.randn((), generator=generator)).exp()


def _shift(clip: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    """Shift by a random part of up to a quarter of the axis; what comes in is the reflection of the edge."""
    size = clip.shape[axis]
    reach = size // 4
    at = int(torch.randint(2 * reach + 1, (), generator=generator))
    padding = [0, 0, 0, 0]
    padding[2 * (3 - axis)] = padding[2 * (3 - axis) + 1] = reach
    return F.pad(clip, padding, mode="reflect").narrow(axis, at, size)
