"""Plot of the sandwich: what guessing gives, what was measured, what a certificate allows."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from vleak.report.svg import BOUND, MUTED, SERIES, Plot, canvas, clear_frame, style, to_svg
from vleak.results import Row
from vleak.results.rows import Figure
from vleak.results.statistics import binomial_interval

__all__ = ["MAX_BARS", "draw_sandwich"]

MAX_BARS = 18
_LONGEST = 34  # characters of a label
_NAMES = {"recognised": "Recognised by the picture", "linked": "Linked by the update"}


def draw_sandwich(rows: Sequence[Row]) -> list[Plot]:
    """Return a plot for recognised and one for linked clips; none where no certificate speaks of them.

    Args:
        rows: rows of the run; those whose attack got most out of a defense come first.
    """
    plots = []
    for name, title in _NAMES.items():
        bars = _bars(rows, name)
        if bars:
            plots.append(_draw(title, bars))
    return plots


def _bars(rows: Sequence[Row], name: str) -> list[tuple[str, Figure]]:
    """Return the figures that have a ceiling, of each defense the one with the largest share."""
    found: dict[str, Figure] = {}
    for row in rows:
        for figure in row.figures:
            if figure.name == name and figure.ceiling is not None and figure.trials:
                known = found.get(row.defense)
                if known is None or (figure.broken, figure.share) > (known.broken, known.share):
                    found[row.defense] = figure
    return list(found.items())[:MAX_BARS]


def _draw(title: str, bars: Sequence[tuple[str, Figure]]) -> Plot:
    with style("sandwich" + title):
        figure, axes = canvas(1.15 + 0.3 * len(bars))
        for place, (_, each) in enumerate(bars):
            _bar(axes, place, each)
        names = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name, _ in bars]
        axes.set_yticks(range(len(bars)), names)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlim(-0.03, 1.03)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.set_xlabel("share of clips")
        clear_frame(axes, grid="x")
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        figure.legend(
            once.values(), once.keys(), loc="outside upper left", ncols=3, frameon=False, fontsize=8
        )
        svg = to_svg(figure)
    caption = (
        "Left tick: what guessing gives. Dot: what was measured, with its 95 % interval. Right tick: what "
        "the certificate allows any attacker. A dot just beyond it may be chance; one too far for that is "
        "said to break the bound, above all else on this page."
    )
    return Plot(f"{title}: guess, measured, proven", caption, svg)


def _bar(axes: Axes, place: int, figure: Figure) -> None:
    ceiling = min(1.0, figure.ceiling or 0.0)
    guess = figure.baseline
    axes.hlines(place, guess or 0.0, ceiling, color=BOUND, linewidth=5, alpha=0.22)
    axes.plot([ceiling], [place], "|", color=BOUND, markersize=11, markeredgewidth=2, label="proven ceiling")
    if guess is not None:
        axes.plot([guess], [place], "|", color=MUTED, markersize=11, markeredgewidth=1.5, label="guess")
    interval = binomial_interval(figure.successes, figure.trials)
    low, high = interval.low, interval.high
    if low is not None and high is not None:
        axes.hlines(place, low, high, color=SERIES[0], linewidth=1.4)
    axes.plot([figure.share], [place], "o", color=SERIES[0], markersize=5, label="measured")
