"""Gradient matching, iteration by iteration: prepare once, run so many iterations, read the state.

``reference`` calls every iteration's PyTorch operators one by one, with autograd, and is the oracle of the
tests; ``native`` runs the captured iteration in C++.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vleak import ops
from vleak.backends import differentiable_rnn, math_attention
from vleak.engine.native import program_for
from vleak.engine.problem import Descent, Problem, State, check
from vleak.engine.runner import Outcome, Plateau
from vleak.engine.steps import STATE, Step, Values, first_values, settings_table
from vleak.errors import InputError, unknown_name

__all__ = ["ENGINES", "Descent", "Loop", "Problem", "State"]

ENGINES = ("native", "reference")


class Loop:
    """Prepare once, run iterations, read the state.

    Attributes:
        engine: the engine that runs: "reference" also where "native" was asked for and cannot be had.
        state: where the descent stands.
    """

    def __init__(self, problem: Problem, descent: Descent, start: Tensor, *, engine: str = "native") -> None:
        """Check that everything fits together, and capture the iteration if no descent of its kind has.

        Args:
            problem: what to match.
            descent: how to descend.
            start: (B, C, T, H, W) in [0, 1], or rows of features (B, ...).
            engine: "native" or "reference".

        Raises:
            InputError: a tensor is missing, has another shape, dtype or device, or is not finite; a setting
                is out of range; the model changes shape between calls (the message names which).
        """
        if engine not in ENGINES:
            raise unknown_name("engine", engine, ENGINES)
        check(problem, descent, start)
        self.problem, self.descent = problem, descent
        self.state = State(start.clone(), start.clone())
        self._step = Step(problem.model, problem.loss, problem.distance, descent)
        self._table = settings_table(descent).to(start.device)
        values = first_values(problem, descent, start) | {"settings": self._table[0]}
        program = program_for(self._step, values) if engine == "native" else None
        self.engine = "reference" if program is None else "native"
        self._plateau = Plateau(descent.patience, descent.tolerance)
        self._iterations = _Eager(self._step, values, self._plateau) if program is None else program.bind(values, self._plateau)

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
        state, history = self.state, self.state.history
        last = min(self.descent.iterations, len(history) + iterations)
        while len(history) < last and not self._ended() and not (stop is not None and stop()):
            done = len(history)
            self._take(self._iterations.run(min(every, last - done), self._table[done:last]))
            if progress is not None:
                progress(len(history))
        return state

    def distance_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return D(dL/dw(x), target), a scalar, and its derivative by x, as the reference engine has them."""
        values = first_values(self.problem, self.descent, x)
        with ops.use_reference(), math_attention(), differentiable_rnn(self.problem.model):
            return self._step.evaluate(values, x)

    def _ended(self) -> bool:
        return self.state.nan_at is not None or self.state.settled

    def _take(self, outcome: Outcome) -> None:
        """Bring the state up to where the iterations stand."""
        state, values = self.state, self._iterations.values
        state.history += outcome.history
        state.nan_at = len(state.history) if outcome.reason == "nan" else None
        state.settled = outcome.reason == "plateau"
        state.x = values["x"].clone()
        state.best = values["best"].view_as(state.x).clone()
        state.best_objective = float(values["best_objective"])


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
        with ops.use_reference(), math_attention(), differentiable_rnn(self._step.model):
            for row in table[:n]:
                after = self._step({**self.values, "settings": row})
                history.append(float(after["objective"]))
                if math.isnan(history[-1]):
                    return Outcome(history, "nan")
                self.values |= {name: value for name, value in after.items() if name in self.values}
                if self._stalled(history[-1]):
                    return Outcome(history, "plateau")
        return Outcome(history, "done")

    def _stalled(self, objective: float) -> bool:
        margin = 0.0 if math.isinf(self._level) else self._plateau.tolerance * abs(self._level)
        if objective < self._level - margin:
            self._level, self._since = objective, 0
        else:
            self._since += 1
        return 0 < self._plateau.patience <= self._since
