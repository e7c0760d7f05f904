"""Gradient matching, iteration by iteration: prepare once, run so many iterations, read the state.

The engine ``reference`` calls the PyTorch operators of every iteration one by one, with autograd, and is the
oracle of the tests; ``native`` runs the captured iteration in C++, or on a CUDA device as one CUDA graph.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile

from torch import Tensor

from vleak.descent.checks import check
from vleak.descent.cuda import CudaProgram
from vleak.descent.eager import EagerRunner
from vleak.descent.graph import GraphProgram, GraphRunner
from vleak.descent.levels import Level, Size, levels_of, resize
from vleak.descent.problem import DescentSettings, Problem, State, Values, lock_of
from vleak.descent.programs import program_for
from vleak.descent.runner import BLOCK, EndRule, HeldInterrupt, IterationBlock, Runner, undo_beyond_end
from vleak.descent.step import STATE, Step, first_values
from vleak.descent.step_settings import settings_table
from vleak.descent.verification import reference_context
from vleak.errors import InputError, unknown_name

__all__ = ["ENGINES", "Descent", "DescentSettings", "Problem", "State"]

ENGINES = ("native", "reference")


class Descent:
    """Prepare once, run iterations, read the state.

    Attributes:
        problem: what is matched.
        settings: how it descends.
        engine: the engine that runs: "reference" also where the native one cannot be had.
        state: where the descent stands.
        runner: what runs the iterations of the present level; another one of the same state may replace it.
    """

    def __init__(
        self, problem: Problem, settings: DescentSettings, start: Tensor, *, engine: str = "native"
    ) -> None:
        """Check that everything fits together, and capture the iteration if no descent of its kind has.

        Args:
            problem: what to match.
            settings: how to descend.
            start: (B, C, T, H, W) in [0, 1], or rows of features (B, ...).
            engine: "native" or "reference".

        Raises:
            InputError: a tensor is missing, has another shape, dtype or device, or is not finite; a setting
                is out of range; the model changes shape between calls (the message names which).
        """
        if engine not in ENGINES:
            raise unknown_name("engine", engine, ENGINES)
        with lock_of(problem.model):
            check(problem, settings, start)
            self.problem, self.settings = problem, settings
            # The layout of a start must not decide which views of it a captured iteration can take.
            start = start.contiguous().clone()
            self.state = State(start, start)
            self._unknown: Tensor | None = None  # where the unknown buffers stand
            self._levels = levels_of(problem, settings, start)
            programs = self._captured_levels() if engine == "native" else []
            # One engine for all levels, so that there is one to name.
            complete = len(programs) == len(self._levels)
            self.engine = "native" if complete else "reference"
            self._programs = programs if complete else []
            self._begin(0)

    def run(
        self,
        iterations: int,
        *,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
        every: int = 10,
    ) -> State:
        """Run up to so many further iterations; fewer at the end of the descent, or when stopped.

        Args:
            iterations: how many.
            progress: called after every so many iterations with the number done in all.
            stop: called as often; True ends the call, which may be taken up again.
            every: iterations between two such calls, at least 1.

        Raises:
            InputError: negative iterations, or fewer than one between two calls.
        """
        if iterations < 0 or every < 1:
            raise InputError(f"run: expected iterations >= 0 and every >= 1, got {iterations} and {every}")
        history = self.state.history
        last = len(history) + iterations
        while len(history) < last and not self._ended() and not (stop is not None and stop()):
            pause = min(last, len(history) + every)
            while len(rows := self.next_settings(pause - len(history))):
                self.advance(rows)
            if progress is not None:
                progress(len(history))
        return self.state

    def distance_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return D(dL/dw(x), target), a scalar, and its derivative by x, as the reference engine has them."""
        step = self._levels[-1].step
        with lock_of(step.model), reference_context(step):
            distance, gradient, *_ = step.evaluate(first_values(self.problem, self.settings, x), x)
            return distance, gradient

    # -----------------------------------------------------------------------------------------------------
    # For the scheduler, which runs many descents

    @property
    def step(self) -> Step:
        """The iteration of the present level."""
        return self._level.step

    @property
    def fresh(self) -> bool:
        """Whether no iteration of the present level has run."""
        return self._rule.done == 0

    def next_settings(self, iterations: int) -> Tensor:
        """Return the settings of up to so many iterations that come next in the present level.

        Returns:
            (iterations, numbers) float64, at most `vleak.descent.runner.BLOCK` rows; none at the end.
        """
        count = 0 if self._ended() else min(iterations, BLOCK)
        return settings_table(self._level.settings, self._rule.done, count).to(self.state.x.device)

    def take(self, before: Values, rows: Tensor, block: IterationBlock) -> None:
        """Bring the state up to date with a block that the runner ran; begin the next level at an end.

        `before` is the runner's state before the block, `rows` are its settings.
        """
        self._update_state(undo_beyond_end(self.runner, self._rule, before, rows, block))
        end = self._rule.end
        if end is None:
            return
        if end.reason == "nan":
            self.state.nan_at = len(self.state.history)
        elif self._index + 1 < len(self._levels):
            self._begin(self._index + 1)
        else:
            self.state.settled = end.reason == "plateau"

    # -----------------------------------------------------------------------------------------------------

    def _captured_levels(self) -> list[GraphProgram | CudaProgram]:
        """Return the captured iteration of every level, up to the first that has none."""
        programs = (program_for(level.step, self._values(level)) for level in self._levels)
        return list(takewhile(lambda program: program is not None, programs))  # type: ignore[arg-type]

    @property
    def _level(self) -> Level:
        return self._levels[self._index]

    def _ended(self) -> bool:
        return self._rule.end is not None  # of the last level: another one would have begun

    def _values(self, level: Level) -> Values:
        """Return the tensors of a level that starts from the best clips so far."""
        values = first_values(level.problem, level.settings, resize(self.state.best, level.size))
        if self._unknown is not None:
            values["unknown"] = self._unknown
        return values | {"settings": settings_table(level.settings, 0, 1)[0].to(self.state.x.device)}

    def _begin(self, index: int) -> None:
        level = self._levels[index]
        with lock_of(self.problem.model):
            values = self._values(level)
        self._index = index
        self._rule = EndRule(level.settings.iterations, level.settings.patience, level.settings.tolerance)
        self.runner: Runner = (
            self._programs[index].start(values) if self._programs else _reference(level.step, values)
        )

    def advance(self, rows: Tensor) -> None:
        """Run an iteration for every row of settings, and bring the state up to date."""
        with HeldInterrupt() as interrupt:
            before = self.runner.state()
            block = self.runner.run(rows, interrupt.requested)
            self.take(before, rows, block)
        # Ctrl-C: the iterations that were done count, and are in the state by now.
        interrupt.deliver()
        if block.raised is not None:
            raise block.raised

    def _update_state(self, objectives: list[float]) -> None:
        state, values = self.state, self.runner.values
        size = tuple(state.x.shape[2:]) if self.settings.coarse else None
        state.history += objectives
        state.x = self._full_size(values["x"], size)
        self._unknown = values.get("unknown")
        objective = float(values["best_objective"])
        # Where a level has found nothing, the one before it stands.
        if objective < math.inf:
            state.begun = len(state.history) - self._rule.done
            state.best = self._full_size(values["best"].view_as(values["x"]), size)
            state.best_objective = objective

    def _full_size(self, clips: Tensor, size: Size | None) -> Tensor:
        """Return clips of the present level at full resolution."""
        if size is not None and tuple(clips.shape[2:]) != size:
            return resize(clips, size)
        # Of many descents that are held at a time, each keeps as little as it can.
        return clips if isinstance(self.runner, GraphRunner) else clips.clone()


def _reference(step: Step, values: Values) -> EagerRunner:
    """Return the runner of the reference engine."""
    # functional_call swaps a module's tensors while it runs: two descents must not share a module.
    step = replace(step, model=copy.deepcopy(step.model))
    return EagerRunner(step, values, STATE, lambda: reference_context(step))
