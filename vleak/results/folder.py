"""Reading of the files of a run, of any schema version."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vleak.errors import InputError
from vleak.files import read_regular
from vleak.results.audit import AuditRecord
from vleak.results.base import JsonObject
from vleak.results.flags import with_flags
from vleak.results.migrations import migrate
from vleak.results.reading import parse_json, read_json, validate
from vleak.results.records import Cell, RunHeader, RunRecord, UtilityRecord

__all__ = [
    "HEADER",
    "JOURNAL",
    "RESULTS",
    "read_header",
    "read_journal",
    "read_of_defenses",
    "read_run",
    "record_files",
]

HEADER, JOURNAL, RESULTS = "run.json", "cells.jsonl", "results.json"
"""Files of a run: what is known before its first cell, its finished cells, and its results."""


def record_files(runs: Iterable[Path]) -> dict[str, Path]:
    """Return the files of records of runs, by what they are in a message; they must not be written over.

    Args:
        runs: folders of runs, or their files.
    """
    found = (run / name if run.is_dir() else run for run in runs for name in (HEADER, JOURNAL, RESULTS))
    return {f"the run, {path}": path for path in found}


def read_run(path: Path) -> RunRecord:
    """Read the record of a run, finished, stopped or killed.

    Args:
        path: folder of a run, or a file such as its results.json.

    Returns:
        The record; ``planned_cells`` is None where the run wrote no results.json: the journal does not say
        what was to come.

    Raises:
        InputError: there is no such path, no run in it, or its files are damaged or of a newer schema.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give the folder of a run, the `out` of an evaluation")
    if not path.is_dir():
        return _read_results(path)
    finished = path / RESULTS
    results = _read_results(finished) if finished.exists() else None
    if not (path / HEADER).exists():
        if results is None:
            raise InputError(f"{path} holds no run, no {RESULTS}; give the `out` of an evaluation")
        return results
    header, journal = read_header(path), read_journal(path)
    # A run that was resumed and then killed has more in its journal, or cells that failed before.
    if results is not None:
        known = {cell.id: cell.status for cell in results.cells}
        if all(known.get(name) == cell.status for name, cell in journal.items()):
            return results
    planned = None if results is None else results.planned_cells
    parts: dict[str, object] = {"planned_cells": planned, "cells": with_flags(list(journal.values()))}
    if results is not None:
        parts |= {"utility": results.utility, "audits": results.audits}
    return RunRecord.model_validate(dict(header) | parts)


def read_header(folder: Path) -> RunHeader:
    """Read the header of the run in a folder.

    Raises:
        InputError: it is damaged or of a newer schema.
    """
    path = folder / HEADER
    content = migrate(_versioned(read_json(path)), str(path))
    del content["schema_version"]
    return validate(RunHeader, content, str(path))


def read_journal(folder: Path) -> dict[str, Cell]:
    """Read the finished cells of the run in a folder by id, up to the first torn line; of one id the last.

    Raises:
        InputError: a line is whole and yet no cell of a known schema; names line and field.
    """
    path = folder / JOURNAL
    if not path.exists():
        return {}
    header = _versioned(read_json(folder / HEADER)) if (folder / HEADER).exists() else {"schema_version": 1}
    lines = _whole_lines(path)
    cells = migrate({"schema_version": header["schema_version"], "cells": lines}, str(path))["cells"]
    read = [validate(Cell, cell, f"{path}, line {index + 1}") for index, cell in enumerate(cells)]
    return {cell.id: cell for cell in read}


def read_of_defenses(folder: Path) -> tuple[dict[str, UtilityRecord], dict[tuple[str, str], AuditRecord]]:
    """Read what was measured of the defenses themselves; nothing where the folder has no results yet.

    Returns:
        the utility by the text of the defense, and the audits by model and text of the defense.

    Raises:
        InputError: the results are damaged or of a newer schema.
    """
    if not (folder / RESULTS).exists():
        return {}, {}
    results = _read_results(folder / RESULTS)
    audits = {(each.model, each.text): each for each in results.audits}
    return {each.text: each for each in results.utility}, audits


def _read_results(path: Path) -> RunRecord:
    return validate(RunRecord, migrate(read_json(path), str(path)), str(path))


def _versioned(header: JsonObject) -> JsonObject:
    """Header with its version: in version 1 the file did not hold it."""
    return {"schema_version": 1} | header


def _whole_lines(path: Path) -> list[JsonObject]:
    """Objects of a journal before the first torn line."""
    lines: list[JsonObject] = []
    try:
        text = read_regular(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give another run") from error
    for line in text.split(b"\n")[:-1]:  # what follows the last newline was never finished
        try:
            content = parse_json(line)
        except ValueError:
            break
        if not isinstance(content, dict) or "id" not in content:
            break
        lines.append(content)
    return lines
