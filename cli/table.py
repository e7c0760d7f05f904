"""The table that answers "what still leaks?"."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # it imports PyTorch, which `vleak --help` has no need of
    from vleak.evaluation import Interval, Row

_STYLES = {
    "leaks": "bold red",
    "linkable, no picture": "yellow",
    "linkable, picture unclear": "yellow",
    "nothing found": "green",
    "baseline": "dim",
    "no result": "yellow",
}


def leak_table(results: dict[str, Any], rows: list[Row], width: int) -> Table:
    """Return one line an attack and defense, worst news readable at a glance.

    Args:
        results: content of results.json.
        rows: what `vleak.evaluation.summarise` made of it.
        width: columns of the terminal; below 120 only what the verdict rests on is shown.
    """
    from vleak.evaluation import plural, unfinished

    model, data = results["models"][0], results["data"]
    clips = f"{data['clips']} clip{plural(data['clips'])}"
    subject = f"{data['name']}, {clips}, {model['name']} {model['training_state']}"
    caption = "\n".join([*unfinished(results), *_caption(rows, model)])
    table = Table(title=f"What still leaks? {subject}", caption=caption, box=box.SIMPLE_HEAD)
    table.padding, table.pad_edge, table.collapse_padding = (0, 1), False, True
    table.title_style, table.caption_style, table.caption_justify = "bold", "dim", "left"
    several = len({row.attack for row in rows if not row.null}) > 1
    columns = {name: cell for name, cell in _COLUMNS.items() if width >= _WIDE or name not in _DETAILS}
    if several and width >= _WIDE:
        columns = {"defense": columns.pop("defense"), "attack": _attack, **columns}
    elif several:
        columns |= {"defense": _defense_and_attack}
    for name in columns:
        table.add_column(
            name,
            justify="left" if name in _TEXTS else "right",
            no_wrap=name not in ("defense", "verdict"),
            min_width=len("linkable,") if name == "verdict" else None,
        )
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()), style="dim" if row.null else None)
    return table


def _attack(row: Row) -> str:
    return "" if row.null else row.attack


def _defense(row: Row) -> str:
    return f"({row.attack})" if row.null else row.defense


def _defense_and_attack(row: Row) -> str:
    return _defense(row) if row.null else f"{row.defense}\n  {row.attack}"


def _epsilon(row: Row) -> str:
    from vleak.evaluation import epsilon_text

    return "" if row.epsilon is None else epsilon_text(row.epsilon)


def _verdict(row: Row) -> Text:
    text = Text(row.verdict, style=_STYLES.get(row.verdict, ""))
    marks = [f"{row.flagged} flagged"] if row.flagged else []
    marks += [f"{row.failed} failed"] if row.failed else []
    if row.bound_broken:
        text.append(" BOUND BROKEN", style="bold white on red")
    return text.append(f" ({', '.join(marks)})", style="yellow") if marks else text


def _interval(gain: Interval) -> str:
    if gain.mean is None:
        return "–"
    if gain.low is None or gain.high is None:
        return f"{gain.mean:+.1f}"
    return f"{gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"


def _bytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


_WIDE = 120
_TEXTS = ("defense", "attack", "verdict")
_DETAILS = ("PSNR dB", "bound", "label", "bytes")
_COLUMNS: dict[str, Callable[[Row], str | Text]] = {
    "defense": _defense,
    "ε": _epsilon,
    "PSNR dB": lambda row: "–" if row.psnr_db is None else f"{row.psnr_db:.1f}",
    "gain dB [95 %]": lambda row: _interval(row.psnr_gain_db),
    "recognised": lambda row: f"{row.identified}/{row.n}",
    "linked": lambda row: f"{row.linked}/{row.linkage.n}" if row.linkage.n else "",
    "bound": lambda row: "" if row.bound is None else f"≤ {row.bound:.0%}",
    "label": lambda row: "" if row.null else f"{row.labels_correct}/{row.labels}",
    "bytes": lambda row: "" if row.null or row.bytes is None else _bytes(row.bytes),
    "verdict": _verdict,
}


def _caption(rows: list[Row], model: dict[str, Any]) -> list[str]:
    chance = next((row.chance for row in rows if row.chance), None)
    of = "" if chance is None else f" (chance {chance:.0%})"
    lines = [
        "in brackets: attackers who never see the update. gain: over the best of them.",
        f"recognised: of all candidates the rebuilt clip is nearest to its own truth{of}.",
        "linked: who holds the candidate clips (not their labels, unless granted) picks the right one by "
        "the update alone.",
        "nothing found is no proof: the intervals' upper ends say how much could still be there.",
    ]
    hits = model["held_out_accuracy"]
    if hits is not None:
        lines.append(f"the model gets {hits:.0%} of the attacked clips right (chance {model['chance']:.0%}).")
    flags = sorted({flag for row in rows for flag in row.flags})
    failures = sorted({reason for row in rows for reason in row.failures})
    lines += [f"flagged: {'; '.join(flags)}."] if flags else []
    lines += [f"failed: {'; '.join(failures)}."] if failures else []
    return lines
