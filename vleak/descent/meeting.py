"""Threads that let one of them do the work of all: descents of several cells become one batch.

A cell is a thread of its own, and knows nothing of the others. On a CUDA device its descents are too small
to fill the device, and those of many cells share the weights. So cells meet where they run their descents:
each waits there until all others have arrived, or have left, and the last one runs what all of them brought.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["Meeting", "present"]

Work = TypeVar("Work")
_here = threading.local()


def present() -> Meeting | None:
    """Return the meeting that this thread attends."""
    return getattr(_here, "meeting", None)


@dataclass
class _Ticket:
    """What a thread brought, and how far it is."""

    work: Any
    taken: bool = False
    done: bool = False
    error: BaseException | None = None


class Meeting:
    """Where threads bring work that is done together, one lot at a time.

    Attributes:
        batched: what `run_descents` does where it is not told: None for batches on a CUDA
            device only.
    """

    def __init__(self, *, batched: bool | None = None, patience: float = 5.0) -> None:
        """Open a meeting that nobody attends yet.

        Args:
            batched: see the attribute.
            patience: seconds that work waits for threads that are busy elsewhere, perhaps with waiting for
                something that a thread of the meeting holds.
        """
        self.batched = batched
        self._patience = patience
        self._changed = threading.Condition()
        self._attending, self._running, self._since = 0, False, 0.0
        self._tickets: list[_Ticket] = []

    @contextmanager
    def attend(self) -> Iterator[None]:
        """Let the others wait for what this thread brings, until the block ends, however it ends."""
        before = present()
        with self._changed:
            self._attending += 1
        _here.meeting = self
        try:
            yield
        finally:
            _here.meeting = before
            with self._changed:
                self._attending -= 1
                self._changed.notify_all()

    def bring(self, work: Work, run: Callable[[Sequence[Work]], None]) -> None:
        """Return once this work was done, among that of others, by whichever thread came last.

        Args:
            work: of this thread, which attends the meeting.
            run: does all the work it is given; what fails with a part of it, it keeps with that part.

        Raises:
            whatever ``run`` raised, in every thread whose work was in it.
        """
        ticket = _Ticket(work)
        lot = self._lot_with(ticket)
        if lot:
            self._work_off(lot, run)
        else:
            with self._changed:
                self._changed.wait_for(lambda: ticket.done)
        if ticket.error is not None:
            raise ticket.error

    def _lot_with(self, ticket: _Ticket) -> list[_Ticket]:
        """Wait for the others; return what this thread is to do, nothing where another thread does it."""
        with self._changed:
            self._tickets.append(ticket)
            self._since = time.monotonic()
            self._changed.notify_all()
            try:
                while not ticket.taken and not self._ready():
                    self._changed.wait(None if self._running else self._left())
            except BaseException:
                self._tickets = [each for each in self._tickets if each is not ticket]
                raise
            if ticket.taken:
                return []
            lot, self._tickets, self._running = self._tickets, [], True
            for each in lot:
                each.taken = True
            return lot

    def _ready(self) -> bool:
        return not self._running and (len(self._tickets) >= self._attending or self._left() <= 0)

    def _left(self) -> float:
        return self._since + self._patience - time.monotonic()

    def _work_off(self, lot: Sequence[_Ticket], run: Callable[[Sequence[Any]], None]) -> None:
        error: BaseException | None = None
        try:
            run([each.work for each in lot])
        except BaseException as raised:  # noqa: BLE001  raised in every thread of the lot
            error = raised
        with self._changed:
            self._running, self._since = False, time.monotonic()
            for each in lot:
                each.error, each.done = error, True
            self._changed.notify_all()
