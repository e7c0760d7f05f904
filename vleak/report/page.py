"""The page itself: what `results.json` says, put into a template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from vleak.attacks import flags as attack_flags
from vleak.files import write_atomic
from vleak.report.figures import draw_plots
from vleak.report.gallery import Gallery, Scene, build_galleries
from vleak.report.numbers import epsilon_text, finite, number, percent, plural, ratio
from vleak.report.words import caveat_text, headline, interval_note, knowledge_text, verdict_text
from vleak.results import flags as health
from vleak.results.folder import read_run
from vleak.results.records import Cell, RunRecord
from vleak.results.rows import Row, row_key
from vleak.results.statistics import Interval
from vleak.results.summary import summarise

MAX_CELLS = 1500
_NO_BREAK = "\u00a0"

_FLAGS: dict[str, str] = {
    attack_flags.NEAR_ZERO: "the update carried almost nothing; failing here is not the defense's merit",
    attack_flags.NOT_FALLING: "the attack never got going; try more restarts or another step size",
    health.NO_BETTER: "the answer scores no better than one made without the update",
    health.FAILS_UNDEFENDED: "the attack does not work here at all, so it cannot judge a defense",
    health.WEAKER_BEATS: "the strong attack is badly tuned here; believe the higher figure",
    attack_flags.STILL_FALLING: "more iterations would leak more; the figure is a lower bound",
    health.BEATS_UNDEFENDED: "the attack is uneven from cell to cell; run more restarts",
    attack_flags.NOT_A_NUMBER: "numbers ran out of range; the answer is of the last sound step",
}
_TONES = (
    ("bound broken", "loud"),
    ("still leaking", "leaks"),
    ("linkable", "unclear"),
    ("nothing found", "safe"),
    ("without defense", "plain"),
    ("cost", "cost"),
    ("bytes", "cost"),
)
_VERDICT_TONES = {
    "leaks": "leaks",
    "linkable_no_picture": "unclear",
    "linkable_picture_unclear": "unclear",
    "nothing_found": "safe",
    "unclear": "unclear",
}


@dataclass(frozen=True)
class Block:
    """The rows of one model, under one heading of the table."""

    title: str
    rows: list[Row]


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run folder: one file, no script, nothing fetched from anywhere.

    Args:
        run_dir: a folder of a run, finished or not, with the media that its cells name. Media that are
            missing or broken are shown as such.

    Returns:
        The path of the report.

    Raises:
        InputError: no run, no JSON in its files, or another schema version.
        VleakError: the report cannot be written.
    """
    results = read_run(run_dir)
    path = run_dir / "report.html"
    write_atomic(path, render(run_dir, results))
    return path


def render(run_dir: Path, results: RunRecord) -> str:
    """Return the report as HTML.

    Args:
        run_dir: where the media lie.
        results: the record of the run.
    """
    rows = summarise(results)
    galleries = build_galleries(run_dir, results, rows)
    cells = results.cells
    page = environment().get_template("report.html")
    return page.render(
        data=results.data,
        models=results.models,
        settings=results.settings.model_dump(mode="json"),
        environment=results.environment.model_dump(mode="json"),
        headline=[(_with_units(line), _tone(line)) for line in headline(rows, results)],
        blocks=_blocks(rows),
        rows=rows,
        label={row.key: row.defense for row in rows},
        span=_span(rows),
        segmented=int(any(row.segments for row in rows)),
        enhanced=int(any(row.enhanced for row in rows)),
        chances={row.chance for row in rows if row.chance},
        grants={knowledge_text(row.knowledge) for row in rows},
        plots=draw_plots(rows),
        galleries=galleries,
        hero=_hero(galleries, rows),
        flags=_flag_counts(cells),
        failures=_failure_counts(cells),
        knowledge=_knowledge(cells),
        cells=cells[:MAX_CELLS],
        cells_left_out=max(0, len(cells) - MAX_CELLS),
        css=Markup(resource("report.css")),
    )


def environment() -> Environment:
    """Return the templates with the filters that pages use; everything in them is escaped."""
    made = Environment(
        loader=FunctionLoader(resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": lambda value: number(finite(value)),
        "epsilon": epsilon_text,
        "fixed": _fixed,
        "signed": _signed,
        "percent": _percent,
        "ratio": ratio,
        "bytes": _bytes,
        "tone": lambda verdict: _VERDICT_TONES.get(verdict, "plain"),
        "plain": _plain,
        "plural": plural,
        "row_key": row_key,
        "verdict": verdict_text,
        "caveats": lambda row: [caveat_text(row, caveat) for caveat in row.caveats],
        "grant": knowledge_text,
        "note": interval_note,
        "place": _place,
        "markup": Markup,
    }
    return made


def resource(name: str) -> str:
    """Return the text of a file among the templates."""
    return (files("vleak.report") / "templates" / name).read_text(encoding="utf-8")


def _blocks(rows: Sequence[Row]) -> list[Block]:
    blocks: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        blocks.setdefault((row.pipeline, row.model, row.training_state), []).append(row)
    return [
        Block(f"{model}, {state} · {pipeline} pipeline", mine)
        for (pipeline, model, state), mine in blocks.items()
    ]


def _hero(galleries: Sequence[Gallery], rows: Sequence[Row]) -> Scene | None:
    """Take the first clip of the run with its undefended rebuild for the top of the page."""
    for gallery in galleries[:1]:
        scene = gallery.scenes[0]
        tiles = [tile for tile in scene.tiles if tile.role != "attack" or tile.title == "none"]
        if len(tiles) == 3 and all(tile.strip for tile in tiles):
            return Scene(scene.clip, tuple(tiles))
    return None


def _span(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the common scale of the gain marks in dB, zero inside."""
    intervals = [row.psnr_gain_db for row in rows]
    ends = [end for i in intervals for end in (i.mean, i.low, i.high) if end is not None]
    low, high = min(0.0, *ends, 0.0), max(0.0, *ends, 0.0)
    return (low, high) if high > low else (-1.0, 1.0)


def _place(value: float, span: tuple[float, float]) -> str:
    """Return where a value lies on a scale, as a CSS percentage."""
    share = (value - span[0]) / (span[1] - span[0])
    return f"{100 * min(1.0, max(0.0, share)):.1f}%"


def _flag_counts(cells: Sequence[Cell]) -> list[tuple[str, int, str]]:
    counts: dict[str, int] = {}
    for cell in cells:
        for flag in cell.flags:
            counts[flag] = counts.get(flag, 0) + 1
    return [
        (flag, count, _meaning(flag)) for flag, count in sorted(counts.items(), key=lambda item: -item[1])
    ]


def _meaning(flag: str) -> str:
    return next((text for start, text in _FLAGS.items() if flag.startswith(start)), "raised by the attack")


def _failure_counts(cells: Sequence[Cell]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for cell in cells:
        if (failure := cell.failure) is not None:
            counts[failure] = counts.get(failure, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def _knowledge(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the distinct grants of the run, each with the attacks that had it."""
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        grant = cell.knowledge
        entry = found.setdefault(
            grant.model_dump_json(), {"grant": grant.model_dump(mode="json"), "attacks": {}}
        )
        entry["attacks"][cell.attack.text] = None
    return list(found.values())


def _with_units(line: str) -> str:
    """Keep a number and its unit on one line."""
    return line.replace(" dB", f"{_NO_BREAK}dB").replace(" %", f"{_NO_BREAK}%").replace("ε ", f"ε{_NO_BREAK}")


def _tone(line: str) -> str:
    return next((tone for start, tone in _TONES if line.lower().startswith(start)), "unclear")


def _fixed(value: object, digits: int = 1) -> str:
    if isinstance(value, Interval):
        value = value.mean
    found = finite(value)
    return "–" if found is None else f"{found:.{digits}f}".replace("-", "−")


def _signed(value: object, digits: int = 1) -> str:
    if isinstance(value, Interval):
        value = value.mean
    found = finite(value)
    if found is None:
        return "–"
    rounded = round(found, digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def _percent(value: object) -> str:
    share = finite(value)
    return "–" if share is None else percent(share).replace(" ", _NO_BREAK)


def _bytes(value: object) -> str:
    found = finite(value)
    if found is None:
        return "–"
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if found >= size:
            return f"{number(found / size)}{_NO_BREAK}{unit}"
    return f"{number(found)}{_NO_BREAK}B"


def _plain(value: object) -> str:
    """Return a setting for people: lists with commas, objects as JSON, null as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple) and not any(isinstance(item, dict | list) for item in value):
        return ", ".join(map(str, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
