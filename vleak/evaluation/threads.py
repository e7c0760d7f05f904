"""Cells in this process: a client a thread, or groups of clients whose descents share a batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from itertools import groupby

import torch

from vleak.evaluation.groups import Result, Spread, StoppedError, run_group
from vleak.evaluation.workers import POLL, ClientCells
from vleak.pipelines import Stop

__all__ = ["pool_of_threads", "run_in_threads"]


def run_in_threads(
    clients: Sequence[ClientCells], count: int, stop: Callable[[], bool], *, batched: bool
) -> Generator[list[Result]]:
    """Run the cells of clients in threads of this process.

    Args:
        clients: for each the cells of its clips.
        count: clients side by side, at least 1; batched, those of one group.
        stop: asked some times a second, and between iterations.
        batched: whether descents of a group share a batch; groups run one after the other.

    Yields:
        results as they are finished; an empty list while nothing is.

    Raises:
        StoppedError: ``stop`` said so.
    """
    lanes, size = (1, count) if batched else (count, 1)
    ordered = clients if batched else rows_begun_early(clients, count)
    groups = [ordered[first : first + size] for first in range(0, len(clients), size)][::-1]
    ended = threading.Event()
    with ExitStack() as stack:
        spread: Spread = stack.enter_context(pool_of_threads(count)).map if batched else map
        pool = stack.enter_context(pool_of_threads(lanes))
        stack.callback(ended.set)  # before the pools are waited for
        running: set[Future[list[Result]]] = set()
        while groups or running:
            while groups and len(running) < lanes:
                call = pool.submit(run_group, groups.pop(), _any(stop, ended), batched=batched, spread=spread)
                running.add(call)
            # The short wait lets Ctrl-C through.
            finished, running = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
            yield []
            if stop():
                raise StoppedError("stopped")


def rows_begun_early(clients: Sequence[ClientCells], lanes: int) -> list[ClientCells]:
    """Return clients in an order in which lanes seldom wait for what another one learns.

    What an attack learns of a model and a defense, with its first client, serves the others of the row. So
    the first ones of that many rows come together, and then one before the rest of each row.
    """
    rows = [list(row) for _, row in groupby(clients, key=lambda client: client[0].kind)]
    ordered = [row[0] for row in rows[:lanes]]
    for index, row in enumerate(rows):
        ordered += [*row[1:], *(later[0] for later in rows[index + lanes : index + lanes + 1])]
    return ordered


def _any(stop: Callable[[], bool], ended: threading.Event) -> Stop:
    # A function of the events alone: attacks are handed it, and a bound method would lead to the truth.
    return lambda: stop() or ended.is_set()


@contextmanager
def pool_of_threads(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Pool of threads, each of which computes with one thread; what has not begun at the end never does."""
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
