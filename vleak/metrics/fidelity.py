"""Fidelity of a rebuilt clip to the private one, over all pixels and over moving pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from skimage import metrics
from torch import Tensor

from vleak.errors import InputError

PSNR_CAP_DB = 100.0
"""PSNR of a perfect frame; infinity could be neither averaged nor written as JSON."""

MOTION_THRESHOLD = 0.05
"""Change of a channel between neighbouring frames above which a pixel counts as moving: 13 of 255 grey
levels, above the noise of a compressed still video and below the contrast of a person walking by."""

Array = npt.NDArray[np.float64]

#: scikit-image ships no signatures, and loads its functions when they are first used.
_metrics: Any = metrics


def psnr(x: Tensor, truth: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, averaged over frames.

    Args:
        x: (C, T, H, W) in [0, 1], the rebuilt clip.
        truth: (C, T, H, W) in [0, 1], the private clip.

    Returns:
        The mean over frames of scikit-image's figure for a data range of 1, each frame at most
        ``PSNR_CAP_DB``.

    Raises:
        InputError: shapes differ, are not 4-D, or a value is NaN or infinite.
    """
    a, b = pair("psnr", x, truth)
    return float(np.mean([_frame_psnr(a[:, t], b[:, t]) for t in range(a.shape[1])]))


def ssim(x: Tensor, truth: Tensor) -> float:
    """Return the structural similarity in [-1, 1], averaged over frames (Wang et al. 2004, IEEE TIP).

    The window is 7 pixels wide, or the largest odd width that fits a smaller frame.

    Args:
        x: (C, T, H, W) in [0, 1], the rebuilt clip.
        truth: (C, T, H, W) in [0, 1], the private clip.

    Raises:
        InputError: as `psnr`, or frames smaller than 3 pixels.
    """
    a, b = pair("ssim", x, truth)
    window = _window("ssim", a)
    return float(np.mean([_frame_ssim(a[:, t], b[:, t], window) for t in range(a.shape[1])]))


def motion_mask(truth: Tensor, threshold: float = MOTION_THRESHOLD) -> Tensor:
    """Return the mask of moving pixels, which differ from the frame before or from the frame after.

    Args:
        truth: (C, T, H, W) in [0, 1], the private clip.
        threshold: change of a channel above which a pixel moves, in units of the pixel range.

    Returns:
        (T, H, W) bool; all False for a clip of one frame.
    """
    changes = (truth[:, 1:] - truth[:, :-1]).abs().amax(0) > threshold
    mask = torch.zeros(truth.shape[1:], dtype=torch.bool, device=truth.device)
    mask[1:] |= changes
    mask[:-1] |= changes
    return mask


def motion_psnr(x: Tensor, truth: Tensor) -> float | None:
    """Return the PSNR in dB over the moving pixels of the truth, or None when nothing moves.

    One mean squared error over all moving pixels of the clip: averaging over frames would let a frame with a
    single moving pixel count as much as one with hundreds.

    Args:
        x: (C, T, H, W) in [0, 1], the rebuilt clip.
        truth: (C, T, H, W) in [0, 1], the private clip.

    Raises:
        InputError: as `psnr`.
    """
    a, b = pair("motion_psnr", x, truth)
    mask = motion_mask(truth).cpu().numpy()
    return _frame_psnr(a[:, mask], b[:, mask]) if mask.any() else None


def motion_ssim(x: Tensor, truth: Tensor) -> float | None:
    """Return the structural similarity averaged over the moving pixels, or None when nothing moves.

    Args:
        x: (C, T, H, W) in [0, 1], the rebuilt clip.
        truth: (C, T, H, W) in [0, 1], the private clip.

    Raises:
        InputError: as `ssim`.
    """
    a, b = pair("motion_ssim", x, truth)
    mask = motion_mask(truth).cpu().numpy()
    if not mask.any():
        return None
    window = _window("motion_ssim", a)
    maps = [_ssim_map(a[:, t], b[:, t], window)[:, mask[t]].mean(0) for t in range(a.shape[1])]
    return float(np.concatenate(maps).mean())


def pair(name: str, x: Tensor, truth: Tensor) -> tuple[Array, Array]:
    """Check two clips and return them as float64 arrays of shape (C, T, H, W).

    Args:
        name: name of the metric in the error message.
        x: (C, T, H, W), the rebuilt clip.
        truth: (C, T, H, W), the private clip.

    Raises:
        InputError: shapes differ, are not 4-D, or a value is NaN or infinite.
    """
    if x.dim() != 4 or x.shape != truth.shape or x.numel() == 0:
        raise InputError(
            f"{name}: expected two clips of one shape (channel, frame, height, width), "
            f"got {tuple(x.shape)} and {tuple(truth.shape)}"
        )
    for what, clip in (("the reconstruction", x), ("the truth", truth)):
        if not bool(torch.isfinite(clip).all()):
            raise InputError(f"{name}: {what} holds NaN or infinite values; record the cell as failed")
    a, b = (clip.detach().to("cpu", torch.float64).numpy() for clip in (x, truth))
    return a, b


def _frame_psnr(a: Array, b: Array) -> float:
    """Return the capped PSNR of two arrays of one shape; equal arrays would cause a division by zero."""
    if np.array_equal(a, b):
        return PSNR_CAP_DB
    return min(PSNR_CAP_DB, float(_metrics.peak_signal_noise_ratio(b, a, data_range=1.0)))


def _window(name: str, clip: Array) -> int:
    side: int = min(clip.shape[2:])
    if side < 3:
        raise InputError(f"{name}: frames of {clip.shape[2]}x{clip.shape[3]} pixels; needs at least 3x3")
    return min(7, side - 1 + side % 2)


def _frame_ssim(a: Array, b: Array, window: int) -> float:
    return float(_metrics.structural_similarity(a, b, win_size=window, channel_axis=0, data_range=1.0))


def _ssim_map(a: Array, b: Array, window: int) -> Array:
    result: tuple[Any, Array] = _metrics.structural_similarity(
        a, b, win_size=window, channel_axis=0, data_range=1.0, full=True
    )
    return result[1]
