"""Trial of a user's factory in a child process: one that hangs or ends its process costs one line, no run."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import torch

from vleak.errors import InputError, out_of_memory, process_ending
from vleak.models.memory import free_gibibytes, limit_memory

__all__ = ["SECONDS", "VARIABLE", "try_factory"]

SECONDS = 120.0
"""Time that a factory has on trial."""
VARIABLE = "VLEAK_FACTORY_SECONDS"
"""Environment variable with another time in seconds; 0 skips the trial."""

_FINE = "fine"


def try_factory(what: str, call: Callable[[], object]) -> None:
    """Run a call in a forked child process before it runs here; what it makes ends with the child.

    An ordinary exception passes the trial: the call raises it again where it counts. The child has the memory
    that is free, so that a call that takes all of it fails and nothing else does. Where processes cannot be
    forked there is no trial.

    Args:
        what: subject of the messages, such as "model 'package.module:factory'".
        call: imports the factory and calls it.

    Raises:
        InputError: the call did not come back in time, ended the process, raised what would end a run, took
            all memory, or closed stdout or stderr; or the environment variable is no number.
    """
    limit = _limit()
    if limit and hasattr(os, "fork"):
        verdict = _in_child(call, limit)
        if verdict != _FINE:
            raise InputError(f"{what}: the factory {verdict}")


def _limit() -> float:
    text = os.environ.get(VARIABLE, "")
    try:
        limit = float(text) if text else SECONDS
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 1e6:
        raise InputError(f"{VARIABLE} is {text!r}, expected seconds, or 0 for no trial of factories")
    return limit


def _in_child(call: Callable[[], object], limit: float) -> str:
    """Return what became of a call in a child process: ``_FINE``, or what it did wrong."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, none of which the child waits for
        child = os.fork()
    if not child:
        os.close(reading)
        _run(call, writing)
    os.close(writing)
    try:
        return _wait(child, reading, limit)
    finally:
        os.close(reading)


def _wait(child: int, reading: int, limit: float) -> str:
    """Return the child's verdict; the child has ended when this returns or raises."""
    status, end = None, time.monotonic() + limit
    try:
        while time.monotonic() < end:
            status = _status(child, os.WNOHANG)  # before the pipe, so that no last word is missed
            if select.select([reading], [], [], 0.02)[0] and (said := os.read(reading, 4096)):
                return said.decode()
            if status is not None:
                return _ending(status)
        return (
            f"did not return within {limit:g} s; call it by hand to see where it hangs, or give it more time "
            f"with {VARIABLE}"
        )
    finally:
        if status is None:
            os.kill(child, signal.SIGKILL)
            _status(child, 0)


def _status(child: int, flags: int) -> int | None:
    """Status of a child that has ended; None while it runs."""
    try:
        done, status = os.waitpid(child, flags)
    except ChildProcessError:  # a process that ignores SIGCHLD never learns it
        return 0
    return status if done else None


def _ending(status: int) -> str:
    how = process_ending(os.waitstatus_to_exitcode(status))
    return f"ended its process ({how}); let it return a torch.nn.Module, or raise an exception"


def _run(call: Callable[[], object], writing: int) -> NoReturn:
    """Make the call, write the verdict into the pipe, and end this process."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the child
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)  # pools of threads do not survive a fork
        limit_memory(free_gibibytes())
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        sys.stdout, sys.stderr = (open(os.devnull, "w") for _ in range(2))  # noqa: SIM115
        os.write(writing, _verdict(call).encode()[:4096])
    finally:
        os._exit(0)  # not sys.exit: what the parent has buffered is the parent's to write


def _verdict(call: Callable[[], object]) -> str:
    streams = {"stdout": sys.stdout, "stderr": sys.stderr}
    if told := _raised(call):
        return told
    closed = [name for name, stream in streams.items() if stream.closed]
    closed += [name for name, descriptor in (("stdout", 1), ("stderr", 2)) if not _is_open(descriptor)]
    return "closed stdout or stderr, which results and messages are written to" if closed else _FINE


def _raised(call: Callable[[], object]) -> str:
    """Make the call and return what it raised that would end a run; empty for none."""
    try:
        call()
    except Exception as error:  # noqa: BLE001  it is raised again, and told, where the factory is called to be used
        causes = [error, error.__cause__ or error]
        filled = any(map(out_of_memory, causes))
        return "took all the memory that is free; let it make a smaller model" if filled else ""
    except BaseException as error:  # noqa: BLE001  KeyboardInterrupt is its own here: the child ignores Ctrl-C
        return f"raised {type(error).__name__}, which would end the run; raise an ordinary exception"
    return ""


def _is_open(descriptor: int) -> bool:
    with suppress(OSError):
        os.fstat(descriptor)
        return True
    return False
