"""`vleak report`: the page of a stored run, of two side by side, or the verdict over the seeds of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vleak.cli import output
from vleak.errors import InputError, argument
from vleak.files import check_page

if TYPE_CHECKING:
    from vleak.api import Run

Pictures = Annotated[
    bool | None,
    typer.Option(
        "--pictures/--no-pictures",
        help="Whether private clips and what was rebuilt of them stand on the page; without it those of "
        "synthetic clips alone.",
    ),
]


def report(
    run: Annotated[
        list[Path],
        typer.Argument(
            help="Folder of a run, finished or stopped; two to set side by side, or several seeds."
        ),
    ],
    compare: Annotated[
        bool | None,
        typer.Option(
            "--compare/--pool",
            help="Two runs side by side, or runs pooled over their seeds; without it runs that differ in the "
            "seed alone are pooled, two others set side by side.",
        ),
    ] = None,
    pictures: Pictures = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Page to write; report.html in the folder of the run, of two comparison.html."),
    ] = None,
) -> None:
    """Write the page of a run again; of two runs a page side by side; of several seeds their verdict."""
    from vleak import api

    if out is not None:
        check_page("out", out)
    loaded = [api.load_run(folder) for folder in run]
    if _side_by_side(run, loaded, compare):
        _compare(run, loaded, out, pictures)
    elif len(loaded) == 1:
        _report(loaded[0], out, pictures)
    else:
        _pool(loaded, out, pictures)


def _side_by_side(folders: Sequence[Path], runs: Sequence[Run], compare: bool | None) -> bool:
    """Whether runs are set side by side; what was asked for goes before what the runs are.

    Raises:
        InputError: too few runs for what was asked, or too many that differ in more than the seed.
    """
    from vleak.results import differ_in_seed_alone

    given = " ".join(map(str, folders))
    if len(runs) == 1:
        if compare is not None:
            option = "--compare" if compare else "--pool"
            raise InputError(f"report {given}: {option} takes two runs or more, got one; give another")
        return False
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"report {given}: the same run twice; give each run once")
    if compare is None:
        compare = not differ_in_seed_alone([each.record for each in runs])
    if compare and len(runs) > 2:
        raise InputError(
            f"report {given}: expected two runs to set side by side, got {len(runs)}; give two, or runs that "
            "differ in the seed alone, which are pooled"
        )
    return compare


def _report(run: Run, out: Path | None, pictures: bool | None) -> None:
    from vleak.report import headline, withheld_text

    page = run.report(out, pictures=pictures)
    for line in headline(run.rows, run.record):
        output.say(line)
    output.say(f"report: {page}{withheld_text(run.record, pictures)}")


def _pool(runs: Sequence[Run], out: Path | None, pictures: bool | None) -> None:
    from vleak.report import seeds_sentences, withheld_text
    from vleak.results import over_seeds

    if out is not None:
        raise InputError(f"{argument('out', out)}: runs that are pooled have a page each; leave it out")
    together = seeds_sentences(over_seeds([each.record for each in runs]))
    for each in runs:
        output.say(f"report: {each.report(pictures=pictures)}{withheld_text(each.record, pictures)}")
    output.say(f"pooled over {len(runs)} seeds, as the runs differ in the seed alone:")
    for line in together:
        output.say(line)


def _compare(folders: Sequence[Path], runs: Sequence[Run], out: Path | None, pictures: bool | None) -> None:
    from vleak.report import comparison_sentences, withheld_text, write_comparison
    from vleak.results import compare_runs

    first, second = (path if path.is_dir() else path.parent for path in folders)
    one, other = (each.record for each in runs)
    found = compare_runs(one, other)
    page = write_comparison((first, second), (one, other), out, pictures=pictures)
    names = ", ".join(name.replace("_", " ") for name in found.differing) or "their scores alone"
    output.say(f"side by side: A is {first}, B is {second}; they differ in {names}")
    for line in comparison_sentences(found):
        output.say(line)
    output.say(f"report: {page}{withheld_text(one, pictures) or withheld_text(other, pictures)}")
