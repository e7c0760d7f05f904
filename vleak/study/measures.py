"""Measures of the runs of a study, clip by clip, and differences of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vleak.results.records import Cell, RunRecord, Scores
from vleak.results.statistics import Interval, mean_interval
from vleak.study.keys import RunKey
from vleak.study.records import ComparisonRecord, Point

Results = Mapping[RunKey, RunRecord]
"""Records of all runs of a study."""
Measure = Callable[[Scores], float | None]
"""Quantity of one cell; None where it was not measured."""


class Measurement(NamedTuple):
    """Value of one clip, and the cell it comes from as "run: cell"; empty for a constant."""

    value: float
    cell: str


Measurements = Mapping[str, Measurement]
"""Measurements by the name of the clip."""


@dataclass(frozen=True)
class Comparison:
    """One measured difference, paired by clip.

    Attributes:
        name: what is compared with what.
        effect: mean over clips with its interval; above zero is what the claim says.
        unit: unit of the effect.
        cells: cells behind it, as "run: cell".
    """

    name: str
    effect: Interval
    unit: str
    cells: tuple[str, ...]

    @property
    def supports(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.effect.low is not None and self.effect.low > 0

    def record(self) -> ComparisonRecord:
        """Return the record of the comparison."""
        return ComparisonRecord(
            name=self.name,
            effect=self.effect.mean,
            interval=(self.effect.low, self.effect.high),
            unit=self.unit,
            clips=self.effect.n,
            supports=self.supports,
        )


def psnr_gain(scores: Scores) -> float | None:
    """Gain in PSNR over the best baseline, in dB."""
    return scores.psnr_gain_db


def psnr(scores: Scores) -> float | None:
    """PSNR of all pixels, in dB."""
    return scores.psnr_db


def motion_psnr(scores: Scores) -> float | None:
    """PSNR of the moving pixels, in dB."""
    return scores.motion_psnr_db


def cosine_gain(scores: Scores) -> float | None:
    """Gain in cosine of the features over the best baseline."""
    return None if scores.segments is None else scores.segments.cosine_gain


def attacked_cells(run: RunRecord, *, defense: str | None = None, reference_frames: int = 0) -> list[Cell]:
    """Return the scored cells of adaptive attackers that read the update.

    Args:
        run: record of a run.
        defense: label of the defense; None for no defense.
        reference_frames: frames of the scene that the attacker holds.
    """
    return [
        cell
        for cell in run.cells
        if cell.ok
        and cell.knowledge.defense
        and not cell.attack.baseline
        and cell.knowledge.reference_frames == reference_frames
        and (cell.defense.undefended if defense is None else cell.defense.label == defense)
    ]


def reference(key: RunKey, cell: Cell) -> str:
    """Return the text by which the study refers to a cell."""
    return f"{key.name}: {cell.id}"


def strongest_cells(cells: Sequence[Cell], measure: Measure) -> dict[str, Cell]:
    """Return the cells, by clip, of the attack with the highest mean.

    An attack that failed on some clips is left out where another did not: its mean is of other clips.

    Args:
        cells: scored cells of one defense.
        measure: quantity whose mean decides; cells without it are left out.
    """
    attacks: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        if _value(cell, measure) is not None:
            attacks.setdefault(cell.attack.text, {})[cell.clip] = cell
    most = max((len(by_clip) for by_clip in attacks.values()), default=0)
    complete = [by_clip for by_clip in attacks.values() if len(by_clip) == most]
    return max(complete, key=lambda by_clip: mean(_values(by_clip.values(), measure)), default={})


def leakage(
    results: Results, key: RunKey, measure: Measure, *, defense: str | None = None, reference_frames: int = 0
) -> Measurements:
    """Return a measure clip by clip, of the attack with the highest mean.

    Args:
        results: records of the runs.
        key: the run.
        measure: quantity to return.
        defense, reference_frames: as in `attacked_cells`.
    """
    cells = attacked_cells(results[key], defense=defense, reference_frames=reference_frames)
    return {
        clip: Measurement(value, reference(key, cell))
        for clip, cell in strongest_cells(cells, measure).items()
        if (value := _value(cell, measure)) is not None
    }


def _value(cell: Cell, measure: Measure) -> float | None:
    return None if cell.scores is None else measure(cell.scores)


def _values(cells: Iterable[Cell], measure: Measure) -> list[float]:
    return [value for cell in cells if (value := _value(cell, measure)) is not None]


def difference(name: str, more: Measurements, less: Measurements, unit: str) -> Comparison:
    """Compare two measurements clip by clip; clips that only one of them has are left out."""
    clips = [clip for clip in more if clip in less]
    effect = mean_interval([more[clip].value - less[clip].value for clip in clips])
    cells = tuple(m.cell for clip in clips for m in (more[clip], less[clip]) if m.cell)
    return Comparison(name, effect, unit, cells)


def mean(values: Sequence[float]) -> float:
    """Return the mean, 0 without values."""
    return math.fsum(values) / len(values) if values else 0.0


def interval(measurements: Measurements) -> Interval:
    """Return the mean over clips with its 95 % interval."""
    return mean_interval([m.value for m in measurements.values()])


def point(x: float, measurements: Measurements) -> Point:
    """Return the point of a plot at ``x``: the mean over clips with its interval."""
    i = interval(measurements)
    return Point(x, i.mean, i.low, i.high)
