"""Page of a run: its record put into a template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vleak.files import write_atomic
from vleak.report.answer import answer, tally
from vleak.report.cells import FIRST, cell_table
from vleak.report.costs import cost_table
from vleak.report.figures import draw_plots
from vleak.report.filters import NO_BREAK
from vleak.report.flag_texts import count_flags
from vleak.report.frontier import draw_frontier
from vleak.report.gallery import build_galleries
from vleak.report.html import render_page
from vleak.report.proof import audits_of, seed_note
from vleak.report.sandwich_plot import draw_sandwich
from vleak.report.sharing import pictures_wanted
from vleak.report.words import Topic, headline_sentences, knowledge_text
from vleak.results import Row, read_run, summarise
from vleak.results.records import Cell, KnowledgeRecord, RunRecord, Setting
from vleak.results.sandwich import ACCUSED
from vleak.results.statistics import MIN_CLIPS

_TONES: dict[Topic, str] = {
    "bound_broken": "alert",
    "leaks": "leaks",
    "nothing_found": "safe",
    "undefended": "plain",
    "cost": "cost",
}
"""Classes in the style sheet by topic of a sentence; "unclear" for all others."""


@dataclass(frozen=True)
class Block:
    """Rows of one model, under one heading of the table."""

    title: str
    rows: list[Row]


@dataclass(frozen=True)
class Grant:
    """What the threat model granted, and the attacks that had it."""

    facts: dict[str, Setting]
    attacks: list[str]


def write_report(run_dir: Path, *, pictures: bool | None = None) -> Path:
    """Write ``report.html`` into the folder of a run: one file that loads nothing.

    Args:
        run_dir: folder of a run, finished or not, with the pictures that its cells name. Pictures that are
            missing or broken are shown as such.
        pictures: whether private clips and what was rebuilt of them stand on the page; None for those of
            synthetic clips alone.

    Returns:
        The path of the report.

    Raises:
        InputError: no run, no JSON in its files, another schema version, or a field that is wrong.
        VleakError: the report cannot be written.
    """
    run = read_run(run_dir)
    path = run_dir / "report.html"
    write_atomic(path, render(run_dir, run, pictures=pictures))
    return path


def render(folder: Path, run: RunRecord, *, pictures: bool | None = None) -> str:
    """Return the report as HTML.

    Args:
        folder: folder of the pictures.
        run: record of the run.
        pictures: as for `write_report`.
    """
    rows = summarise(run)
    wanted = pictures_wanted(run.settings.data, run.data, pictures)
    galleries = build_galleries(folder, run, rows) if wanted else []
    stored = sum(cell.media is not None for cell in run.cells)
    return render_page(
        "report.html",
        run=run,
        answer=answer(rows),
        counts=tally(rows),
        headline=[
            (_keep_units(sentence.text), _TONES.get(sentence.topic, "unclear"))
            for sentence in headline_sentences(rows, run)
        ],
        blocks=_blocks(rows),
        span=_span(rows),
        segmented=any(row.segments for row in rows),
        enhanced=any(row.enhanced for row in rows),
        trained=any(row.accuracy.mean is not None for row in rows),
        compared=any(row.non_adaptive is not None for row in rows),
        metrics=list(dict.fromkeys(name for row in rows for name in row.metrics)),
        chances={row.chance for row in rows if row.chance},
        threat_models={knowledge_text(row.knowledge) for row in rows},
        sandwiches=[row for row in rows if any(each.ceiling is not None for each in row.figures)],
        limits=[row for row in rows if row.ceilings and not row.baseline and not row.undefended],
        audits=audits_of(rows),
        seeds=seed_note(rows),
        costs=cost_table(rows),
        broken_rate=ACCUSED / 2,
        plots=[*draw_frontier(rows), *draw_sandwich(rows), *draw_plots(rows)],
        galleries=galleries,
        withheld=stored if not wanted else 0,
        embedded=(sum(gallery.shown for gallery in galleries), stored),
        example=galleries[0].example if galleries else None,
        flags=count_flags(run.cells),
        failures=Counter(cell.failure for cell in run.cells if not cell.ok),
        grants=_grants(run.cells),
        table=cell_table(run.cells, {row.key: row.defense for row in rows}),
        first=FIRST,
        least_clips=MIN_CLIPS,
        facts={"Settings": run.settings.model_dump(), "Environment": run.environment.model_dump()},
    )


def _blocks(rows: Iterable[Row]) -> list[Block]:
    blocks: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        blocks.setdefault((row.pipeline, row.model, row.training_state), []).append(row)
    return [
        Block(f"{model}, {state} · {pipeline} pipeline", block)
        for (pipeline, model, state), block in blocks.items()
    ]


def _span(rows: Iterable[Row]) -> tuple[float, float]:
    """Return the common scale of the gain marks in dB; it holds zero."""
    gains = [row.psnr_gain_db for row in rows]
    ends = [end for gain in gains for end in (gain.mean, gain.low, gain.high) if end is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return (low, high) if high > low else (-1.0, 1.0)


def _grants(cells: Sequence[Cell]) -> list[Grant]:
    attacks: dict[KnowledgeRecord, dict[str, None]] = {}
    for cell in cells:
        attacks.setdefault(cell.knowledge, {})[cell.attack.text] = None
    return [Grant(_facts(knowledge), list(names)) for knowledge, names in attacks.items()]


def _facts(knowledge: KnowledgeRecord) -> dict[str, Setting]:
    names = {"defense": "knows the defense"}
    return {names.get(key, key.replace("_", " ")): value for key, value in knowledge.model_dump().items()}


def _keep_units(line: str) -> str:
    """Keep numbers and their units on one line."""
    for text, unbroken in ((" dB", f"{NO_BREAK}dB"), (" %", f"{NO_BREAK}%"), ("ε ", f"ε{NO_BREAK}")):
        line = line.replace(text, unbroken)
    return line
