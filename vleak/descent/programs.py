"""Captured iterations: one for every kind of problem, shared by all descents of that kind."""

from __future__ import annotations

import ctypes
import gc
import threading
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from vleak.descent.capture import capture
from vleak.descent.cuda import CudaProgram
from vleak.descent.graph import GraphProgram
from vleak.descent.likeness import program_key
from vleak.descent.passes import optimize
from vleak.descent.problem import Values
from vleak.descent.step import STATE, Step
from vleak.descent.verification import agrees
from vleak.errors import CapabilityError
from vleak.native import operators
from vleak.switches import differentiable_rnn, math_attention

__all__ = ["EngineWarning", "program_for"]

#: Programs kept; a run has one or two, and each holds no tensor of a descent.
_KEPT = 32

_lock = threading.RLock()
_programs: OrderedDict[Hashable, GraphProgram | CudaProgram | str] = OrderedDict()
_warned: set[str] = set()


class EngineWarning(UserWarning):
    """The reference engine runs in place of the native one, with the same results, only slower."""


def program_for(step: Step, values: Values) -> GraphProgram | CudaProgram | None:
    """Return the captured iteration of a step, or None, with one warning, where it cannot be captured.

    The first caller has it captured and optimized; problems with equal keys share it, see
    `vleak.descent.likeness.program_key`. Each caller's first iteration is compared with the reference on the
    caller's own values, "settings" among them: what a graph pass has missed, or what two models do not share
    after all, ends here.
    """
    if operators.backend(values["x"].device) != "native":
        return None  # the extension has warned
    program = _shared(step, values)
    if not isinstance(program, str) and not agrees(program, step, values):
        # Alike from outside, and yet another model: it gets a capture of its own.
        program = _compile(step, values)
        if not isinstance(program, str) and not agrees(program, step, values):
            program = "its captured iteration gave other numbers"
    _give_memory_back()
    if not isinstance(program, str):
        return program
    _warn(f"the reference engine runs: {program}")
    return None


def _give_memory_back() -> None:
    """Return to the system what capture and comparison have freed; the runner has told glibc to keep it."""
    trim = getattr(_c_library, "malloc_trim", None)
    if trim is not None:
        trim(0)


_c_library = ctypes.CDLL(None)


def _shared(step: Step, values: Values) -> GraphProgram | CudaProgram | str:
    """Return the program of all problems with this key, or why there is none."""
    try:
        key = program_key(step, values)
    except RecursionError:  # something that holds itself
        return _compile(step, values)
    with _lock:
        program = _programs.get(key)
        if program is None:
            program = _programs[key] = _compile(step, values)
            while len(_programs) > _KEPT:
                _programs.popitem(last=False)
        _programs.move_to_end(key)
    return program


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, EngineWarning, stacklevel=5)


def _compile(step: Step, values: Values) -> GraphProgram | CudaProgram | str:
    """Return the program, or why there is none."""
    fixed = [name for name in values if name not in STATE]
    try:
        with math_attention(), differentiable_rnn(step.model), _without_collection():
            optimized = optimize(capture(step, values, fixed))
            return (CudaProgram if values["x"].is_cuda else GraphProgram)(optimized)
    except CapabilityError as error:
        return str(error)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Pause Python's collector: it would look at every node of a growing graph again and again."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
