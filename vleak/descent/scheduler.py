"""Many descents side by side: clips, restarts and defense strengths that share a captured iteration."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vleak.descent.batch import Batch, Member, Start, kind, make_batch, share_weights
from vleak.descent.loop import Descent
from vleak.descent.meeting import present
from vleak.descent.problem import State
from vleak.descent.runner import Outcome
from vleak.errors import InputError

__all__ = ["run_descents"]

#: Descents of one batch: each has targets of its own in memory, and activations.
_TOGETHER = 8

_Progress = Callable[[int], None] | None
_Stop = Callable[[], bool] | None
_Result = TypeVar("_Result")


def run_descents(
    loops: Sequence[Descent],
    iterations: int,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    every: int = 10,
    batched: bool | None = None,
) -> list[State]:
    """Run descents that do not depend on each other; each gives the numbers that it gives alone.

    On a CPU they share the threads that PyTorch may use: a descent each, with one thread inside. On a CUDA
    device those that have not begun, have equal weights and differ only in numbers (start, labels, target,
    masks, prior, settings) run batched, up to eight in one program; the others go on by turns. A thread that
    attends a `vleak.descent.meeting.Meeting` has them batched with those of the other threads there.

    Args:
        loops: the descents, prepared.
        iterations: of each.
        workers: descents at a time where they are not batched; None for as many as PyTorch may use threads.
        progress: called now and then with the number of iterations done in all of them.
        stop: asked between iterations; True ends all of them, which may be taken up again.
        every: iterations of a descent between two such calls.
        batched: None for what the meeting says, without one on a CUDA device only: a CPU runs descents faster
            by themselves.

    Returns:
        their states, in order.

    Raises:
        InputError: negative iterations, or fewer than one between two calls.
    """
    meeting = present()
    if batched is None and meeting is not None:
        batched = meeting.batched
    if batched is None:
        batched = bool(loops) and loops[0].state.x.is_cuda
    if batched:
        part = _part(loops, iterations, progress, stop, every)
        if meeting is None:
            _run_together([part])
        else:
            meeting.bring(part, _run_together)
        if part.error is not None:
            raise part.error
        return [loop.state for loop in loops]
    tell = _Sum(progress)

    def run(index: int) -> State:
        report = None if progress is None else (lambda done: tell(index, done))
        return loops[index].run(iterations, progress=report, stop=stop, every=every)

    workers = torch.get_num_threads() if workers is None else workers
    if workers == 1 or len(loops) < 2:
        return [run(index) for index in range(len(loops))]
    # One thread inside: a descent's own work is too small to share, and no sum depends on the number.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(run, range(len(loops))))


class _Sum:
    """Adds up the progress of descents that report from their own threads."""

    def __init__(self, progress: _Progress) -> None:
        self._progress, self._lock = progress, threading.Lock()
        self._done: dict[int, int] = {}

    def __call__(self, index: int, done: int) -> None:
        with self._lock:
            self._done[index] = done
            if self._progress is not None:
                self._progress(sum(self._done.values()))


# ---------------------------------------------------------------------------------------------------------
# Batches


@dataclass(eq=False)
class _Part:
    """What one caller wants run.

    Attributes:
        loops: the descents.
        lasts: by descent, the number of iterations at which it ends.
        progress, stop, every: see `run_descents`.
        error: what ended them before.
    """

    loops: Sequence[Descent]
    lasts: Sequence[int]
    progress: _Progress
    stop: _Stop
    every: int
    error: BaseException | None = None

    def upcoming(self) -> dict[Descent, Tensor]:
        """Return the settings of the next stretch of every descent that goes on."""
        if self.error is not None or (self.stop is not None and self.stop()):
            return {}
        left = [last - len(loop.state.history) for loop, last in zip(self.loops, self.lasts, strict=True)]
        tables = {loop: loop.upcoming(min(self.every, n)) for loop, n in zip(self.loops, left, strict=True)}
        return {loop: table for loop, table in tables.items() if len(table)}

    def report(self) -> None:
        if self.progress is not None:
            self.progress(sum(len(loop.state.history) for loop in self.loops))


def _part(loops: Sequence[Descent], iterations: int, progress: _Progress, stop: _Stop, every: int) -> _Part:
    if iterations < 0 or every < 1:
        raise InputError(f"run: expected iterations >= 0 and every >= 1, got {iterations} and {every}")
    lasts = [len(loop.state.history) + iterations for loop in loops]
    return _Part(loops, lasts, progress, stop, every)


def _run_together(parts: Sequence[_Part]) -> None:
    """Run what several callers want; what fails of one ends that one only."""
    while True:
        tables = {part: _kept(part, part.upcoming) or {} for part in parts}
        tables = {part: own for part, own in tables.items() if own}
        if not tables:
            return
        every = {loop: table for own in tables.values() for loop, table in own.items()}
        _gather(every)
        errors = _advance(every)
        for part, own in tables.items():
            part.error = next((errors[loop] for loop in own if loop in errors), None)
            if part.error is None:
                _kept(part, part.report)


def _kept(part: _Part, call: Callable[[], _Result]) -> _Result | None:
    """Call, and keep what is raised with the part."""
    try:
        return call()
    except BaseException as raised:  # noqa: BLE001  run_descents raises it
        part.error = raised
        return None


def _gather(loops: Iterable[Descent]) -> None:
    """Put descents that are about to begin, and are alike, into batches."""
    waiting = [
        loop
        for loop in loops
        if loop.fresh and loop.engine == "native" and not isinstance(loop.bound, Member)
    ]
    starts = share_weights([Start(loop.step, loop.bound.values, loop.plateau) for loop in waiting])
    alike: dict[Hashable, list[tuple[Descent, Start]]] = {}
    for loop, start in zip(waiting, starts, strict=True):
        alike.setdefault(kind(start), []).append((loop, start))
    for group in alike.values():
        for first in range(0, len(group), _TOGETHER):
            _join(group[first : first + _TOGETHER])


def _join(group: Sequence[tuple[Descent, Start]]) -> None:
    if len(group) < 2:
        return
    try:
        batch = make_batch([start for _, start in group])
    except RuntimeError:  # the device's memory, say, which is enough for each alone
        batch = None
    if batch is not None:
        for (loop, _), member in zip(group, batch.members, strict=True):
            loop.bound = member


def _advance(tables: dict[Descent, Tensor]) -> dict[Descent, BaseException]:
    """Run a stretch of every descent, a batch at once, the others one after the other; return what failed."""
    errors: dict[Descent, BaseException] = {}
    batches: dict[Batch, dict[int, Descent]] = {}
    for loop, table in tables.items():
        if isinstance(loop.bound, Member):
            batches.setdefault(loop.bound.batch, {})[loop.bound.trial] = loop
        else:
            _take(loop, lambda loop=loop, table=table: loop.bound.run(len(table), table), errors)  # type: ignore[misc]
    for batch, members in batches.items():
        shortest = min(len(tables[loop]) for loop in members.values())
        try:
            found = batch.run({trial: tables[loop][:shortest] for trial, loop in members.items()})
        except BaseException as raised:  # noqa: BLE001  run_descents raises it
            errors |= dict.fromkeys(members.values(), raised)
            continue
        for trial, outcome in found.items():
            _take(members[trial], lambda outcome=outcome: outcome, errors)  # type: ignore[misc]
    return errors


def _take(loop: Descent, run: Callable[[], Outcome], errors: dict[Descent, BaseException]) -> None:
    try:
        outcome = run()
        loop.take(outcome)
        # Ctrl-C: the iterations that were done count, and are in the state by now.
        outcome.checked()
    except BaseException as raised:  # noqa: BLE001  run_descents raises it
        errors[loop] = raised
