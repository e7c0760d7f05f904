"""Plot of leakage against what a defense costs: what no other defense beats in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from vleak.report.numbers import ratio
from vleak.report.svg import MUTED, SERIES, Plot, canvas, clear_frame, error_bars, style, to_svg
from vleak.results import Interval, Row
from vleak.results.statistics import mean_interval
from vleak.results.summary import strongest

__all__ = ["MAX_LABELS", "draw_frontier", "frontier"]

MAX_LABELS = 18
"""Defenses that are all named in the plot; of more those on the line alone."""


@dataclass(frozen=True)
class _Cost:
    """What leakage is set against.

    Attributes:
        title: of the plot. axis: label of its axis. praise: what a defense on the line does as well.
        pick: returns the quantity of a row. sign: 1 where more of it is better, -1 where less is.
        logarithmic: whether its axis is.
    """

    title: str
    axis: str
    praise: str
    pick: Callable[[Row], Interval]
    sign: int
    logarithmic: bool = False

    def useful(self, row: Row) -> float:
        """Return how useful the defense of a row is by this quantity."""
        return self.sign * (self.pick(row).mean or 0.0)


_ACCURACY = _Cost(
    "Leakage against utility",
    "accuracy after federated training  (right: more useful)",
    "trains as well",
    lambda row: row.accuracy,
    1,
)
_BYTES = _Cost(
    "Leakage against bytes",
    "bytes sent, against no defense  (left: cheaper)",
    "sends as little",
    lambda row: mean_interval([] if row.bytes_ratio is None else [row.bytes_ratio]),
    -1,
    logarithmic=True,
)


def frontier(rows: Sequence[Row], useful: Callable[[Row], float] = _ACCURACY.useful) -> list[Row]:
    """Return the rows that no other beats in one of leakage and use, and equals in the other.

    Args:
        rows: one a defense, each with a gain.
        useful: returns how useful a row's defense is, by its accuracy unless something else is given.
    """
    points = [(_leak(row), useful(row)) for row in rows]

    def beaten(leak: float, use: float) -> bool:
        return any(
            other <= leak and right >= use and (other, right) != (leak, use) for other, right in points
        )

    return [row for row, point in zip(rows, points, strict=True) if not beaten(*point)]


def draw_frontier(rows: Sequence[Row]) -> list[Plot]:
    """Return the plot of a run, each defense at the attack that gets most out of it.

    Leakage is set against accuracy; where none was measured against the bytes sent, where those differ.

    Args:
        rows: rows of the run.
    """
    worst = strongest(row for row in rows if not row.baseline and row.n).values()
    for cost in (_ACCURACY, _BYTES):
        shown = [
            row for row in worst if cost.pick(row).mean is not None and row.psnr_gain_db.mean is not None
        ]
        if len(shown) > 1 and (cost is _ACCURACY or len({ratio(cost.pick(row).mean) for row in shown}) > 1):
            return [_draw(shown, cost)]
    return []


def _draw(shown: Sequence[Row], cost: _Cost) -> Plot:
    best = sorted(frontier(shown, cost.useful), key=cost.useful)
    with style("frontier"):
        figure, axes = canvas(3.2)
        for row in shown:
            name = row.defense if row in best or len(shown) <= MAX_LABELS else ""
            _point(axes, row, cost, name, SERIES[0] if row in best else MUTED)
        places = [cost.pick(row).mean or 0.0 for row in best]
        axes.plot(places, [_leak(row) for row in best], color=SERIES[0], linewidth=1.0)
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


def _point(axes: Axes, row: Row, cost: _Cost, name: str, color: str) -> None:
    place = cost.pick(row)
    axes.errorbar(
        [place.mean or 0.0], [_leak(row)], xerr=error_bars([place]), yerr=error_bars([row.psnr_gain_db]),
        fmt="o", color=color, markersize=4.5, elinewidth=1.0, capsize=2.0,
    )  # fmt: skip
    axes.annotate(
        name, (place.mean or 0.0, _leak(row)), xytext=(5, 5), textcoords="offset points",
        fontsize=7.5, color=color,
    )  # fmt: skip


def _leak(row: Row) -> float:
    return row.psnr_gain_db.mean or 0.0
