"""The Typer application and how its errors become one line."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from types import FrameType
from typing import Annotated

import typer

from vleak.cli import output
from vleak.cli.doctor import doctor
from vleak.cli.evaluate import evaluate
from vleak.cli.listing import list_names
from vleak.cli.report import report
from vleak.errors import VleakError

app = typer.Typer(
    name="vleak",
    help="Rebuild private clips from federated model updates, and report what each defense still leaks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(evaluate)
app.command()(report)
app.command("list")(list_names)
app.command()(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        import vleak

        print(vleak.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Rebuild private clips from federated model updates, and report what each defense still leaks."""


def invoke(arguments: list[str]) -> int:
    """Run the application; return 0, or 2 after one line on stderr."""
    signal.signal(signal.SIGTERM, _interrupt)  # a stop from outside ends a run as Ctrl-C does
    warnings.showwarning = output.warning
    try:
        code = app(arguments, prog_name="vleak", standalone_mode=False)
    except VleakError as error:
        return output.fail(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        return output.fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001  the last line before a traceback; nothing is swallowed
        return _usage_or_bug(error)
    return code if isinstance(code, int) else 0


def _usage_or_bug(error: Exception) -> int:
    # Typer's usage errors are known by what they can do: their class lives in a private module.
    if hasattr(error, "format_message"):
        return output.fail(f"{error.format_message().rstrip('.')}; see `vleak --help`")
    if type(error).__name__ == "Abort":  # how Typer reports Ctrl-C
        raise KeyboardInterrupt from error
    if os.environ.get("VLEAK_DEBUG"):
        traceback.print_exc()
    line = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return output.fail(
        f"internal error, {type(error).__name__}: {line}; VLEAK_DEBUG=1 shows where, please report it"
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
