"""Claim: simple classifiers leak more."""

from __future__ import annotations

from collections.abc import Sequence

from vleak.study.claim import Claim, Judgement, Picture
from vleak.study.keys import FeatureRun, RawRun, RunKey
from vleak.study.measures import Comparison, Results, cosine_gain, difference, leakage, point, psnr_gain
from vleak.study.records import Point
from vleak.study.runs import EXTRACTORS, feature_runs, losses
from vleak.study.settings import Study

WIDTHS = (4, 8, 16, 32, 64)
DEPTHS = (1, 2, 3, 4)


class Complexity(Claim):
    """Narrow against wide, shallow against deep classifiers; one linear layer against a deep head."""

    key = "complexity"
    name = "What leaks returns when the classifier is simple."

    def runs(self, study: Study) -> Sequence[RunKey]:
        """Return the runs of all sizes and the feature runs, among them a linear and a deep head."""
        return [*widths(study), *depths(study), *feature_runs(study)]

    def judge(self, study: Study, results: Results) -> Judgement:
        """Compare the smallest with the largest width and depth, and the linear with the deepest head."""
        axes = {"width": widths(study), "depth": depths(study)}
        points = {
            axis: tuple(point(float(getattr(key, axis)), leakage(results, key, psnr_gain)) for key in keys)
            for axis, keys in axes.items()
        }
        return Judgement(
            (*(_extremes(results, keys) for keys in axes.values()), *_heads(study, results)),
            remarks=("Above zero, the simpler model leaks more.",),
            points={**points, "parameters": _by_parameters(study, results)},
        )

    def pictures(self, study: Study, results: Results) -> Sequence[Picture]:
        """Return one picture a size."""
        return [Picture(title=key.size, run=key) for key in (*widths(study), *depths(study))]


def widths(study: Study) -> list[RawRun]:
    """Return the runs of all widths."""
    return [RawRun(width=width) for width in (WIDTHS[1::2] if study.quick else WIDTHS)]


def depths(study: Study) -> list[RawRun]:
    """Return the runs of all depths."""
    return [RawRun(depth=depth) for depth in (DEPTHS[::3] if study.quick else DEPTHS)]


def _extremes(results: Results, keys: Sequence[RawRun]) -> Comparison:
    simple, complicated = keys[0], keys[-1]
    return difference(
        f"raw frames: {simple.size} over {complicated.size}",
        leakage(results, simple, psnr_gain),
        leakage(results, complicated, psnr_gain),
        "dB",
    )


def _heads(study: Study, results: Results) -> list[Comparison]:
    """Compare the linear head with the deepest one, for every loss and extractor."""
    deepest = max(key.head_depth or 0 for key in feature_runs(study))
    return [
        difference(
            f"{extractor}, {loss}: one linear layer over {deepest}",
            leakage(results, FeatureRun(extractor=extractor, head="linear", loss=loss), cosine_gain),
            leakage(
                results,
                FeatureRun(extractor=extractor, head="mlp", head_depth=deepest, loss=loss),
                cosine_gain,
            ),
            "cosine",
        )
        for loss in losses(study)
        for extractor in EXTRACTORS
    ]


def _by_parameters(study: Study, results: Results) -> tuple[Point, ...]:
    points = [
        point(float(results[key].models[0].parameters), leakage(results, key, psnr_gain))
        for key in (*widths(study), *depths(study))
    ]
    return tuple(sorted(points, key=lambda each: each.x))
