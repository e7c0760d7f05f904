"""Sealed disk cache of what is made on the user's machine, such as trained weights; never shipped.

An entry is a folder with a checksum over its files. It is used only if every file is, byte for byte, what was
written; otherwise it is made anew. Processes that want the same entry at once make it once.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from vleak.files import open_lock, read_regular

__all__ = [
    "Recipe",
    "cache_folder",
    "cached_tensors",
    "file_lock",
    "is_intact",
    "sealed_entry",
    "weights_folder",
]

Recipe = Mapping[str, str | int | float | bool | None]
"""Everything that the weights depend on, as JSON values: two equal recipes give equal weights."""

_SEAL, _TENSORS = "sha256", "tensors.safetensors"
_MOST = 2**33  # bytes of a file of an entry


def cache_folder(kind: str) -> Path:
    """Return where entries of a kind are kept: ``$XDG_CACHE_HOME/vleak/<kind>``, or below ``~/.cache``.

    Raises:
        OSError: the user has no home folder.
    """
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "vleak" / kind
    try:
        return Path.home() / ".cache" / "vleak" / kind
    except RuntimeError as error:
        raise OSError(errno.ENOENT, "the user has no home folder; set XDG_CACHE_HOME") from error


def weights_folder() -> Path:
    """Return where trained weights are kept."""
    return cache_folder("weights")


def cached_tensors(
    name: str, recipe: Recipe, make: Callable[[], Mapping[str, Tensor]], *, again: bool = False
) -> dict[str, Tensor]:
    """Return the tensors of a recipe from the cache, or make and keep them.

    Where the cache cannot be written, one warning says so and the tensors are returned all the same.

    Args:
        name: of the tensors, safe as the start of a file name, such as "c3d_small".
        recipe: everything that the tensors depend on; a change makes another entry.
        make: makes them; named tensors on the CPU.
        again: make them even if the cache has them.
    """
    key = hashlib.sha256(json.dumps(dict(recipe), sort_keys=True).encode()).hexdigest()[:16]
    tensors: dict[str, Tensor] | None = None

    def fill(folder: Path) -> None:
        nonlocal tensors
        # safetensors refuses tensors that share memory.
        tensors = {n: t.detach().cpu().clone().contiguous() for n, t in make().items()}
        (folder / _TENSORS).write_bytes(to_safetensors(tensors))

    try:
        entry = sealed_entry(weights_folder(), f"{name}-{key}", fill, again=again)
        return load_file(entry / _TENSORS) if tensors is None else tensors
    except OSError as error:
        message = f"the folder of weights cannot be used as a cache ({error}); nothing is kept"
        warnings.warn(message, stacklevel=2)
        return {n: t.detach().cpu().clone() for n, t in (tensors or make()).items()}


# ---------------------------------------------------------------------------------------------------------
# Entries


def sealed_entry(folder: Path, key: str, fill: Callable[[Path], None], *, again: bool = False) -> Path:
    """Return the folder of an entry, filled first if it is absent or damaged.

    Args:
        folder: of the entries; created if need be.
        key: name of the entry, which says everything that its content depends on.
        fill: writes the files of the entry into an empty folder, which then becomes the entry in one step.
        again: fill it even if it is intact.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entry = folder / key
    with file_lock(folder / f"{key}.lock"):
        if again or not is_intact(entry):
            shutil.rmtree(entry, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=folder))
            try:
                fill(work)
                (work / _SEAL).write_text(_digest(work), encoding="ascii")
                work.replace(entry)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return entry


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes, on a file that is created if need be."""
    with open_lock(path) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_intact(entry: Path) -> bool:
    """Return whether the files of an entry are, byte for byte, what was written."""
    try:
        return read_regular(entry / _SEAL) == _digest(entry).encode()
    except (OSError, ValueError):
        return False


def _digest(entry: Path) -> str:
    """Return a checksum over the names and contents of an entry's files, the seal left out."""
    files = sorted(path for path in entry.iterdir() if path.name != _SEAL)
    digests = [(path.name, hashlib.sha256(read_regular(path, _MOST)).hexdigest()) for path in files]
    return hashlib.sha256(repr(digests).encode()).hexdigest()
