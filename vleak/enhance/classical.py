"""Enhancement without training: what the clip itself says of its noise and of its detail.

A reconstruction is not a small clean picture. Super-resolution of a noisy one sharpens the noise, so the
order is: estimate the noise; where there is any, average along time what agrees within it, and denoise what
is left; enlarge; and only if next to no noise is left, sharpen until the enlarged clip, made small again, is
the clip. The figures below were chosen by clips that no default run draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from skimage.restoration import denoise_nl_means
from torch import Tensor
from torch.nn import functional

from vleak.enhance.base import Enhanced, checked, enlarged, pooled

CLEAN = 0.003
"""Estimates below this are those of a clean video, 0.8 of 255 grey levels; it is left as it is."""

GATE = 0.005
"""Sharpen only where the noise that is left is below this; above, sharpening it cost more than it won."""

TOLERANCE = 1.5  # frames agree when their squared difference exceeds that of noise by this many variances
LEFT = 0.5  # share of the noise that fusion leaves; taking it for more blurs
NL_FILTER = 0.8  # strength of non-local means, in units of the noise
SHARPENINGS = 3  # steps of back-projection; ten won 0.04 dB more where there was no noise
_NORMAL_MEDIAN = 0.6745  # median of |z| for a standard normal z

# scikit-image ships no signatures
_nl_means: Callable[..., Any] = denoise_nl_means


def classical(clip: Tensor, scale: int = 2) -> Enhanced:
    """Enhance a clip by fusion, denoising and, where hardly any noise is left, zero-shot super-resolution.

    Args:
        clip: (C, T, H, W) in [0, 1].
        scale: how many times as wide and high.

    Raises:
        InputError: no clip of finite frames, or a scale out of range.
    """
    given = checked(clip, scale)
    noise = estimate_noise(given)
    quiet, steps = denoise(given, noise)
    fine, steps = enlarged(quiet, scale), (*steps, "bicubic")
    if scale > 1 and estimate_noise(quiet) < GATE:
        fine, steps = back_project(fine, quiet, scale), (*steps, "back_projection")
    return Enhanced(fine, noise, steps)


def estimate_noise(clip: Tensor) -> float:
    """Return the standard deviation of the noise in a clip (C, T, H, W), in units of the pixel range.

    The median of the diagonal Haar details (Donoho and Johnstone 1994, Biometrika) of differences between
    neighbouring frames: texture that stands still cancels, texture that moves is outvoted as long as it
    covers less than half. A single frame has its texture counted in. 0 for frames of a single row or column.
    """
    height, width = (side // 2 * 2 for side in clip.shape[-2:])
    if not height or not width:
        return 0.0
    x = clip[..., :height, :width].double()
    detail = x[..., ::2, ::2] - x[..., ::2, 1::2] - x[..., 1::2, ::2] + x[..., 1::2, 1::2]
    if clip.shape[1] > 1:
        detail = (detail[:, 1:] - detail[:, :-1]) / 2**0.5
    return float((detail / 2).abs().median()) / _NORMAL_MEDIAN


def denoise(clip: Tensor, noise: float) -> tuple[Tensor, tuple[str, ...]]:
    """Return a clip (C, T, H, W) with less noise, and the steps taken; the clip itself if it is clean.

    Fusion comes first: non-local means smooth what fusion could still have recovered.
    """
    if noise < CLEAN:
        return clip, ()
    steps: tuple[str, ...] = ("nl_means",)
    if clip.shape[1] > 1:
        clip, steps = fuse(clip, noise), ("fusion", *steps)
    left = noise * (LEFT if clip.shape[1] > 1 else 1.0)
    # A patch reaches over three pixels; searched are eleven.
    frames = [
        _nl_means(
            frame.numpy(), patch_size=3, patch_distance=5, h=NL_FILTER * left, sigma=left, channel_axis=0
        )
        for frame in clip.unbind(1)
    ]
    # scikit-image drops axes of length 1
    quiet = [torch.from_numpy(frame).to(clip).reshape(clip[:, 0].shape) for frame in frames]
    return torch.stack(quiet, 1).clamp(0, 1), steps


def fuse(clip: Tensor, noise: float) -> Tensor:
    """Average every pixel of (C, T, H, W) along time over the frames that agree with it within the noise.

    Two frames of one still picture differ by twice the noise's variance; what exceeds that, averaged over
    three by three pixels and all channels, is motion and lowers a frame's weight.
    """
    variance = max(noise, 1e-6) ** 2
    fused = []
    for frame in clip.unbind(1):
        squared = (clip - frame[:, None]).square().mean(0)
        near = functional.avg_pool2d(functional.pad(squared[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
        weight = (-(near - 2 * variance).clamp(min=0) / (TOLERANCE * variance)).exp()
        fused.append((weight * clip).sum(1) / weight.sum(0))
    return torch.stack(fused, 1)


def back_project(fine: Tensor, coarse: Tensor, scale: int) -> Tensor:
    """Sharpen a fine clip until it pools to the coarse one (Irani and Peleg 1991, CVGIP).

    Args:
        fine: (C, T, scale * H, scale * W) in [0, 1], an enlargement of ``coarse``.
        coarse: (C, T, H, W) in [0, 1].
        scale: how many times as wide and high.
    """
    for _ in range(SHARPENINGS):
        missing = coarse - pooled(fine, scale)
        frames = functional.interpolate(missing.transpose(0, 1), scale_factor=scale, mode="bicubic")
        fine = (fine + frames.transpose(0, 1)).clamp(0, 1)
    return fine
