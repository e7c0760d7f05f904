"""Plot of one measured quantity along an axis."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from vleak.report.numbers import number
from vleak.report.svg import SERIES, Plot, canvas, clear_frame, or_nan, style, to_svg
from vleak.study.records import Point

MAX_TICKS = 8


def draw_curve(axis: str, points: Sequence[Point], quantity: str, *, logarithmic: bool = False) -> Plot:
    """Return a plot of means with their intervals.

    Args:
        axis: what is along the horizontal axis.
        points: means with their intervals, in the order of the axis.
        quantity: name and unit of the means.
        logarithmic: whether the horizontal axis is.
    """
    with style(axis + quantity):
        figure, axes = canvas(2.6)
        means = [or_nan(point.mean) for point in points]
        low = [or_nan(point.mean) - or_nan(point.low) for point in points]
        high = [or_nan(point.high) - or_nan(point.mean) for point in points]
        axes.errorbar([point.x for point in points], means, yerr=[low, high], fmt="o-", color=SERIES[0],
                      markersize=4.5, linewidth=1.4, elinewidth=1.2, capsize=2.5)  # fmt: skip
        _ticks(axes, sorted({point.x for point in points}), logarithmic)
        axes.set_xlabel(axis)
        axes.set_ylabel(quantity)
        clear_frame(axes, grid="y")
        svg = to_svg(figure)
    return Plot(f"{quantity} by {axis}", "Points with 95 % intervals.", svg)


def _ticks(axes: Axes, values: Sequence[float], logarithmic: bool) -> None:
    """Put ticks at whole numbers; on a logarithmic axis at the points."""
    if not logarithmic:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    axes.set_xscale("log")
    axes.set_xticks(_apart([value for value in values if value > 0]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _apart(values: Sequence[float]) -> list[float]:
    """Return the values, from the largest on, whose labels do not overlap on a logarithmic axis."""
    kept: list[float] = []
    least = (values[-1] / values[0]) ** (1 / MAX_TICKS) if values else 1.0
    for value in reversed(values):
        if not kept or kept[-1] / value >= least:
            kept.append(value)
    return kept
