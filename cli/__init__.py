"""The command line: only the public API is used, and nothing slow is imported before Ctrl-C is caught."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run `vleak`: exit code 0, or 2 with one line on stderr that says what is wrong and what to do."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line with these arguments and return its exit code."""
    try:
        from vleak.cli.app import invoke

        return invoke(arguments)
    except KeyboardInterrupt:
        print("vleak: stopped", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output went away; a further write at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
