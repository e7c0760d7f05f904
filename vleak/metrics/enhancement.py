"""Worth of an enhancement: scores before and after, and how much of the new detail is invented."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from vleak.errors import InputError
from vleak.metrics.fidelity import pair
from vleak.metrics.score import score_clip

_KEPT = ("psnr_db", "psnr_gain_db", "ssim", "motion_psnr_db", "identified", "rank")
_FLAT = 1e-5  # a detail with a smaller root mean square is rounding, not content


def score_enhanced(
    before: Tensor,
    after: Tensor,
    truth_fine: Tensor,
    index: int,
    candidates_fine: Tensor,
    baselines_before: dict[str, Tensor],
    baselines_after: dict[str, Tensor],
) -> dict[str, Any]:
    """Return the scores of a rebuilt clip before and after enhancement, against the truth at that resolution.

    Both sides are of the same size, so that nothing but the enhancement differs; a gain is over
    baselines whose answers were treated like the clip.

    Args:
        before: (C, T, 2H, 2W), the rebuilt clip enlarged by plain interpolation.
        after: (C, T, 2H, 2W), the rebuilt clip enhanced.
        truth_fine: (C, T, 2H, 2W) in [0, 1], the private clip; equal to ``candidates_fine[index]``.
        index: which candidate is the truth.
        candidates_fine: (N, C, T, 2H, 2W) in [0, 1].
        baselines_before: answers of the baselines, enlarged; by name, at least one.
        baselines_after: the same answers, enhanced; of the same names.

    Returns:
        A dict that JSON can hold. ``before`` and ``after``: ``psnr_db``, ``psnr_gain_db``, ``ssim``,
        ``motion_psnr_db`` (None when nothing moves), ``identified``, ``rank``, ``detail_rms`` and
        ``invented`` as of `invented_share`. ``psnr_change_db`` and ``psnr_gain_change_db``: after minus
        before. ``identification_moved``: "gained" when only ``after`` points at the private clip, "lost"
        when only ``before`` does, else "none". A baseline's clip, given as the answer, gains nothing.

    Raises:
        InputError: as `score_clip`; other baselines before than after; or sides that are odd.
    """
    if set(baselines_before) != set(baselines_after):
        raise InputError(
            f"score_enhanced: baselines {sorted(baselines_before)} before and {sorted(baselines_after)} "
            "after; enhance each of them as the clip was"
        )
    sides = {}
    for name, clip, baselines in (("before", before, baselines_before), ("after", after, baselines_after)):
        scores = score_clip(clip, truth_fine, index, candidates_fine, baselines, candidates_fine.mean(0))
        rms, invented = invented_share(clip.clamp(0, 1), truth_fine)
        sides[name] = {key: scores[key] for key in _KEPT} | {"detail_rms": rms, "invented": invented}
    first, then = sides["before"], sides["after"]
    moved = {(False, True): "gained", (True, False): "lost"}
    return {
        **sides,
        "psnr_change_db": then["psnr_db"] - first["psnr_db"],
        "psnr_gain_change_db": then["psnr_gain_db"] - first["psnr_gain_db"],
        "identification_moved": moved.get((first["identified"], then["identified"]), "none"),
    }


def invented_share(x: Tensor, truth: Tensor) -> tuple[float, float | None]:
    """Return how much detail a fine clip shows, and which share of it has no counterpart in the truth.

    Detail is what remains of every square of two by two pixels after its mean is subtracted: the part that a
    clip of half the resolution leaves open.

    Args:
        x: (C, T, 2H, 2W) in [0, 1].
        truth: (C, T, 2H, 2W) in [0, 1].

    Returns:
        The root mean square of the detail, in units of the pixel range, and the share in [0, 1] of its energy
        that does not follow the detail of the truth: 1 - r^2, and 1 where r is below 0. The share is None
        where there is no detail.

    Raises:
        InputError: shapes differ, are not 4-D, have odd sides, or a value is NaN or infinite.
    """
    pair("invented_share", x, truth)
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise InputError(
            f"invented_share: frames of {x.shape[2]}x{x.shape[3]} pixels; expected even sides, as of a clip "
            "at twice the resolution"
        )
    a, b = _detail(x), _detail(truth)
    level, wanted = (float(side.square().mean().sqrt()) for side in (a, b))
    if level < _FLAT:
        return level, None
    r = float((a * b).mean()) / (level * wanted) if wanted >= _FLAT else 0.0
    return level, min(1.0, max(0.0, 1 - max(0.0, r) ** 2))


def _detail(clip: Tensor) -> Tensor:
    """Return (T, C, 2H, 2W) without the mean of every square of two by two pixels."""
    frames = clip.detach().to("cpu").double().transpose(0, 1)
    return frames - functional.interpolate(functional.avg_pool2d(frames, 2), scale_factor=2.0, mode="nearest")
