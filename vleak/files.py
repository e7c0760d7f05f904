"""Files: regular ones are opened and no others, and a reader never meets half of a written one."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vleak.errors import InputError, VleakError, argument

MAX_RECORD_BYTES = 2**29
"""Largest file of records that is read: about 200 000 cells."""

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object of its pairs, as ``object_pairs_hook`` of `json.loads`.

    Raises:
        ValueError: a key is there twice, of which one would be read and the other lost; names it.
    """
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {key!r} is there twice")
        made[key] = value
    return made


def check_regular(path: Path | str) -> None:
    """Refuse what is no regular file, nor a link to one: reading a named pipe or a device need never end.

    Raises:
        OSError: there is nothing, or something else; ``strerror`` says what.
    """
    _check_mode(os.stat(path).st_mode, path)


def open_regular(path: Path | str) -> BinaryIO:
    """Open a regular file for reading; what is none is refused at once.

    Raises:
        OSError: as `check_regular`, or the file cannot be opened.
    """
    check_regular(path)  # before it is opened, which alone may set a device going
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_mode(os.fstat(handle).st_mode, path)
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_regular(path: Path | str, most: int = MAX_RECORD_BYTES) -> bytes:
    """Return the content of a regular file.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError: as `open_regular`, or the file is larger.
    """
    with open_regular(path) as stream:
        length = os.fstat(stream.fileno()).st_size
        if length > most:
            raise OSError(errno.EFBIG, f"it has {length} bytes, the limit is {most}", str(path))
        return stream.read(most)


def open_lock(path: Path) -> BinaryIO:
    """Open a file that only locks are taken on, made if need be.

    Raises:
        OSError: it is no regular file, or cannot be made.
    """
    if path.exists():
        check_regular(path)
    return open(path, "ab")


def _check_mode(mode: int, path: Path | str) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise OSError(errno.EINVAL, f"it is {kind}, expected a regular file", str(path))


def check_output(name: str, path: Path | str) -> Path:
    """Path of a file to write; what is there already is a regular file, not a named pipe or a folder.

    Raises:
        InputError: it is something else, or its folder does not exist.
    """
    path = Path(path)
    try:
        if path.exists():
            check_regular(path)
    except OSError as error:
        raise InputError(f"{argument(name, path)}: {error.strerror}; give another file") from error
    if not path.parent.is_dir():
        raise InputError(f"{argument(name, path)}: there is no folder {path.parent}; make it first")
    return path


def check_page(name: str, path: Path | str) -> Path:
    """Path of a page to write, which ends in .html: no file of records, tensors or clips is written over.

    Raises:
        InputError: it ends otherwise, or as `check_output`.
    """
    path = check_output(name, path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{argument(name, path)}: expected a page, a file that ends in .html")
    return path


def check_apart(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Refuse outputs that cannot be written, or that are an input or another output.

    Args:
        outputs: files to write, by argument; None where one was not asked for.
        inputs: files that are read, by what they are to the user.

    Raises:
        InputError: as `check_output`, or two are the same file.
    """
    known = {path.resolve(): name for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        other = known.setdefault(check_output(name, path).resolve(), name)
        if other != name:
            raise InputError(f"{argument(name, path)}: is the file of {other}; give another")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file or leave what was there: temporary file, fsync, replace.

    Args:
        path: the file to write; its folder must exist.
        content: bytes, or text that is written as UTF-8.

    Raises:
        VleakError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        # Not mkstemp: its files are for their owner alone, and a report is to be shared.
        temporary = str(path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise VleakError(
            f"cannot write {path}: {error.strerror}; free space or choose another folder"
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
