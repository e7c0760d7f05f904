"""Plots of leakage against privacy, as SVG that takes its colours from the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from vleak.report.numbers import epsilon_text, number, ratio
from vleak.report.words import knowledge_text
from vleak.results.rows import Row
from vleak.results.statistics import Interval

MAX_SERIES = 6
MAX_LABELS = 18
MAX_TICKS = 6

# Drawn in stand-in colours that become the page's variables: one plot serves the light and the dark scheme.
_INK, _MUTED, _GRID, _BOUND = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04"
_SERIES = tuple(f"#0b0b0{n}" for n in range(MAX_SERIES))
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--line", _BOUND: "--bound"} | {
    color: f"--s{n}" for n, color in enumerate(_SERIES)
}
_CHANCE, _PRIOR, _ALLOWED, _UNDEFENDED = "chance", "prior", "certificate allows", "without defense"
_LINES = (_CHANCE, _PRIOR, _ALLOWED, _UNDEFENDED)
_MARKERS = "osD^vP"
_COLORED = ("axes.edgecolor", "xtick.color", "ytick.color", "axes.labelcolor", "text.color")

Pick = Callable[[Row], Interval]


@dataclass(frozen=True)
class Plot:
    """A drawn figure.

    Attributes:
        title: what is drawn.
        caption: how to read it.
        svg: the picture, safe to put into a page: every text in it was escaped by matplotlib.
    """

    title: str
    caption: str
    svg: str


def draw_plots(rows: Sequence[Row]) -> list[Plot]:
    """Return the plots of a run: against epsilon where a defense proves one, by defense for all others.

    Args:
        rows: what `summarise` made of the run.

    Returns:
        No, three or six plots; at most ``MAX_SERIES`` series, those of the rows that come first.
    """
    scored = [row for row in rows if row.n and not row.baseline]
    series = list(dict.fromkeys(map(_series, scored)))[:MAX_SERIES]
    scored = [row for row in scored if _series(row) in series]
    private = [row for row in scored if row.epsilon is not None and row.epsilon > 0]
    other = [row for row in scored if row.epsilon is None]
    plots = []
    if private:
        plots += [_against_epsilon(private, other, series, *measure) for measure in _MEASURES]
    if not private or any(not row.undefended for row in other):
        plots += [_by_defense(other, series, *measure) for measure in _MEASURES if other]
    return plots


def draw_curve(
    axis: str, points: Sequence[tuple[float, Interval]], unit: str, *, logarithmic: bool = False
) -> Plot:
    """Return a plot of one measured quantity along an axis.

    Args:
        axis: what is along it.
        points: (place, mean with its interval), in order.
        unit: of the quantity, with its name.
        logarithmic: whether the axis is.
    """
    with mpl.rc_context(_style(axis + unit)):
        figure, axes = _canvas(2.6)
        means = [_or_nan(interval.mean) for _, interval in points]
        low = [mean - _or_nan(interval.low) for mean, (_, interval) in zip(means, points, strict=True)]
        high = [_or_nan(interval.high) - mean for mean, (_, interval) in zip(means, points, strict=True)]
        axes.errorbar([x for x, _ in points], means, yerr=[low, high], fmt="o-", color=_SERIES[0],
                      markersize=4.5, linewidth=1.4, elinewidth=1.2, capsize=2.5)  # fmt: skip
        if logarithmic:
            axes.set_xscale("log")
            places = sorted({x for x, _ in points})
            axes.set_xticks(places if len(places) <= MAX_TICKS else places[:: len(places) - 1])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(axis)
        axes.set_ylabel(unit)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(True, axis="y", color=_GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        svg = _svg(figure)
    return Plot(f"{unit} by {axis}", "Points with 95 % intervals.", svg)


def _identification(row: Row) -> Interval:
    return row.identification


def _linkage(row: Row) -> Interval:
    return row.linkage


def _gain(row: Row) -> Interval:
    return row.psnr_gain_db


_MEASURES: tuple[tuple[str, str, Pick], ...] = (
    ("Recognised clips", "share of clips recognised", _identification),
    ("Linked clips", "share of clips linked", _linkage),
    ("Gain over the prior", "PSNR gain in dB", _gain),
)

_SHARES = (_identification, _linkage)
"""Measures that a certificate bounds and that have a chance level."""


def _series(row: Row) -> tuple[str, str, str, str, str]:
    return row.pipeline, row.model, row.training_state, row.attack, knowledge_text(row.knowledge)


def _against_epsilon(
    private: list[Row], other: list[Row], series: list[Any], title: str, axis: str, pick: Pick
) -> Plot:
    with mpl.rc_context(_style(title)):
        figure, axes = _canvas(2.9)
        for place, key in enumerate(series):
            rows = sorted((row for row in private if _series(row) == key), key=lambda row: row.epsilon or 0.0)
            _points(axes, [row.epsilon or 0.0 for row in rows], rows, pick, place, _name(key, series))
            _reference(axes, [row for row in other if _series(row) == key], pick, place)
        if pick in _SHARES:
            _bounds(axes, private)
        _epsilon_axis(axes, [row.epsilon or 0.0 for row in private])
        axes.set_ylabel(axis)
        _finish(axes, pick, private, horizontal=False)
        svg = _svg(figure)
    caption = "Points with 95 % intervals; the line across is the same attack without any defense."
    if pick in _SHARES and any(row.bound is not None for row in private):
        caption += " Dashed: what the certificate allows."
    return Plot(f"{title} against ε", caption, svg)


def _by_defense(rows: list[Row], series: list[Any], title: str, axis: str, pick: Pick) -> Plot:
    labels = list(dict.fromkeys(row.defense for row in rows))[:MAX_LABELS]
    used = [key for key in series if any(_series(row) == key for row in rows)]
    with mpl.rc_context(_style(title + "defense")):
        figure, axes = _canvas(1.1 + len(labels) * max(0.3, 0.14 * len(used)))
        for place, key in enumerate(series):
            mine = [row for row in rows if _series(row) == key and row.defense in labels]
            shift = (place - (len(series) - 1) / 2) * 0.7 / len(series)
            _bars(
                axes,
                [labels.index(row.defense) + shift for row in mine],
                mine,
                pick,
                place,
                _name(key, series),
            )
        axes.set_yticks(range(len(labels)), [_short(_with_bytes(label, rows)) for label in labels])
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlabel(axis)
        _finish(axes, pick, rows, horizontal=True)
        svg = _svg(figure)
    caption = "Points with 95 % intervals. Beside each defense: the bytes of its update against none."
    return Plot(f"{title} by defense", caption, svg)


def _points(axes: Axes, x: list[float], rows: list[Row], pick: Pick, place: int, name: str) -> None:
    means = [_or_nan(pick(row).mean) for row in rows]
    nudged = [
        value * 1.04 ** (place) for value in x
    ]  # so that intervals at one epsilon do not hide each other
    axes.errorbar(
        nudged,
        means,
        yerr=_errors(rows, pick),
        fmt=f"{_MARKERS[place]}-",
        color=_SERIES[place],
        markersize=4.5,
        linewidth=1.4,
        elinewidth=1.2,
        capsize=2.5,
        label=_short(name),
    )


def _bars(axes: Axes, y: list[float], rows: list[Row], pick: Pick, place: int, name: str) -> None:
    axes.errorbar(
        [_or_nan(pick(row).mean) for row in rows],
        y,
        xerr=_errors(rows, pick),
        fmt=_MARKERS[place],
        color=_SERIES[place],
        markersize=4.5,
        elinewidth=1.3,
        capsize=2.5,
        label=_short(name),
    )


def _reference(axes: Axes, rows: list[Row], pick: Pick, place: int) -> None:
    for row in rows:
        interval = pick(row)
        if row.undefended and interval.mean is not None:
            label = _UNDEFENDED if place == 0 else None
            axes.axhline(interval.mean, color=_SERIES[place], linewidth=1.0, alpha=0.75, label=label)
            if interval.low is not None and interval.high is not None:
                axes.axhspan(interval.low, interval.high, color=_SERIES[place], alpha=0.08, linewidth=0)


def _bounds(axes: Axes, rows: list[Row]) -> None:
    bounds: dict[float, float] = {}
    for row in rows:
        if row.bound is not None and row.epsilon is not None:
            bounds[row.epsilon] = max(row.bound, bounds.get(row.epsilon, 0.0))
    if bounds:
        x = sorted(bounds)
        y = [bounds[epsilon] for epsilon in x]
        axes.plot(x, y, "--", marker="_", color=_BOUND, linewidth=1.3, label=_ALLOWED)


def _epsilon_axis(axes: Axes, values: list[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 1.6, max(values) * 1.6)
    wide = max(values) / min(values) > 30
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: epsilon_text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("ε of one update  (left: more private)")


def _finish(axes: Axes, pick: Pick, rows: list[Row], *, horizontal: bool) -> None:
    line = axes.axvline if horizontal else axes.axhline
    if pick in _SHARES:
        (axes.set_xlim if horizontal else axes.set_ylim)(-0.03, 1.03)
        (axes.xaxis if horizontal else axes.yaxis).set_major_formatter(
            FuncFormatter(lambda v, _: f"{100 * v:.0f} %")
        )
    for level in sorted(_levels(pick, rows)):
        name = _CHANCE if pick in _SHARES else _PRIOR
        line(level, color=_MUTED, linewidth=1.0, linestyle=":", label=name)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(True, axis="x" if horizontal else "y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    entries = sorted(
        zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: entry[1] in _LINES
    )
    handles, labels = zip(*entries, strict=True)
    axes.figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=8)


def _levels(pick: Pick, rows: list[Row]) -> set[float]:
    """Return what an answer without the update reaches; none where that differs from row to row."""
    if pick not in _SHARES:
        return {0.0}
    chances = {1 / row.candidates if pick is _linkage and row.candidates else row.chance for row in rows}
    known = {chance for chance in chances if chance is not None}
    return known if len(known) == 1 else set()


def _errors(rows: list[Row], pick: Pick) -> list[list[float]]:
    """Return distances from the mean to both ends, NaN where there is no interval."""
    intervals = [pick(row) for row in rows]
    low = [_or_nan(i.mean) - _or_nan(i.low) for i in intervals]
    high = [_or_nan(i.high) - _or_nan(i.mean) for i in intervals]
    return [[max(0.0, v) if v == v else v for v in side] for side in (low, high)]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _with_bytes(label: str, rows: list[Row]) -> str:
    share = next(
        (row.bytes_ratio for row in rows if row.defense == label and row.bytes_ratio is not None), None
    )
    return label if share is None or label == "none" else f"{label}  {ratio(share)}"


def _name(key: tuple[Any, ...], series: list[Any]) -> str:
    """Name a series by what tells it from the others; a single one by its attack."""
    parts = [str(part) for place, part in enumerate(key) if len({other[place] for other in series}) > 1]
    return ", ".join(parts) or str(key[3])


def _short(text: str, length: int = 34) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _style(salt: str) -> Any:  # matplotlib types the keys as a literal of hundreds
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,  # ids must differ between the plots of a page and agree between runs
        "text.parse_math": False,  # a label may hold a dollar sign
        "font.size": 8.5,
        "axes.unicode_minus": True,
        **dict.fromkeys(_COLORED, _MUTED),
    }


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot(facecolor="none")


def _svg(figure: Figure) -> str:
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
