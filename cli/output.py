"""Output of the command line: results to stdout, messages for people to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
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

from vleak.cli import streams
from vleak.errors import VleakError

_LONGEST = 400
console = Console(stderr=True, highlight=False, emoji=False)  # my_models:one: is a name


def fail(message: str, code: int = 2) -> int:
    """Print one line on stderr and return the exit code; 2 means an error.

    Control characters, of names say, are escaped; words without end are cut, commands to copy are not.
    """
    most = _LONGEST if code == 2 else len(message)
    words = (word if len(word) <= most else f"{word[:most]}…" for word in message.split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(words))
    try:
        print(f"vleak: {line}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # nobody reads stderr, or a plug-in has closed it
        _forget_stderr()
    return code


def _forget_stderr() -> None:
    try:
        streams.discard(sys.stderr)
    except (OSError, ValueError):  # it is closed
        return


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
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    with _to_stdout("cannot write the results to stdout", otherwise):
        json.dump(content, sys.stdout, ensure_ascii=plain, indent=1, allow_nan=False)
        sys.stdout.write("\n")


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
    with _to_stdout():
        Console(highlight=False, emoji=False).print(table)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout, for scripts."""
    with _to_stdout():
        print(*lines, sep="\n")


@contextmanager
def _to_stdout(failure: str = "cannot write to stdout", remedy: str = "send it elsewhere") -> Iterator[None]:
    """Name stdout in an error of what is written to it in the block."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        streams.discard(sys.stdout)
        raise VleakError(f"{failure}: {error.strerror}; {remedy}") from error
