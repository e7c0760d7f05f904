"""Effect of an enhancement: scores before and after, and the share of the new detail that is invented."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from vleak.errors import InputError
from vleak.metrics.fidelity import pair
from vleak.metrics.score import score_briefly

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

    Both clips have the same size and differ by the enhancement alone; gains are over baselines whose answers
    were processed like the clip.

    Args:
        before: (C, T, 2H, 2W), the rebuilt clip enlarged by interpolation.
        after: (C, T, 2H, 2W), the rebuilt clip enhanced.
        truth_fine: (C, T, 2H, 2W) in [0, 1], the private clip; equal to ``candidates_fine[index]``.
        index: index of the private clip among the candidates.
        candidates_fine: (N, C, T, 2H, 2W) in [0, 1].
        baselines_before: answers of the baselines, enlarged; by name, at least one.
        baselines_after: the same answers, enhanced; by the same names.

    Returns:
        A dict of JSON values. ``before`` and ``after``: ``psnr_db``, ``psnr_gain_db``, ``ssim``,
        ``motion_psnr_db`` (None when nothing moves), ``identified``, ``rank``, ``detail_rms`` and
        ``invented`` as in `invented_share`. ``psnr_change_db`` and ``psnr_gain_change_db``: after minus
        before. ``identification_moved``: "gained" when only ``after`` points at the private clip, "lost"
        when only ``before`` does, else "none". A baseline's clip, given as the answer, gains nothing.

    Raises:
        InputError: as `score_briefly`; the baselines before and after differ; or sides are odd.
    """
    if set(baselines_before) != set(baselines_after):
        raise InputError(
            f"score_enhanced: baselines {sorted(baselines_before)} before and {sorted(baselines_after)} "
            "after; enhance each of them as the clip was"
        )
    sides = {}
    for name, clip, baselines in (("before", before, baselines_before), ("after", after, baselines_after)):
        rms, invented = invented_share(clip.clamp(0, 1), truth_fine)
        scores = score_briefly(clip, truth_fine, index, candidates_fine, baselines)
        sides[name] = scores | {"detail_rms": rms, "invented": invented}
    first, then = sides["before"], sides["after"]
    changes = {(False, True): "gained", (True, False): "lost"}
    return {
        **sides,
        "psnr_change_db": then["psnr_db"] - first["psnr_db"],
        "psnr_gain_change_db": then["psnr_gain_db"] - first["psnr_gain_db"],
        "identification_moved": changes.get((first["identified"], then["identified"]), "none"),
    }


def invented_share(x: Tensor, truth: Tensor) -> tuple[float, float | None]:
    """Return the amount of detail in a fine clip, and the share of it without counterpart in the truth.

    Detail is a square of two by two pixels minus its mean: the part of a clip that its version at half the
    resolution does not determine.

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
