"""The graph backend: a captured step run in C++, without Python, autograd and the GIL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from vleak.descent.capture import Capture, as_step
from vleak.descent.eager import EagerRunner
from vleak.descent.lowering import Lowered, Slot, lower
from vleak.descent.problem import Values
from vleak.descent.runner import IterationBlock
from vleak.errors import CapabilityError, InputError
from vleak.native import loader

__all__ = ["GraphProgram", "GraphRunner"]

_Failure = tuple[str, BaseException]
"""An operator's name, "" for what was raised between operators, and what it raised."""


class GraphProgram:
    """A captured step that many descents run, each with its own values.

    Attributes:
        lowered: its slots; and its instructions, unless C++ has taken them.
        native: whether C++ runs them; without the runner library the graph is called from Python, with the
            same operators in the same order.
    """

    def __init__(self, capture: Capture) -> None:
        """Lower a captured step; looks for the runner library, which may compile it.

        Raises:
            CapabilityError: the graph holds something that cannot be run, or returns no "objective".
        """
        self.lowered = lower(capture)
        self._capture = capture
        placeholders = capture.graph.graph.find_nodes(op="placeholder")
        self._examples = {name: n.meta["val"] for name, n in zip(capture.inputs, placeholders, strict=True)}
        module = loader.loop_module()
        self.native = module is not None
        self._program = None if module is None else module.Program(self.lowered, Slot)
        if self.native:  # graph and instructions take more memory than a descent, and are not read again
            self.lowered = replace(self.lowered, prologue=(), body=())
            self._capture = replace(capture, graph=GraphModule(nn.Module(), Graph()))

    def start(self, values: Mapping[str, Tensor]) -> GraphRunner | EagerRunner:
        """Start a descent: run what depends on fixed inputs only.

        No tensor in ``values`` is ever changed; those that the step changes in place are copied. What is
        not changed is not copied, and must stay as it is while the descent lasts.

        Args:
            values: one tensor for every input of the capture, of the shape, dtype and device it had there.

        Raises:
            InputError: a tensor is missing, or has another shape, dtype or device (the message names it).
            CapabilityError: an operator failed.
        """
        fitting = {name: self._fitting(name, values) for name in self._capture.inputs}
        if self._program is None:
            changing = set(self._capture.inputs) - self._capture.fixed
            return EagerRunner(as_step(self._capture), fitting, changing)
        lowered = self.lowered
        held = {lowered.inputs[name]: value for name, value in fitting.items()} | lowered.constants
        held |= {slot: held[slot].clone() for slot in lowered.changed}
        execution = self._program.start(held)
        _check(execution.prepare(), "before the first iteration")
        return GraphRunner(lowered, self._capture, execution)

    def _fitting(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        if name not in values:
            raise InputError(f"descent: tensor {name!r} is missing")
        value, example = values[name].detach(), self._examples[name]
        # The examples are meta tensors, on no device.
        pairs = {
            "shape": (tuple(example.shape), tuple(value.shape)),
            "dtype": (example.dtype, value.dtype),
            "device": (self._capture.device, value.device),
        }
        for what, (expected, got) in pairs.items():
            if expected != got:
                raise InputError(f"descent: expected tensor {name!r} of {what} {expected}, got {got}")
        if value.stride() == example.stride():
            return value
        # The views in the graph are right for the strides of the capture only.
        fitting = torch.empty_strided(example.shape, example.stride(), dtype=value.dtype, device=value.device)
        return fitting.copy_(value)


class _Execution(Protocol):
    """The interface of the C++ module."""

    def run(
        self, n: int, settings: Tensor | None, interrupted: Callable[[], bool], /
    ) -> tuple[list[float], _Failure | None]: ...

    def value(self, slot: int, /) -> Tensor: ...

    def set_value(self, slot: int, value: Tensor, /) -> None: ...

    def outputs(self) -> list[Tensor]: ...


class GraphRunner:
    """One descent in C++. Many may run in different threads at once."""

    def __init__(self, lowered: Lowered, capture: Capture, execution: _Execution) -> None:
        """Take over a prepared execution; use `GraphProgram.start`."""
        self._lowered, self._names, self._execution = lowered, capture.outputs, execution
        changing = [name for name in capture.inputs if name not in capture.fixed and name != "settings"]
        self._state = {name: lowered.inputs[name] for name in changing}
        self._busy, self._done = threading.Lock(), 0

    @property
    def values(self) -> Values:
        """Tensors that the next iteration reads; a later one may change them in place."""
        return {name: self._execution.value(slot) for name, slot in self._lowered.inputs.items()}

    @property
    def outputs(self) -> Values:
        """What the last iteration returned; empty before the first."""
        return dict(zip(self._names, self._execution.outputs(), strict=False))

    def run(self, settings: Tensor, interrupted: Callable[[], bool]) -> IterationBlock:
        """Run iterations, see `vleak.descent.runner.Runner`.

        Raises:
            InputError: the settings have another shape, or another thread is running this descent.
            CapabilityError: an operator failed; the message names it and the iteration, counted from 1.
        """
        rows = self._rows(settings)
        if not self._busy.acquire(blocking=False):
            raise InputError("this descent is running in another thread; start one for each thread")
        try:
            history, failure = self._execution.run(len(settings), rows, interrupted)
        finally:
            self._busy.release()
        objectives = torch.tensor(history, dtype=torch.float64)
        if settings.ndim == 3:
            objectives = objectives.view(-1, settings.shape[1])
        self._done += len(objectives)
        if failure is not None and not (failure[0] and isinstance(failure[1], Exception)):
            return IterationBlock(objectives, failure[1])  # no operator's own error: it came from outside
        _check(failure, f"in iteration {self._done + 1}")
        return IterationBlock(objectives)

    def state(self) -> Values:
        """Return what iterations change; what they replace and do not change in place is not copied."""
        values = {name: self._execution.value(slot) for name, slot in self._state.items()}
        return {name: self._own(name, value) for name, value in values.items()}

    def restore(self, state: Values) -> None:
        """Go back to a state."""
        for name, value in state.items():
            self._execution.set_value(self._state[name], self._own(name, value))

    def _own(self, name: str, value: Tensor) -> Tensor:
        return value.clone() if self._state[name] in self._lowered.changed else value

    def _rows(self, settings: Tensor) -> Tensor | None:
        slot = self._lowered.settings
        if slot is None:
            return None
        expected = self._execution.value(slot)
        if settings.shape[1:] != expected.shape:
            got, wanted = (tuple(tensor.shape) for tensor in (settings, expected))
            raise InputError(f"settings: expected rows of shape {wanted}, got {got}")
        settings = settings.detach().to(expected)
        return settings.clone() if slot in self._lowered.changed else settings


def _check(failure: _Failure | None, when: str) -> None:
    """Raise what an operator raised, as one line that names it."""
    if failure is None:
        return
    target, error = failure
    if not isinstance(error, Exception):
        raise error
    kind: Any = InputError if isinstance(error, InputError) else CapabilityError
    message = str(error).strip().partition("\n")[0] or type(error).__name__
    raise kind(f"{target} failed {when}: {message}") from error
