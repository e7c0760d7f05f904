"""Paths of a source, the files below it, and their names in messages and as ids."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vleak.errors import InputError

MAX_FILES = 2_000_000  # UCF-Crime as images has 1.4 million


def existing(source: str) -> Path:
    """Return the absolute path of a source.

    Raises:
        InputError: the path is neither a file nor a folder, or cannot be accessed.
    """
    path = Path(os.path.abspath(source))
    try:
        if source and (path.is_dir() or path.is_file()):
            return path
        kind = "is neither a file nor a folder" if path.exists() else "does not exist"
    except OSError as error:
        raise InputError(f"data {source!r}: cannot be read ({error})") from error
    raise InputError(f"data {source!r}: {kind}; give a video, a folder of videos, or 'synthetic'")


def walk(root: Path, source: str) -> list[str]:
    """Return the sorted names of the files below a folder, relative to it; no hidden or linked folders.

    Raises:
        InputError: a folder cannot be read, or there are more than MAX_FILES files.
    """
    names: list[str] = []
    folders = [""]
    try:
        while folders:
            folder = folders.pop()
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{folder}{entry.name}/")
                    elif entry.is_file():
                        names.append(f"{folder}{entry.name}")
            if len(names) > MAX_FILES:
                raise InputError(f"data {source!r}: more than {MAX_FILES} files; give a smaller folder")
    except OSError as error:
        raise InputError(f"data {source!r}: cannot read {error.filename!r}: {error.strerror}") from error
    return sorted(names)


def suffix(name: str) -> str:
    """Return the last suffix of a name in lower case, such as ".mp4"."""
    return os.path.splitext(name)[1].lower()


def parent(name: str) -> str:
    """Return the name of the folder of a file, given its name relative to the source; "" for the source."""
    return PurePosixPath(name).parent.name


def printable(name: str) -> str:
    """Return the name, escaped if it holds line breaks or bytes that are no text."""
    return name if name.isprintable() else ascii(name)


def first(names: Sequence[str]) -> str:
    """Return the first three names, and dots if there are more."""
    return ", ".join(printable(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")


def ids(stems: Sequence[str], parents: Sequence[str]) -> list[str]:
    """Return an id for each file that is unique, ignoring case, and safe as a file name.

    The id is the stem; the folder is put before it, and then a number after it, if that is not unique.
    """
    plain = [_safe(stem) for stem in stems]
    shared = Counter(stem.lower() for stem in plain)  # some file systems ignore case
    used: set[str] = set()
    names = []
    for stem, folder in zip(plain, parents, strict=True):
        base = stem if shared[stem.lower()] == 1 else f"{_safe(folder)}-{stem}"
        name, number = base, 2
        while name.lower() in used:
            name, number = f"{base}-{number}", number + 1
        used.add(name.lower())
        names.append(name)
    return names


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".-")[:80] or "clip"
