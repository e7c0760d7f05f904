"""Standard streams: closed ones are opened again, and plug-ins write to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

__all__ = ["discard", "open_missing", "plugins_on_stderr"]


def open_missing() -> None:
    """Open standard streams that are closed, so that no file of a run gets their numbers.

    Nothing is heard of what is written to a closed stderr; writing to a closed stdout stays an error.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)  # the lowest free number, which is this one
            os.set_inheritable(opened, True)
    sys.stdout = sys.stdout or _text(1)
    sys.stderr = sys.stderr or _text(2)


def discard(stream: TextIO) -> None:
    """Discard the rest of the output to a stream, so that the exit does not report an error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def plugins_on_stderr() -> Iterator[None]:
    """Send what is written to stdout in the block to stderr: stdout is for the results of the command.

    Both streams of Python are others meanwhile, so that a plug-in may close them.
    """
    with ExitStack() as stack:
        if _is_file(sys.stdout, 1):
            stack.enter_context(_number_to_stderr(1))
        if _is_file(sys.stderr, 2):
            stack.enter_context(redirect_stderr(_opened(stack)))
            stack.enter_context(redirect_stdout(_opened(stack)))
        else:
            stack.enter_context(redirect_stdout(sys.stderr))
        yield


@contextmanager
def _number_to_stderr(number: int) -> Iterator[None]:
    sys.stdout.flush()
    kept = os.dup(number)
    os.dup2(2, number)
    try:
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)


def _opened(stack: ExitStack) -> TextIO:
    """Return another stream to stderr."""
    stream = _text(os.dup(2))
    stack.callback(_close, stream)
    return stream


def _text(number: int) -> TextIO:
    """Return a stream to what a number stands for."""
    return os.fdopen(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace")


def _close(stream: TextIO) -> None:
    try:
        stream.close()
    except OSError:  # nobody reads stderr; closed it is all the same
        return


def _is_file(stream: TextIO, number: int) -> bool:
    """Return whether a stream writes to the standard one of the process, not into memory as in tests."""
    try:
        return stream.fileno() == number
    except (OSError, ValueError):
        return False
