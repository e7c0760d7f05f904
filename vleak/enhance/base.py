"""Interface of enhancers, and the bicubic enlargement that they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vleak.errors import InputError

MAX_SCALE = 4


@dataclass(frozen=True)
class Enhanced:
    """Result of an enhancer: the enhanced clip, the estimated noise and the steps taken.

    Attributes:
        clip: (C, T, scale * H, scale * W) float32 in [0, 1].
        noise: estimated standard deviation of the noise in the input clip, in units of the pixel range. Of an
            attack's errors it covers only those that look like noise.
        steps: names of the processing steps, in order, such as ``("fusion", "nl_means", "bicubic")``.
    """

    clip: Tensor
    noise: float
    steps: tuple[str, ...]


Enhancer = Callable[[Tensor], Enhanced]
"""Function of a clip (C, T, H, W) in [0, 1]; may be called from several threads at once."""


def plain(clip: Tensor, scale: int = 2) -> Tensor:
    """Return a clip enlarged by bicubic interpolation, the reference point without enhancement.

    Args:
        clip: (C, T, H, W) in [0, 1].
        scale: factor for width and height, 1 to ``MAX_SCALE``.

    Returns:
        (C, T, scale * H, scale * W) float32 in [0, 1].

    Raises:
        InputError: the clip has another shape or non-finite values, or the scale is out of range.
    """
    return enlarged(checked(clip, scale), scale)


def checked(clip: Tensor, scale: int) -> Tensor:
    """Return a clip (C, T, H, W) as float32 on the CPU, clamped to [0, 1].

    Raises:
        InputError: the clip has another shape or non-finite values, or the scale is out of range.
    """
    if not 1 <= scale <= MAX_SCALE:
        raise InputError(f"enhance: scale {scale}; expected a whole number from 1 to {MAX_SCALE}")
    if clip.dim() != 4 or clip.numel() == 0:
        raise InputError(
            f"enhance: expected a clip of shape (channel, frame, height, width), got {tuple(clip.shape)}"
        )
    if not bool(torch.isfinite(clip).all()):
        raise InputError("enhance: the clip holds NaN or infinity; record the cell as failed")
    return clip.detach().to("cpu", torch.float32).clamp(0, 1)


def enlarged(clips: Tensor, scale: int) -> Tensor:
    """Return (..., T, H, W) enlarged by bicubic interpolation and clamped to [0, 1]."""
    frames = clips.flatten(0, -3)[:, None]
    fine = functional.interpolate(frames, scale_factor=scale, mode="bicubic")
    return fine.reshape(*clips.shape[:-2], *fine.shape[-2:]).clamp(0, 1)


def pooled(clips: Tensor, scale: int) -> Tensor:
    """Return the coarse clips of (..., T, H, W): the means of squares of ``scale`` by ``scale`` pixels."""
    frames = functional.avg_pool2d(clips.flatten(0, -3)[:, None], scale)
    return frames.reshape(*clips.shape[:-2], *frames.shape[-2:])
