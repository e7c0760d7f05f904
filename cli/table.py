"""The table that answers "what still leaks?"."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from vleak.evaluation import Interval, Row

_STYLES = {
    "leaks": "bold red",
    "no picture, but linkable": "yellow",
    "nothing beyond the prior": "green",
    "baseline": "dim",
    "no result": "yellow",
}


def leak_table(results: dict[str, Any], rows: list[Row]) -> Table:
    """Return one line an attack and defense, worst news readable at a glance.

    Args:
        results: content of results.json.
        rows: what `vleak.evaluation.summarise` made of it.
    """
    model, data = results["models"][0], results["data"]
    title = (
        f"What still leaks? {data['name']}, {data['clips']} clips, {model['name']} {model['training_state']}"
    )
    table = Table(
        title=title,
        caption=_caption(rows, model),
        box=box.SIMPLE_HEAD,
        title_style="bold",
        caption_style="dim",
        caption_justify="left",
    )
    table.add_column("defense", no_wrap=True)
    table.add_column("attack", no_wrap=True)
    for name in ("ε", "PSNR dB", "gain dB [95 %]", "recognised", "linked", "bound", "label", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in rows:
        table.add_row(*_cells(row), style="dim" if row.null else None)
    return table


def _cells(row: Row) -> list[str | Text]:
    return [
        "" if row.null else row.defense,
        row.attack,
        "" if row.epsilon is None else f"{row.epsilon:.3g}" if row.epsilon < 1000 else f"{row.epsilon:.0e}",
        "–" if row.psnr_db is None else f"{row.psnr_db:.1f}",
        _interval(row.psnr_gain_db),
        f"{row.identified}/{row.n}",
        f"{row.linked}/{row.linkage.n}" if row.linkage.n else "",
        "" if row.bound is None else f"≤ {row.bound:.0%}",
        "" if row.null else f"{row.labels_correct}/{row.labels}",
        "" if row.null or row.bytes is None else _bytes(row.bytes),
        _verdict(row),
    ]


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


def _caption(rows: list[Row], model: dict[str, Any]) -> str:
    chance = next((row.chance for row in rows if row.chance), None)
    of = "" if chance is None else f" (chance {chance:.0%})"
    lines = [
        "gain: over the best answer that needs no update.",
        f"recognised: of all candidates the rebuilt clip is nearest to its own truth{of}.",
        "linked: who holds all candidates can tell from the update alone which one it was.",
    ]
    hits = model["held_out_accuracy"]
    if hits is not None:
        lines.append(f"the model gets {hits:.0%} of the attacked clips right (chance {model['chance']:.0%}).")
    flags = sorted({flag for row in rows for flag in row.flags})
    failures = sorted({reason for row in rows for reason in row.failures})
    lines += [f"flagged: {'; '.join(flags)}."] if flags else []
    lines += [f"failed: {'; '.join(failures)}."] if failures else []
    return "\n".join(lines)
