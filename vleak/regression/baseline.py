"""Baselines: the figures of runs that differ in their draw alone, small enough to commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vleak.errors import InputError
from vleak.files import check_output, write_atomic
from vleak.regression.figures import FIGURES, RowFigures, figures_of
from vleak.regression.records import (
    BASELINE_VERSION,
    Baseline,
    BaselineModel,
    BaselineRow,
    BaselineUtility,
)
from vleak.regression.statements import Progress, audit_states, claim_states
from vleak.results import RowKey, RunRecord
from vleak.results.reading import read_json, validate
from vleak.results.records import SettingsRecord

__all__ = [
    "HasRecord",
    "RunLike",
    "baseline_digest",
    "differing_settings",
    "make_baseline",
    "read_baseline",
    "records_of",
    "write_baseline",
]

MOST_DRAWS = 35
"""Most draws of a baseline: a rank has one digit in the history."""
_OWN = {
    "draw", "data", "checkpoint", "defenses", "attacks", "metrics", "device", "engine", "audit_draws",
    "non_adaptive",
}  # fmt: skip
"""Settings that may differ from run to run: paths are told by digests, defenses and attacks row by row, and
the others change no score."""


class HasRecord(Protocol):
    """Run with its record, as `vleak.load_run` returns it."""

    record: RunRecord


RunLike = RunRecord | HasRecord


def make_baseline(
    runs: RunLike | Sequence[RunLike], *, claims: bool = False, progress: Progress | None = None
) -> Baseline:
    """Make a baseline of finished runs.

    Args:
        runs: one or more, of equal settings but for the draw. Every further draw makes later nights more
            certain: of one alone little can be said, six are enough for most.
        claims: whether what the defenses claim is checked and kept, a second or two each, so that nights
            check it too.
        progress: called as (what, defenses checked, defenses in all).

    Raises:
        InputError: no run, two of one draw, an unfinished one, other settings, clips or weights; names them.
    """
    records = records_of(runs)
    _check(records)
    tables = [figures_of(record) for record in records]
    first, keys = records[0], dict.fromkeys(key for table in tables for key in table)
    return Baseline(
        environment=first.environment,
        settings=first.settings,
        data=first.data.name,
        data_sha256=first.data.sha256,
        models=_models(first),
        draws=tuple(record.settings.draw for record in records),
        rows=tuple(_row(key, [table[key] for table in tables if key in table], tables) for key in keys),
        utility=_utility(records),
        audits=audit_states(records),
        claims=claim_states(first.settings.defenses, progress or _unseen) if claims else None,
    )


def _unseen(what: str, done: int, total: int) -> None:
    """Show no progress."""


def records_of(runs: RunLike | Sequence[RunLike]) -> list[RunRecord]:
    """Records of one run or several."""
    several = runs if isinstance(runs, Sequence) else [runs]
    return [run if isinstance(run, RunRecord) else run.record for run in several]


def _check(records: Sequence[RunRecord]) -> None:
    if not records:
        raise InputError("runs: expected at least one run, got none")
    draws = [record.settings.draw for record in records]
    twice = [draw for draw in draws if draws.count(draw) > 1]
    if twice:
        raise InputError(f"runs: two are of draw {twice[0]}; give each another `draw` when it is evaluated")
    if len(records) > MOST_DRAWS:
        raise InputError(f"runs: got {len(records)}, expected at most {MOST_DRAWS}")
    for record in records:
        if record.planned_cells != len(record.cells):
            raise InputError(
                f"runs: that of draw {record.settings.draw} is not finished; evaluate it again with the same "
                "`out`, which resumes it"
            )
        if differences := differing_settings(records[0], record):
            raise InputError(
                f"runs: draws {draws[0]} and {record.settings.draw} differ in {'; '.join(differences)}; give "
                "runs that differ in the draw alone"
            )


def differing_settings(one: RunRecord | Baseline, other: RunRecord) -> list[str]:
    """Differences that leave nothing to compare, as "name (3 before, 9 now)": settings, clips and weights."""
    before, after = one.settings, other.settings
    names = [name for name in SettingsRecord.model_fields if name not in _OWN]
    found = [
        f"{name} ({_shown(getattr(before, name))} before, {_shown(getattr(after, name))} now)"
        for name in names
        if getattr(before, name) != getattr(after, name)
    ]
    digest = one.data_sha256 if isinstance(one, Baseline) else one.data.sha256
    if digest != other.data.sha256:
        found.append("clips (the data has another digest)")
    models = one.models if isinstance(one, Baseline) else _models(one)
    weights = {(model.pipeline, model.name): model.weights_sha256 for model in models}
    return found + [
        f"weights of {model.name}"
        for model in _models(other)
        if weights.get((model.pipeline, model.name)) != model.weights_sha256
    ]


def _shown(value: object) -> str:
    """Return a setting for a message."""
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value)) or "none"
    return "not given" if value is None else str(value)


def _models(record: RunRecord) -> tuple[BaselineModel, ...]:
    return tuple(
        BaselineModel(name=model.name, pipeline=model.pipeline, weights_sha256=model.weights_sha256)
        for model in record.models
    )


def _row(key: RowKey, rows: Sequence[RowFigures], tables: Sequence[dict[RowKey, RowFigures]]) -> BaselineRow:
    cell, bounds = rows[0].cell, rows[0].bounds
    samples = tuple(dict.fromkeys(name for row in rows for name in row.values))
    by_draw = [table[key].values if key in table else {} for table in tables]
    figures = {
        name: tuple(
            tuple(_rounded(values.get(sample, {}).get(name)) for sample in samples) for values in by_draw
        )
        for name in FIGURES
    }
    measured = {
        name: matrix
        for name, matrix in figures.items()
        if any(value is not None for values in matrix for value in values)
    }
    return BaselineRow(
        **key._asdict(),
        undefended=cell.defense.undefended,
        samples=samples,
        figures=measured,
        epsilon=cell.defense.epsilon,
        delta=cell.defense.delta,
        bound=_rounded(sum(bounds) / len(bounds)) if bounds else None,
        adaptive=cell.attack.adaptive,
        defense_knowledge=cell.attack.defense_knowledge,
    )


def _rounded(value: float | None) -> float | None:
    """Value to seven digits, far below what counts, so that the file stays small."""
    return None if value is None else float(f"{value:.7g}")


def _utility(records: Sequence[RunRecord]) -> tuple[BaselineUtility, ...]:
    tables = [{(each.pipeline, each.model, each.text): each for each in record.utility} for record in records]
    found = []
    for key in dict.fromkeys(key for table in tables for key in table):
        each = [table.get(key) for table in tables]
        first = next(one for one in each if one is not None)
        clips = max(len(one.right) for one in each if one is not None)
        accuracy = [
            sum(one.right) / len(one.right) if one is not None and one.right else None for one in each
        ]
        found.append(
            BaselineUtility(
                pipeline=first.pipeline, model=first.model, label=first.defense, defense=first.text,
                undefended=first.undefended, clips=clips, accuracy=tuple(map(_rounded, accuracy)),
            )
        )  # fmt: skip
    return tuple(found)


def baseline_text(baseline: Baseline) -> str:
    """Content of the file of a baseline."""
    content = {name: value for name, value in baseline.model_dump(mode="json").items() if name != "rows"}
    head = json.dumps(content, ensure_ascii=False, indent=1)[:-2]
    # A row a line, so that a change is read in a diff and the file stays small.
    rows = ",\n".join(
        "  " + json.dumps(row.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
        for row in baseline.rows
    )
    return f'{head},\n "rows": [\n{rows}\n ]\n}}\n'


def baseline_digest(baseline: Baseline) -> str:
    """Digest of a baseline's content, to which optional fields of later versions add nothing."""
    content = baseline.model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_baseline(baseline: Baseline, path: Path | str) -> Path:
    """Write a baseline whole or not at all; return its path.

    Raises:
        InputError: the path is something else than a file.
        VleakError: the disk is full or the folder cannot be written.
    """
    path = check_output("out", path)
    write_atomic(path, baseline_text(baseline))
    return path


def read_baseline(path: Path | str) -> Baseline:
    """Read a baseline.

    Raises:
        InputError: no such file, truncated or other JSON, another schema, or a field that is wrong; names it.
    """
    content = read_json(Path(path), "give a baseline, the file that `vleak baseline` wrote")
    if content.get("kind") != "vleak baseline":
        raise InputError(
            f"{path} holds no baseline; make one with `vleak baseline RUN -o FILE`, of the folder of a run"
        )
    version = content.get("schema_version")
    if version != BASELINE_VERSION:
        raise InputError(
            f"{path}: schema_version is {version!r}, this vleak reads {BASELINE_VERSION}; "
            + ("update vleak" if isinstance(version, int) and version > BASELINE_VERSION else "make it again")
        )
    baseline = validate(Baseline, content, str(path))
    _check_shapes(baseline, path)
    return baseline


def _check_shapes(baseline: Baseline, path: Path | str) -> None:
    """Refuse a file that was edited by hand: a matrix of another shape than its draws and samples."""
    draws = len(baseline.draws)
    for row in baseline.rows:
        for name, matrix in row.figures.items():
            if len(matrix) != draws or any(len(values) != len(row.samples) for values in matrix):
                raise InputError(
                    f"{path}: {name!r} of {row.label} has another shape than {draws} draws of "
                    f"{len(row.samples)} samples; restore the file"
                )
    if any(len(each.accuracy) != draws for each in baseline.utility):
        raise InputError(f"{path}: the utility has another number of draws than {draws}; restore the file")
