"""Clients in a queue and workers that may die at them: what is tried again, and what is given up."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from vleak.errors import InputError, VleakError, argument, first_line
from vleak.evaluation.groups import Result, StoppedError, run_group
from vleak.evaluation.plan import PlannedCell

__all__ = ["ATTEMPTS", "POLL", "ClientCells", "Crew", "Limits", "Outcome", "Worker", "outcome", "run_clients"]

ATTEMPTS = 3
"""Workers that a client's cells may cost; after them the cells are recorded as failed."""
POLL = 0.2
"""Seconds between two looks at the clock and at the caller's stop."""

ClientCells: TypeAlias = Sequence[PlannedCell]
"""Cells of one client, which one attack answers."""
Outcome: TypeAlias = "list[Result] | str | BaseException"
"""Results of a client, why there are none, or what the caller raises as it would without workers."""


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


class Worker(ABC):
    """One process that runs the cells of one client after the other.

    Attributes:
        client: index of the client that it is at; None while it is idle.
        kind: of the client that it had last. first: whether that is its first client of the kind.
        ready: whether it can be given a client.
    """

    client: int | None = None
    kind: str | None = None
    first = False
    ready = True
    _begin = 0.0

    @property
    def seconds(self) -> float:
        """Wall time since it was given its client."""
        return time.monotonic() - self._begin

    def give(self, client: int, kind: str) -> None:
        """Let it run the cells of a client."""
        self.first = kind != self.kind
        self.client, self.kind, self._begin = client, kind, time.monotonic()
        self._send(client)

    def fate(self, limits: Limits, *, heard: bool) -> list[Result] | str:
        """Return what became of its client: results, why there are none, or "" while it computes.

        Raises:
            BaseException: what the worker raised outside of the parts that belong to plug-ins.
        """
        if heard:
            told = self._receive()
            if isinstance(told, BaseException):
                raise told
            if isinstance(told, list):
                self.client = None
            return told
        late = limits.seconds is not None and self.seconds > limits.seconds
        if self.client is not None and late:
            return f"took longer than {argument('cell_seconds', f'{limits.seconds:g}')}"
        return ""

    @abstractmethod
    def _send(self, client: int) -> None:
        """Let the process begin with a client; one that has died says so when it is heard."""

    @abstractmethod
    def _receive(self) -> Outcome:
        """Return what the process has to say: an outcome, how it ended, or "" where it became ready."""

    @abstractmethod
    def end(self) -> None:
        """End the process at once."""


class Crew(ABC):
    """Where workers are from.

    Attributes:
        starting: what is done before the first cell, for progress.
        remedy: what to do where no worker stays alive, for messages.
    """

    starting: ClassVar[str] = "attacking"
    remedy: ClassVar[str]

    @abstractmethod
    def open(self, clients: Sequence[ClientCells], limits: Limits) -> AbstractContextManager[int]:
        """Context in which workers can be started; gives how many at a time.

        Args:
            clients: for each the cells of its clips; a worker is told an index of it.
            limits: of the memory of every worker.
        """

    @abstractmethod
    def start(self) -> Worker:
        """Start a worker.

        Raises:
            VleakError: none can be started.
        """

    @abstractmethod
    def heard(self, workers: Sequence[Worker]) -> Collection[Worker]:
        """Wait for `POLL` seconds at most, and return the workers that have something to say."""


def run_clients(
    clients: Sequence[ClientCells], crew: Crew, limits: Limits, stop: Callable[[], bool]
) -> Generator[list[Result]]:
    """Run the cells of clients by workers; what comes back is what it is in this process.

    A worker works through clients of one defense and attack as long as there are any, since attacks learn
    once for all of them; it joins another worker at what is left only where the learning pays. It is
    replaced when it dies, or takes too long; its client is then tried again, in all `ATTEMPTS` times.

    Args:
        clients: for each the cells of its clips.
        crew: where the workers are from; each computes with one thread.
        limits: of every client.
        stop: asked some times a second.

    Yields:
        results of one client after the other as they are finished; an empty list while nothing is.

    Raises:
        StoppedError: ``stop`` said so.
        VleakError: no worker can be started, or none stays alive.
    """
    queue, workers = _Queue(clients), list[Worker]()
    if not clients:
        return
    with crew.open(clients, limits) as count:
        try:
            while queue.waiting or any(worker.client is not None for worker in workers):
                _assign(queue, workers, count, crew)
                yield from _finished(queue, workers, limits, crew)
                if stop():
                    raise StoppedError("stopped")
        finally:
            for worker in workers:
                worker.end()


def _assign(queue: _Queue, workers: list[Worker], count: int, crew: Crew) -> None:
    """Give every idle worker a client, and start workers while there are clients for them."""
    while len(workers) < min(count, len(workers) + len(queue.waiting)):
        workers.append(crew.start())
    for worker in workers:
        if worker.client is None and worker.ready:
            others = {queue.kinds[other.client] for other in workers if other.client is not None}
            if (client := queue.next(worker.kind, others)) is not None:
                worker.give(client, queue.kinds[client])


def _finished(queue: _Queue, workers: list[Worker], limits: Limits, crew: Crew) -> Iterator[list[Result]]:
    """Wait a little, and return what the workers have finished; the dead and the late ones are removed."""
    heard = crew.heard(workers)
    for worker, client in [(each, each.client) for each in workers]:
        fate = worker.fate(limits, heard=worker in heard)
        if isinstance(fate, list):
            queue.finished(worker)
            yield fate
        elif fate:
            workers.remove(worker)
            worker.end()
            yield queue.failed(client, fate, crew.remedy)
    yield []


@dataclass
class _Queue:
    """Clients that wait, how often each was tried, and how many workers died in a row without a client."""

    clients: Sequence[ClientCells]
    waiting: deque[int] = field(init=False)
    kinds: list[str] = field(init=False)
    tried: list[int] = field(init=False)
    idle_deaths: int = 0
    took: dict[tuple[str, bool], float] = field(default_factory=dict)
    """Seconds of the last client of a kind: of a worker's first one, with what it learns, or a later one."""

    def __post_init__(self) -> None:
        self.waiting, self.tried = deque(range(len(self.clients))), [0] * len(self.clients)
        self.kinds = [cells[0].kind for cells in self.clients]

    def next(self, kind: str | None, others: Collection[str]) -> int | None:
        """Take the next client: of this kind, else of one that no worker is at, else of the largest.

        None where there is none, or where those that are at it will be done before one that joins them.
        """
        counts = Counter(self.kinds[client] for client in self.waiting)
        free = [each for each in counts if each == kind] or [each for each in counts if each not in others]
        joined = [each for each in counts if self._pays(each, counts[each])]
        if not free and not joined:
            return None
        best = free[0] if free else max(joined, key=lambda each: counts[each])
        chosen = next(client for client in self.waiting if self.kinds[client] == best)
        self.waiting.remove(chosen)
        return chosen

    def _pays(self, kind: str, waiting: int) -> bool:
        """Whether one that begins with a kind answers its first client before another is through with all."""
        first, later = (self.took.get((kind, each)) for each in (True, False))
        return first is None or later is None or first <= waiting * later

    def finished(self, worker: Worker) -> None:
        """Note how long a client took, and that a worker lives."""
        self.idle_deaths = 0
        if worker.kind is not None:
            self.took[worker.kind, worker.first] = worker.seconds

    def failed(self, client: int | None, fate: str, remedy: str) -> list[Result]:
        """Let a client wait again; after its last attempt return its cells, failed.

        Raises:
            VleakError: so many workers died in a row before they had a client.
        """
        if client is None:
            self.idle_deaths += 1
            if self.idle_deaths >= ATTEMPTS:
                raise VleakError(f"no worker stays alive ({fate}, {ATTEMPTS} times); {remedy}")
            return []
        self.tried[client] += 1
        if self.tried[client] < ATTEMPTS:
            self.waiting.append(client)
            return []
        status = f"failed: {fate}, {ATTEMPTS} times"
        blanks = (cell.pipeline.blank(cell.case) for cell in self.clients[client])
        return [Result(blank.model_copy(update={"status": status})) for blank in blanks]


def outcome(cells: ClientCells) -> Outcome:
    """Run the cells of a client in the main thread of a worker, which Ctrl-C of the user does not reach."""
    try:
        return run_group([cells], lambda: False)
    except MemoryError:
        return "ran out of memory"
    except (
        KeyboardInterrupt,
        GeneratorExit,
    ) as error:  # of a plug-in: the caller would take it for the user's
        return f"raised {type(error).__name__}"
    except BaseException as error:  # noqa: BLE001  it is raised where the run is
        return error if isinstance(error, VleakError) else _plain(error)


def _plain(error: BaseException) -> BaseException:
    """Return an error that travels: one of a class of Python itself, or what such a one says."""
    known = type(error).__module__ == "builtins"
    return error if known else RuntimeError(f"{type(error).__name__}: {first_line(error)}")
