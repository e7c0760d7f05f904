"""Attacks that die, hang or fill the memory, at every clip or at the first try of it alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import torch

from vleak import Attack, Observation, Reconstruction


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    time.sleep(600)


def _leave() -> None:
    os._exit(3)


def _fill() -> None:
    torch.ones(2**40)


def _fork() -> None:
    os.fork()  # and both go on


def _leave_behind(folder: Path) -> None:
    pid = os.fork()
    if not pid:
        time.sleep(600)
    (folder.parent / f"left-{pid}").touch()
    _die()


def _interrupt() -> None:
    raise KeyboardInterrupt


_WAYS = {
    "die": _die, "hang": _hang, "leave": _leave, "fill": _fill, "fork": _fork, "interrupt": _interrupt,
    "print": lambda: print("hello from a plug-in"),
}  # fmt: skip


class Costly(Attack):
    """Attack that answers in gray, unless it does harm before."""

    name: ClassVar[str] = "costly"
    takes: ClassVar[frozenset[str]] = frozenset({"frames"})

    def __init__(self, *, way: str, marks: str, tries: int) -> None:
        """Take the harm (a key of ``_WAYS``), the folder that counts tries, and how many of them do harm."""
        self.way, self.marks, self.tries = way, marks, tries

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: object) -> Reconstruction:
        """Do harm, or answer."""
        folder, known = Path(self.marks), observation.knowledge
        (folder / uuid4().hex).touch()
        if len(list(folder.iterdir())) <= self.tries:
            _leave_behind(folder) if self.way == "leave behind" else _WAYS[self.way]()
        clips = torch.full((known.batch_size, *known.clip_shape), 0.5)
        return Reconstruction(clips=clips, labels=torch.zeros(known.batch_size, dtype=torch.int64))
