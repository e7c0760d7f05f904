"""The command line: only the public API is used, and nothing slow is imported before Ctrl-C is caught."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

__all__ = ["main", "run"]

_STOPS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 2.0
_asked: float | None = None


def main() -> None:
    """Run `vleak`: exit code 0, or 2 with one line on stderr that says what is wrong and what to do."""
    for number in _STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:  # a script's background job is not to hear Ctrl-C
            signal.signal(number, _interrupt)
    code = run(sys.argv[1:])
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)  # nothing is left that could be stopped
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line with these arguments and return its exit code."""
    try:
        from vleak.cli.app import invoke

        code = invoke(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("vleak: stopped", file=sys.stderr)
        return 2
    except OSError as error:
        # The reader of our output went away, or its disk is full; the exit must not complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"vleak: cannot write to stdout: {error.strerror}; send it elsewhere", file=sys.stderr)
        return 2


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Stop as Ctrl-C does. A wrapper may pass the signal on, so that it comes twice: the first one counts.

    Whoever asks again after some seconds gets out at once; what a run finished is on the disk anyway.
    """
    global _asked
    now = time.monotonic()
    if _asked is None:
        _asked = now
        raise KeyboardInterrupt
    if now - _asked > _PATIENCE:
        os.write(2, b"vleak: stopped at once\n")
        os._exit(2)
