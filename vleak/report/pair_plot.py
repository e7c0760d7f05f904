"""Plot of two runs side by side: the figure of each row in the one and in the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.ticker import FuncFormatter

from vleak.report.svg import MUTED, SERIES, Plot, canvas, clear_frame, error_bars, or_nan, style, to_svg
from vleak.results import Interval, RowPair

__all__ = ["MAX_PAIRS", "draw_pairs"]

MAX_PAIRS = 18
_LONGEST = 34  # characters of a label
_NAMES = ("A", "B")
_MARKERS = ("o", "D")


def draw_pairs(pairs: Sequence[RowPair]) -> list[Plot]:
    """Return a plot of the gain and one of recognised clips; none without a row that both runs have.

    Args:
        pairs: rows of two runs.
    """
    both = [pair for pair in pairs if pair.first and pair.second][:MAX_PAIRS]
    if not both:
        return []
    return [
        _draw("Gain over baseline", "PSNR gain in dB", both, lambda row: row.psnr_gain_db, share=False),
        _draw(
            "Recognised clips", "share of clips recognised", both, lambda row: row.identification, share=True
        ),
    ]


def _draw(
    title: str, axis: str, pairs: Sequence[RowPair], pick: Callable[..., Interval], *, share: bool
) -> Plot:
    with style("pairs" + title):
        figure, axes = canvas(1.15 + 0.36 * len(pairs))
        for side, (name, marker) in enumerate(zip(_NAMES, _MARKERS, strict=True)):
            intervals = [pick(pair.second if side else pair.first) for pair in pairs]
            at = [place + (0.14 if side else -0.14) for place in range(len(pairs))]
            means = [or_nan(each.mean) for each in intervals]
            axes.errorbar(means, at, xerr=error_bars(intervals), fmt=marker, color=SERIES[side],
                          markersize=4.5, elinewidth=1.3, capsize=2.5, label=name)  # fmt: skip
        axes.set_yticks(range(len(pairs)), [_label(pair, pairs) for pair in pairs])
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        axes.set_xlabel(axis)
        if share:
            axes.set_xlim(-0.03, 1.03)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        else:
            axes.axvline(0.0, color=MUTED, linewidth=1.0, linestyle=":")
        clear_frame(axes, grid="x")
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
        svg = to_svg(figure)
    return Plot(title, "Points with 95 % intervals over clips; A above, B below.", svg)


def _label(pair: RowPair, pairs: Sequence[RowPair]) -> str:
    several = len({each.row.attack for each in pairs}) > 1
    text = f"{pair.row.defense}, {pair.row.attack}" if several else pair.row.defense
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
