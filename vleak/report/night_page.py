"""Page of a night: whether a defense got weaker, the evidence of every figure, the course of the nights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vleak.files import write_atomic
from vleak.regression import Night, NightLine
from vleak.report.html import render_page
from vleak.report.night import figure_text, log_e_text, night_sentences
from vleak.report.night_plot import night_plots

__all__ = ["write_night"]

MAX_MOVED = 500
"""Moved figures of a replay that are listed."""
_ANSWERS = {"held": "Nothing got weaker", "failed": "Something got weaker", "not judged": "Not judged"}
_TONES = {"worse": "leaks", "failed": "leaks", "not judged": "unclear", "held": "safe"}


def write_night(
    night: Night, path: Path, nights: Sequence[NightLine] = (), names: Sequence[str] = ()
) -> Path:
    """Write the page of a night, one file that loads nothing and holds no picture of a clip; return its path.

    Args:
        night: that was judged.
        path: of the page.
        nights: those of the history, with this one; for the plot.
        names: of the tests in their lines.

    Raises:
        VleakError: the page cannot be written.
    """
    counts: Counter[str] = Counter(test.outcome for test in night.tests)
    page = render_page(
        "night.html",
        night=night,
        answer=_ANSWERS[night.verdict],
        tone=_TONES[night.verdict],
        tones=_TONES,
        counts=[(name, tone, counts[name]) for name, tone in _TONES.items() if counts[name]],
        sentences=night_sentences(night),
        plots=night_plots(night, nights, names),
        moved=night.moved[:MAX_MOVED],
        figure_text=figure_text,
        log_e_text=log_e_text,
    )
    write_atomic(path, page)
    return path
