"""`vleak report`: the page of a stored run, written again; of several runs the verdict over their seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vleak.cli import output


def report(
    run: Annotated[
        list[Path],
        typer.Argument(help="Folder of a run, finished or stopped; several that differ in the seed alone."),
    ],
) -> None:
    """Write report.html of a run again and print its path; of several, also say what leaks at any seed."""
    from vleak import api
    from vleak.report import headline, seeds_sentences
    from vleak.results import over_seeds

    loaded = [api.load_run(folder) for folder in run]
    together = seeds_sentences(over_seeds([each.record for each in loaded])) if len(loaded) > 1 else []
    for each in loaded:
        page = each.report()
        for line in headline(each.rows, each.record) if len(loaded) == 1 else ():
            output.say(line)
        output.say(f"report: {page}")
    for line in together:
        output.say(line)
