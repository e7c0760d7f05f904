"""SVG pictures of matplotlib figures that take their colours from the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from vleak.results import Interval

MAX_SERIES = 6

# Stand-in colours that become variables of the page: one plot serves the light and the dark scheme.
INK, MUTED, GRID, BOUND = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04"
SERIES = tuple(f"#0b0b0{n}" for n in range(MAX_SERIES))
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", BOUND: "--bound"} | {
    color: f"--s{n}" for n, color in enumerate(SERIES)
}
_COLORED = ("axes.edgecolor", "xtick.color", "ytick.color", "axes.labelcolor", "text.color")
_WIDTH = 4.4  # inches


@dataclass(frozen=True)
class Plot:
    """Drawn figure.

    Attributes:
        title: what is drawn.
        caption: how to read it.
        svg: the picture, safe to put into a page: matplotlib escapes every text in it.
    """

    title: str
    caption: str
    svg: str


@contextmanager
def style(salt: str) -> Iterator[None]:
    """Set the style of one figure.

    Args:
        salt: text from which ids in the SVG are derived: they differ between the plots of a page and agree
            between runs.
    """
    settings: Any = {  # matplotlib types the keys as a literal of hundreds
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,  # a label may hold a dollar sign
        "font.size": 8.5,
        "axes.unicode_minus": True,
        **dict.fromkeys(_COLORED, MUTED),
    }
    with mpl.rc_context(settings):
        yield


def canvas(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure.

    Args:
        height: in inches.
    """
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot(facecolor="none")


def clear_frame(axes: Axes, *, grid: str) -> None:
    """Take away the upper and right line of the frame and draw a grid behind the points.

    Args:
        axes: to change.
        grid: "x" or "y", the axis whose ticks have grid lines.
    """
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(True, axis="x" if grid == "x" else "y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def error_bars(intervals: Sequence[Interval]) -> list[list[float]]:
    """Return distances from the mean to both ends, NaN where there is no interval."""
    low = [or_nan(i.mean) - or_nan(i.low) for i in intervals]
    high = [or_nan(i.high) - or_nan(i.mean) for i in intervals]
    return [[v if math.isnan(v) else max(0.0, v) for v in side] for side in (low, high)]


def or_nan(value: float | None) -> float:
    """Return a number that matplotlib leaves out where there is none."""
    return math.nan if value is None else value


def to_svg(figure: Figure) -> str:
    """Return the <svg> element alone, in the page's colours and without matplotlib's metadata."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # names of groups that would repeat in every plot
    head, body = svg.split(">", 1)
    svg = re.sub(r' (?:width|height)="[^"]*"', "", head) + ">" + body
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg
