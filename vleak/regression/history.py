"""History of nights: one line each, appended whole or not at all, by one night at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from vleak.errors import InputError, VleakError, argument
from vleak.files import MAX_RECORD_BYTES, check_output, read_regular
from vleak.regression.records import HISTORY_VERSION, HistoryHeader, NightLine
from vleak.results.base import JsonObject, Record
from vleak.results.reading import parse_json, validate

__all__ = ["History", "read_history"]

_BEGINNING = b'{"kind":"vleak history"'


class History:
    """File of nights, locked from `open` to `close`; a torn last line, of a night that was killed, is
    dropped.

    Attributes:
        header: what its nights are compared with and tested by; None of a new file. lines: the nights.
    """

    def __init__(self, path: Path | str) -> None:
        """Take the path of a file; nothing is read or written before it is entered."""
        self.path = Path(path)
        self.header: HistoryHeader | None = None
        self.lines: list[NightLine] = []
        self._handle = -1
        self._end = 0

    def __enter__(self) -> History:
        """Lock the file and read it.

        Raises:
            InputError: it is in use, cannot be written, is no history, or is damaged.
        """
        check_output("history", self.path)
        try:
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except OSError as error:
            self._close()
            if error.errno in (errno.EAGAIN, errno.EACCES) and isinstance(error, BlockingIOError):
                raise InputError(
                    f"{argument('history', self.path)}: another night is being judged with it; start this "
                    "one again when that has ended"
                ) from error
            raise InputError(
                f"{argument('history', self.path)}: {error.strerror}; give a file that can be written"
            ) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unlock the file."""
        self._close()

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _read(self) -> None:
        content = os.pread(self._handle, MAX_RECORD_BYTES, 0)
        self._end = content.rfind(b"\n") + 1  # what follows was never finished
        self.header, self.lines = _parsed(content, self.path)

    def begin(self, header: HistoryHeader) -> None:
        """Write the header of a new file.

        Raises:
            InputError: the history is of another baseline.
            VleakError: the disk is full.
        """
        if self.header is None:
            self._append([header])
            self.header = header
        elif self.header.baseline_sha256 != header.baseline_sha256:
            raise InputError(
                f"{argument('history', self.path)}: is of another baseline; give its own, or begin another "
                "history"
            )

    def add(self, line: NightLine) -> None:
        """Append a night.

        Raises:
            VleakError: the disk is full; what was there is left as it was.
        """
        self._append([line])
        self.lines.append(line)

    def _append(self, records: Sequence[Record]) -> None:
        content = b"".join(record.model_dump_json().encode() + b"\n" for record in records)
        try:
            os.ftruncate(self._handle, self._end)
            _write_all(self._handle, content, self._end)
            os.fsync(self._handle)
        except OSError as error:
            os.ftruncate(self._handle, self._end)
            raise VleakError(
                f"{argument('history', self.path)}: the night cannot be added: {error.strerror}; free space, "
                "and judge it again"
            ) from error
        self._end += len(content)


def _write_all(handle: int, content: bytes, place: int) -> None:
    """Write all of it at a place; the system may take a part at a time."""
    while content:
        written = os.pwrite(handle, content, place)
        content, place = content[written:], place + written


def read_history(path: Path | str) -> tuple[HistoryHeader | None, list[NightLine]]:
    """Read the header and the nights of a history, without locking it; None and none of an empty one.

    Raises:
        InputError: no such file, no history, or a damaged one; names the line.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise InputError(f"{argument('history', path)}: {error.strerror}; give another file") from error
    return _parsed(content, Path(path))


def _parsed(content: bytes, path: Path) -> tuple[HistoryHeader | None, list[NightLine]]:
    """Header and nights of a file, up to a torn last line."""
    *whole, torn = content.split(b"\n")
    if not whole:
        if not _BEGINNING.startswith(torn[: len(_BEGINNING)]):
            raise InputError(f"{path} holds no history; give another file, or one that does not exist yet")
        return None, []
    header = _header(_object(whole[0]), path)
    return header, [_night(line, number, header, path) for number, line in enumerate(whole[1:], 1)]


def _object(line: bytes) -> JsonObject | None:
    try:
        content = parse_json(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _header(content: JsonObject | None, path: Path) -> HistoryHeader:
    if content is None or content.get("kind") != "vleak history":
        raise InputError(f"{path} holds no history; give another file, or one that does not exist yet")
    if (version := content.get("schema_version")) != HISTORY_VERSION:
        raise InputError(
            f"{path}: schema_version is {version!r}, this vleak reads {HISTORY_VERSION}; begin another "
            "history"
        )
    return validate(HistoryHeader, content, f"{path}, line 1")


def _night(line: bytes, number: int, header: HistoryHeader, path: Path) -> NightLine:
    source, content = f"{path}, line {number + 1}", _object(line)
    if content is None:
        raise InputError(f"{source} is damaged; restore the file, or begin another history")
    night = validate(NightLine, content, source)
    widths = {len(getattr(night, name)) for name in ("means", "log_e", "opened", "alarm", "ranks")}
    if night.night != number or widths != {len(header.tests)}:
        raise InputError(f"{source}: a night is missing or cut; restore the file, or begin another history")
    return night
