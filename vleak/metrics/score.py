"""Record of all scores of one rebuilt clip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.metrics.fidelity import motion_psnr, motion_ssim, pair, psnr, ssim
from vleak.metrics.identification import identification_rank, residual_correlation


def score_clip(
    reconstruction: Tensor,
    truth: Tensor,
    index: int,
    candidates: Tensor,
    baselines: dict[str, Tensor],
    prior: Tensor,
) -> dict[str, Any]:
    """Return fidelity, motion and identification of a rebuilt clip, with gains over the baselines.

    Values outside [0, 1] are clamped first, as any attacker would do.

    Args:
        reconstruction: (C, T, H, W), the attack's answer.
        truth: (C, T, H, W) in [0, 1], the private clip; equal to ``candidates[index]``.
        index: index of the private clip among the candidates.
        candidates: (N, C, T, H, W) in [0, 1].
        baselines: answers (C, T, H, W) of the baselines, who never see the update, by name; at least one.
        prior: (C, T, H, W) in [0, 1], subtracted for the residual correlation.

    Returns:
        A dict of JSON values: ``psnr_db``, ``psnr_gain_db``, ``ssim``, ``ssim_gain``, ``motion_psnr_db``,
        ``motion_psnr_gain_db`` and ``motion_ssim`` (None when nothing moves), ``residual_correlation``,
        ``identified`` (first of at least two candidates), ``rank`` (1 is best), ``candidates``,
        ``baselines`` (name -> ``psnr_db``, ``ssim``) and ``best_baseline`` (by PSNR). Every gain is over the
        baseline that is best in that score for this clip, so no baseline has a positive gain.

    Raises:
        InputError: NaN or infinite values, shapes that differ, no baseline, or a truth that is not the
            candidate at ``index``.
    """
    x = _checked("score_clip", reconstruction, truth, index, candidates, baselines)
    scored = {
        name: {"psnr_db": psnr(clip, truth), "ssim": ssim(clip, truth)} for name, clip in baselines.items()
    }
    best = max(scored, key=lambda name: scored[name]["psnr_db"])
    scores = _brief(x, truth, index, candidates, scored[best]["psnr_db"])
    return {
        **scores,
        "ssim_gain": scores["ssim"] - max(score["ssim"] for score in scored.values()),
        **_motion(x, truth, scores["motion_psnr_db"], baselines),
        "residual_correlation": residual_correlation(x, truth, prior),
        "candidates": len(candidates),
        "baselines": scored,
        "best_baseline": best,
    }


def score_briefly(
    reconstruction: Tensor, truth: Tensor, index: int, candidates: Tensor, baselines: dict[str, Tensor]
) -> dict[str, Any]:
    """Return the scores of `score_clip` that a rebuilt clip is judged by at another resolution.

    Args:
        reconstruction, truth, index, candidates, baselines: as of `score_clip`.

    Returns:
        ``psnr_db``, ``psnr_gain_db``, ``ssim``, ``motion_psnr_db``, ``identified`` and ``rank``.

    Raises:
        InputError: as `score_clip`.
    """
    x = _checked("score_briefly", reconstruction, truth, index, candidates, baselines)
    return _brief(x, truth, index, candidates, max(psnr(clip, truth) for clip in baselines.values()))


def _brief(x: Tensor, truth: Tensor, index: int, candidates: Tensor, best: float) -> dict[str, Any]:
    """Return what `score_briefly` does; ``best`` is the PSNR of the best baseline."""
    level, rank = psnr(x, truth), identification_rank(x, candidates, index)
    return {
        "psnr_db": level,
        "psnr_gain_db": level - best,
        "ssim": ssim(x, truth),
        "motion_psnr_db": motion_psnr(x, truth),
        "identified": rank == 1 and len(candidates) > 1,
        "rank": rank,
    }


def _checked(
    what: str,
    reconstruction: Tensor,
    truth: Tensor,
    index: int,
    candidates: Tensor,
    baselines: dict[str, Tensor],
) -> Tensor:
    """Return a rebuilt clip within [0, 1]; raise InputError for what cannot be scored."""
    pair(what, reconstruction, truth)
    _check_truth(what, truth, index, candidates)
    if not baselines:
        raise InputError(
            f"{what}: no baseline given; pass at least a grey clip, since a gain is over the best of them"
        )
    return reconstruction.detach().to("cpu", torch.float32).clamp(0.0, 1.0)


def _motion(
    x: Tensor, truth: Tensor, level: float | None, baselines: dict[str, Tensor]
) -> dict[str, float | None]:
    best = max((motion_psnr(clip, truth) or 0.0 for clip in baselines.values()), default=0.0)
    return {
        "motion_psnr_gain_db": None if level is None else level - best,
        "motion_ssim": motion_ssim(x, truth),
    }


def _check_truth(what: str, truth: Tensor, index: int, candidates: Tensor) -> None:
    """Raise InputError for an index of another clip, with which every identification would be wrong."""
    inside = candidates.dim() == 5 and 0 <= index < len(candidates) and candidates.shape[1:] == truth.shape
    if not inside or not torch.allclose(candidates[index].to(truth), truth, atol=1e-5):
        raise InputError(
            f"{what}: the truth of shape {tuple(truth.shape)} is not candidate {index} of "
            f"{tuple(candidates.shape)}; pass the candidates in the order that the index counts"
        )
