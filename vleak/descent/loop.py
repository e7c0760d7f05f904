"""Gradient matching, iteration by iteration: prepare once, run so many iterations, read the state.

``reference`` calls every iteration's PyTorch operators one by one, with autograd, and is the oracle of the
tests; ``native`` runs the captured iteration in C++; ``inductor`` the same, compiled.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from typing import Protocol

from torch import Tensor

from vleak.descent.native import Found, program_for
from vleak.descent.problem import DescentSettings, Problem, State, check, lock_of
from vleak.descent.runner import Bound, KeyPress, Outcome, Plateau, Reason
from vleak.descent.stages import Size, Stage, divide, resize
from vleak.descent.steps import STATE, Step, Values, first_values, settings_table
from vleak.errors import InputError, unknown_name
from vleak.native import operators
from vleak.switches import differentiable_rnn, math_attention

__all__ = ["ENGINES", "Descent", "DescentSettings", "Problem", "State"]

ENGINES = ("native", "inductor", "reference")


class Runs(Protocol):
    """What runs a stage's iterations: a program bound to its values, a trial of a batch, the reference."""

    @property
    def values(self) -> Values:
        """The tensors of the next iteration, "x", "best" and "best_objective" at least."""
        ...

    def run(self, n: int, table: Tensor, /) -> Outcome:
        """Run up to n iterations; row i of the table is what iteration i sees as "settings"."""
        ...


class Descent:
    """Prepare once, run iterations, read the state.

    Attributes:
        engine: the engine that runs, which is another one where that asked for cannot be had.
        state: where the descent stands.
        bound: what runs the iterations of the present stage; what stands at the same point may replace it.
        plateau: when a stage has settled.
    """

    def __init__(
        self, problem: Problem, descent: DescentSettings, start: Tensor, *, engine: str = "native"
    ) -> None:
        """Check that everything fits together, and capture the iteration if no descent of its kind has.

        Args:
            problem: what to match.
            descent: how to descend.
            start: (B, C, T, H, W) in [0, 1], or rows of features (B, ...).
            engine: "native", "inductor" (compiled for 10-40 seconds, once a graph and machine; worth it for
                recurrent models and second-order rules) or "reference".

        Raises:
            InputError: a tensor is missing, has another shape, dtype or device, or is not finite; a setting
                is out of range; the model changes shape between calls (the message names which).
        """
        if engine not in ENGINES:
            raise unknown_name("engine", engine, ENGINES)
        with lock_of(problem.model):
            check(problem, descent, start)
            self.problem, self.descent = problem, descent
            # The layout of a start must not decide which views of it a captured iteration can take.
            start = start.contiguous().clone()
            self.state = State(start, start)
            self.plateau = Plateau(descent.patience, descent.tolerance)
            self._stages = divide(problem, descent, start)
            programs = [] if engine == "reference" else self._prepared(engine)
            # One engine for all of a descent, so that there is one to name.
            complete = len(programs) == len(self._stages)
            self.engine = programs[-1].engine if complete else "reference"
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
        """Run up to so many further iterations; fewer at the end of the schedule, at NaN, or when stopped.

        Args:
            iterations: how many.
            progress: called after every so many iterations with the number done in all.
            stop: asked as often; True ends the call, which may be taken up again.
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
            while len(table := self.upcoming(pause - len(history))):
                outcome = self.bound.run(len(table), table)
                self.take(outcome)
                # Ctrl-C: the iterations that were done count, and are in the state by now.
                outcome.checked()
            if progress is not None:
                progress(len(history))
        return self.state

    def distance_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return D(dL/dw(x), target), a scalar, and its derivative by x, as the reference engine has them."""
        model = self.problem.model
        with lock_of(model), operators.use_reference(), math_attention(), differentiable_rnn(model):
            values = first_values(self.problem, self.descent, x)
            return self._stages[-1].step.evaluate(values, x)

    def _prepared(self, engine: str) -> list[Found]:
        """Return the captured iteration of every stage, up to the first that has none."""
        found = (program_for(stage.step, self._values(stage), engine) for stage in self._stages)
        return list(takewhile(lambda each: each is not None, found))  # type: ignore[arg-type]

    def _ended(self) -> bool:
        finished = len(self._stages) == self._at + 1 and self._done == self._stage.descent.iterations
        return finished or self.state.nan_at is not None or self.state.settled

    def _values(self, stage: Stage) -> Values:
        """Return the tensors of a stage that starts from the best clips so far."""
        values = first_values(stage.problem, stage.descent, resize(self.state.best, stage.size))
        return values | {"settings": settings_table(stage.descent, 0, 1)[0].to(self.state.x.device)}

    def _begin(self, at: int) -> None:
        stage = self._stages[at]
        with lock_of(self.problem.model):
            values = self._values(stage)
        self._at, self._done = at, 0
        self.bound: Runs = (
            self._programs[at].program.bind(values, self.plateau)
            if self._programs
            else _Eager(stage.step, values, self.plateau)
        )

    @property
    def step(self) -> Step:
        """The iteration of the present stage."""
        return self._stage.step

    @property
    def _stage(self) -> Stage:
        return self._stages[self._at]

    @property
    def fresh(self) -> bool:
        """Whether no iteration of the present stage has run."""
        return self._done == 0

    def upcoming(self, iterations: int) -> Tensor:
        """Return the settings of up to so many iterations that come next in the present stage."""
        count = 0 if self._ended() else iterations
        return settings_table(self._stage.descent, self._done, count).to(self.state.x.device)

    def take(self, outcome: Outcome) -> None:
        """Bring the state up to where the iterations stand, and go on to the next stage where one ends."""
        last = self._at + 1 == len(self._stages)
        self._done += len(outcome.history)
        self._take(outcome)
        ended = outcome.reason == "plateau" or self._done == self._stage.descent.iterations
        self.state.settled = outcome.reason == "plateau" and last
        if ended and not last and self.state.nan_at is None:
            self._begin(self._at + 1)

    def _take(self, outcome: Outcome) -> None:
        """Bring the state up to where the iterations stand."""
        state, values = self.state, self.bound.values
        size = tuple(state.x.shape[2:]) if self.descent.coarse else None
        state.history += outcome.history
        state.nan_at = len(state.history) if outcome.reason == "nan" else None
        state.x = self._full(values["x"], size)
        objective = float(values["best_objective"])
        # Where a level has found nothing, the one before it stands.
        if objective < math.inf:
            state.begun = len(state.history) - self._done
            state.best = self._full(values["best"].view_as(values["x"]), size)
            state.best_objective = objective

    def _full(self, clips: Tensor, size: Size | None) -> Tensor:
        """Return clips of the present stage at full resolution."""
        # Of many descents that are held at a time, each keeps as little as it can.
        in_place = size is None or tuple(clips.shape[2:]) == size
        return clips if in_place and isinstance(self.bound, Bound) else resize(clips, size)


class _Eager:
    """The reference engine's iterations: the same interface as a program that is bound to its values."""

    def __init__(self, step: Step, values: Values, plateau: Plateau) -> None:
        # functional_call swaps a module's tensors while it runs: two descents must not share a module.
        self._step, self._plateau = replace(step, model=copy.deepcopy(step.model)), plateau
        # A step changes the optimizer's state in place, and the caller's tensors are not ours to change.
        self.values = {name: v.clone() if name in STATE else v for name, v in values.items()}
        self._level, self._since = math.inf, 0

    def run(self, n: int, table: Tensor) -> Outcome:
        """Run up to n iterations; row i of the table is what iteration i sees as "settings"."""
        history: list[float] = []
        reason: Reason = "done"
        contexts = math_attention(), differentiable_rnn(self._step.model)
        with KeyPress() as key, operators.use_reference(), contexts[0], contexts[1]:
            for row in table[:n]:
                reason = "interrupted" if key.pressed() else self._iterate(row, history)
                if reason != "done":
                    break
        return Outcome(history, reason, key.answered())

    def _iterate(self, settings: Tensor, history: list[float]) -> Reason:
        after = self._step({**self.values, "settings": settings})
        history.append(float(after["objective"]))
        if math.isnan(history[-1]):
            return "nan"
        self.values |= {name: value for name, value in after.items() if name in self.values}
        return "plateau" if self._stalled(history[-1]) else "done"

    def _stalled(self, objective: float) -> bool:
        margin = 0.0 if math.isinf(self._level) else self._plateau.tolerance * abs(self._level)
        if objective < self._level - margin:
            self._level, self._since = objective, 0
        else:
            self._since += 1
        return 0 < self._plateau.patience <= self._since
