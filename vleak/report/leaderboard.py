"""Leaderboard of the suite: as a page, and as a table in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import FuncFormatter

from vleak.report.html import render_page
from vleak.report.numbers import epsilon_text, gain_text, percent, ratio, share_text
from vleak.report.svg import MUTED, SERIES, Plot, canvas, clear_frame, error_bars, style, to_svg
from vleak.results import Interval
from vleak.suite import Board, Entry, Rank, Refusal, Standing

__all__ = ["board_markdown", "board_page", "rank_text", "standing_cells"]

_LONGEST = 34  # characters of a label in a plot
_ROW_INCHES = 0.24


@dataclass(frozen=True)
class StandingView:
    """Row of the page.

    Attributes:
        standing: what it is of.
        cells: texts by column, as in all tables.
        notes: health of the attack, and what else is to be known of the figures.
    """

    standing: Standing
    cells: dict[str, str]
    notes: tuple[str, ...]


def rank_text(rank: Rank) -> str:
    """Rank with its interval: ``"3 [2–5]"``."""
    return f"{rank.rank} [{rank.low}–{rank.high}]"


def standing_cells(standing: Standing) -> dict[str, str]:
    """Texts of a row by column, which all tables share."""
    entry = standing.entry
    return {
        "defense": entry.defense.label,
        "attack": entry.attack.text,
        "leakage": _interval_text(standing.leakage),
        "recognised": share_text(standing.recognised),
        "linked": "–" if standing.linked is None else share_text(standing.linked),
        "gain dB": gain_text(standing.gain_db),
        "adaptive gain": _signed(standing.aware_gain_db),
        "non-adaptive gain": _signed(standing.unaware_gain_db),
        "adaptive recognised": _percent(standing.aware_recognised),
        "non-adaptive recognised": _percent(standing.unaware_recognised),
        "accuracy": _accuracy_text(entry),
        "bytes": ratio(entry.situations[0].bytes_ratio),
        "epsilon": _epsilon_text(entry),
        "seconds": _seconds_text(entry),
    }


def _interval_text(interval: Interval) -> str:
    if interval.mean is None:
        return "–"
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.2f}"
    return f"{interval.mean:.2f} [{max(0.0, interval.low):.2f}, {min(1.0, interval.high):.2f}]"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 1) + 0.0:+.1f}"  # + 0.0 makes 0 of -0


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)


def _accuracy_text(entry: Entry) -> str:
    cost = entry.cost
    if cost is None or cost.accuracy.mean is None:
        return "–"
    return share_text(cost.accuracy.interval) or percent(cost.accuracy.mean)


def _epsilon_text(entry: Entry) -> str:
    if entry.defense.epsilon is None:
        return "–"
    claimed = epsilon_text(entry.defense.epsilon)
    audit = entry.audit
    return claimed if audit is None or not audit.epsilon else f"{claimed} (≥ {epsilon_text(audit.epsilon)})"


def _seconds_text(entry: Entry) -> str:
    cost = entry.cost
    if cost is None or cost.seconds is None:
        return "–"
    return f"{1000 * cost.seconds:.0f} ms" + (f" ({ratio(cost.seconds_ratio)})" if cost.seconds_ratio else "")


_COLUMNS = (
    "defense", "attack", "leakage", "recognised", "linked", "gain dB", "adaptive gain", "non-adaptive gain",
    "accuracy", "bytes", "epsilon",
)  # fmt: skip


def board_markdown(board: Board) -> str:
    """Tables in Markdown: the ranks, and what was refused."""
    lines = [
        "| rank | " + " | ".join(_COLUMNS) + " |",
        "|" + "---|" * (1 + len(_COLUMNS)),
    ]
    for standing in board.standings:
        cells = standing_cells(standing)
        texts = [rank_text(standing.rank), *(cells[name] for name in _COLUMNS)]
        lines.append("| " + " | ".join(map(_escaped, texts)) + " |")
    if reasons := _refused(board):
        lines += ["", "Refused, and not ranked:", ""]
        lines += [
            f"- {_escaped(entry.defense.label)} by {_escaped(entry.attack.text)}: {_escaped(reason)}"
            for entry, reason in reasons
        ]
    return "\n".join(lines)


def _refused(board: Board) -> list[tuple[Entry, str]]:
    """Return every entry that is not ranked, with all reasons in one text."""
    refused = [(entry, "; ".join(map(_reason, entry.refusals))) for entry in board.refused]
    why = "another entry of this defense has broken a claim"
    return refused + [(entry, why) for entry in board.disqualified]


def _reason(refusal: Refusal) -> str:
    where = f" ({refusal.situation})" if refusal.situation else ""
    return f"{refusal.rule}{where}: {refusal.reason}"


def _escaped(text: str) -> str:
    """Text as a cell of a table in Markdown shows it, whatever is in a name."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|!])", r"\\\1", text)


def board_page(board: Board) -> str:
    """Page of a leaderboard, one file that loads nothing; every text in it is escaped."""
    views = [_view(standing) for standing in board.standings]
    machines = {
        f"vleak {e.vleak}, torch {e.torch}, {e.platform}, native code {e.extension}"
        for standing in board.standings
        for e in [standing.entry.environment]
    }
    return render_page(
        "leaderboard.html",
        answer=_answer(board),
        board=board,
        views=views,
        refused=_refused(board),
        plots=_plots(board.standings),
        rank_text=rank_text,
        facts={"Protocol": {**board.protocol.model_dump(exclude={"situations", "clip_means"})}}
        | {f"Situation {each.name}": each.model_dump() for each in board.protocol.situations},
        machines=sorted(machines),
        digest=board.protocol.sha256,
    )


def _answer(board: Board) -> str:
    """What the board says in a sentence."""
    if not board.standings:
        return "No entry is admitted."
    first = [standing for standing in board.standings if standing.rank.low == 1]
    if len(first) == 1:
        return f"{first[0].entry.defense.label} leaks least."
    count = f"{len(first)} of {len(board.standings)}"
    return f"{count} defenses may leak least; the clips do not tell them apart."


def _view(standing: Standing) -> StandingView:
    entry, notes = standing.entry, list[str]()
    if any(each.knowledge == "simulated" for each in entry.situations):
        notes.append("it states no channel; the attacker simulated it")
    if flagged := sum(each.defended.flagged for each in entry.situations):
        notes.append(f"{flagged} rebuilds with a warning of the attack")
    if standing.others:
        notes.append("weaker: " + ", ".join(other.attack.text for other in standing.others))
    if entry.cost is not None and entry.cost.failure:
        notes.append(f"training failed: {entry.cost.failure}")
    return StandingView(standing, standing_cells(standing), tuple(notes))


def _plots(standings: Sequence[Standing]) -> list[Plot]:
    return [_ranks_plot(standings), *_utility_plot(standings)] if standings else []


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _ranks_plot(standings: Sequence[Standing]) -> Plot:
    places = list(range(len(standings)))[::-1]
    with style("suite-ranks"):
        figure, axes = canvas(0.8 + _ROW_INCHES * len(standings))
        axes.errorbar(
            [standing.leakage.mean or 0.0 for standing in standings], places,
            xerr=error_bars([standing.leakage for standing in standings]),
            fmt="o", color=SERIES[0], markersize=4.5, elinewidth=1.2, capsize=2.0,
        )  # fmt: skip
        axes.set_yticks(places, [_short(standing.entry.defense.label) for standing in standings])
        axes.set_xlim(0.0, 1.02)
        axes.set_ylim(-0.6, len(standings) - 0.4)
        axes.set_xlabel("leakage, 0 to 1  (left: more private)")
        clear_frame(axes, grid="x")
        svg = to_svg(figure)
    caption = "Mean over the private clips with its 95 % interval, each defense at its strongest attack."
    return Plot("Leakage", caption, svg)


def _utility_plot(standings: Sequence[Standing]) -> list[Plot]:
    shown = [
        (standing, standing.entry.cost.accuracy.interval)
        for standing in standings
        if standing.entry.cost is not None and standing.entry.cost.accuracy.mean is not None
    ]
    if len(shown) < 2:
        return []
    with style("suite-utility"):
        figure, axes = canvas(3.4)
        for standing, accuracy in shown:
            point = (accuracy.mean or 0.0, standing.leakage.mean or 0.0)
            axes.errorbar(
                [point[0]], [point[1]], xerr=error_bars([accuracy]), yerr=error_bars([standing.leakage]),
                fmt="o", color=SERIES[0], markersize=4.5, elinewidth=0.8, capsize=1.5, alpha=0.9,
            )  # fmt: skip
            axes.annotate(
                str(standing.rank.rank), point, xytext=(4, 4), textcoords="offset points", fontsize=7.5,
                color=MUTED,
            )  # fmt: skip
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.set_xlabel("accuracy after federated training  (right: more useful)")
        axes.set_ylabel("leakage  (down: more private)")
        clear_frame(axes, grid="y")
        svg = to_svg(figure)
    caption = "The number at a point is the rank in the table; 95 % intervals over clips."
    return [Plot("Leakage against utility", caption, svg)]
