"""The command line: only the public API is used, and nothing slow is imported before Ctrl-C is caught."""

from __future__ import annotations

import sys

from vleak.cli import stopping

__all__ = ["main", "run"]


def main() -> None:
    """Run `vleak`.

    Exit code 0, or after one line on stderr 1 (a check that was asked for failed), 2 (it could not be done:
    what is wrong and what to do), or 130 (interrupted).
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
        # The reader of our output went away, or its disk is full; the exit must not complain once more.
        from vleak.cli import output

        output.close_stdout()
        if not isinstance(error, BrokenPipeError):
            print(f"vleak: cannot write to stdout: {error.strerror}; send it elsewhere", file=sys.stderr)
        return 2


def _interrupted() -> int:
    print("vleak: stopped", file=sys.stderr)
    return stopping.INTERRUPTED
