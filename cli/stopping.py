"""Handling of Ctrl-C and SIGTERM, which stop a command at any time."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from vleak.errors import VleakError

INTERRUPTED = 130
"""Exit code of an interrupted command, as in shells after Ctrl-C."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 2.0  # seconds in which a second signal counts as a repetition of the first
_asked_at: float | None = None


class StoppedError(VleakError):
    """Error of a command that the user stopped; the message names the results that were kept."""


def listen() -> None:
    """Let both signals raise KeyboardInterrupt, except one that the process ignores from its start."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # background jobs of scripts ignore Ctrl-C
            signal.signal(number, _hear)


def finish() -> None:
    """Ignore both signals from now on, when the command has ended."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def asked() -> bool:
    """Return whether a signal arrived; errors after it are consequences of stopping."""
    return _asked_at is not None


def check() -> None:
    """Raise KeyboardInterrupt again after a signal whose exception was lost, as in imports."""
    if asked():
        raise KeyboardInterrupt


def resume_command(folder: Path) -> str:
    """Return the command that resumes this one in the folder of its results."""
    path = Path(sys.argv[0])  # after `make`, vleak is in .venv and not on the PATH
    program = str(path) if path.is_file() and not shutil.which("vleak") else "vleak"
    pairs = zip(["", *sys.argv[1:]], sys.argv[1:], strict=False)
    arguments = [
        argument for previous, argument in pairs if "--out" not in (previous, argument.partition("=")[0])
    ]
    return shlex.join([program, *arguments, "--out", str(folder)])


def _hear(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt at the first signal; wrappers forward signals, so that one may arrive twice.

    A second signal after ``_PATIENCE`` seconds ends the process at once; finished cells are already stored.
    """
    global _asked_at
    now = time.monotonic()
    if _asked_at is None:
        _asked_at = now
        raise KeyboardInterrupt
    if now - _asked_at > _PATIENCE:
        os.write(2, b"vleak: stopped at once\n")
        os._exit(INTERRUPTED)
