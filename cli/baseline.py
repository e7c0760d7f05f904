"""`vleak baseline`: the figures of finished runs, in a file that nights are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vleak.cli import output
from vleak.cli.progress import shown_progress
from vleak.files import check_apart

Runs = Annotated[
    list[Path],
    typer.Argument(help="Folders of finished runs that differ in --draw alone; six are enough for most."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="File of the baseline, small enough to commit.")]


def baseline(run: Runs, out: Out) -> None:
    """Write the figures of runs into a baseline, for `vleak regress`."""
    from vleak import api
    from vleak.regression import make_baseline, write_baseline
    from vleak.results import record_files

    check_apart({"out": out}, record_files(run))
    with shown_progress() as show:
        made = make_baseline([api.load_run(folder) for folder in run], claims=True, progress=show)
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
    claims = made.claims or ()
    broken = [claim for claim in claims if claim.outcome == "broken"]
    held = sum(claim.outcome == "holds" for claim in claims)
    output.say(
        f"{held} of {len(claims)} claims and parts of the contract hold; {len(made.audits)} epsilons audited"
    )
    for claim in broken:
        output.say(f"broken already: {claim.defense}, {claim.name}: {claim.detail}")
    output.say(f"baseline: {path}")
