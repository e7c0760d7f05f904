"""A run is a folder: settings, a journal of finished cells, pictures, and the results made of them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TextIO

import numpy as np
from torch import Tensor

from vleak.errors import InputError, VleakError
from vleak.files import write_atomic
from vleak.results.flags import mark

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
        check_folder(folder, self.header["settings"])
        self._make()
        self._lock = self._take_lock()
        try:
            self._match_header()
            self.cells = _read_journal(folder / _JOURNAL)
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

    def add(self, cell: dict[str, Any], picture: Tensor, enhanced: Tensor | None = None) -> None:
        """Put a finished cell and its picture on the disk, the picture first.

        Args:
            cell: a JSON record with an "id"; its "media" and "media_enhanced" are set here.
            picture: (C, T, H, W) in [0, 1].
            enhanced: (C, T, 2H, 2W) in [0, 1], where there is one.

        Raises:
            VleakError: the disk is full; what was written before stays readable.
        """
        name = hashlib.sha256(cell["id"].encode()).hexdigest()[:16]
        pictures = {"media": (f"reconstructions/{name}.npy", picture)}
        if enhanced is not None:
            pictures["media_enhanced"] = (f"reconstructions/{name}-enhanced.npy", enhanced)
        record = {**cell, "media_enhanced": None, **{key: path for key, (path, _) in pictures.items()}}
        try:
            for path, held in pictures.values():
                write_clips(self.folder / path, held)
        except VleakError as error:
            raise self._unwritable(error.__cause__) from error
        self._append(record)

    def add_without_picture(self, cell: dict[str, Any]) -> None:
        """Put a cell on the disk that failed, or whose answer has no frames.

        Raises:
            VleakError: as `add`.
        """
        self._append({**cell, "media": None, "media_enhanced": None})

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
        try:
            (self.folder / "reconstructions").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--out {self.folder} cannot be used: {error.strerror}; give another folder"
            ) from error

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
        _refuse_another_run(self.folder, there, self.header)
        # Machine and time are those of the first start.
        self.header = there

    def _open_journal(self) -> BinaryIO:
        path = self.folder / _JOURNAL
        write_atomic(path, b"".join(map(_line, self.cells.values())))  # leaves the torn tail of a killed run
        return open(path, "ab", buffering=0)

    def _append(self, cell: dict[str, Any]) -> None:
        line = _line(cell)
        end = os.fstat(self._journal.fileno()).st_size
        try:
            if self._journal.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._journal.fileno())
        except OSError as error:
            self._journal.truncate(end)
            raise self._unwritable(error) from error
        self.cells[cell["id"]] = cell

    def _unwritable(self, cause: BaseException | None) -> VleakError:
        why = cause.strerror if isinstance(cause, OSError) else cause
        return VleakError(
            f"cannot write to {self.folder}: {why}; {len(self.cells)} finished cells are safe, free space "
            f"and give the same command with --out {self.folder}"
        )


def check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that a run with these settings cannot use, before anything slow; nothing is written.

    Raises:
        InputError: the path is a file, or a folder with something else or another run in it.
    """
    if folder.is_file():
        raise InputError(f"--out {folder} is a file; give a folder, new or of a stopped run")
    try:
        held = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise InputError(f"--out {folder} cannot be used: {error.strerror}; give another folder") from error
    if _HEADER in held:
        part = {"settings": settings}
        _refuse_another_run(folder, _read_json(folder / _HEADER), json.loads(json.dumps(part)))
    elif not all(name in ("reconstructions", ".lock") or name.startswith(".run.json.") for name in held):
        # What else there may be was left by a run that stopped before it wrote its header.
        raise InputError(f"--out {folder} holds something that is not a run of vleak; give a new folder")


def read_results(folder: Path) -> dict[str, Any]:
    """Read the results of a run, finished, stopped or killed.

    ``planned_cells`` is None where the run wrote no results.json: the journal does not say what was to come.

    Raises:
        InputError: there is no such folder, no run in it, or its files are damaged.
    """
    if not folder.is_dir():
        given = "is no folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {given}; give the folder of a run, the --out of `vleak evaluate`")
    finished, journal = folder / _RESULTS, _read_journal(folder / _JOURNAL)
    results = _read_json(finished) if finished.exists() else None
    # A run that was resumed and then killed has more in its journal.
    if results is not None and len(results.get("cells") or ()) >= len(journal):
        return results
    if not (folder / _HEADER).exists():
        raise InputError(f"{folder} holds no run, no {_RESULTS}; give the --out of `vleak evaluate`")
    cells = list(journal.values())
    mark(cells)
    header, planned = _read_json(folder / _HEADER), (results or {}).get("planned_cells")
    return {"schema_version": SCHEMA_VERSION, **header, "planned_cells": planned, "cells": cells}


def write_clips(path: Path, clips: Tensor) -> None:
    """Write clips in [0, 1] as 8-bit .npy, any leading axes."""
    stream = io.BytesIO()
    np.save(stream, (clips.detach().cpu().clamp(0, 1) * 255).round().byte().numpy(), allow_pickle=False)
    write_atomic(path, stream.getvalue())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}; give another folder") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__}, expected the object that `vleak evaluate` writes; "
            "give another folder"
        )
    return content


def _line(cell: dict[str, Any]) -> bytes:
    return json.dumps(cell, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """Return the cells of a journal by id, up to the first torn line; of one id the last."""
    cells: dict[str, dict[str, Any]] = {}
    if not path.exists():
        return cells
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last newline was never finished
        try:
            cell = json.loads(line)
            cells[cell["id"]] = cell
        except (ValueError, TypeError, KeyError):
            break
    return cells


_COMPARED = ("settings", "data", "models", "versions")


def _refuse_another_run(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Compare the parts of two headers that both must share, as far as they are known here."""
    for part in (part for part in _COMPARED if part in here):
        old, new = there.get(part), here[part]
        if old != new:
            difference = f"its {part} are others"
            if isinstance(old, dict) and isinstance(new, dict):
                key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
                difference = f"{part} {key} is {old.get(key)!r} there and {new.get(key)!r} here"
            raise InputError(f"--out {folder} holds another run: {difference}; give another folder")
