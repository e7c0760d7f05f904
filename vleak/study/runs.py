"""Runs that several claims share."""

from __future__ import annotations

from itertools import product

from vleak.study.keys import FeatureRun, RawRun
from vleak.study.measures import Results, attacked_cells, cosine_gain, leakage, mean, reference
from vleak.study.records import FeatureRow
from vleak.study.settings import Study

EXTRACTORS = ("c3d_small", "frame_cnn")
HEADS: tuple[tuple[str, int | None], ...] = (
    ("linear", None),
    ("mlp", 2),
    ("mlp", 4),
    ("attention", None),
    ("lstm", None),
)
"""Heads with their depth; None for the default."""
LOSSES = ("bce", "ranking", "cross_entropy")
REFERENCE_FRAMES = (0, 1, 4)
_QUICK_HEADS = _QUICK_LOSSES = _QUICK_REFERENCES = 2  # the first so many


def raw_run(study: Study) -> RawRun:
    """Return the run on raw frames without defense, for every count of reference frames."""
    counts = REFERENCE_FRAMES[:_QUICK_REFERENCES] if study.quick else REFERENCE_FRAMES
    return RawRun(enhancement="classical", reference_frames=counts)


def losses(study: Study) -> tuple[str, ...]:
    """Return the losses of the feature runs."""
    return LOSSES[:_QUICK_LOSSES] if study.quick else LOSSES


def feature_runs(study: Study) -> list[FeatureRun]:
    """Return a run for every combination of extractor, head and loss."""
    heads = HEADS[:_QUICK_HEADS] if study.quick else HEADS
    return [
        FeatureRun(extractor=extractor, head=head, head_depth=depth, loss=loss)
        for extractor, (head, depth), loss in product(EXTRACTORS, heads, losses(study))
    ]


def feature_rows(study: Study, results: Results) -> tuple[FeatureRow, ...]:
    """Return the recovery of features of all feature runs."""
    return tuple(_feature_row(results, key) for key in feature_runs(study))


def _feature_row(results: Results, key: FeatureRun) -> FeatureRow:
    """Return the recovery of features of one run, by the attack with the highest cosine gain."""
    strongest = {measurement.cell for measurement in leakage(results, key, cosine_gain).values()}
    scores = [(cell, cell.scores) for cell in attacked_cells(results[key]) if cell.scores is not None]
    counted = [score for cell, score in scores if reference(key, cell) in strongest]
    segments = [score.segments for score in counted if score.segments is not None]
    gains = [part.cosine_gain for part in segments if part.cosine_gain is not None]
    return FeatureRow(
        extractor=key.extractor,
        head=key.head_text,
        loss=key.loss,
        recovered=sum(part.recovered for part in segments),
        carrying=sum(part.carrying for part in segments),
        segments=sum(part.segments for part in segments),
        cosine_gain=mean(gains) if gains else None,
        clips=len(strongest),
        chance=mean([1 / score.candidates for _, score in scores if score.candidates]),
        recognised=sum(score.identified for score in counted),
    )
