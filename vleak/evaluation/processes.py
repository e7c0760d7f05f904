"""Cells in processes of their own: one that dies, hangs or fills the memory costs its cell and no more."""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NoReturn, TypeAlias

import torch

from vleak.errors import InputError, VleakError, argument, process_ending
from vleak.evaluation.groups import Result, StoppedError, run_group
from vleak.evaluation.plan import PlannedCell

__all__ = ["ATTEMPTS", "Limits", "run_in_processes"]

ATTEMPTS = 3
"""Processes that a client's cells may cost; after them the cells are recorded as failed."""
_POLL = 0.2
"""Seconds between two looks at the clock and at the caller's stop."""
_PARENT_DEATH = 1
"""PR_SET_PDEATHSIG of prctl(2)."""

ClientCells: TypeAlias = Sequence[PlannedCell]
"""Cells of one client, which one attack answers."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the cells of one client may take in a process of their own.

    Attributes:
        seconds: wall time, > 0; None for no limit.
        gibibytes: memory beyond what the process begins with, > 0; None for no limit.
    """

    seconds: float | None = None
    gibibytes: float | None = None

    @classmethod
    def asked(cls, seconds: float | None, gibibytes: float | None) -> Limits | None:
        """Return the limits that were asked for; None where there is none, and none needs a process."""
        return None if seconds is gibibytes is None else cls(seconds=seconds, gibibytes=gibibytes)

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: a limit is no number above 0.
        """
        for name, value in (("cell_seconds", self.seconds), ("cell_memory", self.gibibytes)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < 1e9):
                given = argument(name, f"{value:g}" if number else repr(value))
                raise InputError(f"{given}: expected a number above 0")


def run_in_processes(
    clients: Sequence[ClientCells], count: int, limits: Limits, stop: Callable[[], bool]
) -> Generator[list[Result]]:
    """Run the cells of clients in forked processes; what comes back is what it is in this process.

    A process works through clients of one defense and attack as long as there are any, since attacks learn
    once for all of them. It is replaced when it dies, or takes too long; its client is then tried again, in
    all `ATTEMPTS` times.

    Args:
        clients: for each the cells of its clips.
        count: processes side by side, at least 1; each computes with one thread.
        limits: of every client.
        stop: asked some times a second.

    Yields:
        results of one client after the other as they are finished; an empty list while nothing is.

    Raises:
        StoppedError: ``stop`` said so.
        VleakError: no process can be started.
    """
    queue = _Queue(clients)
    workers: list[_Worker] = []
    try:
        while queue.waiting or any(worker.client is not None for worker in workers):
            _assign(queue, workers, count, limits)
            yield from _finished(queue, workers, limits)
            if stop():
                raise StoppedError("stopped")
    finally:
        for worker in workers:
            worker.end()


def _assign(queue: _Queue, workers: list[_Worker], count: int, limits: Limits) -> None:
    """Give every idle process a client, and start processes while there are clients for them."""
    while len(workers) < min(count, len(workers) + len(queue.waiting)):
        workers.append(_Worker(queue.clients, limits))
    for worker in workers:
        if worker.client is None:
            others = {queue.kinds[other.client] for other in workers if other.client is not None}
            if (client := queue.next(worker.kind, others)) is not None:
                worker.give(client, queue.kinds[client])


def _finished(queue: _Queue, workers: list[_Worker], limits: Limits) -> Iterator[list[Result]]:
    """Wait a little, and return what the processes have finished; the dead and the late ones are removed."""
    ready = wait([worker.connection for worker in workers], timeout=_POLL)
    for worker, client in [(each, each.client) for each in workers if each.client is not None]:
        fate = worker.fate(limits, heard=worker.connection in ready)
        if isinstance(fate, list):
            yield fate
        elif fate:
            workers.remove(worker)
            worker.end()
            yield queue.failed(client, fate)
    yield []


@dataclass
class _Queue:
    """Clients that wait, and how often each was tried."""

    clients: Sequence[ClientCells]
    waiting: deque[int] = field(init=False)
    kinds: list[str] = field(init=False)
    tried: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.waiting, self.tried = deque(range(len(self.clients))), [0] * len(self.clients)
        self.kinds = [cells[0].kind for cells in self.clients]

    def next(self, kind: str | None, others: Collection[str]) -> int | None:
        """Take the next client: of this kind, else of one that no process is at, else of the largest."""
        counts = Counter(self.kinds[client] for client in self.waiting)
        if not counts:
            return None
        free = [each for each in counts if each == kind] or [each for each in counts if each not in others]
        best = free[0] if free else max(counts, key=lambda each: counts[each])
        chosen = next(client for client in self.waiting if self.kinds[client] == best)
        self.waiting.remove(chosen)
        return chosen

    def failed(self, client: int, fate: str) -> list[Result]:
        """Let a client wait again; after its last attempt return its cells, failed."""
        self.tried[client] += 1
        if self.tried[client] < ATTEMPTS:
            self.waiting.append(client)
            return []
        status = f"failed: {fate}, {ATTEMPTS} times"
        blanks = (cell.pipeline.blank(cell.case) for cell in self.clients[client])
        return [Result(blank.model_copy(update={"status": status})) for blank in blanks]


class _Worker:
    """One forked process that runs the cells of one client after the other.

    Attributes:
        connection: to the process.
        client: index of the client that it is at; None while it is idle.
        kind: of the client that it had last.
    """

    def __init__(self, clients: Sequence[ClientCells], limits: Limits) -> None:
        context = get_context("fork")  # models and objects of a caller need not be pickled, data is shared
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(clients, theirs, limits, os.getpid()), daemon=True
        )
        self.client: int | None = None
        self.kind: str | None = None
        self._begin = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads of this process, none of which the child waits for
            try:
                self._process.start()
            except OSError as error:
                raise VleakError(
                    f"no process can be started ({error}); lower the number of workers"
                ) from error
        theirs.close()

    def give(self, client: int, kind: str) -> None:
        """Let it run the cells of a client."""
        self.client, self.kind, self._begin = client, kind, time.monotonic()
        with suppress(OSError):  # it has died: its fate is told when it is asked for
            self.connection.send_bytes(str(client).encode())

    def fate(self, limits: Limits, *, heard: bool) -> list[Result] | str:
        """Return what became of its client: results, why there are none, or "" while it computes.

        Raises:
            BaseException: what the process raised outside of the parts that belong to plug-ins.
        """
        if heard:
            try:
                outcome = pickle.loads(self.connection.recv_bytes())
            except (EOFError, OSError):
                return self._death()
            if isinstance(outcome, BaseException):
                raise outcome
            self.client = None
            answered: list[Result] | str = outcome
            return answered
        if limits.seconds is not None and time.monotonic() > self._begin + limits.seconds:
            return f"took longer than {argument('cell_seconds', f'{limits.seconds:g}')}"
        return ""

    def _death(self) -> str:
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        return f"ended its process ({process_ending(code)})"

    def end(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(clients: Sequence[ClientCells], connection: Connection, limits: Limits, parent: int) -> NoReturn:
    """Run the clients that the parent asks for, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with(parent)
    torch.set_num_threads(1)  # pools of threads do not survive a fork
    _limit_memory(limits.gibibytes)
    while True:
        try:
            client = int(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)  # not sys.exit: what the parent has buffered is the parent's to write
        connection.send_bytes(_outcome(clients[client]))


def _outcome(cells: ClientCells) -> bytes:
    """Results as bytes, or why there are none, or what the parent raises as it would without processes."""
    try:
        return pickle.dumps(run_group([cells], lambda: False))
    except MemoryError:
        return pickle.dumps("ran out of memory")
    except BaseException as error:  # noqa: BLE001
        return pickle.dumps(error)


def _end_with(parent: int) -> None:
    """Let the kernel end this process with its parent, however that ends."""
    with suppress(OSError, AttributeError):  # not on Linux
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(0)


def _limit_memory(gibibytes: float | None) -> None:
    """Bound the address space: an allocation beyond it fails, as on a machine that has no more."""
    if gibibytes is None:
        return
    with open("/proc/self/statm") as sizes:
        now = int(sizes.read().split()[0]) * resource.getpagesize()
    most = now + int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
