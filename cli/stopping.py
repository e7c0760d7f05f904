"""Handling of Ctrl-C, SIGTERM and SIGHUP, which stop a command at any time.

The first signal raises KeyboardInterrupt in the main thread, and the command ends in order. The second ends
the process, whatever its threads do: cells are in the journal as soon as they are finished.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from vleak.errors import VleakError

INTERRUPTED = 130
"""Exit code of an interrupted command, as in shells after Ctrl-C."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 5.0  # seconds that the end in order may take before a word, or without a terminal the end
_GRACE = 1.5  # seconds from the second signal, which wrappers may send along with the first, to the end
_exit = os._exit
_asked_by: int | None = None
_ended: int | None = None
_last_words: Callable[[], str] | None = None


class StoppedError(VleakError):
    """Error of a command that the user stopped; the message names the results that were kept."""


def listen() -> None:
    """Let the signals raise KeyboardInterrupt, except those that the process ignores from its start.

    A thread hears them too, through a pipe, so that the main thread cannot keep the process from ending.
    """
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup, jobs
    pipe, end = os.pipe()
    os.set_blocking(end, False)
    signal.set_wakeup_fd(end, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(pipe, heard), daemon=True).start()
    for number in heard:
        signal.signal(number, _hear)


def end(code: int) -> NoReturn:
    """End the process with an exit code; a signal from now on ends it at once."""
    global _ended
    _ended = code
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if any(not thread.daemon for thread in others):  # of a plug-in; Python would wait for them
        sys.stderr.flush()
        _exit(code)
    sys.exit(code)


def guard_exit() -> None:
    """Let os._exit, which a plug-in may call, raise SystemExit in this process; not in its children."""
    process = os.getpid()

    def leave(status: int) -> NoReturn:
        if os.getpid() != process:
            _exit(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = leave


def asked() -> bool:
    """Return whether a signal arrived; errors after it are consequences of stopping."""
    return _asked_by is not None


def code() -> int:
    """Return the exit code after a signal, as shells have it: 130 after Ctrl-C, 143 after SIGTERM."""
    return INTERRUPTED if _asked_by is None else 128 + _asked_by


def check() -> None:
    """Raise KeyboardInterrupt again after a signal whose exception was lost, as in imports."""
    if asked():
        raise KeyboardInterrupt


def tell_at_end(words: Callable[[], str]) -> None:
    """Set what the process says if it must end at once: what it kept."""
    global _last_words
    _last_words = words


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
    """Raise KeyboardInterrupt at the first signal; at the end of the process, leave."""
    global _asked_by
    if _ended is not None:
        _exit(_ended)
    if _asked_by is None:
        _asked_by = number
        raise KeyboardInterrupt


def _watch(pipe: int, heard: Iterable[int]) -> None:
    """Wait for the second signal, and end the process soon after it."""
    number = _next(pipe, heard)
    if not select.select([pipe], [], [], _PATIENCE)[0]:
        if number != signal.SIGINT:  # from a system that ends services and sends no second one
            _leave(number)
        _write("vleak: waiting for the cells under way; another Ctrl-C ends at once\n")
    number = _next(pipe, heard)
    time.sleep(_GRACE)
    _leave(number)


def _next(pipe: int, heard: Iterable[int]) -> int:
    """Return the number of the next signal that asks to stop."""
    while True:
        for number in os.read(pipe, 1):
            if number in heard:
                return number


def _leave(number: int) -> NoReturn:
    try:
        words = "stopped" if _last_words is None else _last_words()
    except OSError:
        words = "stopped"
    _write(f"vleak: {words}\n")
    _exit(128 + number)


def _write(text: str) -> None:
    """Write to stderr past its buffer, whose lock another thread may hold."""
    try:
        os.write(2, text.encode(errors="backslashreplace"))
    except OSError:  # its reader is gone, and there is nobody to tell
        return
