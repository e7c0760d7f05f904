"""Loading of one compiled library into this process."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vleak.native import build

__all__ = ["Outcome", "State", "load", "load_kernels", "load_runner", "pure_torch"]

State = Literal["built", "compiled at first use", "pure torch"]


@dataclass(frozen=True)
class Outcome:
    """Result of looking for one library."""

    state: State
    reason: str
    library: Path | None = None
    built_for: str | None = None
    module: Any = None
    """The Python module, for the runner only."""


def pure_torch(reason: str) -> Outcome:
    """Outcome where no library can be used."""
    return Outcome("pure torch", reason)


def load(kind: build.Kind, library: Path, state: State, reason: str) -> Outcome:
    """Load a library of any kind, found in a place that the outcome's state and reason name."""
    return (load_runner if kind == "loop" else load_kernels)(library, state, reason)


def load_kernels(library: Path, state: State, reason: str) -> Outcome:
    """Load kernels for a device, which run on any torch from `build.OLDEST_TORCH` on."""
    built_for = build.read_info(library).get("torch")
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError as error:
        # torch wraps the message of the dynamic loader.
        line = str(error.__cause__ or error).splitlines()[0]
        return pure_torch(
            f"the library was built for torch {built_for}, you have {torch.__version__}: {line}"
        )
    return Outcome(state, reason, library, built_for)


def load_runner(library: Path, state: State, reason: str) -> Outcome:
    """Load the runner, unless it was built for another torch or Python: those would crash, not refuse."""
    info = build.read_info(library)
    built_for, python = info.get("torch"), info.get("python")
    this_python = build.extension_suffix()
    if (built_for, python) != (torch.__version__, this_python):
        return pure_torch(
            f"the runner was built for torch {built_for} and {python}, "
            f"you have torch {torch.__version__} and {this_python}"
        )
    loader = importlib.machinery.ExtensionFileLoader("vleak_loop", str(library))
    spec = importlib.util.spec_from_loader("vleak_loop", loader)
    assert spec is not None
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        return pure_torch(f"the runner cannot be loaded: {str(error).splitlines()[0]}")
    return Outcome(state, reason, library, built_for, module)
