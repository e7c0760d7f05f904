"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from vleak.errors import VleakError


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
