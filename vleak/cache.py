"""Weights that are trained on the user's machine: made once, kept in the user's cache, never shipped."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from vleak.errors import VleakError
from vleak.files import write_atomic

__all__ = ["cached_tensors", "weights_folder"]

Recipe = Mapping[str, str | int | float | bool | None]
"""Everything that the weights depend on, as JSON values: two equal recipes give equal weights."""


def weights_folder() -> Path:
    """Return where trained weights are kept: ``$XDG_CACHE_HOME/vleak/weights``, or below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vleak" / "weights"


def cached_tensors(
    name: str, recipe: Recipe, make: Callable[[], Mapping[str, Tensor]], *, again: bool = False
) -> dict[str, Tensor]:
    """Return the tensors of a recipe from the cache, or make and keep them.

    Two processes that want the same recipe at once make it once. A file that is damaged is made anew; where
    the cache cannot be written, one warning says so and the tensors are returned all the same.

    Args:
        name: what is made, safe as the start of a file name, such as "c3d_small".
        recipe: everything that the tensors depend on; a change makes another file.
        make: makes them; named tensors on the CPU.
        again: make them even if the cache has them.
    """
    key = hashlib.sha256(json.dumps(dict(recipe), sort_keys=True).encode()).hexdigest()[:16]
    path = weights_folder() / f"{name}-{key}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "w")  # noqa: SIM115  closed below
    except OSError as error:
        _tell(path.parent, error)
        return _cloned(make())
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not again and (found := _read(path)) is not None:
            return found
        found = _cloned(make())
        try:
            write_atomic(path, to_safetensors(found))
        except VleakError as error:
            _tell(path.parent, error)
        return found


def _tell(folder: Path, error: Exception) -> None:
    warnings.warn(f"{folder} cannot be used as a cache ({error}); nothing is kept", stacklevel=3)


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path) if path.exists() else None
    except (SafetensorError, ValueError):
        return None


def _cloned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory.
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
