"""CPU time of calls that take turns: how the benchmarks and `vleak bench` measure.

On a machine that others use too, wall time and measurements one after the other compare nothing: every call
is timed by the CPU seconds of this process, in blocks that alternate, and reported as the median of rounds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vleak.errors import InputError

__all__ = ["Call", "Measured", "interleaved", "iterations_needed"]

Call = Callable[[int], object]
"""Runs so many further iterations of what is measured."""

_MOST = 1_000  # iterations of a block


@dataclass(frozen=True)
class Measured:
    """One figure of every round, such as CPU seconds an iteration; never empty."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle round."""
        return statistics.median(self.rounds)

    @property
    def low(self) -> float:
        """The 10 % quantile: of fewer than ten rounds the lowest."""
        return sorted(self.rounds)[len(self.rounds) // 10]

    @property
    def high(self) -> float:
        """The 90 % quantile: of fewer than ten rounds the highest."""
        return sorted(self.rounds)[-1 - len(self.rounds) // 10]

    def divided_by(self, other: Measured | float) -> Measured:
        """Return the ratio round by round, to a number or to what was measured in the same rounds."""
        if isinstance(other, Measured):
            return Measured(tuple(a / b for a, b in zip(self.rounds, other.rounds, strict=True)))
        return Measured(tuple(value / other for value in self.rounds))


def interleaved(
    calls: Mapping[str, Call],
    *,
    rounds: int = 7,
    seconds: float = 0.2,
    progress: Callable[[], None] | None = None,
) -> dict[str, Measured]:
    """Measure CPU seconds an iteration of every call, all of them in turn in every round.

    The order moves on by one every round, so that nobody always meets the caches of the same neighbour.

    Args:
        calls: by name; each has its own state and has been prepared.
        rounds: at least 1.
        seconds: CPU time that one block of iterations fills, about; but none has more than 1,000.
        progress: called after every block, ``len(calls) * rounds`` times.

    Raises:
        InputError: fewer than one round, or no call.
    """
    if rounds < 1 or not calls:
        raise InputError(
            f"timing: expected at least 1 round and 1 call, got {rounds} rounds and {len(calls)} calls"
        )
    counts = {name: _block(call, seconds) for name, call in calls.items()}
    names, found = list(calls), {name: list[float]() for name in calls}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(_cpu_seconds(calls[name], counts[name]))
            if progress is not None:
                progress()
    return {name: Measured(tuple(values)) for name, values in found.items()}


def iterations_needed(rounds: int) -> int:
    """Return how many iterations `interleaved` asks of a call at most, for what cannot go on for ever."""
    return _MOST * (rounds + 2)


def _block(call: Call, seconds: float) -> int:
    """Return how many iterations fill a block; the first ones warm up whatever warms up."""
    _cpu_seconds(call, 1)
    count = 1
    while (each := _cpu_seconds(call, count)) * count < seconds / 4 and count < _MOST // 2:
        count *= 2
    return max(1, min(_MOST, math.ceil(seconds / each))) if each else _MOST


def _cpu_seconds(call: Call, count: int) -> float:
    start = time.process_time()
    call(count)
    return (time.process_time() - start) / count
