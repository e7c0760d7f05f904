"""Typed scores from the figures that `vleak.metrics` returns."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from vleak.enhance import Enhanced
from vleak.metrics import order_scores, score_clip, score_enhanced, score_segments
from vleak.results.records import (
    BaselineScore,
    EnhancedScores,
    EnhancementRecord,
    OrderScores,
    Scores,
    SegmentScores,
)

__all__ = ["clip_scores", "enhancement_scores", "finite", "segment_scores"]


def finite(value: float) -> float | None:
    """The number, or None where JSON cannot write it."""
    return value if math.isfinite(value) else None


def clip_scores(
    clip: Tensor, index: int, candidates: Tensor, baselines: Mapping[str, Tensor], prior: Tensor
) -> Scores:
    """Scores of rebuilt frames, beside those of the baselines.

    Args:
        clip: (C, T, H, W) in [0, 1], rebuilt.
        index: position of the private clip among the candidates.
        candidates: (N, C, T, H, W) in [0, 1].
        baselines: answers (C, T, H, W) of the baselines by name, at least one.
        prior: (C, T, H, W), what is subtracted for the residual correlation.

    Raises:
        InputError: as `vleak.metrics.score_clip`.
    """
    figures = score_clip(clip, candidates[index], index, candidates, dict(baselines), prior)
    return Scores(
        baselines={name: BaselineScore(**score) for name, score in figures.pop("baselines").items()},
        best_baseline=figures.pop("best_baseline"),
        order=OrderScores(**order_scores(clip, candidates[index])),
        **figures,
    )


def segment_scores(
    features: Tensor,
    index: int,
    candidates: Tensor,
    baselines: Mapping[str, Tensor],
    carrying: Tensor,
    *,
    ordered: bool,
) -> SegmentScores:
    """Scores of rebuilt features, segment by segment, beside those of the baselines.

    Args:
        features: (S, F), rebuilt.
        index: position of the private matrix among the candidates.
        candidates: (N, S, F).
        baselines: answers (S, F) of the baselines by name, at least one.
        carrying: (S,) bool, segments of the truth that have a gradient.
        ordered: whether the attack claims the order of segments.

    Raises:
        InputError: as `vleak.metrics.score_segments`.
    """
    figures = score_segments(
        features, candidates[index], index, candidates, dict(baselines), carrying, ordered=ordered
    )
    return SegmentScores(
        baselines={name: BaselineScore(**score) for name, score in figures.pop("baselines").items()},
        best_baseline=figures.pop("best_baseline"),
        baseline_exact=figures.pop("baseline_exact"),
        **figures,
    )


def enhancement_scores(
    method: str,
    before: Tensor,
    after: Enhanced,
    index: int,
    candidates: Tensor,
    baselines: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
) -> EnhancementRecord:
    """Scores at twice the resolution, before and after enhancement.

    Args:
        method: name of the enhancer.
        before: (C, T, 2H, 2W) in [0, 1], by interpolation.
        after: by the enhancer.
        index: position of the private clip among the candidates.
        candidates: (N, C, T, 2H, 2W) in [0, 1].
        baselines: answers of the baselines by name, before and after enhancement.

    Raises:
        InputError: as `vleak.metrics.score_enhanced`.
    """
    interpolated, enhanced = map(dict, baselines)
    figures = score_enhanced(before, after.clip, candidates[index], index, candidates, interpolated, enhanced)
    return EnhancementRecord(
        method=method,
        noise=after.noise,
        steps=tuple(after.steps),
        before=EnhancedScores(**figures.pop("before")),
        after=EnhancedScores(**figures.pop("after")),
        **figures,
    )
