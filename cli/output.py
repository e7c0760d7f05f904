"""Output of the command line: results to stdout, messages for people to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from vleak.errors import VleakError

console = Console(stderr=True, highlight=False)


def fail(message: str, code: int = 2) -> int:
    """Print one line on stderr and return the exit code; 2 means an error."""
    print(f"vleak: {' '.join(message.split())}", file=sys.stderr)
    return code


def say(message: str) -> None:
    """Print a sentence on stderr."""
    console.print(escape(message), soft_wrap=True)


def warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    """Print a warning as one line, without the source line that raised it."""
    console.print(f"[yellow]vleak: {escape(' '.join(str(message).split()))}[/]", soft_wrap=True)


def write_json(content: Any, otherwise: str = "send stdout elsewhere") -> None:
    """Print results as JSON, and nothing else, to stdout.

    Args:
        content: JSON values.
        otherwise: remedy or other location of the results, for the message if stdout cannot be written.

    Raises:
        BrokenPipeError: the reader of stdout is gone.
        VleakError: stdout cannot be written, as on a full disk.
    """
    try:
        json.dump(content, sys.stdout, ensure_ascii=False, indent=1, allow_nan=False)
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        close_stdout()
        raise VleakError(f"cannot write the results to stdout: {error.strerror}; {otherwise}") from error


def close_stdout() -> None:
    """Discard the rest of the output to stdout, so that the exit does not report the error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a live progress display on stderr, which is silent if stderr is no terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar


def stdout_is_terminal() -> bool:
    """Return whether stdout is a terminal; scripts get bare names."""
    return sys.stdout.isatty()


def print_table(table: Table) -> None:
    """Print a table on stdout, for commands whose result it is."""
    Console(highlight=False).print(table)
