"""Many descents side by side: clips, restarts and defense strengths that share a captured iteration."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from vleak.engine.loop import Loop
from vleak.engine.problem import State

__all__ = ["run_trials"]


def run_trials(
    loops: Sequence[Loop],
    iterations: int,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    every: int = 10,
) -> list[State]:
    """Run descents that do not depend on each other; each gives the numbers that it gives alone.

    On a CPU they share the threads that PyTorch may use: a descent each, with one thread inside. On a CUDA
    device, which a descent fills or shares by itself, they run one after the other.

    Args:
        loops: the descents, prepared.
        iterations: of each.
        workers: descents at a time; None for as many as PyTorch may use threads here.
        progress: called now and then with the number of iterations done in all of them.
        stop: asked between iterations; True ends all of them, which may be taken up again.
        every: iterations of a descent between two such calls.

    Returns:
        their states, in order.
    """
    tell = _Sum(progress)
    if workers is None:
        workers = 1 if loops and loops[0].state.x.is_cuda else torch.get_num_threads()

    def run(index: int) -> State:
        report = None if progress is None else (lambda done: tell(index, done))
        return loops[index].run(iterations, progress=report, stop=stop, every=every)

    if workers == 1 or len(loops) < 2:
        return [run(index) for index in range(len(loops))]
    # One thread inside: a descent's own work is too small to share, and no sum depends on the number.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(run, range(len(loops))))


class _Sum:
    """Adds up the progress of descents that report from their own threads."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self._progress, self._lock = progress, threading.Lock()
        self._done: dict[int, int] = {}

    def __call__(self, index: int, done: int) -> None:
        with self._lock:
            self._done[index] = done
            if self._progress is not None:
                self._progress(sum(self._done.values()))
