"""Iterations on a CUDA device as one CUDA graph each: no Python and no launch of single kernels between them.

The step is recorded once with buffers that stay where they are; its last kernels copy what it carries back
into them. A replay is a copy of a row of settings and one launch. NaN and a plateau are noticed inside
(`vleak.descent.watch`), so the host reads nothing before a stretch of iterations is over.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from vleak.descent.capture import Capture, Step
from vleak.descent.runner import Outcome, Plateau
from vleak.descent.watch import FIXED, LENGTH, as_step, changed_inputs, first_books, outcomes, watched
from vleak.errors import InputError

__all__ = ["CudaBound", "CudaProgram", "Recorder", "Replayed", "record"]

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes what one iteration launches, calls it to warm up, and returns what launches it again."""

#: Calls before recording, in which cuDNN and cuBLAS choose algorithms and take their memory.
_WARM_UP = 3

# Allocations of a recording must not meet those of another.
_recording = threading.Lock()
_told = threading.Event()


class CudaGraphWarning(UserWarning):
    """A step cannot become a CUDA graph; its kernels are launched one by one, with the same results."""


def record(iterate: Callable[[], None]) -> Callable[[], None]:
    """Warm up on a side stream, as CUDA graphs require, and record one call on the current device.

    Raises:
        RuntimeError: something in it waits for the device, or cannot be recorded for another reason.
    """
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            iterate()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        # Only this thread's calls are restricted while it records: other trials go on in theirs.
        with _recording, torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            iterate()
    finally:
        torch.cuda.set_stream(current)  # a recording that fails leaves its own stream behind
    return graph.replay


class Replayed:
    """A step with buffers of its own, run iteration after iteration as one CUDA graph.

    Attributes:
        values: the buffers, as the next iteration will see them; changed in place.
        outputs: what the last iteration returned; overwritten by the next one. Empty before the first.
    """

    def __init__(
        self, step: Step, values: Mapping[str, Tensor], fixed: Collection[str], *, record: Recorder = record
    ) -> None:
        """Take the step; it is recorded at the first iteration.

        Args:
            step: changes nothing in place; outputs named like a value are carried into it.
            values: what it reads, on one device; "settings" is the row of an iteration.
            fixed: names of values that no iteration changes; they are not copied, and must stay.
            record: what makes a graph.
        """
        self.values = {name: v if name in fixed else v.clone() for name, v in values.items()}
        self.outputs: dict[str, Tensor] = {}
        self._step, self._record, self._fixed = step, record, fixed
        self._replay: Callable[[], None] | None = None

    def run(self, n: int, table: Tensor) -> None:
        """Run n iterations; row i of the table is what iteration i sees as "settings"."""
        rows = table.to(self.values["settings"])
        with torch.no_grad(), torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
            if n and self._replay is None:
                self._replay = self._recorded()
            for row in rows[:n]:
                self.values["settings"].copy_(row)
                assert self._replay is not None
                self._replay()

    def _iterate(self) -> None:
        self.outputs = self._step(dict(self.values))
        for name, value in self.outputs.items():
            if name in self.values:
                self.values[name].copy_(value)

    def _recorded(self) -> Callable[[], None]:
        """Return what runs an iteration; the buffers are as they were before it was recorded."""
        before = {name: v.clone() for name, v in self.values.items() if name not in self._fixed}
        try:
            replay = self._record(self._iterate)
        except RuntimeError as error:
            replay = self._iterate
            _tell(error)
        for name, value in before.items():
            self.values[name].copy_(value)
        return replay


def _tell(error: RuntimeError) -> None:
    if _told.is_set():
        return
    _told.set()
    reason = str(error).strip().partition("\n")[0]
    warnings.warn(f"no CUDA graph, kernels are launched one by one: {reason}", CudaGraphWarning, stacklevel=5)


class CudaProgram:
    """A captured step on a CUDA device; the same interface as `vleak.descent.runner.Program`."""

    def __init__(self, capture: Capture, *, record: Recorder = record) -> None:
        """Take a step that was captured from values on one CUDA device."""
        self._capture, self._record = capture, record
        self._step = watched(as_step(capture), changed_inputs(capture))

    def bind(self, values: Mapping[str, Tensor], plateau: Plateau | None = None) -> CudaBound:
        """Start a descent.

        No tensor in ``values`` is ever changed. What an iteration does not change is not copied, and must
        stay as it is while the descent lasts.

        Args:
            values: one tensor for every input of the capture, "settings" among them, laid out as there.
            plateau: when the descent has settled; None for never.

        Raises:
            InputError: a tensor is missing.
        """
        for name in self._capture.inputs:
            if name not in values:
                raise InputError(f"bind: tensor {name!r} is missing")
        own = {name: values[name].detach() for name in self._capture.inputs}
        books = first_books([plateau or Plateau()], own["settings"].device, alone=True)
        fixed = {*self._capture.fixed, *FIXED}
        return CudaBound(Replayed(self._step, own | books, fixed, record=self._record), self._capture)


class CudaBound:
    """One descent on a CUDA device; the same interface as `vleak.descent.runner.Bound`."""

    def __init__(self, replayed: Replayed, capture: Capture) -> None:
        """Take over buffers; use `CudaProgram.bind`."""
        self._replayed, self._capture = replayed, capture
        self._done = 0
        self._interrupted = threading.Event()

    @property
    def values(self) -> dict[str, Tensor]:
        """The inputs as the next iteration will see them; a later run changes them in place."""
        return {name: self._replayed.values[name] for name in self._capture.inputs}

    @property
    def outputs(self) -> dict[str, Tensor]:
        """What the last iteration that was launched returned; empty before the first."""
        made = self._replayed.outputs
        return {name: made[name] for name in self._capture.outputs if name in made}

    def run(self, n: int, table: Tensor) -> Outcome:
        """Run up to n further iterations, as `vleak.descent.runner.Bound.run` does.

        The device may go on for up to `vleak.descent.watch.LENGTH` iterations after the one that ended the
        descent; they change nothing.
        """
        if n < 0 or len(table) < n:
            raise InputError(f"run: expected n >= 0 and a table of n rows, got n {n} and {len(table)} rows")
        history: list[float] = []
        while len(history) < n:
            if self._interrupted.is_set():
                self._interrupted.clear()
                return Outcome(history, "interrupted")
            outcome = self._stretch(table[len(history) : n][:LENGTH])
            history += outcome.history
            if outcome.reason != "done" or not outcome.history:
                return Outcome(history, outcome.reason)
        return Outcome(history, "done")

    def interrupt(self) -> None:
        """End the run that is under way, or else the next one, between two stretches; from any thread."""
        self._interrupted.set()

    def _stretch(self, rows: Tensor) -> Outcome:
        self._replayed.run(len(rows), rows)
        (outcome,) = outcomes(self._replayed.values, [self._done], len(rows))
        self._done += len(outcome.history)
        return outcome
