"""Stores of a run: a folder that survives a crash, or memory, behind one protocol."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

from torch import Tensor

from vleak.errors import InputError, VleakError, argument
from vleak.files import open_lock, write_atomic
from vleak.results.audit import AuditRecord
from vleak.results.flags import with_flags
from vleak.results.folder import HEADER, JOURNAL, RESULTS, read_header, read_journal, read_of_defenses
from vleak.results.media import cell_pictures, with_media
from vleak.results.pictures import CLIPS, Bytes, as_bytes, as_clip, read_array, write_array
from vleak.results.records import SCHEMA_VERSION, Cell, Record, RunHeader, RunRecord, SettingsRecord
from vleak.results.utility import UtilityRecord

__all__ = ["FolderStore", "MemoryStore", "RunStore"]


class RunStore(Protocol):
    """Place that a run is written to: `open`, then `add` cell by cell, then `finish`.

    Attributes:
        cells: the cells so far by id; a store that was opened again begins with the earlier ones.
        utility: the utility so far by the text of the defense, likewise.
        audits: the audits so far by model and text of the defense, likewise.
    """

    @property
    def cells(self) -> Mapping[str, Cell]:
        """The cells so far by id."""

    @property
    def utility(self) -> Mapping[str, UtilityRecord]:
        """The utility so far by the text of the defense."""

    @property
    def audits(self) -> Mapping[tuple[str, str], AuditRecord]:
        """The audits so far by model and text of the defense."""

    def check(self, settings: SettingsRecord) -> None:
        """Refuse settings of another run than the one that is there, before anything slow."""

    def open(self, header: RunHeader) -> RunStore:
        """Begin the run, or take up an earlier one of the same header; returns the store itself."""

    def __enter__(self) -> RunStore:
        """Return the store itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""

    def add_clips(self, clips: Tensor) -> None:
        """Keep the private clips (N, C, T, H, W) in [0, 1]."""

    def add(self, cell: Cell, picture: Tensor | None = None, enhanced: Tensor | None = None) -> None:
        """Keep a finished cell and its pictures (C, T, H, W), and at twice the resolution, in [0, 1]."""

    def add_utility(self, record: UtilityRecord) -> None:
        """Keep the utility under one defense."""

    def add_audit(self, record: AuditRecord) -> None:
        """Keep the audit of one defense on one model."""

    def finish(self, order: Sequence[str]) -> RunRecord:
        """Close the record of the run: its finished cells in the order of the planned ids, with flags."""

    def pictures(self, cell: Cell) -> dict[str, Tensor]:
        """Pictures of a cell by role: "truth", "reconstruction", "enhanced", those that there are."""

    def clips(self) -> Tensor | None:
        """Private clips (N, C, T, H, W); None where there are none."""


class MemoryStore:
    """Run that is held in memory; its pictures have the 8 bits that a folder would give them."""

    def __init__(self) -> None:
        """Make an empty store."""
        self.cells: dict[str, Cell] = {}
        self.utility: dict[str, UtilityRecord] = {}
        self.audits: dict[tuple[str, str], AuditRecord] = {}
        self._arrays: dict[str, Bytes] = {}
        self._header: RunHeader | None = None

    def check(self, settings: SettingsRecord) -> None:
        """Accept all settings."""

    def open(self, header: RunHeader) -> MemoryStore:
        """Begin the run."""
        self._header = header
        return self

    def __enter__(self) -> MemoryStore:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep everything."""

    def add_clips(self, clips: Tensor) -> None:
        """Keep the private clips (N, C, T, H, W) in [0, 1]."""
        self._arrays[CLIPS] = as_bytes(clips)

    def add(self, cell: Cell, picture: Tensor | None = None, enhanced: Tensor | None = None) -> None:
        """Keep a finished cell and its pictures."""
        cell, arrays = with_media(cell, picture, enhanced)
        self._arrays |= arrays
        self.cells[cell.id] = cell

    def add_utility(self, record: UtilityRecord) -> None:
        """Keep the utility under one defense."""
        self.utility[record.text] = record

    def add_audit(self, record: AuditRecord) -> None:
        """Keep the audit of one defense on one model, for the results of `finish`."""
        self.audits[record.model, record.text] = record

    def finish(self, order: Sequence[str]) -> RunRecord:
        """Return the record of the run."""
        assert self._header is not None, "a store is opened before it is finished"
        return _record(self._header, self, order)

    def pictures(self, cell: Cell) -> dict[str, Tensor]:
        """Pictures of a cell by role: "truth", "reconstruction", "enhanced", those that there are."""
        return cell_pictures(self._arrays.get, cell)

    def clips(self) -> Tensor | None:
        """Private clips (N, C, T, H, W); None where there are none."""
        return as_clip(self._arrays[CLIPS]) if CLIPS in self._arrays else None


class FolderStore:
    """Folder of one run; one process writes to it at a time.

    Every finished cell is on the disk before the next one is counted, so that a run that is stopped, at
    whatever moment, resumes where it was. A torn last line of the journal is dropped.
    """

    def __init__(self, folder: Path) -> None:
        """Take a folder; nothing is read or written before `check` or `open`.

        Args:
            folder: made when missing.
        """
        self.folder = Path(folder)
        self.cells: dict[str, Cell] = {}
        self.utility: dict[str, UtilityRecord] = {}
        self.audits: dict[tuple[str, str], AuditRecord] = {}
        self._header: RunHeader | None = None
        self._lock: BinaryIO | None = None
        self._journal: BinaryIO | None = None

    def check(self, settings: SettingsRecord) -> None:
        """Refuse a folder that a run with these settings cannot use; nothing is written.

        Raises:
            InputError: the path is a file, or a folder with something else or another run in it.
        """
        self._check_content()
        if (self.folder / HEADER).exists():
            _refuse_other(self.folder, "settings", read_header(self.folder).settings, settings)

    def open(self, header: RunHeader) -> FolderStore:
        """Lock the folder and begin the run, or take up an earlier one with the same header.

        Args:
            header: what two runs must share to be the same: settings, data, models, versions.

        Raises:
            InputError: the path is a file or a folder with something else in it, or it holds another run.
            VleakError: the folder cannot be written, or another process writes to it.
        """
        self.check(header.settings)
        self._make()
        self._lock = self._take_lock()
        try:
            self._header = self._matched(header)
            self.cells = read_journal(self.folder)
            self.utility, self.audits = read_of_defenses(self.folder)
            self._journal = self._open_journal()
            # After the journal: while the header is of an older schema, its lines may be of either.
            _write_header(self.folder, self._header)
        except BaseException:
            self._close()
            raise
        return self

    def __enter__(self) -> FolderStore:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the journal and let go of the folder."""
        self._close()

    def add_clips(self, clips: Tensor) -> None:
        """Write the private clips (N, C, T, H, W) in [0, 1].

        Raises:
            VleakError: the disk is full.
        """
        write_array(self.folder / CLIPS, as_bytes(clips))

    def add(self, cell: Cell, picture: Tensor | None = None, enhanced: Tensor | None = None) -> None:
        """Put a finished cell and its pictures on the disk, the pictures first.

        Args:
            cell: its ``media`` and ``media_enhanced`` are set here.
            picture: (C, T, H, W) in [0, 1]; None where it failed, or its answer has no frames.
            enhanced: (C, T, 2H, 2W) in [0, 1], where there is one.

        Raises:
            VleakError: the disk is full; what was written before stays readable.
        """
        cell, arrays = with_media(cell, picture, enhanced)
        try:
            for name, array in arrays.items():
                write_array(self.folder / name, array)
        except VleakError as error:
            raise self._unwritable(error.__cause__) from error
        self._append(cell)

    def add_utility(self, record: UtilityRecord) -> None:
        """Keep the utility under one defense, for the results that `finish` writes."""
        self.utility[record.text] = record

    def add_audit(self, record: AuditRecord) -> None:
        """Keep the audit of one defense on one model, for the results of `finish`."""
        self.audits[record.model, record.text] = record

    def finish(self, order: Sequence[str]) -> RunRecord:
        """Write results.json, whole or not at all, and return its content.

        Raises:
            VleakError: the disk is full.
        """
        assert self._header is not None, "a store is opened before it is finished"
        record = _record(self._header, self, order)
        self.write(record)
        return record

    def write(self, record: RunRecord) -> None:
        """Write results.json, whole or not at all.

        Raises:
            VleakError: the disk is full.
        """
        _write(self.folder / RESULTS, record.content())

    def pictures(self, cell: Cell) -> dict[str, Tensor]:
        """Pictures of a cell by role: "truth", "reconstruction", "enhanced", those that there are.

        Raises:
            InputError: a file is missing or damaged.
        """
        there = (self.folder / CLIPS).exists()
        return cell_pictures(
            lambda name: read_array(self.folder, name) if name != CLIPS or there else None, cell
        )

    def clips(self) -> Tensor | None:
        """Private clips (N, C, T, H, W); None where there are none."""
        return as_clip(read_array(self.folder, CLIPS)) if (self.folder / CLIPS).exists() else None

    def _check_content(self) -> None:
        given = argument("out", self.folder)
        try:
            if self.folder.exists() and not self.folder.is_dir():
                raise InputError(f"{given} is a file; give a folder, new or of a stopped run")
            names = {entry.name for entry in self.folder.iterdir()} if self.folder.exists() else set()
        except OSError as error:
            raise InputError(f"{given} cannot be used: {error.strerror}; give another folder") from error
        # What else there may be was left by a run that stopped before it wrote its header.
        left = all(n in ("reconstructions", ".lock") or n.startswith(f".{HEADER}.") for n in names)
        if HEADER not in names and not left:
            raise InputError(f"{given} holds something that is not a run of vleak; give a new folder")

    def _make(self) -> None:
        try:
            (self.folder / "reconstructions").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{argument('out', self.folder)} cannot be used: {error.strerror}; give another folder"
            ) from error

    def _take_lock(self) -> BinaryIO:
        try:
            handle = open_lock(self.folder / ".lock")
        except OSError as error:
            raise VleakError(
                f"cannot write to {self.folder}: {error.strerror}; give another folder"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.close()
            raise VleakError(
                f"{self.folder} is in use by another run; wait for it, or give another `out`"
            ) from error
        return handle

    def _matched(self, header: RunHeader) -> RunHeader:
        """Header of the earlier run where there is one: machine and time are those of the first start."""
        if not (self.folder / HEADER).exists():
            _write_header(self.folder, header)
            return header
        there = read_header(self.folder)
        for part in ("settings", "data", "models"):
            _refuse_other(self.folder, part, getattr(there, part), getattr(header, part))
        for part in ("vleak", "torch"):
            old, new = getattr(there.environment, part), getattr(header.environment, part)
            if old != new:
                raise _other_run(self.folder, f"its version of {part} is {old!r} there and {new!r} here")
        return there

    def _open_journal(self) -> BinaryIO:
        path = self.folder / JOURNAL
        write_atomic(path, b"".join(map(_line, self.cells.values())))  # leaves the torn tail of a killed run
        return open(path, "ab", buffering=0)

    def _append(self, cell: Cell) -> None:
        assert self._journal is not None, "a store is opened before cells are added"
        line = _line(cell)
        end = os.fstat(self._journal.fileno()).st_size
        try:
            if self._journal.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._journal.fileno())
        except OSError as error:
            self._journal.truncate(end)
            raise self._unwritable(error) from error
        self.cells[cell.id] = cell

    def _unwritable(self, cause: BaseException | None) -> VleakError:
        why = cause.strerror if isinstance(cause, OSError) else cause
        return VleakError(
            f"cannot write to {self.folder}: {why}; {len(self.cells)} finished cells are safe, free space "
            f"and start it again with {argument('out', self.folder)}"
        )

    def _close(self) -> None:
        for handle in (self._journal, self._lock):
            if handle is not None:
                handle.close()
        self._journal = self._lock = None


def _record(header: RunHeader, store: RunStore, order: Sequence[str]) -> RunRecord:
    finished = with_flags([store.cells[name] for name in order if name in store.cells])
    parts = {"planned_cells": len(order), "cells": finished}
    more = {"utility": tuple(store.utility.values()), "audits": tuple(store.audits.values())}
    return RunRecord.model_validate(dict(header) | parts | more)


def _write_header(folder: Path, header: RunHeader) -> None:
    _write(folder / HEADER, {"schema_version": SCHEMA_VERSION} | header.model_dump(mode="json"))


def _write(path: Path, content: Mapping[str, object]) -> None:
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))


def _line(cell: Cell) -> bytes:
    content = cell.model_dump(mode="json")
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _refuse_other(folder: Path, part: str, there: object, here: object) -> None:
    """Compare one part of two headers."""
    if there == here:
        return
    difference = f"its {part} are others"
    if isinstance(there, Record) and isinstance(here, Record):
        old, new = there.model_dump(mode="json"), here.model_dump(mode="json")
        key = next(key for key in new if old[key] != new[key])
        difference = f"{part} {key} is {old[key]!r} there and {new[key]!r} here"
    raise _other_run(folder, difference)


def _other_run(folder: Path, difference: str) -> InputError:
    return InputError(f"{argument('out', folder)} holds another run: {difference}; give another folder")
