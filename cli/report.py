"""`vleak report`: write the page of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vleak.cli import output


def report(run: Annotated[Path, typer.Argument(help="Folder of a run, finished or stopped.")]) -> None:
    """Write report.html of a run again and say where it is."""
    from vleak.report import write_report
    from vleak.report.words import headline
    from vleak.results import read_run, summarise

    record = read_run(run)
    page = write_report(run)
    for line in headline(summarise(record), record):
        output.say(line)
    output.say(f"report: {page}")
