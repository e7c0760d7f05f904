"""Typer application of the command line, and reporting of its errors in one line."""

from __future__ import annotations

import inspect
import os
import re
import traceback
import warnings
from typing import Annotated

import typer

from vleak.cli import output, stopping
from vleak.cli.audit import audit
from vleak.cli.baseline import baseline
from vleak.cli.bench import bench
from vleak.cli.conformance import conformance
from vleak.cli.doctor import doctor
from vleak.cli.evaluate import evaluate
from vleak.cli.listing import list_names
from vleak.cli.regress import regress
from vleak.cli.report import report
from vleak.cli.study import study
from vleak.cli.suite import suite
from vleak.cli.train import train
from vleak.errors import VleakError, first_line, out_of_memory

_COMMANDS = (evaluate, audit, study, report, train, bench, baseline, regress, suite)
_OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for command in _COMMANDS
    for name in inspect.signature(command).parameters
} | {"defenses": "--defense", "attacks": "--attack", "metrics": "--metric", "batch_size": "--batch"}
"""Options of the command line, by the library arguments that errors may name."""
_ARGUMENT = re.compile(rf"(?<![\w.:,=/'\"-])({'|'.join(_OPTIONS)})=(True\b)?|`({'|'.join(_OPTIONS)})`")
app = typer.Typer(
    name="vleak",
    help="Rebuild private clips from federated model updates, and report what each defense still leaks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(evaluate)
app.command()(audit)
app.command()(conformance)
app.command()(study)
app.command()(suite)
app.command()(report)
app.command()(baseline)
app.command()(regress)
app.command("list")(list_names)
app.command()(train)
app.command()(bench)
app.command()(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        import vleak

        output.print_lines([vleak.__version__])
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Rebuild private clips from federated model updates, and report what each defense still leaks."""


def invoke(arguments: list[str]) -> int:
    """Run the application and return its exit code; one line on stderr explains a code other than 0.

    Raises:
        KeyboardInterrupt: the user interrupted it.
        OSError: stdout cannot be written, or its reader is gone.
    """
    warnings.showwarning = output.warning
    try:
        code = app(arguments, prog_name="vleak", standalone_mode=False)
    except stopping.StoppedError as error:
        return output.fail(str(error), stopping.code())
    except VleakError as error:
        return output.fail(with_options(str(error)))
    except SystemExit as error:
        if isinstance(error.__context__, OSError):  # Typer and rich, when the reader of stdout is gone
            raise BrokenPipeError from error
        return _foreign(error)
    except OSError as error:
        return _system_error(error)
    except Exception as error:  # noqa: BLE001  the last line before a traceback; nothing is swallowed
        return _usage_or_bug(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return _foreign(error)
    if code == stopping.INTERRUPTED:  # what Typer returns after Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def with_options(message: str) -> str:
    """Return a library message with option names: ``clips=0`` and `` `clips` `` become ``--clips``.

    A flag takes no value: ``partial=True`` becomes ``--partial``.
    """

    def option(match: re.Match[str]) -> str:
        name, flag, quoted = match.groups()
        return f"{_OPTIONS[name or quoted]}{' ' if name and not flag else ''}"

    return _ARGUMENT.sub(option, message)


def _foreign(error: BaseException) -> int:
    """Report what vleak itself never raises."""
    return output.fail(
        f"a plug-in raised {type(error).__name__}: {first_line(error)}; mend it, or leave it out"
    )


def _system_error(error: OSError) -> int:
    """Report an error of the system; raise it where a reader is gone."""
    if isinstance(error, BrokenPipeError) and error.filename is None:
        raise error
    try:
        os.getcwd()
    except OSError:
        return output.fail("the working folder is gone; change to another and start again")
    where = "the system" if error.filename is None else error.filename
    return output.fail(f"{where}: {error.strerror or first_line(error)}")


def _usage_or_bug(error: Exception) -> int:
    # Typer's usage errors are recognised by a method, since their class is in a private module.
    if hasattr(error, "format_message"):
        return _usage(error.format_message(), getattr(getattr(error, "ctx", None), "command_path", "vleak"))
    if stopping.asked() or type(error).__name__ == "Abort":  # how older Typers report Ctrl-C
        raise KeyboardInterrupt from error
    if os.environ.get("VLEAK_DEBUG"):
        traceback.print_exc()
    if out_of_memory(error):
        return output.fail(
            "not enough memory; lower --clips, --frames, --size or --workers, of an audit --batch"
        )
    line = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return output.fail(
        f"internal error, {type(error).__name__}: {line}; VLEAK_DEBUG=1 shows where, please report it"
    )


def _usage(message: str, command: str) -> int:
    if not message:  # `vleak` without arguments, which printed its help
        return 2
    return output.fail(f"{message.rstrip('.')}; see `{command} --help`")
