"""A run is a folder: settings, a journal of finished cells, pictures, and the results made of them."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
from torch import Tensor

from vleak.errors import InputError, VleakError
from vleak.files import write_atomic

SCHEMA_VERSION = 1
_HEADER, _JOURNAL, _RESULTS = "run.json", "cells.jsonl", "results.json"


class Store:
    """The folder of one run; one process writes to it at a time.

    Every finished cell is on the disk before the next one is counted, so that a run that is stopped, at
    whatever moment, resumes where it was. A torn last line of the journal is dropped.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        """Open the folder for this run, or take up an earlier one with the same header.

        Args:
            folder: made when missing.
            header: JSON values that two runs must share to be the same: settings, data, weights, versions.

        Raises:
            InputError: the path is a file or a folder with something else in it, or it holds another run.
            VleakError: the folder cannot be written, or another process writes to it.
        """
        self.folder, self.header = folder, json.loads(json.dumps(header))
        self._make()
        self._lock = self._take_lock()
        try:
            self._match_header()
            self.cells: dict[str, dict[str, Any]] = {
                cell["id"]: cell for cell in _read_journal(folder / _JOURNAL)
            }
            self._journal = self._open_journal()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Store:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the journal and let go of the folder."""
        self._journal.close()
        self._lock.close()

    def add(self, cell: dict[str, Any], picture: Tensor) -> None:
        """Put a finished cell and its picture on the disk, the picture first.

        Args:
            cell: a JSON record with an "id"; its "media" is set here.
            picture: (C, T, H, W) in [0, 1].

        Raises:
            VleakError: the disk is full; what was written before stays readable.
        """
        name = hashlib.sha256(cell["id"].encode()).hexdigest()[:16]
        record = {**cell, "media": f"reconstructions/{name}.npy"}
        write_clips(self.folder / str(record["media"]), picture)
        self._append(record)
        self.cells[record["id"]] = record

    def add_failed(self, cell: dict[str, Any]) -> None:
        """Put a cell without a picture on the disk."""
        self._append({**cell, "media": None})
        self.cells[cell["id"]] = {**cell, "media": None}

    def results(self, order: list[str]) -> dict[str, Any]:
        """Return the content of results.json, with the finished cells of ``order`` in that order."""
        cells = [self.cells[name] for name in order if name in self.cells]
        return {"schema_version": SCHEMA_VERSION, **self.header, "planned_cells": len(order), "cells": cells}

    def write_results(self, results: dict[str, Any]) -> None:
        """Write results.json, whole or not at all."""
        write_atomic(
            self.folder / _RESULTS, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
        )

    def _make(self) -> None:
        if self.folder.is_file():
            raise InputError(f"--out {self.folder} is a file; give a folder, new or of a stopped run")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            strange = (
                any(self.folder.iterdir()) and not (self.folder / _HEADER).exists() and not self._only_ours()
            )
        except OSError as error:
            raise InputError(
                f"--out {self.folder} cannot be used: {error.strerror}; give another folder"
            ) from error
        if strange:
            raise InputError(
                f"--out {self.folder} holds something that is not a run of vleak; give a new folder"
            )
        try:
            (self.folder / "reconstructions").mkdir(exist_ok=True)
        except OSError as error:
            raise VleakError(
                f"cannot write to {self.folder}: {error.strerror}; give another folder"
            ) from error

    def _only_ours(self) -> bool:
        """Tell whether all there is was left by a run that stopped before it wrote its header."""
        return all(
            entry.name in ("reconstructions", ".lock") or entry.name.startswith(".run.json.")
            for entry in self.folder.iterdir()
        )

    def _take_lock(self) -> TextIO:
        try:
            handle = open(self.folder / ".lock", "w")  # noqa: SIM115  held as long as the store
        except OSError as error:
            raise VleakError(
                f"cannot write to {self.folder}: {error.strerror}; give another folder"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.close()
            raise VleakError(
                f"{self.folder} is in use by another run; wait for it, or give another --out"
            ) from error
        return handle

    def _match_header(self) -> None:
        path = self.folder / _HEADER
        if not path.exists():
            write_atomic(path, json.dumps(self.header, indent=1, ensure_ascii=False, allow_nan=False))
            return
        there = _read_json(path)
        difference = _first_difference(there, self.header)
        if difference:
            raise InputError(f"--out {self.folder} holds another run: {difference}; give another folder")
        # Machine and time are those of the first start.
        self.header = there

    def _open_journal(self) -> TextIO:
        path = self.folder / _JOURNAL
        lines = [json.dumps(cell, ensure_ascii=False) + "\n" for cell in self.cells.values()]
        write_atomic(path, "".join(lines))  # leaves the torn tail of a killed run behind
        return open(path, "a", encoding="utf-8")

    def _append(self, cell: dict[str, Any]) -> None:
        try:
            self._journal.write(json.dumps(cell, ensure_ascii=False, allow_nan=False) + "\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise VleakError(
                f"cannot write to {self.folder}: {error.strerror}; {len(self.cells)} finished cells are "
                "safe, free space and give the same command again"
            ) from error


def read_results(folder: Path) -> dict[str, Any]:
    """Read the results of a run, finished or stopped.

    Raises:
        InputError: there is no such folder, no run in it, or its files are damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the --out of a run")
    if (folder / _RESULTS).exists():
        return _read_json(folder / _RESULTS)
    if not (folder / _HEADER).exists():
        raise InputError(f"{folder} holds no run; give the --out of `vleak evaluate`")
    header = _read_json(folder / _HEADER)
    return {"schema_version": SCHEMA_VERSION, **header, "cells": _read_journal(folder / _JOURNAL)}


def write_clips(path: Path, clips: Tensor) -> None:
    """Write clips in [0, 1] as 8-bit .npy, any leading axes."""
    stream = io.BytesIO()
    np.save(stream, (clips.detach().cpu().clamp(0, 1) * 255).round().byte().numpy(), allow_pickle=False)
    write_atomic(path, stream.getvalue())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; give another folder") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a file of vleak; give another folder")
    return content


def _read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the cells of a journal up to the first torn line."""
    cells: list[dict[str, Any]] = []
    if not path.exists():
        return cells
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last newline was never finished
        try:
            cells.append(json.loads(line))
        except ValueError:
            break
    return cells


_COMPARED = ("settings", "data", "models", "versions")


def _first_difference(there: dict[str, Any], here: dict[str, Any]) -> str | None:
    for part in _COMPARED:
        old, new = there.get(part), here.get(part)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):
                key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
                return f"{part} {key} is {old.get(key)!r} there and {new.get(key)!r} here"
            return f"its {part} are others"
    return None
