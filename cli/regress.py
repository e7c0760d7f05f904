"""`vleak regress`: a nightly run against a baseline; exit 1 if a defense got weaker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from vleak.cli import output
from vleak.cli.progress import shown_progress
from vleak.errors import InputError, argument
from vleak.files import check_apart, write_atomic

if TYPE_CHECKING:
    from vleak.regression import Mode as Modes
    from vleak.regression import Night, NightLine

_STYLES = {"held": "green", "worse": "bold red", "not judged": "yellow"}

Runs = Annotated[
    list[Path],
    typer.Argument(help="Tonight's run, of a fresh --draw; one of a draw of the baseline is replayed."),
]
Baseline = Annotated[Path, typer.Option(help="File that `vleak baseline` wrote.")]
Mode = Annotated[
    str | None,
    typer.Option(help="replay, statistical or both: what has to be done; otherwise whatever the runs allow."),
]
History = Annotated[
    Path | None, typer.Option(help="File of earlier nights, which this one is judged with and added to.")
]
Junit = Annotated[Path | None, typer.Option(help="File for JUnit XML.")]
Markdown = Annotated[Path | None, typer.Option(help="File for a summary in Markdown.")]
Plot = Annotated[Path | None, typer.Option(help="File for a plot of the history, SVG.")]
Page = Annotated[Path | None, typer.Option(help="File for a page, HTML.")]
Github = Annotated[bool, typer.Option("--github", help="Print annotations of GitHub Actions.")]
Json = Annotated[bool, typer.Option("--json", help="Print the judgement, and nothing else, to stdout.")]


def regress(
    run: Runs,
    baseline: Baseline,
    mode: Mode = None,
    history: History = None,
    junit: Junit = None,
    markdown: Markdown = None,
    plot: Plot = None,
    page: Page = None,
    github: Github = False,
    json: Json = False,
) -> None:
    """Judge whether a defense got weaker: exit 0 held, 1 failed, 2 not judged."""
    from vleak.regression import read_history
    from vleak.report import night_sentences

    outputs = {"junit": junit, "markdown": markdown, "plot": plot, "page": page}
    _check(outputs, {"baseline": baseline, "history": history}, run)
    judged = _judge(run, baseline, mode, history)
    night = _worded(judged)
    header, nights = read_history(history) if history else (None, [])
    if night.tests:
        output.console.print(_table(night))
    for sentence in night_sentences(night):
        output.say(sentence)
    _write(night, outputs, header.tests if header else (), nights)
    if github:
        _annotate(night, as_json=json)
    if json:
        output.write_json(judged.model_dump(mode="json"))
    if night.exit_code:
        raise typer.Exit(night.exit_code)


def _check(outputs: dict[str, Path | None], inputs: dict[str, Path | None], runs: Sequence[Path]) -> None:
    """Refuse files that cannot be written, or that would be written over, before anything is judged."""
    from vleak.results import record_files

    check_apart(outputs, {f"`{name}`": path for name, path in inputs.items()} | record_files(runs))
    if outputs["plot"] is not None and inputs["history"] is None:
        raise InputError(f"{argument('plot', outputs['plot'])}: draws a history; give `history` too")


def _judge(runs: list[Path], baseline: Path, mode: str | None, history: Path | None) -> Night:
    from vleak import api
    from vleak.regression import read_baseline, regress

    held = read_baseline(baseline)
    with shown_progress() as show:
        loaded = [api.load_run(folder) for folder in runs]
        return regress(loaded, held, mode=cast("Modes | None", mode), history=history, progress=show)


def _worded(night: Night) -> Night:
    """Return a night whose reasons name options in place of arguments of the library."""
    from vleak.cli.app import with_options

    reasons = {"not_judged": night.not_judged, "notes": night.notes}
    return night.model_copy(update={name: tuple(map(with_options, texts)) for name, texts in reasons.items()})


def _write(
    night: Night, outputs: dict[str, Path | None], names: Sequence[str], nights: Sequence[NightLine]
) -> None:
    from vleak.report import draw_nights, night_junit, night_markdown, write_night

    plot, markdown = outputs["plot"] if night.tests else None, outputs["markdown"]
    if plot is not None:
        write_atomic(plot, draw_nights(night, nights, names))
    if markdown is not None:
        link = None if plot is None else _link(plot, markdown.parent)
        write_atomic(markdown, night_markdown(night, nights, names, link))
    if (junit := outputs["junit"]) is not None:
        write_atomic(junit, night_junit(night))
    if (page := outputs["page"]) is not None:
        write_night(night, page, nights, names)


def _link(plot: Path, folder: Path) -> str | None:
    """Return the path of a plot beside or below a file; None elsewhere: GitHub shows a summary alone."""
    path = os.path.relpath(plot.resolve(), folder.resolve())
    return None if path.startswith("..") else path


def _annotate(night: Night, *, as_json: bool) -> None:
    """Print annotations; to stderr where stdout is for JSON alone, which GitHub reads as well."""
    from vleak.report import night_annotations

    lines = night_annotations(night)
    if as_json:
        for line in lines:
            output.say(line)
    else:
        output.print_lines(lines)


def _table(night: Night) -> Table:
    from vleak.report import figure_text, log_e_text

    assert night.promise is not None
    table = Table("defense, attack", "figure", "baseline", "tonight", "log e", "outcome", box=box.SIMPLE_HEAD)
    table.title = f"Did a defense get weaker? night {night.night}, draw {night.draw}"
    table.caption = (
        f"worse: log e ≥ {night.promise.log_threshold:.1f}; a false alarm in {night.promise.nights} nights: "
        f"at most {night.promise.alarm:.0%}, over all {night.promise.tests} tests."
    )
    table.title_style, table.caption_style, table.caption_justify = "bold", "dim", "left"
    shown = ""
    for test in night.tests:
        if test.subject == "certificate" and test.outcome == "held":
            continue
        of = " (attack)" if test.subject == "attack" else ""
        table.add_row(
            Text("" if test.row == shown else test.row), Text(f"{test.figure}{of}"),
            figure_text(test.baseline, test.unit), figure_text(test.tonight, test.unit),
            log_e_text(test.log_e), Text(test.outcome, _STYLES[test.outcome]),
        )  # fmt: skip
        shown = test.row
    return table
