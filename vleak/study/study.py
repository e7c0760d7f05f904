"""The study: claims about inverting gradients of video, each asked on runs of its own, judged by intervals.

The claims are those of "Images in Motion?" (2025, arXiv 2509.09742), and two questions that it leaves open.
Its tables are not compared with: its claims are.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

from vleak.data import FeatureSet, load_data, recognise
from vleak.errors import InputError
from vleak.evaluation.groups import StoppedError
from vleak.evaluation.run import evaluate
from vleak.evaluation.settings import Settings
from vleak.files import write_atomic
from vleak.models import build_extractor
from vleak.pipelines import Progress, extractor_for
from vleak.results.records import SCHEMA_VERSION
from vleak.results.statistics import Interval, mean_interval

__all__ = ["CLAIMS", "Claim", "Comparison", "Study", "judge", "plan", "run_study"]

Verdict = Literal["holds", "does not hold", "mixed"]
Results = Mapping[str, dict[str, Any]]
"""What every run of a study gave, by the run's name."""

EXTRACTORS = ("c3d_small", "frame_cnn")
HEADS = ("linear", "mlp:depth=2", "mlp:depth=4", "attention", "lstm")
LOSSES = ("bce", "ranking", "cross_entropy")
REFERENCES = (0, 1, 4)
_QUICK = 80  # iterations
WIDTHS = (4, 8, 16, 32, 64)
DEPTHS = (1, 2, 3, 4)
COMPRESSED = ("compress:codec=int8", "compress:codec=qsgd,bits=4", "compress:codec=qsgd,bits=2",
              "prune:fraction=0.9", "prune:fraction=0.99")  # fmt: skip


@dataclass(frozen=True)
class Study:
    """What a study is run on.

    Attributes:
        data: "synthetic", or videos as `vleak.data.load_data` takes them.
        clips: to attack, at least 8, or no interval can be given.
        frames, size, stride, seed, iterations, device, engine: as in `vleak.evaluation.Settings`.
        quick: clips of at most 4 frames, fewer runs of each question, at most 80 iterations each, of features
            the exact attack alone, and no network that has to be trained first.
    """

    data: str = "synthetic"
    clips: int = 12
    frames: int = 8
    size: int = 32
    stride: int = 2
    seed: int = 0
    iterations: int = 150
    device: str = "auto"
    engine: str = "native"
    quick: bool = False

    @property
    def length(self) -> int:
        """Frames of the clips that are attacked."""
        return min(self.frames, 4) if self.quick else self.frames

    def settings(self, **changes: Any) -> Settings:
        """Return the settings of one of its runs."""
        return Settings(
            data=self.data, clips=self.clips, frames=self.length, size=self.size, stride=self.stride,
            seed=self.seed, iterations=min(self.iterations, _QUICK) if self.quick else self.iterations,
            device=self.device, engine=self.engine,
            **{"defenses": ("none",), "enhance": "none"} | changes,
        )  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One measured difference, paired by clip.

    Attributes:
        name: what is compared with what.
        effect: mean over clips with its interval; above zero is what the claim says.
        unit: of the effect.
        cells: ids of the cells behind it, "run: cell".
    """

    name: str
    effect: Interval
    unit: str
    cells: tuple[str, ...]

    @property
    def supports(self) -> bool:
        """Whether the whole interval lies on the side that the claim says."""
        return self.effect.low is not None and self.effect.low > 0


@dataclass(frozen=True)
class Claim:
    """A claim and what came of it.

    Attributes:
        key: short name.
        name: the claim in a sentence.
        comparisons: what was measured for it; the first is its effect.
        remarks: sentences on how to read it.
        points: what plots of it show, by axis: (place, effect); unit_of_points: of what.
        grid: rows of a table beside the comparisons, JSON values.
    """

    key: str
    name: str
    comparisons: tuple[Comparison, ...]
    remarks: tuple[str, ...] = ()
    points: dict[str, list[tuple[float, Interval]]] = field(default_factory=dict)
    unit_of_points: str = "PSNR gain in dB"
    grid: tuple[dict[str, Any], ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Holds if every comparison supports it, does not hold if none does, mixed otherwise."""
        supporting = sum(each.supports for each in self.comparisons)
        if supporting == len(self.comparisons) > 0:
            return "holds"
        return "mixed" if supporting else "does not hold"

    def record(self) -> dict[str, Any]:
        """Return the claim as JSON values."""
        first = self.comparisons[0]
        return {
            "key": self.key,
            "name": self.name,
            "effect": first.effect.mean,
            "interval": [first.effect.low, first.effect.high],
            "unit": first.unit,
            "verdict": self.verdict,
            "comparisons": [
                {
                    "name": each.name,
                    "effect": each.effect.mean,
                    "interval": [each.effect.low, each.effect.high],
                    "unit": each.unit,
                    "clips": each.effect.n,
                    "supports": each.supports,
                }
                for each in self.comparisons
            ],
            "remarks": list(self.remarks),
            "unit_of_points": self.unit_of_points,
            "points": {
                series: [[x, i.mean, i.low, i.high] for x, i in points]
                for series, points in self.points.items()
            },
            "grid": list(self.grid),
            "cells": list(dict.fromkeys(cell for each in self.comparisons for cell in each.cells)),
        }


# ---------------------------------------------------------------------------------------------------------
# Running


def plan(study: Study) -> dict[str, Settings]:
    """Return the runs of a study by name.

    Raises:
        InputError: fewer than 8 clips.
    """
    if study.clips < 8:
        raise InputError(f"study: expected at least 8 clips, or no interval can be given, got {study.clips}")
    quick = study.quick
    runs = {
        "raw": study.settings(reference_frames=REFERENCES[: 2 if quick else None], enhance="classical"),
        **({} if quick else {"raw, network": study.settings(enhance="network")}),
        "compressed": study.settings(defenses=COMPRESSED[1:4:2] if quick else COMPRESSED),
    }
    for width in WIDTHS[1::2] if quick else WIDTHS:
        runs[f"raw, width {width}"] = study.settings(model=f"c3d_tiny:width={width}")
    for depth in DEPTHS[::3] if quick else DEPTHS:
        runs[f"raw, depth {depth}"] = study.settings(model=f"c3d_tiny:depth={depth}")
    heads = HEADS[:2] if quick else HEADS
    for extractor, head, loss in product(EXTRACTORS, heads, LOSSES[:2] if quick else LOSSES):
        runs[f"{extractor}, {head}, {loss}"] = study.settings(
            pipeline="feature",
            extractor=extractor,
            head=head,
            loss=loss,
            attacks=("low_rank",) if quick else None,
        )
    return runs


def run_study(
    study: Study,
    out: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Run every run of a study that is not finished yet, and write ``study.json``.

    Args:
        study: what to run.
        out: a folder; each run is a folder below it, and is taken up where it was.
        workers: as for `vleak.evaluation.evaluate`.
        progress: called as (what, runs finished, runs in all).
        stop: when set, the study ends after the finished cells.

    Returns:
        {"schema_version", "settings", "claims": [...]}, each claim as `Claim.record`.

    Raises:
        InputError: settings or data cannot be used, or a folder holds another run.
        StoppedError: ``stop`` was set before the end.
        VleakError: the folder cannot be written.
    """
    runs, results = plan(study), {}
    tell = progress or (lambda what, done, total: None)
    tell("looking at the data", 0, len(runs))
    _check(study)
    tell("preparing the extractors", 0, len(runs))
    with ThreadPoolExecutor(len(EXTRACTORS)) as pool:  # which may have to be trained first
        list(pool.map(lambda name: extractor_for(name, frames=study.length, size=study.size), EXTRACTORS))
    for number, (name, settings) in enumerate(runs.items()):
        tell(name, number, len(runs))
        if stop is not None and stop.is_set():
            raise StoppedError(f"stopped with {number} of {len(runs)} runs finished")
        record = evaluate(settings, out / folder(name), workers=workers, stop=stop)
        results[name] = record.model_dump(mode="json")
    tell("judging", len(runs), len(runs))
    content = {
        "schema_version": SCHEMA_VERSION,
        "settings": vars(study),
        "environment": results["raw"]["environment"],
        "data": results["raw"]["data"],
        "runs": list(runs),
        "strongest": _strongest(results),
        "compressed": list(dict.fromkeys(c["defense"]["label"] for c in results["compressed"]["cells"])),
        "claims": [claim.record() for claim in judge(results)],
    }
    write_atomic(out / "study.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))
    return content


def _check(study: Study) -> None:
    """Refuse data that only some of the runs could not use, before the first of them.

    Raises:
        InputError: as the data says, or it has no frames, or leaves no public clips.
    """
    for name in EXTRACTORS:
        build_extractor(name, frames=study.length, size=study.size, seed=0)
    data = load_data(
        study.data, clips=study.clips, frames=study.length, size=study.size, stride=study.stride,
        seed=study.seed, references=0 if recognise(study.data) == "features" else max(REFERENCES),
    )  # fmt: skip
    if isinstance(data, FeatureSet):
        raise InputError(f"study: data={study.data} holds features, which have no frames; give videos")
    if not len(data.public_clips):
        raise InputError(
            f"study: all clips of {study.data} are attacked, none is left to train the enhancement network "
            "on; lower `clips`, or give more videos"
        )


def folder(name: str) -> str:
    """Return the name of a run's folder below the study's."""
    return "".join(c if c.isalnum() else "-" for c in name).replace("--", "-")


# ---------------------------------------------------------------------------------------------------------
# Judging


def judge(results: Results) -> list[Claim]:
    """Return every claim with what the runs say of it."""
    return [make(results) for make in CLAIMS.values()]


def _extractors_hinder(results: Results) -> Claim:
    raw = _leak(results, "raw", "psnr_gain_db")
    comparisons = [
        _difference(f"raw frames over {name}", raw, _leak(results, name, "psnr_gain_db"), "dB")
        for name in _features(results)
    ]
    # The strongest first: what hinders only behind some losses does not hinder.
    comparisons.sort(key=lambda each: each.effect.mean if each.effect.mean is not None else math.inf)
    found = [_grid_row(results, name) for name in _features(results)]
    back, there = (sum(row[key] for row in found) for key in ("recovered", "segments"))
    most = max(found, key=lambda row: row["recognised"], default=None)
    remarks = [
        "Each row is one extractor, head and loss; the row that leaks most comes first.",
        f"Of the features, {back} of {there} segments came back with a cosine above 0.99.",
    ]
    if most is not None:
        remarks.append(
            f"Recognised in what was rebuilt from them, at the most of all {len(found)} rows: "
            f"{most['recognised']} of {most['clips']} clips ({most['extractor']}, {most['head']}, "
            f"{most['loss']}); chance is {100 * most['chance']:.0f} %."
        )
    return Claim(
        "extractors",
        "A frozen extractor in front of the classifier hinders the rebuilding of frames.",
        tuple(comparisons),
        tuple(remarks),
    )


def _simple_leaks(results: Results) -> Claim:
    comparisons, points = [], {}
    for axis in ("width", "depth"):
        names = [name for name in results if name.startswith(f"raw, {axis} ")]
        comparisons.append(
            _difference(
                f"raw frames: {names[0].removeprefix('raw, ')} over {names[-1].removeprefix('raw, ')}",
                _leak(results, names[0], "psnr_gain_db"),
                _leak(results, names[-1], "psnr_gain_db"),
                "dB",
            )
        )
        points[axis] = [
            (float(name.rpartition(" ")[2]), _mean(_leak(results, name, "psnr_gain_db"))) for name in names
        ]
    for loss, extractor in product(LOSSES, EXTRACTORS):
        simple = f"{extractor}, linear, {loss}"
        deeper = [name for name in results if name.startswith(f"{extractor}, mlp:") and name.endswith(loss)]
        if simple in results and deeper:
            deep = deeper[-1]
            layers = deep.split(", ")[1].partition("=")[2]
            comparisons.append(
                _difference(
                    f"{extractor}, {loss}: one linear layer over {layers}",
                    _leak(results, simple, "segments.cosine_gain"),
                    _leak(results, deep, "segments.cosine_gain"),
                    "cosine",
                )
            )
    points["parameters"] = _in_order(
        (float(results[name]["models"][0]["parameters"]), _mean(_leak(results, name, "psnr_gain_db")))
        for name in results
        if name.startswith(("raw, width", "raw, depth"))
    )
    return Claim(
        "complexity",
        "What leaks returns when the classifier is simple.",
        tuple(comparisons),
        remarks=("Above zero, the simpler model leaks more.",),
        points=points,
    )


def _in_order(points: Iterable[tuple[float, Interval]]) -> list[tuple[float, Interval]]:
    return sorted(points, key=lambda point: point[0])


def _enhancement_improves(results: Results) -> Claim:
    comparisons, remarks = [], []
    for name, method in (("raw", "classical"), ("raw, network", "network")):
        if name not in results:
            continue
        cells = _cells(results, name, references=0)
        values = {cell["clip"]: (_at(cell, "enhanced.psnr_change_db"), _tag(name, cell)) for cell in cells}
        comparisons.append(
            _difference(f"{method} over bicubic", values, dict.fromkeys(values, (0.0, "")), "dB")
        )
        moved = [_at(cell, "enhanced.identification_moved") for cell in cells]
        remarks.append(
            f"{method}: {moved.count('gained')} clips are recognised only after it, {moved.count('lost')} "
            f"only before it, of {len(moved)}."
        )
    return Claim(
        "enhancement", "Super-resolution improves what was rebuilt.", tuple(comparisons), tuple(remarks)
    )


def _frames_help(results: Results) -> Claim:
    counts = sorted({cell["knowledge"]["reference_frames"] for cell in results["raw"]["cells"]})
    moving, whole, gain = (
        {count: _leak(results, "raw", measure, references=count) for count in counts}
        for measure in ("motion_psnr_db", "psnr_db", "psnr_gain_db")
    )
    comparisons = [
        _difference(f"{_frames(more)} over {_frames(less)}, {what}", values[more], values[less], "dB")
        for what, values in (("where it moves", moving), ("the whole picture", whole))
        for less, more in pairwise(counts)
    ]
    beyond = _difference("one frame over none, beyond what the frame shows", gain[1], gain[0], "dB")
    return Claim(
        "references",
        "The more frames of the scene an attacker holds, the more of the clip he rebuilds.",
        (*comparisons, beyond),
        remarks=("Beyond what the frame shows: as gain over an attacker who holds the frame still.",),
        points={"reference frames": [(float(count), _mean(moving[count])) for count in counts]},
        unit_of_points="PSNR where it moves, in dB",
    )


def _frames(count: int) -> str:
    return {0: "none", 1: "one frame"}.get(count, f"{count} frames")


def _compression_protects(results: Results) -> Claim:
    plain = _leak(results, "compressed", "psnr_gain_db")
    labels = dict.fromkeys(
        cell["defense"]["label"]
        for cell in results["compressed"]["cells"]
        if cell["defense"]["name"] != "none"
    )
    return Claim(
        "compression",
        "A compressed gradient leaks less than a plain one.",
        tuple(
            _difference(
                f"plain over {label}",
                plain,
                _leak(results, "compressed", "psnr_gain_db", defense=label),
                "dB",
            )
            for label in labels
        ),
        remarks=("The attacker knows the codec. The question is open in the paper.",),
    )


def _strongest(results: Results) -> list[str]:
    """Return for every extractor and loss the run whose head let most of the frames through."""
    best: dict[tuple[str, str], tuple[float, str]] = {}
    for name in _features(results):
        extractor, _, loss = name.split(", ")
        gain = _mean(_leak(results, name, "psnr_gain_db")).mean
        if gain is not None:
            best[extractor, loss] = max(best.get((extractor, loss), (-math.inf, "")), (gain, name))
    return [name for _, name in best.values()]


def _extractor_decides(results: Results) -> Claim:
    grid = {
        tuple(name.split(", ")): _leak(results, name, "segments.cosine_gain") for name in _features(results)
    }
    clips = sorted(set.intersection(*(set(values) for values in grid.values())) if grid else ())
    shares = {clip: _shares({place: values[clip][0] for place, values in grid.items()}) for clip in clips}
    tags = tuple(tag for values in grid.values() for _, tag in values.values())
    factors = ("extractor", "head", "loss")

    def over(other: int) -> Comparison:
        effect = mean_interval([share[0] - share[other] for share in shares.values()])
        return Comparison(f"extractor over {factors[other]}", effect, "share of variance", tags)

    means = [math.fsum(share[i] for share in shares.values()) / max(1, len(shares)) for i in range(3)]
    told = ", ".join(f"{name} {100 * mean:.0f} %" for name, mean in zip(factors, means, strict=True))
    return Claim(
        "factors",
        "Of loss, head and extractor, the extractor decides how much leaks.",
        (over(2), over(1)),
        remarks=(
            f"Shares of the variance of what comes back of the features: {told}; the rest is interplay.",
        ),
        grid=tuple(_grid_row(results, name) for name in _features(results)),
    )


def _grid_row(results: Results, run: str) -> dict[str, Any]:
    """Return what came back of the features of one run, of the attack that got most."""
    extractor, head, loss = run.split(", ")
    best = {tag for _, tag in _leak(results, run, "segments.cosine_gain").values()}
    found = [cell["scores"]["segments"] for cell in _cells(results, run) if _tag(run, cell) in best]
    gains = [each["cosine_gain"] for each in found]
    return {
        "extractor": extractor,
        "head": head,
        "loss": loss,
        **{name: sum(each[name] for each in found) for name in ("recovered", "carrying", "segments")},
        "cosine_gain": math.fsum(gains) / len(gains) if gains else None,
        "clips": len(best),
        "chance": _mean_of([1 / cell["scores"]["candidates"] for cell in _cells(results, run)]),
        "recognised": sum(
            _tag(run, cell) in best and cell["scores"]["identified"] for cell in _cells(results, run)
        ),
    }


def _shares(values: Mapping[tuple[str, ...], float]) -> tuple[float, ...]:
    """Return for every factor of a full grid which part of the variance its main effect explains.

    Omega squared (Hays 1963): what is left of it by chance is subtracted, and that is more for a factor of
    more levels. So shares of factors that explain nothing are about 0, and may lie below.
    """
    mean = math.fsum(values.values()) / len(values)
    total = math.fsum((value - mean) ** 2 for value in values.values())
    if total == 0:
        return (0.0,) * len(next(iter(values)))
    between, freedom = [], []
    for factor in range(len(next(iter(values)))):
        levels: dict[str, list[float]] = {}
        for place, value in values.items():
            levels.setdefault(place[factor], []).append(value)
        between.append(math.fsum(len(each) * (_mean_of(each) - mean) ** 2 for each in levels.values()))
        freedom.append(len(levels) - 1)
    left = len(values) - 1 - sum(freedom)
    rest = (total - sum(between)) / left if left > 0 else 0.0
    return tuple((b - df * rest) / (total + rest) for b, df in zip(between, freedom, strict=True))


CLAIMS: dict[str, Callable[[Results], Claim]] = {
    "extractors": _extractors_hinder,
    "complexity": _simple_leaks,
    "enhancement": _enhancement_improves,
    "references": _frames_help,
    "compression": _compression_protects,
    "factors": _extractor_decides,
}


# ---------------------------------------------------------------------------------------------------------
# Reading results

Values = dict[str, tuple[float, str]]
"""By clip, a number and the id of the cell that it is from."""


def _features(results: Results) -> list[str]:
    return [name for name in results if name.startswith(EXTRACTORS)]


def _cells(results: Results, run: str, **where: Any) -> list[dict[str, Any]]:
    return attacked(results[run], **where)


def attacked(run: Mapping[str, Any], *, defense: str = "none", references: int = 0) -> list[dict[str, Any]]:
    """Return the scored cells of a run's attacks on updates, behind a defense, with so many frames."""
    return [
        cell
        for cell in run["cells"]
        if cell["status"] == "ok"
        and cell["knowledge"]["defense"]
        and cell["defense"]["label"] == defense
        and cell["knowledge"]["reference_frames"] == references
    ]


def _leak(results: Results, run: str, measure: str, **where: Any) -> Values:
    """Return a measure clip by clip, of the attack that gets most out of the run on the whole."""
    attacks: dict[str, Values] = {}
    for cell in _cells(results, run, **where):
        value = _at(cell["scores"], measure)
        if value is not None:
            attacks.setdefault(cell["attack"]["name"], {})[cell["clip"]] = (float(value), _tag(run, cell))
    # An attack that failed on some clips is not compared with one that did not: its mean is of other clips.
    most = max((len(values) for values in attacks.values()), default=0)
    whole = [values for values in attacks.values() if len(values) == most]
    return max(whole, key=lambda values: _mean_of([v for v, _ in values.values()]), default={})


def _at(record: Mapping[str, Any], path: str) -> Any:
    value: Any = record
    for name in path.split("."):
        value = None if value is None else value.get(name)
    return value


def _tag(run: str, cell: dict[str, Any]) -> str:
    return f"{run}: {cell['id']}"


def _difference(name: str, more: Values, less: Values, unit: str) -> Comparison:
    """Compare clip by clip; only clips that both have count."""
    both = [clip for clip in more if clip in less and more[clip][0] is not None]
    effect = mean_interval([more[clip][0] - less[clip][0] for clip in both])
    cells = tuple(tag for clip in both for tag in (more[clip][1], less[clip][1]) if tag)
    return Comparison(name, effect, unit, cells)


def _mean_of(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _mean(values: Values) -> Interval:
    return mean_interval([value for value, _ in values.values()])
