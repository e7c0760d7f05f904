"""`vleak baseline`: the figures of finished runs, in a file that nights are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vleak.cli import output

Runs = Annotated[
    list[Path],
    typer.Argument(help="Folders of finished runs that differ in --draw alone; six are enough for most."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="File of the baseline, small enough to commit.")]


def baseline(run: Runs, out: Out) -> None:
    """Write the figures of runs into a baseline, for `vleak regress`."""
    from vleak import api
    from vleak.regression import make_baseline, write_baseline

    made = make_baseline([api.load_run(folder) for folder in run])
    path = write_baseline(made, out)
    count = len(made.draws)
    output.say(
        f"{len(made.rows)} rows, {count} draw{'' if count == 1 else 's'}, {path.stat().st_size / 1e3:.0f} kB"
    )
    if count < 4:
        output.say(
            f"of {count} draw{'' if count == 1 else 's'} a night can tell little apart; evaluate with "
            "--draw 1 to 5 too, and give all runs"
        )
    output.say(f"baseline: {path}")
