"""`vleak study`: tests of the claims about gradient inversion of video."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from vleak.cli import output, stopping
from vleak.cli.progress import shown_progress
from vleak.cli.report import Pictures

if TYPE_CHECKING:
    from vleak.study import ComparisonRecord, Study, StudyRecord

_ROWS = 8  # comparisons shown for a claim
_STYLES = {"holds": "bold green", "does not hold": "bold red", "mixed": "yellow"}

Data = Annotated[str, typer.Option(help="synthetic, or videos as `vleak evaluate --data` takes them.")]
Clips = Annotated[int, typer.Option(help="Clips to attack, at least 8.")]
Frames = Annotated[int, typer.Option(help="Frames of a clip.")]
Size = Annotated[int, typer.Option(help="Height and width of a clip in pixels.")]
Stride = Annotated[int, typer.Option(help="Video frames from one frame of a clip to the next.")]
Iterations = Annotated[int, typer.Option(help="Iterations of each attack.")]
Seed = Annotated[int, typer.Option(help="Equal seeds give equal scores.")]
Quick = Annotated[bool, typer.Option("--quick", help="Shorter clips, and fewer runs of each question.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Engine = Annotated[str, typer.Option(help="native or reference.")]
Workers = Annotated[int | None, typer.Option(help="Cells that run side by side; one a core.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the study; that of a stopped one resumes it.")]
Json = Annotated[bool, typer.Option("--json", help="Print the claims, and nothing else, to stdout.")]


def study(
    *,
    data: Data = "synthetic",
    clips: Clips = 8,
    frames: Frames = 8,
    size: Size = 32,
    stride: Stride = 2,
    iterations: Iterations = 150,
    seed: Seed = 0,
    quick: Quick = False,
    device: Device = "auto",
    engine: Engine = "native",
    workers: Workers = None,
    pictures: Pictures = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Test the claims of the paper; print effect, interval and verdict of each."""
    folder = out or Path("runs") / f"study-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    stopping.tell_at_end(lambda: _how_to_resume(folder))
    try:
        from vleak.study import Study

        stopping.check()
        settings = Study(data=data, clips=clips, frames=frames, size=size, stride=stride, seed=seed,
                         iterations=iterations, quick=quick, device=device, engine=engine)  # fmt: skip
        record = _run(settings, folder, workers)
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, Exception) and not stopping.asked():
            raise
        raise stopping.StoppedError(_how_to_resume(folder)) from error
    from vleak.report import write_study

    page = write_study(folder, pictures=pictures)
    output.console.print(_table(record))
    output.say(f"page: {page}")
    if json:
        output.write_json(record.model_dump(mode="json"), f"they are in {folder / 'study.json'}")


def _how_to_resume(folder: Path) -> str:
    return f"stopped; finished cells are kept, to resume: {stopping.resume_command(folder)}"


def _run(settings: Study, folder: Path, workers: int | None) -> StudyRecord:
    from vleak.study import run_study

    with shown_progress() as show:
        return run_study(settings, folder, workers=workers, progress=show)


def _table(study: StudyRecord) -> Table:
    table = Table(
        title=f"Which claims hold? {study.data.name}, {study.data.clips} clips", box=box.SIMPLE_HEAD
    )
    table.caption = (
        "effects are differences, clip by clip, with 95 % intervals; above zero is what the claim says.\n"
        "holds: every comparison's interval lies above zero. does not hold: none does. mixed: some do."
    )
    table.title_style, table.caption_style, table.caption_justify = "bold", "dim", "left"
    table.add_column("claim, and what was compared")
    table.add_column("effect [95 %]", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for claim in study.claims:
        table.add_section()
        verdict = Text(claim.verdict, style=_STYLES[claim.verdict])
        table.add_row(Text(claim.name, style="bold"), "", verdict)
        for row in claim.comparisons[:_ROWS]:
            table.add_row(Text(f"  {row.name}"), _effect(row), "" if row.supports else Text("no", "dim"))
        if (more := len(claim.comparisons) - _ROWS) > 0:
            table.add_row(Text(f"  and {more} more, which the page shows", "dim"), "", "")
    return table


def _effect(row: ComparisonRecord) -> str:
    if row.effect is None:
        return "–"
    unit = f" {row.unit}" if len(row.unit) < 8 else ""
    digits = 1 if row.unit == "dB" else 2
    low, high = row.interval
    interval = "" if low is None or high is None else f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{row.effect:+.{digits}f}{interval}{unit}"
