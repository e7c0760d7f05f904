"""Many descents side by side: clips, restarts and defense strengths that share a captured iteration."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from vleak.engine.batch import Batch, Member, Start, kind, make_batch
from vleak.engine.loop import Loop
from vleak.engine.problem import State
from vleak.errors import InputError

__all__ = ["run_trials"]

#: Descents of one batch: each has targets of its own in memory, and activations.
_TOGETHER = 8

_Progress = Callable[[int], None] | None
_Stop = Callable[[], bool] | None


def run_trials(
    loops: Sequence[Loop],
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
    device those that have not begun, share weights and differ only in numbers (start, labels, target, masks,
    prior, settings) run batched, up to eight in one program; the others go on by turns.

    Args:
        loops: the descents, prepared.
        iterations: of each.
        workers: descents at a time where they are not batched; None for as many as PyTorch may use threads.
        progress: called now and then with the number of iterations done in all of them.
        stop: asked between iterations; True ends all of them, which may be taken up again.
        every: iterations of a descent between two such calls.
        batched: None for on a CUDA device only: a CPU runs descents faster by themselves.

    Returns:
        their states, in order.

    Raises:
        InputError: negative iterations, or fewer than one between two calls.
    """
    if batched is None:
        batched = bool(loops) and loops[0].state.x.is_cuda
    if batched:
        return _run_batched(loops, iterations, progress, stop, every)
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


def _run_batched(
    loops: Sequence[Loop], iterations: int, progress: _Progress, stop: _Stop, every: int
) -> list[State]:
    if iterations < 0 or every < 1:
        raise InputError(f"run: expected iterations >= 0 and every >= 1, got {iterations} and {every}")
    lasts = [len(loop.state.history) + iterations for loop in loops]
    while stop is None or not stop():
        left = [last - len(loop.state.history) for loop, last in zip(loops, lasts, strict=True)]
        tables = {loop: loop.upcoming(min(every, n)) for loop, n in zip(loops, left, strict=True)}
        tables = {loop: table for loop, table in tables.items() if len(table)}
        if not tables:
            break
        _gather(tables)
        _advance(tables)
        if progress is not None:
            progress(sum(len(loop.state.history) for loop in loops))
    return [loop.state for loop in loops]


def _gather(loops: Iterable[Loop]) -> None:
    """Put descents that are about to begin, and are alike, into batches."""
    alike: dict[Hashable, list[Loop]] = {}
    for loop in loops:
        if loop.fresh and loop.engine == "native" and not isinstance(loop.bound, Member):
            alike.setdefault(kind(_start(loop)), []).append(loop)
    for group in alike.values():
        for first in range(0, len(group), _TOGETHER):
            _join(group[first : first + _TOGETHER])


def _join(group: Sequence[Loop]) -> None:
    batch = make_batch([_start(loop) for loop in group]) if len(group) > 1 else None
    if batch is not None:
        for loop, member in zip(group, batch.members, strict=True):
            loop.bound = member


def _start(loop: Loop) -> Start:
    return Start(loop.step, loop.bound.values, loop.plateau)


def _advance(tables: dict[Loop, Tensor]) -> None:
    """Run a stretch of every descent: a batch at once, the others one after the other."""
    batches: dict[Batch, dict[int, Loop]] = {}
    for loop, table in tables.items():
        if isinstance(loop.bound, Member):
            batches.setdefault(loop.bound.batch, {})[loop.bound.trial] = loop
        else:
            outcome = loop.bound.run(len(table), table)
            loop.take(outcome)
            outcome.checked()
    for batch, members in batches.items():
        shortest = min(len(tables[loop]) for loop in members.values())
        found = batch.run({trial: tables[loop][:shortest] for trial, loop in members.items()})
        for trial, outcome in found.items():
            members[trial].take(outcome)
        for outcome in found.values():
            outcome.checked()
