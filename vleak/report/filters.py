"""Filters of the templates: numbers, settings and positions as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import get_args

from markupsafe import Markup, escape

from vleak.report.numbers import epsilon_text, number, percent, plural, ratio
from vleak.report.proof import sandwich_text
from vleak.report.words import caveat_text, client_text, interval_note, knowledge_text, verdict_text
from vleak.results.rows import Verdict
from vleak.results.statistics import Interval

NO_BREAK = "\u00a0"
VERDICT_TONES: dict[Verdict, str] = {
    "leaks": "leaks",
    "linkable_no_picture": "unclear",
    "linkable_picture_unclear": "unclear",
    "linkable_below_prior": "unclear",
    "below_prior": "unclear",
    "unclear": "unclear",
    "nothing_found": "safe",
}
"""Classes in the style sheet by verdict; "plain" for all others."""
_SEVERITY = get_args(Verdict)
_DASH = "–"


def fixed(value: float | Interval | None, digits: int = 1) -> str:
    """Return a number with fixed digits, such as "−3.1"; a dash for None."""
    number_ = _mean(value)
    return _DASH if number_ is None else f"{number_:.{digits}f}".replace("-", "−")


def signed(value: float | Interval | None, digits: int = 1) -> str:
    """Return a number with fixed digits and its sign, such as "+3.1"; zero has none, None is a dash."""
    number_ = _mean(value)
    if number_ is None:
        return _DASH
    rounded = round(number_, digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def percent_or_dash(share: float | None) -> str:
    """Return a share in [0, 1] as per cent that a line break never splits; a dash for None."""
    return _DASH if share is None else percent(share).replace(" ", NO_BREAK)


def size(count: float | None) -> str:
    """Return a number of bytes such as "392 kB"; a dash for None."""
    if count is None:
        return _DASH
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{number(count / factor)}{NO_BREAK}{unit}"
    return f"{number(count)}{NO_BREAK}B"


def plain(value: object) -> str:
    """Return a setting as text: lists with commas, objects as JSON, None as a dash."""
    if value is None:
        return _DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple) and not any(isinstance(item, dict | list | tuple) for item in value):
        return ", ".join(map(str, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def position(value: float, span: tuple[float, float]) -> str:
    """Return the position of a value on a scale as a CSS percentage."""
    share = (value - span[0]) / (span[1] - span[0])
    return f"{100 * min(1.0, max(0.0, share)):.1f}%"


def raw(value: float | Interval | None) -> str:
    """Return a number that a script sorts by; empty for None."""
    number_ = _mean(value)
    return "" if number_ is None else f"{number_:.6g}"


def labelled(svg: str, text: str) -> str:
    """Return an <svg> element as one picture with a text for who cannot see it."""
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(text)}" ', 1)


def _mean(value: float | Interval | None) -> float | None:
    return value.mean if isinstance(value, Interval) else value


FILTERS: dict[str, Callable[..., object]] = {
    "bytes": size,
    "caveat": caveat_text,
    "client": client_text,
    "epsilon": epsilon_text,
    "fixed": fixed,
    "grant": knowledge_text,
    "labelled": labelled,
    "markup": Markup,
    "note": interval_note,
    "number": number,
    "percent": percent_or_dash,
    "plain": plain,
    "plural": plural,
    "position": position,
    "ratio": ratio,
    "raw": raw,
    "sandwich": lambda figure: sandwich_text(figure).replace(" %", f"{NO_BREAK}%"),
    "severity": _SEVERITY.index,
    "signed": signed,
    "tone": lambda verdict: VERDICT_TONES.get(verdict, "plain"),
    "verdict": verdict_text,
}
"""Filters by name."""
