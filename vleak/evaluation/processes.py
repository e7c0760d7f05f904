"""Workers that are forked processes: one that dies, hangs or fills the memory costs its cell and no more."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NoReturn

import torch

from vleak.errors import VleakError, process_ending
from vleak.evaluation.workers import POLL, ClientCells, Crew, Limits, Outcome, Worker, outcome
from vleak.models.memory import limit_memory

__all__ = ["Processes"]

_PARENT_DEATH = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


class Processes(Crew):
    """Forked processes, which share the data and need no pickle of models and objects of a caller."""

    remedy = "free memory, or lower the number of workers"

    def __init__(self, count: int) -> None:
        """Take how many run side by side, at least 1."""
        self._count = count
        self._clients: Sequence[ClientCells] = ()
        self._limits = Limits()

    @contextmanager
    def open(self, clients: Sequence[ClientCells], limits: Limits) -> Iterator[int]:
        """Context in which processes can be started; gives how many at a time."""
        self._clients, self._limits = clients, limits
        yield self._count

    def start(self) -> Worker:
        """Fork a process.

        Raises:
            VleakError: there can be no more processes.
        """
        return _Process(self._clients, self._limits)

    def heard(self, workers: Sequence[Worker]) -> Collection[Worker]:
        """Wait for `POLL` seconds at most, and return the workers that have something to say, or are dead."""
        processes = [worker for worker in workers if isinstance(worker, _Process)]
        wait([worker.connection for worker in processes], timeout=POLL)
        return [worker for worker in processes if worker.speaks()]


class _Process(Worker):
    """One forked process.

    Attributes:
        connection: to the process.
    """

    def __init__(self, clients: Sequence[ClientCells], limits: Limits) -> None:
        context, self._ended = get_context("fork"), False
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(clients, theirs, limits, os.getpid()), daemon=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads of this process, none of which the child waits for
            try:
                self._process.start()
            except OSError as error:
                raise VleakError(
                    f"no process can be started ({error}); lower the number of workers"
                ) from error
        theirs.close()

    def speaks(self) -> bool:
        """Whether it has said something, or is dead: a process that it left behind may keep the pipe open."""
        return self.connection.poll() or self._dead()

    def _dead(self) -> bool:
        """Whether it ended; it is left unreaped, so that no other process gets its number."""
        pid = self._process.pid
        assert pid is not None
        return self._ended or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _send(self, client: int) -> None:
        with suppress(OSError):  # it has died: its fate is told when it is asked for
            self.connection.send_bytes(str(client).encode())

    def _receive(self) -> Outcome:
        with suppress(EOFError, OSError):
            if self.connection.poll():
                told: Outcome = pickle.loads(self.connection.recv_bytes())
                return told
        self._kill()
        code = self._process.exitcode
        assert code is not None
        return f"ended its process ({process_ending(code)})"

    def end(self) -> None:
        """End the process at once, and what it has started."""
        self._kill()
        self.connection.close()

    def _kill(self) -> None:
        if self._ended:
            return
        self._ended, pid = True, self._process.pid
        assert pid is not None
        with suppress(OSError):  # it did not come so far as to have a group of its own
            os.killpg(pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()


def _serve(clients: Sequence[ClientCells], connection: Connection, limits: Limits, parent: int) -> NoReturn:
    """Run the clients that the parent asks for, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setpgid(0, 0)  # so that the parent ends what a plug-in starts too
    _end_with(parent)
    torch.set_num_threads(1)  # pools of threads do not survive a fork
    limit_memory(limits.gibibytes)
    while True:
        try:
            client = int(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)  # not sys.exit: what the parent has buffered is the parent's to write
        connection.send_bytes(pickle.dumps(outcome(clients[client])))


def _end_with(parent: int) -> None:
    """Let the kernel end this process with its parent, however that ends."""
    with suppress(OSError, AttributeError):  # not on Linux
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(0)
