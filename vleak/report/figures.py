"""Plots of leakage against privacy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vleak.report.numbers import epsilon_text, plural, ratio
from vleak.report.svg import (
    BOUND,
    MAX_SERIES,
    MUTED,
    SERIES,
    Plot,
    canvas,
    clear_frame,
    error_bars,
    or_nan,
    style,
    to_svg,
)
from vleak.report.words import client_text
from vleak.results import Interval, Row

MAX_LABELS = 18
_MAX_CHARACTERS = 34  # of one label

_CHANCE, _BASELINE, _ALLOWED, _UNDEFENDED = "chance", "best baseline", "certificate allows", "without defense"
_LINES = (_CHANCE, _BASELINE, _ALLOWED, _UNDEFENDED)
"""Legend entries of lines, which stand behind those of the series."""
_MARKERS = "osD^vP"


class _SeriesKey(NamedTuple):
    """What the points of a series share, as the legend names it."""

    pipeline: str
    model: str
    training_state: str
    attack: str
    labels: str
    reference_frames: str
    client: str


@dataclass(frozen=True)
class _Measure:
    """Quantity of one plot.

    Attributes:
        title: of the plot. axis: label of its axis.
        pick: returns the quantity of a row.
        chance: returns the level that a guess reaches, None where it is unknown; None for a gain, whose
            level is 0. Shares alone have one, and a certificate bounds them.
    """

    title: str
    axis: str
    pick: Callable[[Row], Interval]
    chance: Callable[[Row], float | None] | None = None


_MEASURES = (
    _Measure(
        "Recognised clips",
        "share of clips recognised",
        lambda row: row.identification,
        lambda row: row.chance,
    ),
    _Measure(
        "Linked clips",
        "share of clips linked",
        lambda row: row.linkage,
        lambda row: row.guess,
    ),
    _Measure("Gain over baseline", "PSNR gain in dB", lambda row: row.psnr_gain_db),
)


@dataclass(frozen=True)
class _Series:
    """Series of points with one colour and marker."""

    index: int
    name: str
    rows: tuple[Row, ...]

    @property
    def color(self) -> str:
        return SERIES[self.index]

    @property
    def marker(self) -> str:
        return _MARKERS[self.index]


def draw_plots(rows: Sequence[Row]) -> list[Plot]:
    """Return the plots of a run: against epsilon where a defense proves one, by defense for all others.

    Args:
        rows: rows of the run.

    Returns:
        At most six plots, one for each quantity that was measured; at most ``MAX_SERIES`` series, those of
        the rows that come first.
    """
    rows = [row for row in rows if row.n and not row.baseline]
    series = _series(rows)
    drawn = {row.key for line in series for row in line.rows}
    rows = [row for row in rows if row.key in drawn]
    private = [row for row in rows if _epsilon(row)]
    other = [row for row in rows if row.epsilon is None]
    plots = []
    if private:
        plots += [_against_epsilon(series, private, each) for each in _MEASURES if _known(private, each)]
    if other and (not private or any(not row.undefended for row in other)):
        plots += [_by_defense(series, other, each) for each in _MEASURES if _known(other, each)]
    return plots


def _known(rows: Sequence[Row], measure: _Measure) -> bool:
    """Return whether a quantity was measured in any of the rows."""
    return any(measure.pick(row).mean is not None for row in rows)


def _series(rows: Sequence[Row]) -> list[_Series]:
    groups: dict[_SeriesKey, list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row), []).append(row)
    keys = list(groups)[:MAX_SERIES]
    return [_Series(index, _name(key, keys), tuple(groups[key])) for index, key in enumerate(keys)]


def _key(row: Row) -> _SeriesKey:
    frames = row.knowledge.reference_frames
    return _SeriesKey(
        row.pipeline,
        row.model,
        row.training_state,
        row.attack,
        f"labels {row.knowledge.labels}",
        f"{frames or 'no'} ref. frame{plural(frames)}",
        client_text(row.client) or "one clip",
    )


def _name(key: _SeriesKey, keys: Sequence[_SeriesKey]) -> str:
    """Return what tells a series from the others; of a single one its attack."""
    parts = [part for position, part in enumerate(key) if len({other[position] for other in keys}) > 1]
    return _short(", ".join(parts) or key.attack)


def _against_epsilon(series: Sequence[_Series], private: Sequence[Row], measure: _Measure) -> Plot:
    with style(measure.title):
        figure, axes = canvas(2.9)
        for line in series:
            rows = sorted((row for row in line.rows if _epsilon(row)), key=_epsilon)
            _errorbar(axes, line, rows, measure, at=_beside_each_other(rows, line.index), along="x")
            _undefended(axes, line, measure)
        if measure.chance:
            _bounds(axes, private)
        _epsilon_axis(axes, [_epsilon(row) for row in private])
        axes.set_ylabel(measure.axis)
        _finish(axes, measure, private, values="y")
        svg = to_svg(figure)
    caption = "Points with 95 % intervals; the line across is the same attack without any defense."
    if measure.chance and any(row.bound is not None for row in private):
        caption += " Dashed: what the certificate allows."
    return Plot(f"{measure.title} against ε", caption, svg)


def _by_defense(series: Sequence[_Series], other: Sequence[Row], measure: _Measure) -> Plot:
    labels = list(dict.fromkeys(row.defense for row in other))[:MAX_LABELS]
    used = sum(any(row.epsilon is None for row in line.rows) for line in series)
    written = [_with_bytes(label, other) for label in labels]
    with style(measure.title + "defense"):
        figure, axes = canvas(1.1 + len(labels) * max(0.3, 0.14 * used))
        for line in series:
            rows = [row for row in line.rows if row.epsilon is None and row.defense in labels]
            shift = (line.index - (len(series) - 1) / 2) * 0.7 / len(series)
            at = [labels.index(row.defense) + shift for row in rows]
            _errorbar(axes, line, rows, measure, at=at, along="y")
        axes.set_yticks(range(len(labels)), [_short(label) for label in written])
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlabel(measure.axis)
        _finish(axes, measure, other, values="x")
        svg = to_svg(figure)
    caption = "Points with 95 % intervals."
    if written != labels:
        caption += " Beside each defense: the bytes of its update against none."
    return Plot(f"{measure.title} by defense", caption, svg)


def _errorbar(
    axes: Axes,
    line: _Series,
    rows: Sequence[Row],
    measure: _Measure,
    *,
    at: list[float],
    along: Literal["x", "y"],
) -> None:
    """Draw the points of a series with their intervals.

    Args:
        axes: where to draw.
        line: the series.
        rows: those of its rows that are drawn.
        measure: quantity to draw.
        at: positions of the rows. along: the axis of the positions; the quantity is on the other one.
    """
    intervals = [measure.pick(row) for row in rows]
    means, errors = [or_nan(i.mean) for i in intervals], error_bars(intervals)
    if along == "x":
        axes.errorbar(at, means, yerr=errors, fmt=f"{line.marker}-", color=line.color, markersize=4.5,
                      linewidth=1.4, elinewidth=1.2, capsize=2.5, label=line.name)  # fmt: skip
    else:
        axes.errorbar(means, at, xerr=errors, fmt=line.marker, color=line.color, markersize=4.5,
                      elinewidth=1.3, capsize=2.5, label=line.name)  # fmt: skip


def _epsilon(row: Row) -> float:
    """Return the privacy loss, 0 without a guarantee."""
    return row.epsilon or 0.0


def _beside_each_other(rows: Sequence[Row], index: int) -> list[float]:
    """Return positions at which intervals of several series at one epsilon do not hide each other."""
    return [_epsilon(row) * 1.04**index for row in rows]


def _undefended(axes: Axes, line: _Series, measure: _Measure) -> None:
    """Draw a line across for the attack of a series without defense."""
    for row in line.rows:
        interval = measure.pick(row)
        if row.undefended and interval.mean is not None:
            label = _UNDEFENDED if line.index == 0 else None
            axes.axhline(interval.mean, color=line.color, linewidth=1.0, alpha=0.75, label=label)
            if interval.low is not None and interval.high is not None:
                axes.axhspan(interval.low, interval.high, color=line.color, alpha=0.08, linewidth=0)


def _bounds(axes: Axes, rows: Sequence[Row]) -> None:
    bounds: dict[float, float] = {}
    for row in rows:
        if row.bound is not None and row.epsilon is not None:
            bounds[row.epsilon] = max(row.bound, bounds.get(row.epsilon, 0.0))
    if bounds:
        x = sorted(bounds)
        y = [bounds[epsilon] for epsilon in x]
        axes.plot(x, y, "--", marker="_", color=BOUND, linewidth=1.3, label=_ALLOWED)


def _epsilon_axis(axes: Axes, values: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 1.6, max(values) * 1.6)
    wide = max(values) / min(values) > 30
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: epsilon_text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("ε of one update  (left: more private)")


def _finish(axes: Axes, measure: _Measure, rows: Sequence[Row], *, values: Literal["x", "y"]) -> None:
    """Draw the scale of the quantity, the level of a guess, the grid and the legend.

    Args:
        axes: where to draw.
        measure: quantity that is drawn.
        rows: rows that are drawn.
        values: the axis of the quantity.
    """
    if measure.chance:
        (axes.set_xlim if values == "x" else axes.set_ylim)(-0.03, 1.03)
        percent = FuncFormatter(lambda value, _: f"{100 * value:.0f} %")
        (axes.xaxis if values == "x" else axes.yaxis).set_major_formatter(percent)
    line = axes.axvline if values == "x" else axes.axhline
    for level in sorted(_guess_levels(measure, rows)):
        name = _CHANCE if measure.chance else _BASELINE
        line(level, color=MUTED, linewidth=1.0, linestyle=":", label=name)
    clear_frame(axes, grid=values)
    _legend(axes)


def _legend(axes: Axes) -> None:
    entries = sorted(
        zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: entry[1] in _LINES
    )
    handles, labels = zip(*entries, strict=True)
    axes.figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=8)


def _guess_levels(measure: _Measure, rows: Sequence[Row]) -> set[float]:
    """Return the level that a guess without the update reaches; none where it differs from row to row."""
    if measure.chance is None:
        return {0.0}
    levels = {measure.chance(row) for row in rows} - {None}
    known = {level for level in levels if level is not None}
    return known if len(known) == 1 else set()


def _with_bytes(label: str, rows: Sequence[Row]) -> str:
    shares = (row.bytes_ratio for row in rows if row.defense == label and row.bytes_ratio is not None)
    share = next(shares, None)
    return label if share is None or label == "none" else f"{label}  {ratio(share)}"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"
