"""Running a captured step many times: in C++ without Python, autograd and the GIL, or, where the runner
library is not there, in Python. Both call the same operators in the same order, so results are equal.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from vleak.descent.plan import UNREAD, Instruction, Plan, Slot, make_plan
from vleak.errors import CapabilityError, InputError, unknown_name
from vleak.native import loader

if TYPE_CHECKING:
    from vleak.descent.capture import Capture

__all__ = ["EXECUTORS", "Bound", "KeyPress", "Outcome", "Plateau", "Program"]

Reason = Literal["done", "nan", "plateau", "interrupted"]
EXECUTORS = ("auto", "native", "python")

_Failure = tuple[str, BaseException]
"""An operator's name, "" for what was raised between operators, and what it raised."""


@dataclass(frozen=True)
class Plateau:
    """When a descent has settled: its best objective stopped falling.

    Attributes:
        patience: iterations without progress after which the descent ends; 0 for never.
        tolerance: what counts as progress: the best objective falls by more than this part of itself.
    """

    patience: int = 0
    tolerance: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a stretch of iterations gave.

    Attributes:
        history: the objective of each of its iterations, the one that ended it included.
        reason: "done" (as many as asked for), "nan" (the last objective is not a number), "plateau" or
            "interrupted".
        raised: what the handler of a signal raised meanwhile, a KeyboardInterrupt as a rule. The iterations
            count all the same: bring what follows them up to date, then call `checked`.
    """

    history: list[float]
    reason: Reason
    raised: BaseException | None = None

    def checked(self) -> Outcome:
        """Raise what is still to be raised; return the outcome where nothing is."""
        if self.raised is not None:
            raise self.raised
        return self


class Program:
    """A captured step, ready to be run.

    Attributes:
        executor: "native" (C++) or "python".
        plan: what is run.
    """

    def __init__(self, capture: Capture, *, executor: str = "auto") -> None:
        """Lower a captured step; looks for the runner library, which may compile it.

        Args:
            capture: the step; it must return one number as "objective".
            executor: "native" (C++), "python", or "auto" for the first that can be had.

        Raises:
            InputError: an unknown executor.
            CapabilityError: the graph holds something that cannot be run, or there is no runner library.
        """
        if executor not in EXECUTORS:
            raise unknown_name("executor", executor, EXECUTORS)
        self.plan = make_plan(capture)
        self._outputs = capture.outputs
        self._device = capture.device
        placeholders = capture.graph.graph.find_nodes(op="placeholder")
        self._examples = {name: n.meta["val"] for name, n in zip(capture.inputs, placeholders, strict=True)}
        module = None if executor == "python" else loader.loop_module()
        if module is None and executor == "native":
            raise CapabilityError("there is no runner library; `vleak doctor` says why")
        self.executor: Literal["native", "python"] = "python" if module is None else "native"
        self._native = None if module is None else module.Program(self.plan, Slot)

    def bind(self, values: Mapping[str, Tensor], plateau: Plateau | None = None) -> Bound:
        """Start a descent: run what depends on fixed inputs only.

        No tensor in ``values`` is ever changed; those that the step changes in place are copied. What is
        not changed is not copied, and must stay as it is while the descent lasts.

        Args:
            values: one tensor for every input of the capture, of the shape, dtype and device it had there.
            plateau: when the descent has settled; None for never.

        Raises:
            InputError: a tensor is missing, or has another shape, dtype or device (the message names it).
            CapabilityError: an operator failed.
        """
        plan = self.plan
        held = {slot: self._fitting(name, values) for name, slot in plan.inputs.items()} | plan.constants
        held |= {slot: held[slot].clone() for slot in plan.changed}
        executor: _Executor = _Python(plan, held) if self._native is None else self._native.bind(held)
        _check(executor.prepare(), "before the first iteration")
        return Bound(plan, self._outputs, executor, plateau or Plateau())

    def _fitting(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        if name not in values:
            raise InputError(f"bind: tensor {name!r} is missing")
        given, example = values[name].detach(), self._examples[name]
        # The examples hold nothing and lie nowhere.
        pairs = {
            "shape": (tuple(example.shape), tuple(given.shape)),
            "dtype": (example.dtype, given.dtype),
            "device": (self._device, given.device),
        }
        for what, (expected, got) in pairs.items():
            if expected != got:
                raise InputError(f"bind: expected tensor {name!r} of {what} {expected}, got {got}")
        if given.stride() == example.stride():
            return given
        # The views in the graph are right for the strides of the capture only.
        fitting = torch.empty_strided(example.shape, example.stride(), dtype=given.dtype, device=given.device)
        return fitting.copy_(given)


class Bound:
    """One descent: a program with its own values. Many may run in different threads at once."""

    def __init__(self, plan: Plan, outputs: tuple[str, ...], executor: _Executor, plateau: Plateau) -> None:
        """Take over a prepared executor; use `Program.bind`."""
        self._plan, self._names, self._executor, self._plateau = plan, outputs, executor, plateau
        self._busy = threading.Lock()
        self._done = 0

    @property
    def values(self) -> dict[str, Tensor]:
        """The inputs as the next iteration will see them; a later run may change them in place."""
        return {name: self._executor.value(slot) for name, slot in self._plan.inputs.items()}

    @property
    def outputs(self) -> dict[str, Tensor]:
        """What the last iteration returned, also one that ended with NaN; empty before the first."""
        return dict(zip(self._names, self._executor.outputs(), strict=False))

    def run(self, n: int, table: Tensor | None = None) -> Outcome:
        """Run up to n further iterations.

        They go on where the last call ended, progress towards the plateau included. After NaN, or an
        error, outputs are not carried: ``values`` are those before that iteration, except for what the
        step changes in place.

        Ctrl-C ends a run between two iterations, and is raised by the outcome's `checked`, so that no
        iteration is lost; pressed once more, it ends the run at once.

        Args:
            n: how many, >= 0.
            table: (>= n, K) float64 on any device: row i is what iteration i of this call sees as the input
                "settings", of shape (K,). Not needed by a step without that input.

        Raises:
            InputError: n or the table does not fit, or another thread is running this descent.
            CapabilityError: an operator failed; the message names it and the iteration, counted from 1.
        """
        rows = self._rows(n, table)
        if not self._busy.acquire(blocking=False):
            raise InputError("run: this descent is running in another thread; bind one for each thread")
        try:
            with KeyPress() as key:
                history, reason, failure = self._executor.run(
                    n, rows, self._plateau.patience, self._plateau.tolerance, key.pressed
                )
                self._done += len(history)
            raised = key.answered()
        finally:
            self._busy.release()
        # An operator's own error is one of the program, and named below; all else came from outside.
        if raised is None and failure is not None and not (failure[0] and isinstance(failure[1], Exception)):
            raised = failure[1]
        if raised is not None:
            return Outcome(history, "interrupted" if reason == "failed" else reason, raised)
        _check(failure, f"in iteration {self._done + 1}")
        return Outcome(history, reason)

    def interrupt(self) -> None:
        """End the run that is under way, or else the next one, before its next iteration; from any thread."""
        self._executor.interrupt()

    def _rows(self, n: int, table: Tensor | None) -> Tensor | None:
        if n < 0:
            raise InputError(f"run: expected at least 0 iterations, got {n}")
        slot = self._plan.settings
        if slot is None:
            return None
        settings = self._executor.value(slot)
        expected = f"({n}, {', '.join(map(str, settings.shape))})"
        if table is None or table.shape[1:] != settings.shape or len(table) < n:
            got = "none" if table is None else str(tuple(table.shape))
            raise InputError(f"run: expected a table of settings of shape {expected}, got {got}")
        table = table.detach().to(settings)
        return table.clone() if slot in self._plan.changed else table


def _check(failure: _Failure | None, when: str) -> None:
    """Raise what an operator raised, as one line that names it."""
    if failure is None:
        return
    target, error = failure
    if not isinstance(error, Exception):
        raise error
    kind = InputError if isinstance(error, InputError) else CapabilityError
    message = str(error).strip().partition("\n")[0] or type(error).__name__
    raise kind(f"{target} failed {when}: {message}") from error


class KeyPress:
    """Holds Ctrl-C back until the block has ended: it must not be raised in the middle of an iteration."""

    def __enter__(self) -> KeyPress:
        """Put our handler in the place of that of Python, or of the program."""
        self._seen: tuple[int, Any] | None = None
        # Only the main thread is told of signals, and may say who is.
        own = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGINT) if own else None
        self._handler = handler if callable(handler) else None
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Put theirs back."""
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def pressed(self) -> bool:
        """Say whether the block should end."""
        return self._seen is not None

    def answered(self) -> BaseException | None:
        """Call the handler that was held back, if there is reason to; return what it raised."""
        if self._handler is None or self._seen is None:
            return None
        try:
            self._handler(*self._seen)
        except BaseException as raised:  # noqa: BLE001  Outcome.checked raises it
            return raised
        return None

    def _note(self, number: int, frame: Any) -> None:
        if self._seen is not None and self._handler is not None:
            self._handler(number, frame)
        self._seen = number, frame


# ---------------------------------------------------------------------------------------------------------
# Executors


class _Executor(Protocol):
    """What the C++ module and `_Python` have in common."""

    def prepare(self) -> _Failure | None: ...

    def run(
        self, n: int, table: Tensor | None, patience: int, tolerance: float, asked: Callable[[], bool], /
    ) -> tuple[list[float], Any, _Failure | None]: ...

    def interrupt(self) -> None: ...

    def value(self, slot: int, /) -> Tensor: ...

    def outputs(self) -> list[Tensor]: ...


class _OperatorError(Exception):
    def __init__(self, target: str, error: Exception) -> None:
        super().__init__(target)
        self.failure = (target, error)


class _Python:
    """The reference of the C++ executor, line by line, and what runs without it."""

    def __init__(self, plan: Plan, held: Mapping[int, Tensor]) -> None:
        self._plan = plan
        self._slots: list[Any] = [None] * plan.slots
        for slot, value in held.items():
            self._slots[slot] = value
        self._outputs: list[Tensor] = []
        self._interrupted = threading.Event()
        self._level, self._since = math.inf, 0

    def prepare(self) -> _Failure | None:
        try:
            with torch.no_grad():
                for instruction in self._plan.prologue:
                    self._execute(instruction)
        except _OperatorError as failed:
            return failed.failure
        return None

    def run(
        self, n: int, table: Tensor | None, patience: int, tolerance: float, asked: Callable[[], bool]
    ) -> tuple[list[float], Reason | Literal["failed"], _Failure | None]:
        history: list[float] = []
        try:
            with torch.no_grad():
                plateau = Plateau(patience, tolerance)
                return history, self._iterations(n, table, plateau, history, asked), None
        except _OperatorError as failed:
            return history, "failed", failed.failure
        except (KeyboardInterrupt, SystemExit) as raised:
            return history, "interrupted", ("", raised)

    def interrupt(self) -> None:
        self._interrupted.set()

    def value(self, slot: int) -> Tensor:
        tensor: Tensor = self._slots[slot]
        return tensor

    def outputs(self) -> list[Tensor]:
        return list(self._outputs)

    def _iterations(
        self,
        n: int,
        table: Tensor | None,
        plateau: Plateau,
        history: list[float],
        asked: Callable[[], bool],
    ) -> Reason:
        for i in range(n):
            if self._interrupted.is_set():
                self._interrupted.clear()
                return "interrupted"
            if asked():
                return "interrupted"
            if self._plan.settings is not None and table is not None:
                self._slots[self._plan.settings] = table[i]
            history.append(self._iterate())
            if math.isnan(history[-1]):
                return "nan"
            for place, slot in self._plan.carries:
                self._slots[slot] = self._outputs[place]
            if self._stalled(history[-1], plateau):
                return "plateau"
        return "done"

    def _iterate(self) -> float:
        self._outputs.clear()
        for instruction in self._plan.body:
            self._execute(instruction)
        self._outputs += [self._slots[slot] for slot in self._plan.outputs]
        for slot in self._plan.leftover:
            self._slots[slot] = None
        return float(self._outputs[self._plan.objective])

    def _execute(self, instruction: Instruction) -> None:
        slots = self._slots
        arguments = _filled(instruction.arguments, slots)
        keywords = {name: _filled(value, slots) for name, value in instruction.keywords.items()}
        for slot in instruction.freed:
            slots[slot] = None
        try:
            result = instruction.target(*arguments, **keywords)
        except Exception as error:
            raise _OperatorError(instruction.name, error) from error
        values = _flat(result) if instruction.results else ()
        for slot, value in zip(instruction.results, values, strict=True):
            if slot != UNREAD:
                slots[slot] = value

    def _stalled(self, objective: float, plateau: Plateau) -> bool:
        margin = 0.0 if math.isinf(self._level) else plateau.tolerance * abs(self._level)
        if objective < self._level - margin:
            self._level, self._since = objective, 0
            return False
        self._since += 1
        return 0 < plateau.patience <= self._since


def _filled(template: Any, slots: list[Any]) -> Any:
    if isinstance(template, Slot):
        return slots[template.index]
    if isinstance(template, (list, tuple)):
        return [_filled(item, slots) for item in template]
    return template


def _flat(result: Any) -> list[Any]:
    if isinstance(result, (list, tuple)):
        return [value for item in result for value in _flat(item)]
    return [result]
