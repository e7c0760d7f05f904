"""Ctrl-C and SIGTERM: a command is asked to stop, and does, whatever it is doing."""

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
"""Exit code of a command that was stopped, as shells have it for Ctrl-C."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 2.0  # seconds in which a second signal is an echo of the first
_asked_at: float | None = None


class StoppedError(VleakError):
    """The user stopped the command; says what was kept."""


def listen() -> None:
    """Let both signals raise KeyboardInterrupt, except one that this process was started deaf to."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # a script's background job is not to hear Ctrl-C
            signal.signal(number, _hear)


def finish() -> None:
    """Hear no more: nothing is left that could be stopped."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def asked() -> bool:
    """Tell whether a signal came; what goes wrong after that is no news."""
    return _asked_at is not None


def check() -> None:
    """Raise the KeyboardInterrupt once more if something swallowed it, as imports of large packages do."""
    if asked():
        raise KeyboardInterrupt


def resume_command(folder: Path) -> str:
    """Return the command that takes up what this one was about, in the folder that it wrote to."""
    path = Path(sys.argv[0])  # after `make`, vleak is in .venv and not on the PATH
    program = str(path) if path.is_file() and not shutil.which("vleak") else "vleak"
    pairs = zip(["", *sys.argv[1:]], sys.argv[1:], strict=False)
    kept = [given for before, given in pairs if "--out" not in (before, given.partition("=")[0])]
    return shlex.join([program, *kept, "--out", str(folder)])


def _hear(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt once: wrappers pass a signal on, so that it may come twice.

    Whoever asks again after some seconds gets out at once; what a run finished is on the disk anyway.
    """
    global _asked_at
    now = time.monotonic()
    if _asked_at is None:
        _asked_at = now
        raise KeyboardInterrupt
    if now - _asked_at > _PATIENCE:
        os.write(2, b"vleak: stopped at once\n")
        os._exit(INTERRUPTED)
