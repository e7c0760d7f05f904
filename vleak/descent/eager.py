"""The eager backend: every iteration is one call of a step from Python."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from vleak.descent.problem import Values
from vleak.descent.runner import IterationBlock

__all__ = ["EagerRunner"]


class EagerRunner:
    """Runner that calls a step: the reference, and the captured graph where there is no C++ runner.

    Attributes:
        values: see `vleak.descent.runner.Runner`.
        outputs: what the last iteration returned; empty before the first.
    """

    def __init__(
        self,
        step: Callable[[Values], Values],
        values: Values,
        state: Collection[str],
        context: Callable[[], AbstractContextManager[object]] = torch.no_grad,
    ) -> None:
        """Copy what the step changes.

        Args:
            step: returns "objective"; outputs named like a value are carried into it.
            values: what it reads; "settings" is the row of an iteration.
            state: names of the values that it changes, in place or by carrying.
            context: entered around a block of iterations.
        """
        self.values = {name: v.detach().clone() if name in state else v for name, v in values.items()}
        self.outputs: Values = {}
        self._step, self._context = step, context
        self._state = [name for name in values if name in state and name != "settings"]

    def run(self, settings: Tensor, interrupted: Callable[[], bool]) -> IterationBlock:
        """Run iterations, see `vleak.descent.runner.Runner`."""
        objectives: list[Tensor] = []
        raised: BaseException | None = None
        try:
            with self._context():
                for row in settings:
                    if interrupted():
                        break
                    objectives.append(self._iterate(row))
        except (KeyboardInterrupt, SystemExit) as error:
            raised = error
        return IterationBlock(torch.stack(objectives) if objectives else torch.zeros(0), raised)

    def _iterate(self, row: Tensor) -> Tensor:
        self.outputs = self._step({**self.values, "settings": row})
        self.values |= {name: value for name, value in self.outputs.items() if name in self.values}
        return self.outputs["objective"].detach().double()

    def state(self) -> Values:
        """Return copies of what iterations change."""
        return {name: self.values[name].clone() for name in self._state}

    def restore(self, state: Values) -> None:
        """Go back to a state."""
        self.values |= {name: value.clone() for name, value in state.items()}
