"""Plot of a history of nights: the course of the figures that moved, or of those that leak most."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from vleak.errors import InputError
from vleak.regression import Night, NightLine, TestRecord
from vleak.report.svg import MAX_SERIES, SERIES, Plot, canvas, clear_frame, or_nan, style, to_svg

__all__ = ["draw_nights", "night_plots"]

# A file of its own has no page to take colours from.
_PAPER = {"--ink": "#1a1a1a", "--muted": "#555555", "--line": "#dddddd", "--bound": "#999999"} | {
    f"--s{n}": color
    for n, color in enumerate(("#1f6feb", "#d1495b", "#2a9d8f", "#b8860b", "#7b4fa3", "#52606d"))
}


def draw_nights(night: Night, nights: Sequence[NightLine], names: Sequence[str]) -> str:
    """SVG of the nights' differences to the baseline, in the standard deviations of each series; for a file.

    Args:
        night: the last one, whose tests are drawn: those that alarm or moved, then those with most evidence.
        nights: of the history, with this one.
        names: of the tests in their lines.

    Raises:
        InputError: there is nothing to draw.
    """
    ranked = _ranked(night, nights, names)
    if not ranked:
        raise InputError("plot: the history has no night to draw; judge a run of a fresh draw with it first")
    svg = _draw(night, nights, names, ranked)
    return re.sub(r"var\((--\w+)\)", lambda match: _PAPER[match[1]], svg) + "\n"


def night_plots(night: Night, nights: Sequence[NightLine], names: Sequence[str]) -> list[Plot]:
    """Plot of `draw_nights` for a page, in the page's colours; none before the second night."""
    ranked = _ranked(night, nights, names)
    if not ranked or len(nights) < 2:
        return []
    caption = (
        "Each night less the baseline, in standard deviations of its series. Drawn are the figures that "
        "alarm or moved, then those with most evidence; a dotted line marks a new level."
    )
    return [Plot("Differences to the baseline", caption, _draw(night, nights, names, ranked))]


def _ranked(night: Night, nights: Sequence[NightLine], names: Sequence[str]) -> list[TestRecord]:
    """Return the tests that can be drawn, those that alarm first; none without a history."""
    moved = {move.name for move in night.moves}
    series = {name: [line.means[place] for line in nights] for place, name in enumerate(names)}
    constant = {name for name, values in series.items() if len(set(values)) < 2}
    if not nights:
        return []
    return sorted(
        (
            test
            for test in night.tests
            if test.name in series
            and test.baseline is not None
            and (test.subject != "certificate" or test.outcome == "worse")
        ),
        key=lambda test: (
            test.outcome != "worse",
            test.name not in moved,
            test.name in constant,
            -test.log_e,
        ),
    )


def _draw(
    night: Night, nights: Sequence[NightLine], names: Sequence[str], ranked: Sequence[TestRecord]
) -> str:
    series = {name: [line.means[place] for line in nights] for place, name in enumerate(names)}
    with style("nights"):
        figure, axes = canvas(3.4)
        for color, test in zip(SERIES, ranked[:MAX_SERIES], strict=False):
            values = np.array([or_nan(value) for value in series[test.name]]) - or_nan(test.baseline)
            spread = float(np.nanstd(values[: max(2, len(values) // 2)]))
            scaled = values / spread if spread > 1e-12 else values
            axes.plot([line.night for line in nights], scaled, "o-", color=color, markersize=2.5,
                      linewidth=1.1, label=f"{test.row}: {test.figure}")  # fmt: skip
            for move in night.moves:
                if move.name == test.name:
                    axes.axvline(move.night - 0.5, color=color, linestyle=":", linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("night")
        axes.set_ylabel("difference to the baseline / sd")
        figure.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=2)
        clear_frame(axes, grid="y")
        svg = to_svg(figure)
    return svg
