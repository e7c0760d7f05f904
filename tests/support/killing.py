"""Runs in processes that can be killed at any moment, forked off a server that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch

from vleak.evaluation import Settings, evaluate

CELLS = 12
"""Of a baseline and an attack on 6 clips."""


def small() -> Settings:
    """Return settings of a run that a fraction of a second finishes, with clips that need no drawing."""
    clips = torch.rand(CELLS // 2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return Settings(
        data=(clips, torch.arange(CELLS // 2) % 2), defenses=("none",), attacks=("matching",), iterations=3,
        audit_draws=0, non_adaptive=0,
    )  # fmt: skip


def server() -> ForkServerContext:
    """Return the context whose processes begin with the imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killing", "torch._dynamo"])
    return context


def _evaluate(folder: str, workers: int, told: Synchronized[int]) -> None:
    """Run to the end, and tell before the first and after every stored cell how many there are."""

    def tell(what: str, done: int, total: int) -> None:
        if what == "attacking":
            told.value = done

    os.setsid()  # its descendants are found by the session
    evaluate(small(), Path(folder), workers=workers, progress=tell)


class Run:
    """A run under way, in a session of its own.

    Attributes:
        told: how many cells it said are stored; -1 while it has not come to its cells.
    """

    def __init__(self, context: ForkServerContext, folder: Path, workers: int) -> None:
        """Start it."""
        self.told: Synchronized[int] = context.Value("i", -1)
        self.process: BaseProcess = context.Process(target=_evaluate, args=(str(folder), workers, self.told))
        self.process.start()

    def wait_for_cells(self, stored: int = 0) -> None:
        """Wait until it has come to its cells and said that so many are stored, or ended."""
        while self.told.value < stored and self.process.is_alive():
            time.sleep(0.002)

    def family(self) -> list[int]:
        """Return the processes of its session."""
        return [pid for pid, session in _sessions() if session == self.process.pid]

    def kill(self, after: float) -> bool:
        """Kill it after some seconds, unless it ends before; return whether it was killed."""
        self.process.join(after)
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def kill_worker(self) -> bool:
        """Kill a worker of it, if there is one."""
        workers = [pid for pid in self.family() if pid != self.process.pid]
        for pid in workers[:1]:
            with suppress(ProcessLookupError):  # it ended by itself
                os.kill(pid, signal.SIGKILL)
        return bool(workers)

    def wait_until_gone(self, seconds: float = 30) -> None:
        """Wait until no process of it is left.

        Raises:
            AssertionError: one stays.
        """
        end = time.monotonic() + seconds
        while left := self.family():
            assert time.monotonic() < end, f"processes {left} outlive their run"
            time.sleep(0.01)


def _sessions() -> list[tuple[int, int]]:
    """Return every living process with its session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if state not in "ZX":
                found.append((int(folder.name), int(session)))
    return found
