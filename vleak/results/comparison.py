"""Comparison of two runs: their rows side by side, and by how much the second leaks more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vleak.errors import InputError
from vleak.results.records import Cell, RunRecord
from vleak.results.rows import Row, RowKey, row_key
from vleak.results.statistics import Interval, difference_interval, mean_interval
from vleak.results.summary import summarise

__all__ = ["Change", "Comparison", "RowPair", "compare_runs", "differ_in_seed_alone"]

Change = Literal["more", "less", "both", "same", "first_only", "second_only"]
"""How the second run leaks beside the first: more, less, more by one figure and less by another, or no
difference is told; or that one of the runs has the row alone."""

_ALWAYS = ("label", "defense")
"""Fields that rows are matched by even where each run has one value of them alone."""


@dataclass(frozen=True)
class RowPair:
    """Row of one run beside the row of the other that says the same of it.

    Attributes:
        first, second: rows; None where the run has none.
        gain_change: PSNR gain of the second less the first, in dB; clip by clip where the clips are the same.
        recognised_change: share of recognised clips, likewise.
        paired: clips that both runs scored and that are the same; 0 where the clips differ.
        change: how the second leaks beside the first.
    """

    first: Row | None
    second: Row | None
    gain_change: Interval
    recognised_change: Interval
    paired: int
    change: Change

    @property
    def row(self) -> Row:
        """Row that names the pair."""
        row = self.first or self.second
        assert row is not None, "a pair has a row"
        return row


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        differing: by name, of settings, data, models and environment what the first and the second have.
        same_clips: whether both attacked the same clips.
        pairs: by defense and attack, those of both runs first, in the order of the first.
    """

    differing: dict[str, tuple[Any, Any]]
    same_clips: bool
    pairs: tuple[RowPair, ...]


def differ_in_seed_alone(runs: Sequence[RunRecord]) -> bool:
    """Whether runs can be pooled over their seeds: equal settings, and no seed twice."""
    first = runs[0].settings.model_dump(exclude={"seed"})
    seeds = {run.settings.seed for run in runs}
    return len(seeds) == len(runs) and all(r.settings.model_dump(exclude={"seed"}) == first for r in runs)


def compare_runs(first: RunRecord, second: RunRecord) -> Comparison:
    """Set two runs side by side.

    Rows are matched by defense and attack, and by model, client and what the attacker is granted. A field of
    which each run has one value alone is what the runs differ in, and no field to match by.

    Args:
        first, second: runs of whatever settings.

    Raises:
        InputError: they are the same run.
    """
    if _same(first, second):
        raise InputError("both runs hold the same cells with the same scores; give two runs that differ")
    same_clips = (first.data.sha256, first.data.names) == (second.data.sha256, second.data.names)
    tables = [{row.key: row for row in summarise(run) if not row.baseline} for run in (first, second)]
    fields = _fields(tables)
    rows = [{_part(key, fields): row for key, row in table.items()} for table in tables]
    cells = [_by_row(run) for run in (first, second)]
    shared = [key for key in rows[0] if key in rows[1]]
    alone = [key for table in rows for key in table if key not in shared]
    pairs = [
        _pair(rows[0].get(key), rows[1].get(key), cells, same_clips=same_clips) for key in [*shared, *alone]
    ]
    return Comparison(_differing(first, second), same_clips, tuple(pairs))


def _same(first: RunRecord, second: RunRecord) -> bool:
    """Whether two runs hold the same scores of the same cells; times do not count."""
    one, other = ({cell.id: (cell.scores, cell.status) for cell in run.cells} for run in (first, second))
    return one == other and first.settings == second.settings


def _fields(tables: Sequence[Mapping[RowKey, Row]]) -> list[str]:
    """Return the fields that rows are matched by."""
    values = {name: [{getattr(key, name) for key in table} for table in tables] for name in RowKey._fields}
    return [n for n, (one, other) in values.items() if n in _ALWAYS or len(one) > 1 or len(other) > 1]


def _part(key: RowKey, fields: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(key, name) for name in fields)


def _by_row(run: RunRecord) -> dict[RowKey, dict[str, Cell]]:
    found: dict[RowKey, dict[str, Cell]] = {}
    for cell in run.cells:
        if cell.ok:
            found.setdefault(row_key(cell), {})[cell.clip] = cell
    return found


def _pair(
    first: Row | None,
    second: Row | None,
    cells: Sequence[Mapping[RowKey, Mapping[str, Cell]]],
    *,
    same_clips: bool,
) -> RowPair:
    none = mean_interval([])
    if first is None or second is None:
        return RowPair(first, second, none, none, 0, "second_only" if first is None else "first_only")
    one, other = cells[0].get(first.key, {}), cells[1].get(second.key, {})
    if same_clips:
        clips = [clip for clip in one if clip in other]
        one, other = {clip: one[clip] for clip in clips}, {clip: other[clip] for clip in clips}
    gain = _change([_gains(one), _gains(other)], paired=same_clips)
    share = _change([_recognised(one), _recognised(other)], paired=same_clips)
    return RowPair(first, second, gain, share, len(one) if same_clips else 0, _judged(gain, share))


def _change(values: Sequence[Mapping[str, float]], *, paired: bool) -> Interval:
    """Second less first: clip by clip, or of two samples."""
    one, other = values
    if not paired:
        return difference_interval(list(other.values()), list(one.values()))
    return mean_interval([other[clip] - one[clip] for clip in one if clip in other])


def _gains(cells: Mapping[str, Cell]) -> dict[str, float]:
    gains = {clip: cell.scores.psnr_gain_db for clip, cell in cells.items() if cell.scores is not None}
    return {clip: gain for clip, gain in gains.items() if gain is not None and math.isfinite(gain)}


def _recognised(cells: Mapping[str, Cell]) -> dict[str, float]:
    return {
        clip: float(cell.scores.identified)
        for clip, cell in cells.items()
        if cell.scores is not None and (cell.scores.candidates or 0) > 1
    }


def _judged(*changes: Interval) -> Change:
    more = any(change.low is not None and change.low > 0 for change in changes)
    less = any(change.high is not None and change.high < 0 for change in changes)
    return "both" if more and less else "more" if more else "less" if less else "same"


def _differing(first: RunRecord, second: RunRecord) -> dict[str, tuple[Any, Any]]:
    """What the headers of two runs do not share, by name."""
    one, other = _header(first), _header(second)
    return {
        name: (one.get(name), other.get(name))
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    }


def _header(run: RunRecord) -> dict[str, Any]:
    weights = {f"weights of {model.name}": model.weights_sha256[:12] for model in run.models}
    data = {"clips (digest)": run.data.sha256[:12], "private clips": run.data.clips}
    return {**run.settings.model_dump(), **data, **weights, **run.environment.model_dump()}
