"""Command line of vleak, on top of the public API; slow imports come after the handling of Ctrl-C."""

from __future__ import annotations

import sys

from vleak.cli import stopping

__all__ = ["main", "run"]


def main() -> None:
    """Run `vleak`.

    The exit code is 0, or, after one line on stderr, 1 (a requested check failed), 2 (an error: what is wrong
    and what to do), or 130 (interrupted).
    """
    try:
        stopping.listen()
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # just before or just after the run
        code = _interrupted()
    stopping.finish()
    sys.exit(code)


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
        # The reader of stdout is gone, or its disk is full; the exit must not report it again.
        from vleak.cli import output

        output.close_stdout()
        if not isinstance(error, BrokenPipeError):
            print(f"vleak: cannot write to stdout: {error.strerror}; send it elsewhere", file=sys.stderr)
        return 2


def _interrupted() -> int:
    print("vleak: stopped", file=sys.stderr)
    return stopping.INTERRUPTED
