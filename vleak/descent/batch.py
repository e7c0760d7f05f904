"""Batches of descents that share a captured iteration and run as one program with a trial axis.

The captured iteration of one trial, derivatives included, is mapped over all trials. The trials share the
model's weights and every other value that is the same tensor for all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vleak.descent.capture import Capture, as_step, capture
from vleak.descent.cuda import CudaRunner
from vleak.descent.graph import GraphProgram
from vleak.descent.likeness import program_key
from vleak.descent.mapping import batched_step
from vleak.descent.passes import optimize
from vleak.descent.problem import Values
from vleak.descent.runner import BLOCK, IterationBlock, Runner
from vleak.descent.step import STATE, Step
from vleak.descent.verification import GRADIENT_TOLERANCE, is_close, reference_iteration
from vleak.errors import CapabilityError
from vleak.switches import differentiable_rnn, math_attention

__all__ = ["Batch", "Trial", "TrialRunner", "batch_key", "make_batch", "share_weights"]


@dataclass(frozen=True)
class Trial:
    """Descent before its first iteration: its step, and the tensors that the iteration reads."""

    step: Step
    values: Values


def batch_key(trial: Trial) -> Hashable:
    """Return a key, equal for trials of one batch, of the weights and all but the contents of tensors."""
    weights = tuple(v.data_ptr() for name, v in trial.values.items() if name.startswith("parameter:"))
    return program_key(trial.step, trial.values), weights


def share_weights(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials in which equal weights and buffers are the same tensors: copies of a model become one."""
    known: dict[Hashable, list[Tensor]] = {}

    def shared(name: str, value: Tensor) -> Tensor:
        if not name.startswith(("parameter:", "buffer:")):
            return value
        tensors = known.setdefault((name, value.shape, value.stride(), value.dtype, value.device), [])
        for tensor in tensors:
            if tensor.data_ptr() == value.data_ptr() or torch.equal(tensor, value):
                return tensor
        tensors.append(value)
        return value

    return [
        replace(trial, values={name: shared(name, value) for name, value in trial.values.items()})
        for trial in trials
    ]


# ---------------------------------------------------------------------------------------------------------
# Programs, cached by kind and number of trials

_lock = threading.Lock()
_programs: dict[Hashable, Capture | None] = {}
#: Largest number of cached programs; beyond it all are dropped, and those in use are captured again.
_KEPT = 16


def make_batch(trials: Sequence[Trial]) -> Batch | None:
    """Return a batch of descents; None if their iteration cannot be mapped over trials.

    Args:
        trials: at least one, all with the same `batch_key`; on a CUDA device they run as one CUDA graph.
    """
    shared = _shared_names(trials)
    values = _stacked_values(trials, shared)
    # Weights are inputs of the program, so that successive copies of a model share one program.
    key = (program_key(trials[0].step, trials[0].values), len(trials), shared)
    with _lock:
        if key not in _programs:
            if len(_programs) >= _KEPT:
                _programs.clear()
            _programs[key] = _captured(trials, values, shared)
        program = _programs[key]
    return None if program is None else Batch(_start(program, values), len(trials))


def _shared_names(trials: Sequence[Trial]) -> tuple[str, ...]:
    first = trials[0].values
    names = [name for name in first if name not in STATE]
    return tuple(n for n in names if all(t.values[n].data_ptr() == first[n].data_ptr() for t in trials))


def _stacked_values(trials: Sequence[Trial], shared: Sequence[str]) -> Values:
    return {
        name: value if name in shared else torch.stack([trial.values[name] for trial in trials])
        for name, value in trials[0].values.items()
    }


def _captured(trials: Sequence[Trial], values: Values, shared: Sequence[str]) -> Capture | None:
    first = trials[0]
    fixed = [name for name in first.values if name not in STATE]
    try:
        with math_attention(), differentiable_rnn(first.step.model):
            single = optimize(capture(first.step, first.values, fixed), ["simplify"])
            batch = optimize(capture(batched_step(single, shared), values, fixed))
    except CapabilityError:
        return None
    return batch if _agrees(batch, trials, values) else None


def _agrees(batch: Capture, trials: Sequence[Trial], values: Values) -> bool:
    """Return whether one iteration of the batch agrees with the reference iteration of every trial."""
    with torch.no_grad():
        after = as_step(batch)({name: value.clone() for name, value in values.items()})
    return all(
        is_close(after[name][index], expected, GRADIENT_TOLERANCE)
        for index, trial in enumerate(trials)
        for name, expected in reference_iteration(trial.step, trial.values).items()
    )


def _start(program: Capture, values: Values) -> Runner:
    if values["x"].is_cuda:
        return CudaRunner(as_step(program), values, program.fixed)
    return GraphProgram(program).start(values)


# ---------------------------------------------------------------------------------------------------------
# Running


class Batch:
    """Batch of running descents.

    Attributes:
        runners: runners of the single trials, in order.
    """

    def __init__(self, runner: Runner, trials: int) -> None:
        """Wrap the runner of all trials; call `make_batch` instead."""
        self._runner, self._trials = runner, trials
        self._lock = threading.Lock()
        self.runners = [TrialRunner(self, index) for index in range(trials)]

    def value(self, name: str, trial: int) -> Tensor:
        """Return the value of a trial for a name that is not shared by the trials."""
        return self._runner.values[name][trial]

    def values(self, names: Sequence[str], trial: int) -> Values:
        """Return the values of a trial for those names, none shared by the trials, that there are."""
        return {name: self.value(name, trial) for name in names if name in self._runner.values}

    def run(
        self, settings: Mapping[int, Tensor], interrupted: Callable[[], bool]
    ) -> dict[int, IterationBlock]:
        """Run iterations of some trials; the state of the others does not change.

        Args:
            settings: (iterations, numbers) by trial, all of the same length, at most `BLOCK`.
            interrupted: called regularly between iterations.

        Returns:
            the iterations' objectives, by trial.
        """
        with self._lock:
            resting = [trial for trial in range(self._trials) if trial not in settings]
            before = self._runner.state() if resting else {}
            # Resting trials run with the settings of another trial; their steps are undone afterwards.
            other = next(iter(settings.values()))
            rows = torch.stack([settings.get(trial, other)[:BLOCK] for trial in range(self._trials)], 1)
            block = self._runner.run(rows, interrupted)
            if resting:
                self._put(resting, {name: value[resting] for name, value in before.items()})
        return {trial: replace(block, objectives=block.objectives[:, trial]) for trial in settings}

    def state(self, trial: int) -> Values:
        """Return copies of a trial's tensors that iterations change."""
        with self._lock:
            return {name: value[trial].clone() for name, value in self._runner.state().items()}

    def restore(self, trial: int, state: Values) -> None:
        """Reset a trial to an earlier state; the others do not change."""
        with self._lock:
            self._put(trial, state)

    def _put(self, trials: int | list[int], state: Values) -> None:
        now = self._runner.state()
        for name, value in state.items():
            now[name] = now[name].clone()
            now[name][trials] = value
        self._runner.restore(now)


@dataclass(frozen=True, eq=False)
class TrialRunner:
    """Runner of one descent of a batch; running it alone costs as much as running the batch."""

    batch: Batch
    trial: int

    @property
    def values(self) -> Values:
        """The values that a state is read from: "x", "best", "best_objective", and "unknown" if any."""
        return self.batch.values(("x", "best", "best_objective", "unknown"), self.trial)

    def run(self, settings: Tensor, interrupted: Callable[[], bool]) -> IterationBlock:
        """Run iterations of this descent alone, see `vleak.descent.runner.Runner`."""
        return self.batch.run({self.trial: settings}, interrupted)[self.trial]

    def state(self) -> Values:
        """Return copies of the tensors that iterations change."""
        return self.batch.state(self.trial)

    def restore(self, state: Values) -> None:
        """Reset the descent to an earlier state."""
        self.batch.restore(self.trial, state)
