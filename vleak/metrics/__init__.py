"""Scores of a rebuilt clip: fidelity, motion, identification among candidates, and effect of enhancement."""

from vleak.metrics.assignment import assign
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
from vleak.metrics.order import order_scores
from vleak.metrics.registry import METRICS, Metric, measure
from vleak.metrics.score import score_clip
from vleak.metrics.segments import carrying_segments, match_segments, score_segments, segment_rank

__all__ = [
    "METRICS",
    "MOTION_THRESHOLD",
    "PSNR_CAP_DB",
    "Metric",
    "assign",
    "carrying_segments",
    "identification_rank",
    "invented_share",
    "match_segments",
    "measure",
    "motion_mask",
    "motion_psnr",
    "motion_ssim",
    "order_scores",
    "psnr",
    "residual_correlation",
    "score_clip",
    "score_enhanced",
    "score_segments",
    "segment_rank",
    "ssim",
]
