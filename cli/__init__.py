"""Command line of vleak, on top of the public API; slow imports come after the handling of Ctrl-C."""

from __future__ import annotations

import os
import sys

from vleak.cli import stopping, streams

__all__ = ["main", "run"]


def main() -> None:
    """Run `vleak`.

    The exit code is 0, or, after one line on stderr, 1 (a requested check failed), 2 (an error: what is wrong
    and what to do), or 128 and the number of the signal that stopped it: 130 after Ctrl-C.
    """
    streams.open_missing()
    _prefer_installed()
    try:
        stopping.listen()
        stopping.guard_exit()
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # just before or just after the run
        code = _interrupted()
    stopping.end(code)


def run(arguments: list[str]) -> int:
    """Run the command line with these arguments and return its exit code."""
    try:
        from vleak.cli.app import invoke

        code = invoke(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _interrupted()
    except OSError as error:
        # The reader of stdout is gone, or its disk is full.
        from vleak.cli import output

        streams.discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return 2
        return output.fail(f"cannot write to stdout: {error.strerror}; send it elsewhere")


def _interrupted() -> int:
    from vleak.cli import output

    return output.fail("stopped", stopping.code())


def _prefer_installed() -> None:
    """Move the working folder to the end of the path, where Python has put it first.

    A file such as ``torch.py`` in it must not take the place of what vleak imports.
    """
    if sys.path and sys.path[0] in ("", _working_folder()):
        sys.path.append(sys.path.pop(0))


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return ""
