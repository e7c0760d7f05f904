"""Enhancement without training, from the noise and the detail of the clip itself.

A reconstruction is noisy, and super-resolution of a noisy clip sharpens its noise. So the order is: estimate
the noise; if there is any, average frames along time where they agree within the noise, and denoise the
result; enlarge; and only if almost no noise remains, sharpen until the enlarged clip, scaled down again,
equals the clip. The constants below were chosen on clips that no default run draws.
"""

from __future__ import annotations

import torch
from skimage import restoration
from torch import Tensor
from torch.nn import functional

from vleak.enhance.base import Enhanced, checked, enlarged, pooled

CLEAN = 0.003
"""Noise estimate below which a clip counts as clean and is not denoised, 0.8 of 255 grey levels."""

GATE = 0.005
"""Largest remaining noise at which clips are sharpened; above it, sharpening lost more than it gained."""

TOLERANCE = 1.5  # scale, in noise variances, at which excess squared differences lower a frame's weight
LEFT = 0.5  # assumed share of the noise that fusion leaves; a larger one blurs
NL_FILTER = 0.8  # strength of non-local means, in units of the noise
SHARPENINGS = 3  # steps of back-projection; ten gained 0.04 dB more on clips without noise
_NORMAL_MEDIAN = 0.6745  # median of |z| for a standard normal z


def classical(clip: Tensor, scale: int = 2) -> Enhanced:
    """Return a clip after fusion, denoising and, if hardly any noise remains, zero-shot super-resolution.

    Args:
        clip: (C, T, H, W) in [0, 1].
        scale: factor for width and height.

    Raises:
        InputError: the clip has another shape or non-finite values, or the scale is out of range.
    """
    coarse = checked(clip, scale)
    noise = estimate_noise(coarse)
    quiet, steps = denoise(coarse, noise)
    fine, steps = enlarged(quiet, scale), (*steps, "bicubic")
    if scale > 1 and estimate_noise(quiet) < GATE:
        fine, steps = back_project(fine, quiet, scale), (*steps, "back_projection")
    return Enhanced(fine, noise, steps)


def estimate_noise(clip: Tensor) -> float:
    """Return the standard deviation of the noise in a clip (C, T, H, W), in units of the pixel range.

    The median of the diagonal Haar details (Donoho and Johnstone 1994, Biometrika) of differences between
    neighbouring frames: static texture cancels, and moving texture does not change the median as long as it
    covers less than half of the frame. In a single frame texture counts as noise. 0 for frames of a single
    row or column.
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

    Fusion comes first: non-local means would smooth away detail that fusion can recover.
    """
    if noise < CLEAN:
        return clip, ()
    steps: tuple[str, ...] = ("nl_means",)
    if clip.shape[1] > 1:
        clip, steps = fuse(clip, noise), ("fusion", *steps)
    remaining = noise * (LEFT if clip.shape[1] > 1 else 1.0)
    # Patches of 3 x 3 pixels, searched within windows of 11 x 11.
    frames = [
        restoration.denoise_nl_means(
            frame.numpy(),
            patch_size=3,
            patch_distance=5,
            h=NL_FILTER * remaining,
            sigma=remaining,
            channel_axis=0,
        )
        for frame in clip.unbind(1)
    ]
    # scikit-image drops axes of length 1
    quiet = [torch.from_numpy(frame).to(clip).reshape(clip[:, 0].shape) for frame in frames]
    return torch.stack(quiet, 1).clamp(0, 1), steps


def fuse(clip: Tensor, noise: float) -> Tensor:
    """Return (C, T, H, W) with every pixel averaged over the frames that agree with it within the noise.

    The squared difference of two frames of a still scene is on average twice the variance of the noise; an
    excess, averaged over 3 x 3 pixels and all channels, counts as motion and lowers a frame's weight.
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
    """Return a fine clip sharpened so that it pools to the coarse one (Irani and Peleg 1991, CVGIP).

    Args:
        fine: (C, T, scale * H, scale * W) in [0, 1], an enlargement of ``coarse``.
        coarse: (C, T, H, W) in [0, 1].
        scale: factor for width and height.
    """
    for _ in range(SHARPENINGS):
        missing = coarse - pooled(fine, scale)
        frames = functional.interpolate(missing.transpose(0, 1), scale_factor=scale, mode="bicubic")
        fine = (fine + frames.transpose(0, 1)).clamp(0, 1)
    return fine
