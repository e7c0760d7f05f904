"""Scores of a rebuilt clip: fidelity, motion, whether it points at the right clip, what enhancing it adds."""

from vleak.metrics.enhancement import invented_share, score_enhanced
from vleak.metrics.fidelity import (
    MOTION_THRESHOLD,
    PSNR_CAP_DB,
    motion_mask,
    motion_psnr,
    motion_ssim,
    psnr,
    ssim,
)
from vleak.metrics.identification import identification_rank, residual_correlation
from vleak.metrics.score import score_clip

__all__ = [
    "MOTION_THRESHOLD",
    "PSNR_CAP_DB",
    "identification_rank",
    "invented_share",
    "motion_mask",
    "motion_psnr",
    "motion_ssim",
    "psnr",
    "residual_correlation",
    "score_clip",
    "score_enhanced",
    "ssim",
]
