"""Typed scores of one reconstruction, and of its enhancement."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vleak.results.base import Finite, Record

__all__ = [
    "BaselineScore",
    "EnhancedScores",
    "EnhancementRecord",
    "OrderScores",
    "Scores",
    "SegmentScores",
]


class BaselineScore(Record):
    """Score of one baseline on one clip; None where it was not measured."""

    psnr_db: Finite | None = None
    ssim: Finite | None = None
    cosine: Finite | None = None


class OrderScores(Record):
    """Fidelity in the order of frames, and after matching frames one to one.

    Attributes:
        psnr_db: PSNR in the order given.
        matched_psnr_db: PSNR after the best one-to-one matching of frames.
        frames_in_place: share of frames that match their own position.
    """

    psnr_db: Finite
    matched_psnr_db: Finite
    frames_in_place: Finite


class SegmentScores(Record):
    """Recovery of a feature matrix, segment by segment.

    Attributes:
        segments: segments of the matrix.
        carrying: segments that the loss lets into the gradient.
        recovered: segments with a cosine above 0.99.
        exact: segments with a relative error below 0.01.
        baseline_exact: the same of the best baseline.
        cosine: median cosine over segments.
        relative_error: median relative error over segments.
        in_order: share of segments in their own position; None where the attack claims no order.
        cosine_gain: cosine over the best baseline.
        identified, rank, candidates: as in `Scores`, from the features.
        baselines: scores of the baselines by name.
        best_baseline: the baseline with the highest cosine.
    """

    segments: int
    carrying: int
    recovered: int
    exact: int
    baseline_exact: int
    cosine: Finite | None
    relative_error: Finite | None
    in_order: Finite | None
    cosine_gain: Finite | None
    identified: bool
    rank: int
    candidates: int
    baselines: dict[str, BaselineScore] = Field(default_factory=dict)
    best_baseline: str | None = None


class Scores(Record):
    """Scores of one reconstruction beside those of the baselines.

    Attributes:
        psnr_db, ssim: fidelity; None where there are no frames.
        psnr_gain_db, ssim_gain: gain over the best baseline of this clip.
        motion_psnr_db, motion_psnr_gain_db, motion_ssim: the same where something moves; None where
            nothing does.
        residual_correlation: correlation with the truth after subtracting the prior.
        best_baseline: the baseline with the highest PSNR.
        baselines: scores of the baselines by name.
        order: scores that ignore the order of frames.
        segments: recovery of features; None in the raw pipeline.
        identified: whether the reconstruction is nearest to its own truth among the candidates.
        rank: rank of the truth, 1 is best. candidates: clips it was told from.
        baseline_identified: whether reference frames alone identify the clip; None without reference frames.
        label_correct: whether the label was right; None where there is none to guess.
        linked: whether the update alone points at the clip among the candidates; None where not asked.
        link_rank: rank of the clip in that test.
        link_chance: how often, over the noise that the defense states, who is told all labels picks the clip;
            None where the noise is not Gaussian, for batches and for several rounds. link_draws: of the
            noise, that it is a share of.
        metrics: scores of further metrics by name, from plug-ins.
    """

    psnr_db: Finite | None = None
    psnr_gain_db: Finite | None = None
    ssim: Finite | None = None
    ssim_gain: Finite | None = None
    motion_psnr_db: Finite | None = None
    motion_psnr_gain_db: Finite | None = None
    motion_ssim: Finite | None = None
    residual_correlation: Finite | None = None
    best_baseline: str | None = None
    baselines: dict[str, BaselineScore] = Field(default_factory=dict)
    order: OrderScores | None = None
    segments: SegmentScores | None = None
    identified: bool = False
    rank: int | None = None
    candidates: int | None = None
    baseline_identified: bool | None = None
    label_correct: bool | None = None
    linked: bool | None = None
    link_rank: int | None = None
    link_chance: float | None = Field(default=None, ge=0, le=1)
    link_draws: int | None = Field(default=None, ge=1)
    metrics: dict[str, Finite | None] = Field(default_factory=dict)


class EnhancedScores(Record):
    """Scores at twice the resolution, before or after enhancement."""

    psnr_db: Finite
    psnr_gain_db: Finite
    ssim: Finite
    motion_psnr_db: Finite | None
    identified: bool
    rank: int
    detail_rms: Finite
    invented: Finite | None


class EnhancementRecord(Record):
    """Enhancement of one reconstruction.

    Attributes:
        method: name of the enhancer.
        noise: standard deviation of the noise estimated in the clip.
        steps: operations in the order in which they were applied.
        before, after: scores of the interpolated and of the enhanced clip.
        psnr_change_db, psnr_gain_change_db: differences of those.
        identification_moved: "gained", "lost" or "none".
    """

    method: str
    noise: Finite
    steps: tuple[str, ...]
    before: EnhancedScores
    after: EnhancedScores
    psnr_change_db: Finite
    psnr_gain_change_db: Finite
    identification_moved: Literal["gained", "lost", "none"]
