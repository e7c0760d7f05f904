"""Claim: a frozen extractor hinders the reconstruction of frames."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vleak.study.claim import Claim, Judgement, Picture
from vleak.study.keys import FeatureRun, RunKey
from vleak.study.measures import Comparison, Results, difference, interval, leakage, psnr_gain
from vleak.study.records import FeatureRow
from vleak.study.runs import feature_rows, feature_runs, raw_run
from vleak.study.settings import Study


class Extractors(Claim):
    """Raw frames against the features of every extractor, head and loss."""

    key = "extractors"
    name = "A frozen extractor in front of the classifier hinders the rebuilding of frames."

    def runs(self, study: Study) -> Sequence[RunKey]:
        """Return the run on raw frames and all feature runs."""
        return [raw_run(study), *feature_runs(study)]

    def judge(self, study: Study, results: Results) -> Judgement:
        """Compare the gain of raw frames with that of every feature run."""
        raw = leakage(results, raw_run(study), psnr_gain)
        comparisons = [
            difference(f"raw frames over {key.name}", raw, leakage(results, key, psnr_gain), "dB")
            for key in feature_runs(study)
        ]
        # The row that leaks most comes first: an extractor that hinders only some losses does not hinder.
        comparisons.sort(key=_effect)
        return Judgement(tuple(comparisons), remarks=_remarks(feature_rows(study, results)))

    def pictures(self, study: Study, results: Results) -> Sequence[Picture]:
        """Return raw frames beside the strongest head of every extractor and loss."""
        return [
            Picture(title="raw frames", run=raw_run(study)),
            *(Picture(title=" · ".join(key.factors), run=key) for key in strongest_heads(study, results)),
        ]


def strongest_heads(study: Study, results: Results) -> list[FeatureRun]:
    """Return for every extractor and loss the run whose head leaks most of the frames."""
    best: dict[tuple[str, str], tuple[float, str, FeatureRun]] = {}
    for key in feature_runs(study):
        gain = interval(leakage(results, key, psnr_gain)).mean
        if gain is None:
            continue
        group, candidate = (key.extractor, key.loss), (gain, key.name, key)
        if group not in best or candidate[:2] > best[group][:2]:
            best[group] = candidate
    return [key for _, _, key in best.values()]


def _effect(comparison: Comparison) -> float:
    return math.inf if comparison.effect.mean is None else comparison.effect.mean


def _remarks(rows: Sequence[FeatureRow]) -> tuple[str, ...]:
    recovered, segments = sum(row.recovered for row in rows), sum(row.segments for row in rows)
    best = max(rows, key=lambda row: row.recognised)
    return (
        "Each row is one extractor, head and loss; the row that leaks most comes first.",
        f"Of the features, {recovered} of {segments} segments came back with a cosine above 0.99.",
        f"Of all {len(rows)} rows, clips are recognised most often from {best.extractor}, {best.head}, "
        f"{best.loss}: {best.recognised} of {best.clips}; chance is {100 * best.chance:.0f} %.",
    )
