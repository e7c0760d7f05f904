"""Finding, compiling and loading the native extension, in one place.

The library that came with the installation is used if it fits; otherwise the sources that came with it are
compiled at first use and kept in a cache; otherwise everything runs in plain PyTorch, after one warning.

The environment variable ``VLEAK_EXTENSION`` chooses: ``auto`` (the above, and the default), ``jit`` (never
the installed library), ``off`` (plain PyTorch, no warning).
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import sysconfig
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from vleak.errors import InputError
from vleak.native import build

__all__ = ["ExtensionStatus", "ExtensionWarning", "ensure_loaded", "loop_module", "status"]

State = Literal["built", "compiled at first use", "pure torch"]
_MODES = ("auto", "jit", "off")


class ExtensionWarning(UserWarning):
    """The native extension cannot be used; results are the same, only slower."""


@dataclass(frozen=True)
class ExtensionStatus:
    """What ``vleak doctor`` says about the extension."""

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


@dataclass(frozen=True)
class _Loaded:
    """The outcome of looking for one library, kept for the life of the process."""

    state: State
    reason: str
    library: Path | None = None
    built_for: str | None = None
    module: Any = None
    """What Python imports, of the runner only."""


_lock = threading.RLock()
_outcomes: dict[build.Kind, _Loaded] = {}


# ---------------------------------------------------------------------------------------------------------
# Public


def ensure_loaded(device_type: str = "cpu") -> bool:
    """Load the library for a device type if that was not tried yet, and say whether it is there.

    The first call may compile for some seconds; later calls are a dictionary look-up. Where native code
    cannot be had, the first call warns once with :class:`ExtensionWarning`.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``; for any other type the answer is False.

    Raises:
        InputError: ``VLEAK_EXTENSION`` holds an unknown word.
    """
    kind: build.Kind | None = "cpu" if device_type == "cpu" else "cuda" if device_type == "cuda" else None
    if kind is None:
        return False
    outcome = _outcomes.get(kind) or _find(kind)
    return outcome.library is not None


def loop_module() -> Any:
    """Return the C++ runner's module, looking for it if nobody has yet; None where it cannot be had.

    The first call may compile for some seconds, or warn, as that of :func:`ensure_loaded`.

    Raises:
        InputError: ``VLEAK_EXTENSION`` holds an unknown word.
    """
    return (_outcomes.get("loop") or _find("loop")).module


def status() -> ExtensionStatus:
    """Describe the extension as it is used in this process, loading it first if need be."""
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
# One attempt a process


def _find(kind: build.Kind) -> _Loaded:
    with _lock:
        if kind in _outcomes:
            return _outcomes[kind]
        mode = _mode()
        outcome = _pure("VLEAK_EXTENSION=off") if mode == "off" else _attempt(kind, mode)
        _outcomes[kind] = outcome
    # A CUDA tensor on a torch without nvcc around is the usual case and no fault of the installation.
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


def _pure(reason: str) -> _Loaded:
    return _Loaded("pure torch", reason)


def _attempt(kind: build.Kind, mode: str) -> _Loaded:
    refusal = _refusal(kind)
    if refusal:
        return _pure(refusal)
    reasons: list[str] = []
    attempts: list[Callable[[build.Kind], _Loaded]] = [_prebuilt, _compiled]
    for attempt in attempts[1:] if mode == "jit" else attempts:
        outcome = attempt(kind)
        if outcome.library is not None:
            return replace(outcome, reason="; ".join([*reasons, outcome.reason]))
        reasons.append(outcome.reason)
    return _pure("; ".join(reasons))


def _refusal(kind: build.Kind) -> str | None:
    """Say why no library of this kind can work here, whatever we do."""
    if kind == "cuda" and torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    found = build.describe_torch(_torch_root())
    if found is None or found.release < build.OLDEST_TORCH:
        oldest = ".".join(map(str, build.OLDEST_TORCH))
        return f"torch {torch.__version__} is older than {oldest}, which native code needs"
    return None


def _torch_root() -> Path:
    return Path(torch.__file__).parent


def _prebuilt(kind: build.Kind) -> _Loaded:
    library = Path(__file__).with_name(build.library_name(kind))
    if not library.is_file():
        return _pure("no library came with this installation")
    info = build.read_info(library)
    folder = build.source_folder()
    if folder is not None and info.get("sources") != build.source_hash(kind, folder):
        return _pure("the installed library was built from other sources")
    return _LOADERS[kind](library, "built", "came with this installation")


def _load(library: Path, state: State, reason: str) -> _Loaded:
    built_for = build.read_info(library).get("torch")
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError as error:
        # torch wraps the loader's own words.
        line = str(error.__cause__ or error).splitlines()[0]
        return _pure(f"the library was built for torch {built_for}, you have {torch.__version__}: {line}")
    return _Loaded(state, reason, library, built_for)


def _import(library: Path, state: State, reason: str) -> _Loaded:
    """Load the runner, which no other torch and no other Python must load: they would crash, not refuse."""
    info = build.read_info(library)
    built_for, python = info.get("torch"), info.get("python")
    ours = sysconfig.get_config_var("EXT_SUFFIX")
    if (built_for, python) != (torch.__version__, ours):
        return _pure(
            f"the runner was built for torch {built_for} and {python}, "
            f"you have torch {torch.__version__} and {ours}"
        )
    loader = importlib.machinery.ExtensionFileLoader("vleak_loop", str(library))
    spec = importlib.util.spec_from_loader("vleak_loop", loader)
    assert spec is not None
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        return _pure(f"the runner cannot be loaded: {str(error).splitlines()[0]}")
    return _Loaded(state, reason, library, built_for, module)


_LOADERS: dict[build.Kind, Callable[[Path, State, str], _Loaded]] = {
    "cpu": _load,
    "cuda": _load,
    "loop": _import,
}


# ---------------------------------------------------------------------------------------------------------
# Compiling at first use


def _compiled(kind: build.Kind) -> _Loaded:
    folder, headers = build.source_folder(), build.describe_torch(_torch_root())
    if folder is None or headers is None:
        return _pure("the C++ sources did not come with this installation")
    try:
        key = build.fingerprint(kind, folder, headers)
        place = _cache_folder() / f"{kind}-{key}"
        with _file_lock(place.with_suffix(".lock")):
            library = _intact(place, kind) or _fill(place, kind, folder, headers)
    except (build.BuildError, OSError) as error:
        return _pure(f"compiling failed: {error}")
    return _LOADERS[kind](library, "compiled at first use", f"compiled into {place}")


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "vleak" / "extension"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _intact(place: Path, kind: build.Kind) -> Path | None:
    """Return a cached library whose content is what was written, byte for byte."""
    library = place / build.library_name(kind)
    try:
        said = (place / "sha256").read_text(encoding="ascii")
        return library if said == _digest(library) else None
    except (OSError, ValueError):
        return None


def _fill(place: Path, kind: build.Kind, folder: Path, headers: build.Torch) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        library = work / build.library_name(kind)
        build.compile_library(kind, folder, headers, library)
        (work / "sha256").write_text(_digest(library), encoding="ascii")
        os.replace(work, place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return place / build.library_name(kind)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------------------------------------------------
# Saying what is


def _instruction_set(library: Path | None) -> str | None:
    if library is None:
        return None
    ask = ctypes.CDLL(str(library)).vleak_instruction_set
    ask.restype = ctypes.c_char_p
    answer: bytes = ask()
    return answer.decode()


def _cuda_line() -> str:
    refusal = _refusal("cuda")
    if refusal:
        return refusal
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtensionWarning)
        ensure_loaded("cuda")
    return f"{_outcomes['cuda'].state}: {_outcomes['cuda'].reason}"


def _remedy(outcome: _Loaded) -> str | None:
    if outcome.library is not None:
        return None
    if outcome.reason == "VLEAK_EXTENSION=off":
        return "unset VLEAK_EXTENSION"
    if "no C++ compiler" in outcome.reason:
        return "install a C++ compiler (on Debian or Ubuntu: apt install g++), then run again"
    if "older than" in outcome.reason:
        return "install torch 2.10 or newer"
    return "reinstall vleak beside the torch you use: pip install --force-reinstall --no-deps vleak"
