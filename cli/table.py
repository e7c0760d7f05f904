"""Table of a run's results, one line an attack and defense, with verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # it imports PyTorch, which `vleak --help` does not need
    from vleak.results import ModelRecord, Row, RunRecord

_STYLES = {
    "leaks": "bold red",
    "linkable_no_picture": "yellow",
    "linkable_picture_unclear": "yellow",
    "linkable_below_prior": "yellow",
    "below_prior": "yellow",
    "nothing_found": "green",
    "baseline": "dim",
    "no_result": "yellow",
}


def leak_table(record: RunRecord, rows: list[Row], width: int) -> Table:
    """Return the table of a run, one line an attack and defense, styled by verdict.

    Args:
        record: the run.
        rows: its rows, from `vleak.results.summarise`.
        width: width of the terminal in characters; below 120 only the columns behind the verdict are shown.
    """
    from vleak.report import client_text, plural, unfinished

    models, data = record.models, record.data
    clips = f"{data.clips} clip{plural(data.clips)}"
    names = " and ".join(model.name for model in models)
    subject = f"{data.name}, {clips}, {names} {models[0].training_state}"
    caption = "\n".join([*unfinished(record), *_caption(rows, models, wide=width >= _WIDE)])
    table = Table(title=f"What still leaks? {subject}", caption=caption, box=box.SIMPLE_HEAD)
    table.padding, table.pad_edge, table.collapse_padding = (0, 1), False, True
    table.title_style, table.caption_style, table.caption_justify = "bold", "dim", "left"
    attacked = {
        (row.pipeline, row.attack, row.reference_frames, row.client) for row in rows if not row.baseline
    }
    several = len(attacked) > 1
    clients = {client_text(row.client) for row in rows if not row.baseline}
    if len(clients) == 1 and (client := clients.pop()):
        table.title = f"{table.title}, {client}"
    columns = {name: cell for name, cell in _COLUMNS.items() if width >= _WIDE or name not in _DETAILS}
    if not any(row.segments for row in rows):
        columns.pop("segments")
    if all(row.epsilon is None for row in rows):
        columns.pop("ε")
    if not any(_at_least(row) for row in rows):
        columns.pop("ε ≥", None)
    if all(row.accuracy.mean is None for row in rows):
        columns.pop("accuracy")
    if all(row.bound is None for row in rows):
        columns.pop("bound", None)
    if all(row.non_adaptive is None for row in rows):
        columns.pop("non-adaptive")
    if not any(row.enhanced for row in rows):
        columns.pop("enhanced", None)
    if several and width >= _WIDE:
        columns = {"defense": columns.pop("defense"), "attack": _attack, **columns}
    elif several:
        columns |= {"defense": _defense_and_attack}
    short = all(len(str(columns["defense"](row))) <= len("(public_mean)") for row in rows)
    for name in columns:
        table.add_column(
            name if width >= _WIDE or "non-adaptive" not in columns else _BROKEN.get(name, name),
            justify="left" if name in _TEXTS else "right",
            no_wrap=name not in ("defense", "verdict") or (name == "defense" and short),
            min_width=len("linkable,") if name == "verdict" else None,
        )
    shown: tuple[str, str] | None = None
    for row in rows:
        if shown not in (None, (row.pipeline, row.model)):
            table.add_section()
        shown = row.pipeline, row.model
        table.add_row(*(cell(row) for cell in columns.values()), style="dim" if row.baseline else None)
    return table


def _attack(row: Row) -> str:
    return "" if row.baseline else _with_frames(row)


def _with_frames(row: Row) -> str:
    frames = (
        f" +{row.reference_frames} frame{'s' if row.reference_frames > 1 else ''}"
        if row.reference_frames
        else ""
    )
    from vleak.report import client_text

    client = client_text(row.client)
    return f"{row.attack}{frames}{', ' if client else ''}{client}"


def _defense(row: Row) -> str:
    return f"({_with_frames(row)})" if row.baseline else row.defense


def _defense_and_attack(row: Row) -> str:
    return _defense(row) if row.baseline else f"{row.defense}\n  {_with_frames(row)}"


def _segments(row: Row) -> str:
    if row.segments is None or row.baseline:
        return ""
    return f"{row.segments.recovered}/{row.segments.carrying}"


def _enhanced(row: Row) -> str:
    change = row.enhanced_change_db.mean
    return "" if change is None else f"{change:+.1f}"


def _epsilon(row: Row) -> str:
    from vleak.report import epsilon_text

    return "" if row.epsilon is None else epsilon_text(row.epsilon)


def _verdict(row: Row) -> Text:
    from vleak.report import verdict_text

    text = Text(verdict_text(row), style=_STYLES.get(row.verdict, ""))
    marks = [f"{row.flagged} flagged"] if row.flagged else []
    marks += [f"{row.failed} failed"] if row.failed else []
    for wrong, said in ((row.bound_broken, " BOUND BROKEN"), (row.refuted, " ε REFUTED")):
        if wrong:
            text.append(said, style="bold white on red")
    return text.append(f" ({', '.join(marks)})", style="yellow") if marks else text


def _gain(row: Row) -> str:
    from vleak.report import gain_text

    return gain_text(row.psnr_gain_db)


def _accuracy(row: Row) -> str:
    from vleak.report import share_text

    return share_text(row.accuracy)


def _non_adaptive(row: Row) -> str:
    other = row.non_adaptive
    if other is None:
        return ""
    lead = other.lead_db.mean
    recognised = f"{other.identified}/{other.n}" if other.identification.n else ""
    return recognised if lead is None else f"{0.0 - lead:+.1f} {recognised}"


def _of_a_batch(row: Row) -> str:
    if row.batch_identified is None:
        return ""
    return f" ({row.batch_identified:.1f} of {row.client.batch_size})"


def _chosen(rows: list[Row]) -> list[str]:
    """Return by attack that chooses among others what it chose, and behind which defenses."""
    chosen: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.methods:
            chosen.setdefault((row.attack, " or ".join(row.methods)), []).append(row.defense)
    return [f"{attack} chose {method} behind {', '.join(dict.fromkeys(defenses))}."
            for (attack, method), defenses in chosen.items()]  # fmt: skip


def _told_and_proven(row: Row) -> str:
    from vleak.report import sandwich_text

    told = next((figure for figure in row.figures if figure.name == "told" and figure.ceiling), None)
    if told is not None and (told.share < 0.995 or told.broken):
        return sandwich_text(told).replace(" %", "", 2).replace(" ", "")
    return "" if row.bound is None else f"≤ {row.bound:.0%}"


def _at_least(row: Row) -> str:
    from vleak.report import at_least

    return at_least(row).removeprefix("≥ ")


def _bytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


_WIDE = 120
_BROKEN = {"recognised": "recog-\nnised", "non-adaptive": "non-\nadaptive"}
"""Titles in two lines, where one would leave verdicts too little room."""
_TEXTS = ("defense", "attack", "verdict")
_DETAILS = ("ε ≥", "PSNR dB", "enhanced", "bound", "label", "bytes")
_COLUMNS: dict[str, Callable[[Row], str | Text]] = {
    "defense": _defense,
    "ε": _epsilon,
    "ε ≥": _at_least,
    "PSNR dB": lambda row: "–" if row.psnr_db is None else f"{row.psnr_db:.1f}",
    "gain dB [95 %]": _gain,
    "enhanced": _enhanced,
    "segments": _segments,
    "recognised": lambda row: (
        f"{row.identified}/{row.identification.n}" + _of_a_batch(row) if row.identification.n else ""
    ),
    "non-adaptive": _non_adaptive,
    "linked": lambda row: f"{row.linked}/{row.linkage.n}" if row.linkage.n else "",
    "bound": _told_and_proven,
    "label": lambda row: "" if row.baseline or not row.labels else f"{row.labels_correct}/{row.labels}",
    "accuracy": _accuracy,
    "bytes": lambda row: "" if row.baseline or row.bytes is None else _bytes(row.bytes),
    "verdict": _verdict,
}


def _of_non_adaptive(rows: list[Row]) -> list[str]:
    counts = {row.non_adaptive.n for row in rows if row.non_adaptive is not None}
    if not counts:
        return []
    of = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{counts.pop()}"
    return [
        "non-adaptive: the attacker who does not know the defense, in dB against the one who does on the "
        f"same clips; and recognised of {of}."
    ]


def _caption(rows: list[Row], models: Sequence[ModelRecord], *, wide: bool) -> list[str]:
    from vleak.report import audit_note, seed_note

    chances = {row.chance for row in rows if row.chance}
    of = f" (chance {next(iter(chances)):.0%})" if len(chances) == 1 else ""
    lines = [
        "in brackets: attackers who never see the update. gain: over the best of them.",
        f"recognised: of all candidates the rebuilt clip is nearest to its own truth{of}.",
        *_of_non_adaptive(rows),
        "linked: who holds the candidate clips (not their labels, unless granted) picks the right one by "
        "the update alone.",
        "nothing found is no proof: the intervals' upper ends say how much could still be there.",
    ]
    if wide and any(row.bound is not None for row in rows):
        lines.append("bound: guessing ≤ who holds the labels too, over the noise ≤ what is proven.")
    if wide:
        lines += audit_note(rows)
    lines += seed_note(rows)
    if (most := max((row.attacks for row in rows), default=1)) > 1:
        lines.append(
            f"verdicts: of the {most} attacks the strongest counts, so each is judged at "
            f"{1 - 0.05 / most:.1%} (the intervals shown are at 95 %)."
        )
    if any(row.knowledge.public_from == "same-file" for row in rows):
        lines.append("public clips: some are other parts of the attacked videos, as asked for.")
    if any(row.batch_identified is not None for row in rows):
        lines.append(
            "of a batch: its answers are matched to its clips one to one; in brackets the mean a batch."
        )
    if any(row.reference_frames for row in rows):
        lines.append("+ frames: the attacker holds so many frames of the scene that are not in the clip.")
    if any(row.segments for row in rows):
        lines.append("segments: feature rows that came back (cosine above 0.99) of those with a gradient.")
    for model in models:
        if model.sent_parameters is not None:
            lines.append(
                f"{model.name}: clients train and send {model.sent_parameters:,} of {model.parameters:,} "
                "parameters; the others are frozen."
            )
        if (hits := model.held_out_accuracy) is not None:
            which = "the model" if len(models) == 1 else model.name
            lines.append(f"{which} gets {hits:.0%} of the attacked clips right (chance {model.chance:.0%}).")
    lines += _chosen(rows)
    flags = sorted({flag for row in rows for flag in row.flags})
    failures = sorted({reason for row in rows for reason in row.failures})
    lines += [f"flagged: {'; '.join(flags)}."] if flags else []
    lines += [f"failed: {'; '.join(failures)}."] if failures else []
    return lines
