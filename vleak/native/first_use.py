"""Compiling a library at first use, into the sealed cache that processes share."""

from __future__ import annotations

from pathlib import Path

from vleak.cache import cache_folder, sealed_entry
from vleak.native import build

__all__ = ["compiled_library"]


def compiled_library(kind: build.Kind, folder: Path, headers: build.Torch) -> Path:
    """Path of the library in the cache, compiled first if it is not there or damaged.

    The key of the entry is `build.fingerprint`. Several processes at once compile once.

    Args:
        kind: which library.
        folder: the csrc folder.
        headers: the torch to build against.

    Raises:
        BuildError: it cannot be compiled.
        OSError: the cache cannot be written.
    """
    name = build.library_name(kind)

    def compile_into(entry: Path) -> None:
        build.compile_library(kind, folder, headers, entry / name)

    key = f"{kind}-{build.fingerprint(kind, folder, headers)}"
    return sealed_entry(cache_folder("extension"), key, compile_into) / name
