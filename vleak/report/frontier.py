"""Plot of leakage against utility: what no other defense beats in both."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter

from vleak.report.svg import MUTED, SERIES, Plot, canvas, clear_frame, error_bars, style, to_svg
from vleak.results import Row
from vleak.results.summary import strongest

__all__ = ["draw_frontier", "frontier"]


def frontier(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other beats in one of leakage and accuracy, and equals in the other.

    Args:
        rows: one a defense, each with an accuracy and a gain.
    """
    points = [(_leak(row), _accuracy(row)) for row in rows]

    def beaten(leak: float, accuracy: float) -> bool:
        return any(
            other <= leak and right >= accuracy and (other, right) != (leak, accuracy)
            for other, right in points
        )

    return [row for row, point in zip(rows, points, strict=True) if not beaten(*point)]


def draw_frontier(rows: Sequence[Row]) -> list[Plot]:
    """Return the plot of a run, each defense at the attack that gets most out of it; none without accuracies.

    Args:
        rows: rows of the run.
    """
    worst = strongest(row for row in rows if not row.baseline and row.n).values()
    shown = [row for row in worst if row.accuracy.mean is not None and row.psnr_gain_db.mean is not None]
    if len(shown) < 2:
        return []
    best = sorted(frontier(shown), key=_accuracy)
    with style("frontier"):
        figure, axes = canvas(3.2)
        for row in shown:
            color = SERIES[0] if row in best else MUTED
            axes.errorbar(
                [_accuracy(row)], [_leak(row)], xerr=error_bars([row.accuracy]),
                yerr=error_bars([row.psnr_gain_db]),
                fmt="o", color=color, markersize=4.5, elinewidth=1.0, capsize=2.0,
            )  # fmt: skip
            axes.annotate(
                row.defense, (_accuracy(row), _leak(row)), xytext=(5, 5), textcoords="offset points",
                fontsize=7.5, color=color,
            )  # fmt: skip
        axes.plot(
            [_accuracy(row) for row in best], [_leak(row) for row in best], color=SERIES[0], linewidth=1.0
        )
        axes.axhline(0.0, color=MUTED, linewidth=1.0, linestyle=":")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.set_xlabel("accuracy after federated training  (right: more useful)")
        axes.set_ylabel("PSNR gain in dB  (down: more private)")
        clear_frame(axes, grid="y")
        svg = to_svg(figure)
    names = ", ".join(row.defense for row in best)
    caption = (
        "Every defense at the attack that gets most out of it, with 95 % intervals over clips. No other "
        f"defense leaks less and trains as well as those on the line: {names}."
    )
    return [Plot("Leakage against utility", caption, svg)]


def _leak(row: Row) -> float:
    return row.psnr_gain_db.mean or 0.0


def _accuracy(row: Row) -> float:
    return row.accuracy.mean or 0.0
