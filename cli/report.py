"""`vleak report`: the page of a stored run, written again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vleak.cli import output


def report(run: Annotated[Path, typer.Argument(help="Folder of a run, finished or stopped.")]) -> None:
    """Write report.html of a run again and print its path."""
    from vleak import api
    from vleak.report import headline

    loaded = api.load_run(run)
    page = loaded.report()
    for line in headline(loaded.rows, loaded.record):
        output.say(line)
    output.say(f"report: {page}")
