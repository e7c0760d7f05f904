"""Running iterations: what every backend offers, when a descent ends, and how Ctrl-C is held back.

Backends run iterations and report objectives. `EndRule` alone decides from them whether a descent has ended;
iterations beyond the end are undone by `Runner.restore`.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from vleak.descent.problem import Values

__all__ = [
    "BLOCK",
    "End",
    "EndRule",
    "HeldInterrupt",
    "IterationBlock",
    "Runner",
    "never",
    "undo_beyond_end",
]

#: Iterations that are run at most before their objectives are looked at.
BLOCK = 64

EndReason = Literal["schedule", "plateau", "nan"]


@dataclass(frozen=True)
class IterationBlock:
    """Result of a block of iterations.

    Attributes:
        objectives: float64, at the start of each iteration: (iterations,), of a batch (iterations, trials).
        raised: what the handler of a signal raised meanwhile; the iterations count all the same.
    """

    objectives: Tensor
    raised: BaseException | None = None


class Runner(Protocol):
    """A descent or a batch of descents, ready to run iterations: eager, in C++, or as a CUDA graph."""

    @property
    def values(self) -> Values:
        """Tensors that the next iteration reads, by name; a later iteration may change them in place."""
        ...

    def run(self, settings: Tensor, interrupted: Callable[[], bool], /) -> IterationBlock:
        """Run an iteration for every row of the settings; fewer if `interrupted` returns True in between.

        Args:
            settings: (iterations, numbers) or, of a batch, (iterations, trials, numbers) float64, see
                `vleak.native.StepSettings`.
            interrupted: called now and then between iterations.

        Raises:
            CapabilityError: an operator failed; the message names it and the iteration, counted from 1.
        """
        ...

    def state(self) -> Values:
        """Return what iterations change, as it is now; later iterations leave the returned tensors alone."""
        ...

    def restore(self, state: Values, /) -> None:
        """Go back to a state; the tensors given stay as they are."""
        ...


def never() -> bool:
    """Return False: for `Runner.run`, which is then not interrupted."""
    return False


# ---------------------------------------------------------------------------------------------------------
# The end of a descent


@dataclass(frozen=True)
class End:
    """End of a descent.

    Attributes:
        counted: iterations of the block that belong to the history, the last one included.
        kept: iterations of the block whose step counts: one fewer where the last objective is NaN.
        reason: "schedule", "plateau" or "nan".
    """

    counted: int
    kept: int
    reason: EndReason


class EndRule:
    """Rule by which a descent, or its level, ends: NaN, a plateau, or the end of the schedule.

    Attributes:
        done: iterations so far.
        end: how it ended; None while it goes on.
    """

    def __init__(self, iterations: int, patience: int = 0, tolerance: float = 0.0) -> None:
        """Start counting; iterations, patience and tolerance are those of `DescentSettings`."""
        self.done, self.end = 0, None if iterations else End(0, 0, "schedule")
        self._iterations, self._patience, self._tolerance = iterations, patience, tolerance
        self._level, self._since = math.inf, 0

    def observe(self, objectives: Sequence[float]) -> End | None:
        """Take the objectives of the iterations that came next; return the end if it is among them."""
        for index, objective in enumerate(objectives):
            self.done += 1
            reason = self._reason(objective)
            if reason is not None:
                self.end = End(index + 1, index + (reason != "nan"), reason)
                return self.end
        return None

    def _reason(self, objective: float) -> EndReason | None:
        if math.isnan(objective):
            return "nan"
        margin = 0.0 if math.isinf(self._level) else self._tolerance * abs(self._level)
        if objective < self._level - margin:
            self._level, self._since = objective, 0
        else:
            self._since += 1
        if 0 < self._patience <= self._since:
            return "plateau"
        return "schedule" if self.done == self._iterations else None


def undo_beyond_end(
    runner: Runner, rule: EndRule, before: Values, settings: Tensor, block: IterationBlock
) -> list[float]:
    """Apply the rule to the iterations of a block, and undo those beyond the end.

    Args:
        runner, rule: of one descent.
        before: the runner's state before the block.
        settings, block: what the runner was given, and what came back.

    Returns:
        the objectives that belong to the history.
    """
    objectives: list[float] = block.objectives.tolist()
    end = rule.observe(objectives)
    if end is None:
        return objectives
    if end.kept < len(objectives):
        runner.restore(before)
        runner.run(settings[: end.kept], never)
    return objectives[: end.counted]


# ---------------------------------------------------------------------------------------------------------
# Ctrl-C


class HeldInterrupt:
    """Context that holds Ctrl-C back: it must not be raised in the middle of an iteration.

    Pressed once more, it is raised at once. Elsewhere than in the main thread, which alone receives signals,
    the context does nothing.
    """

    def __enter__(self) -> HeldInterrupt:
        """Replace the handler of Python, or of the program."""
        self._signal: tuple[int, Any] | None = None
        main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGINT) if main else None
        self._handler = handler if callable(handler) else None
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the handler back."""
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def requested(self) -> bool:
        """Return whether Ctrl-C was pressed."""
        return self._signal is not None

    def deliver(self) -> None:
        """Call the handler that was held back, if Ctrl-C was pressed; raises what it raises."""
        if self._handler is not None and self._signal is not None:
            self._handler(*self._signal)

    def _note(self, number: int, frame: Any) -> None:
        if self._signal is not None and self._handler is not None:
            self._handler(number, frame)
        self._signal = number, frame
