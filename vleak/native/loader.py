"""Search for the native extension: the installed library, one compiled at first use, or plain PyTorch.

The library that came with the installation is used if it fits. Otherwise the sources that came with it are
compiled at first use and kept in a cache. Otherwise everything runs in plain PyTorch, after one warning.

The environment variable ``VLEAK_EXTENSION`` chooses: ``auto`` (the above, and the default), ``jit`` (never
the installed library), ``off`` (plain PyTorch, no warning).
"""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vleak.cache import cache_folder, sealed_entry
from vleak.errors import InputError
from vleak.native import build
from vleak.native.libraries import Outcome, State, load, pure_torch

__all__ = ["ExtensionStatus", "ExtensionWarning", "ensure_loaded", "loop_module", "status"]

_MODES = ("auto", "jit", "off")


class ExtensionWarning(UserWarning):
    """The native extension cannot be used; results are the same, only slower."""


@dataclass(frozen=True)
class ExtensionStatus:
    """State of the extension in this process, as ``vleak doctor`` shows it."""

    state: State
    reason: str
    """Why this state and no better one; one line."""
    library: Path | None
    built_for: str | None
    """The torch version the library was compiled against; it runs on any torch from 2.10 on."""
    instruction_set: str | None
    """``"avx512"``, ``"avx2"`` or ``"baseline"``; None in plain PyTorch."""
    cuda: str
    """One line on the CUDA library."""
    loop: str
    """One line on the runner of captured iterations, which is built for one torch and one Python."""
    remedy: str | None
    """What to do to get native code; None if nothing is needed."""


_lock = threading.RLock()
_outcomes: dict[build.Kind, Outcome] = {}


# ---------------------------------------------------------------------------------------------------------
# Public


def ensure_loaded(device_type: str = "cpu") -> bool:
    """Whether native code for a device type is there, after loading it if that was not tried yet.

    The first call may compile for some seconds; later calls are a dictionary look-up. Where native code
    cannot be had, the first call warns once with :class:`ExtensionWarning`.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``; for any other type the answer is False.

    Raises:
        InputError: ``VLEAK_EXTENSION`` holds an unknown word.
    """
    kind: build.Kind | None = "cpu" if device_type == "cpu" else "cuda" if device_type == "cuda" else None
    return kind is not None and (_outcomes.get(kind) or _find(kind)).library is not None


def loop_module() -> Any:
    """Module of the C++ runner, loaded if that was not tried yet; None where it cannot be had.

    The first call may compile for some seconds, or warn, as that of :func:`ensure_loaded`.

    Raises:
        InputError: ``VLEAK_EXTENSION`` holds an unknown word.
    """
    return (_outcomes.get("loop") or _find("loop")).module


def status() -> ExtensionStatus:
    """State of the extension in this process; loads it first if that was not tried yet."""
    with warnings.catch_warnings():
        # The reason is part of the answer.
        warnings.simplefilter("ignore", ExtensionWarning)
        ensure_loaded("cpu")
        loop_module()
    cpu, loop = _outcomes["cpu"], _outcomes["loop"]
    return ExtensionStatus(
        state=cpu.state,
        reason=cpu.reason,
        library=cpu.library,
        built_for=cpu.built_for,
        instruction_set=_instruction_set(cpu.library),
        cuda=_cuda_line(),
        loop=f"{'Python' if loop.library is None else loop.state}: {loop.reason}",
        remedy=_remedy(cpu),
    )


# ---------------------------------------------------------------------------------------------------------
# Search, once per library and process


def _find(kind: build.Kind) -> Outcome:
    with _lock:
        if kind in _outcomes:
            return _outcomes[kind]
        mode = _mode()
        outcome = pure_torch("VLEAK_EXTENSION=off") if mode == "off" else _attempt(kind, mode)
        _outcomes[kind] = outcome
    if outcome.library is None and mode != "off":
        what = "its inner loop in Python" if kind == "loop" else f"in plain PyTorch on {kind}"
        warnings.warn(
            f"vleak runs {what}: {outcome.reason}; results are the same, only slower",
            ExtensionWarning,
            stacklevel=3,
        )
    return outcome


def _mode() -> str:
    mode = os.environ.get("VLEAK_EXTENSION", "auto")
    if mode not in _MODES:
        raise InputError(f"VLEAK_EXTENSION: expected one of {', '.join(_MODES)}, got {mode!r}")
    return mode


def _attempt(kind: build.Kind, mode: str) -> Outcome:
    """Outcome of the first attempt that succeeds; otherwise the reasons of all."""
    obstacle = _obstacle(kind)
    if obstacle:
        return pure_torch(obstacle)
    reasons: list[str] = []
    attempts: list[Callable[[build.Kind], Outcome]] = [_installed, _compiled]
    for attempt in attempts[1:] if mode == "jit" else attempts:
        outcome = attempt(kind)
        if outcome.library is not None:
            return replace(outcome, reason="; ".join([*reasons, outcome.reason]))
        reasons.append(outcome.reason)
    return pure_torch("; ".join(reasons))


def _obstacle(kind: build.Kind) -> str | None:
    """Why no library of this kind can work here at all; None if one can."""
    if kind == "cuda" and torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    headers = build.describe_torch(_torch_root())
    if headers is None or headers.release < build.OLDEST_TORCH:
        oldest = ".".join(map(str, build.OLDEST_TORCH))
        return f"torch {torch.__version__} is older than {oldest}, which native code needs"
    return None


def _torch_root() -> Path:
    return Path(torch.__file__).parent


def _installed(kind: build.Kind) -> Outcome:
    library = Path(__file__).with_name(build.library_name(kind))
    if not library.is_file():
        return pure_torch("no library came with this installation")
    info = build.read_info(library)
    folder = build.source_folder()
    if folder is not None and info.get("sources") != build.source_hash(kind, folder):
        return pure_torch("the installed library was built from other sources")
    return load(kind, library, "built", "came with this installation")


def _compiled(kind: build.Kind) -> Outcome:
    folder, headers = build.source_folder(), build.describe_torch(_torch_root())
    if folder is None or headers is None:
        return pure_torch("the C++ sources did not come with this installation")
    name = build.library_name(kind)
    try:
        # Several processes at once compile once.
        key = f"{kind}-{build.fingerprint(kind, folder, headers)}"
        entry = sealed_entry(
            cache_folder("extension"),
            key,
            lambda new: build.compile_library(kind, folder, headers, new / name),
        )
    except (build.BuildError, OSError) as error:
        return pure_torch(f"compiling failed: {error}")
    return load(kind, entry / name, "compiled at first use", f"compiled into {entry}")


# ---------------------------------------------------------------------------------------------------------
# Lines of the status


def _instruction_set(library: Path | None) -> str | None:
    if library is None:
        return None
    function = ctypes.CDLL(str(library)).vleak_instruction_set
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


def _cuda_line() -> str:
    obstacle = _obstacle("cuda")
    if obstacle:
        return obstacle
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtensionWarning)
        ensure_loaded("cuda")
    return f"{_outcomes['cuda'].state}: {_outcomes['cuda'].reason}"


def _remedy(outcome: Outcome) -> str | None:
    if outcome.library is not None:
        return None
    if outcome.reason == "VLEAK_EXTENSION=off":
        return "unset VLEAK_EXTENSION"
    if "no C++ compiler" in outcome.reason:
        return "install a C++ compiler (on Debian or Ubuntu: apt install g++), then run again"
    if "older than" in outcome.reason:
        return "install torch 2.10 or newer"
    return "reinstall vleak beside the torch you use: pip install --force-reinstall --no-deps vleak"
