"""Compiling a library at first use, into a cache that processes share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vleak.native import build

__all__ = ["compiled_library", "digest", "file_lock", "intact_library"]


def compiled_library(kind: build.Kind, folder: Path, headers: build.Torch) -> Path:
    """Path of the library in the cache, compiled first if it is not there.

    The key of the entry is `build.fingerprint`. Several processes at once compile once.

    Args:
        kind: which library.
        folder: the csrc folder.
        headers: the torch to build against.

    Raises:
        BuildError: it cannot be compiled.
        OSError: the cache cannot be written.
    """
    entry = _cache_folder() / f"{kind}-{build.fingerprint(kind, folder, headers)}"
    with file_lock(entry.with_suffix(".lock")):
        return intact_library(entry, kind) or _compile_into(entry, kind, folder, headers)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "vleak" / "extension"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Context that holds an exclusive lock between processes, on a file that is created if need be."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def intact_library(entry: Path, kind: build.Kind) -> Path | None:
    """Path of the library in a cache entry whose checksum matches; None if absent or damaged."""
    library = entry / build.library_name(kind)
    try:
        recorded = (entry / "sha256").read_text(encoding="ascii")
        return library if recorded == digest(library) else None
    except (OSError, ValueError):
        return None


def _compile_into(entry: Path, kind: build.Kind, folder: Path, headers: build.Torch) -> Path:
    shutil.rmtree(entry, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
    try:
        library = work / build.library_name(kind)
        build.compile_library(kind, folder, headers, library)
        (work / "sha256").write_text(digest(library), encoding="ascii")
        os.replace(work, entry)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return entry / build.library_name(kind)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
