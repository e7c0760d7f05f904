"""Plot of leakage against what a defense costs: what no other defense beats in both."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from vleak.report.costs import Cost, compared, frontier, leak
from vleak.report.numbers import ratio
from vleak.report.svg import MUTED, SERIES, Plot, canvas, clear_frame, error_bars, style, to_svg
from vleak.results import Row

__all__ = ["MAX_LABELS", "draw_frontier"]

MAX_LABELS = 18
"""Defenses that are all named in the plot; of more those on the line alone."""


def draw_frontier(rows: Sequence[Row]) -> list[Plot]:
    """Return the plot of a run, each defense at the attack that gets most out of it.

    Leakage is set against accuracy; where none was measured against the bytes sent, where those differ.

    Args:
        rows: rows of the run.
    """
    found = compared(rows)
    return [] if found is None else [_draw(found[1], found[0])]


def _draw(shown: Sequence[Row], cost: Cost) -> Plot:
    best = sorted(frontier(shown, cost.useful), key=cost.useful)
    with style("frontier"):
        figure, axes = canvas(3.2)
        for row in shown:
            name = row.defense if row in best or len(shown) <= MAX_LABELS else ""
            _point(axes, row, cost, name, SERIES[0] if row in best else MUTED)
        places = [cost.pick(row).mean or 0.0 for row in best]
        axes.plot(places, [leak(row) for row in best], color=SERIES[0], linewidth=1.0)
        axes.axhline(0.0, color=MUTED, linewidth=1.0, linestyle=":")
        if cost.logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        text = ratio if cost.logarithmic else (lambda value: f"{100 * value:.0f} %")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
        axes.set_xlabel(cost.axis)
        axes.set_ylabel("PSNR gain in dB  (down: more private)")
        clear_frame(axes, grid="y")
        svg = to_svg(figure)
    names = ", ".join(row.defense for row in best)
    caption = (
        "Every defense at the attack that gets most out of it, with 95 % intervals over clips. No other "
        f"defense leaks less and {cost.praise} as those on the line: {names}."
    )
    return Plot(cost.title, caption, svg)


def _point(axes: Axes, row: Row, cost: Cost, name: str, color: str) -> None:
    place = cost.pick(row)
    axes.errorbar(
        [place.mean or 0.0], [leak(row)], xerr=error_bars([place]), yerr=error_bars([row.psnr_gain_db]),
        fmt="o", color=color, markersize=4.5, elinewidth=1.0, capsize=2.0,
    )  # fmt: skip
    axes.annotate(
        name, (place.mean or 0.0, leak(row)), xytext=(5, 5), textcoords="offset points",
        fontsize=7.5, color=color,
    )  # fmt: skip
