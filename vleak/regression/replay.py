"""Replay: a run of a draw that the baseline holds, cell by cell equal to tolerance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vleak.regression.baseline import make_baseline
from vleak.regression.figures import FIGURES, Figure, figures_of
from vleak.regression.plan import UTILITY, row_text
from vleak.regression.records import Baseline, BaselineRow, BaselineUtility, MovedFigure
from vleak.results import RunRecord

__all__ = ["Replayed", "replay"]

_SAME = ("vleak", "torch", "extension", "device")
"""Parts of the environment with which equal seeds give equal scores."""


@dataclass
class Replayed:
    """What a replay found.

    Attributes:
        compared: figures that were compared. moved: those that differ. not_judged: what could not be.
    """

    compared: int
    moved: list[MovedFigure]
    not_judged: list[str]


def replay(run: RunRecord, baseline: Baseline) -> Replayed:
    """Compare a run with the same draw of a baseline, of equal settings, clips and weights."""
    draw = run.settings.draw
    result = Replayed(0, [], [])
    was, now = baseline.environment, run.environment
    other = [
        f"{name} ({getattr(was, name)}, then {getattr(now, name)})"
        for name in _SAME
        if getattr(was, name) != getattr(now, name)
    ]
    if run.settings.engine != baseline.settings.engine:
        other.append(f"engine ({baseline.settings.engine}, then {run.settings.engine})")
    if other:
        result.not_judged.append(
            f"replay of draw {draw}: another {', '.join(other)}, of which equal scores cannot be expected"
        )
        return result
    place, tonight = baseline.draws.index(draw), make_baseline(run)
    rows, failed = {row.key: row for row in tonight.rows}, figures_of(run)
    for row in baseline.rows:
        if row.key not in rows:
            result.not_judged.append(f"replay of {row_text(row)}: the run has no such cells")
            continue
        result.not_judged += [f"replay of {row_text(row)}, {sample}: {reason}"
                              for sample, reason in failed[row.key].failed.items()]  # fmt: skip
        _compare_row(row, rows[row.key], set(failed[row.key].failed), place, draw, result)
    utility = {(each.pipeline, each.model, each.defense): each for each in tonight.utility}
    for each in baseline.utility:
        _compare_utility(each, utility.get((each.pipeline, each.model, each.defense)), place, draw, result)
    return result


def _compare_row(
    row: BaselineRow, tonight: BaselineRow, failed: set[str], place: int, draw: int, result: Replayed
) -> None:
    by_name = {name: dict(zip(tonight.samples, matrix[0], strict=True))
               for name, matrix in tonight.figures.items()}  # fmt: skip
    for name, sample, before, after in _pairs(row, by_name, place):
        if sample in failed:
            continue
        result.compared += 1
        figure = FIGURES[name]
        if not _equal(before, after, figure):
            worse = figure.leaks is not None and _is_worse(before, after, 1)
            result.moved.append(
                MovedFigure(row=row_text(row), sample=sample, figure=name, unit=figure.unit, draw=draw,
                            baseline=before, tonight=after, worse=worse)
            )  # fmt: skip


def _pairs(
    row: BaselineRow, tonight: Mapping[str, Mapping[str, float | None]], place: int
) -> Iterator[tuple[str, str, float | None, float | None]]:
    """Yield (figure, sample, value of the baseline, value of tonight) of all figures that are known."""
    for name, matrix in row.figures.items():
        if name in FIGURES:
            for sample, before in zip(row.samples, matrix[place], strict=True):
                yield name, sample, before, tonight.get(name, {}).get(sample)


def _compare_utility(
    each: BaselineUtility, tonight: BaselineUtility | None, place: int, draw: int, result: Replayed
) -> None:
    if tonight is None:
        result.not_judged.append(f"replay of {each.label}: the run has no utility; give the same --utility")
        return
    before, after = each.accuracy[place], tonight.accuracy[0]
    result.compared += 1
    if not _equal(before, after, UTILITY):
        worse = _is_worse(before, after, -1)
        result.moved.append(
            MovedFigure(row=f"{each.label}, training", sample="held-out clips", figure="accuracy",
                        unit="share", draw=draw, baseline=before, tonight=after, worse=worse)
        )  # fmt: skip


def _equal(before: float | None, after: float | None, figure: Figure) -> bool:
    if before is None or after is None:
        return before is after
    return abs(before - after) <= figure.replay + 1e-6 * abs(before)


def _is_worse(before: float | None, after: float | None, sign: int) -> bool:
    return before is not None and after is not None and sign * (after - before) > 0
