"""The CUDA backend: an iteration is one CUDA graph, without Python and without launches of single kernels.

The step is recorded once with buffers that stay where they are; its last kernels copy what it carries back
into them. A replay is a copy of a row of settings and one launch. The host reads objectives once a block.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from vleak.descent.capture import Capture, Step, as_step
from vleak.descent.problem import Values
from vleak.descent.runner import BLOCK, IterationBlock
from vleak.errors import InputError

__all__ = ["CudaGraphWarning", "CudaProgram", "CudaRunner", "Recorder", "record"]

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes what one iteration launches, calls it to warm up, and returns what launches it again."""

#: Calls before recording, in which cuDNN and cuBLAS choose algorithms and take their memory.
_WARM_UP = 3

# Allocations of a recording must not meet those of another.
_recording = threading.Lock()
_warned = threading.Event()


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
        # Only this thread's calls are restricted while it records: other descents go on in theirs.
        with _recording, torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            iterate()
    finally:
        torch.cuda.set_stream(current)  # a recording that fails leaves its own stream behind
    return graph.replay


class CudaProgram:
    """A captured step on a CUDA device that many descents run; as `vleak.descent.graph.GraphProgram`."""

    def __init__(self, capture: Capture, *, record: Recorder = record) -> None:
        """Take a step that was captured from values on one CUDA device."""
        self._capture, self._record = capture, record

    def start(self, values: Mapping[str, Tensor]) -> CudaRunner:
        """Start a descent, as `GraphProgram.start` does; the tensors must be laid out as in the capture.

        Raises:
            InputError: a tensor is missing.
        """
        inputs, fixed = self._capture.inputs, self._capture.fixed
        missing = [name for name in inputs if name not in values]
        if missing:
            raise InputError(f"descent: tensor {missing[0]!r} is missing")
        own = {name: values[name].detach() for name in inputs}
        return CudaRunner(as_step(self._capture), own, fixed, record=self._record)


class CudaRunner:
    """One descent, or a batch, on a CUDA device.

    Attributes:
        values: the buffers, as the next iteration reads them; changed in place.
        outputs: what the last iteration returned; overwritten by the next one. Empty before the first.
    """

    def __init__(
        self, step: Step, values: Values, fixed: Collection[str], *, record: Recorder = record
    ) -> None:
        """Take the step; it is recorded at the first iteration.

        Args:
            step: returns "objective"; outputs named like a value are carried into it.
            values: what it reads, on one device; "settings" is the row of an iteration.
            fixed: names of values that no iteration changes; they are not copied, and must stay.
            record: what makes a graph.
        """
        self.values = {name: v if name in fixed else v.clone() for name, v in values.items()}
        self.outputs: Values = {}
        self._state = [name for name in values if name not in fixed and name != "settings"]
        trials = self.values["settings"].shape[:-1]
        self._history = self.values["settings"].new_zeros((BLOCK, *trials))  # newest last
        self._step, self._record = step, record
        self._replay: Callable[[], None] | None = None

    def run(self, settings: Tensor, interrupted: Callable[[], bool]) -> IterationBlock:
        """Run iterations, see `vleak.descent.runner.Runner`; interrupted between blocks only."""
        rows = settings.to(self.values["settings"])
        blocks = [self._history[:0].cpu()]
        with torch.no_grad(), torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
            for block in torch.split(rows, BLOCK):  # type: ignore[no-untyped-call]
                if interrupted():
                    break
                if self._replay is None:
                    self._replay = self._recorded()
                for row in block:
                    self.values["settings"].copy_(row)
                    self._replay()
                blocks.append(self._history[BLOCK - len(block) :].to("cpu", copy=True))
        return IterationBlock(torch.cat(blocks))

    def state(self) -> Values:
        """Return copies of what iterations change."""
        return {name: self.values[name].clone() for name in self._state}

    def restore(self, state: Values) -> None:
        """Go back to a state."""
        for name, value in state.items():
            self.values[name].copy_(value)

    def _iterate(self) -> None:
        self.outputs = self._step(dict(self.values))
        for name, value in self.outputs.items():
            if name in self.values:
                self.values[name].copy_(value)
        self._history.copy_(torch.cat([self._history[1:], self.outputs["objective"].double()[None]]))

    def _recorded(self) -> Callable[[], None]:
        """Return what runs an iteration; the buffers are as they were before it was recorded."""
        before = self.state()
        try:
            replay = self._record(self._iterate)
        except RuntimeError as error:
            replay = self._iterate
            _warn(error)
        self.restore(before)
        return replay


def _warn(error: RuntimeError) -> None:
    if _warned.is_set():
        return
    _warned.set()
    reason = str(error).strip().partition("\n")[0]
    warnings.warn(f"no CUDA graph, kernels are launched one by one: {reason}", CudaGraphWarning, stacklevel=6)
