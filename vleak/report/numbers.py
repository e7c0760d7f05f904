"""Numbers for people: plurals, privacy losses, shares, ratios, decibels."""

from __future__ import annotations

import math

from vleak.results.statistics import Interval

__all__ = [
    "decibel",
    "epsilon_text",
    "finite",
    "gain_text",
    "number",
    "percent",
    "plural",
    "ratio",
    "share_text",
]


def plural(count: object) -> str:
    """Ending that makes a noun agree with a count: "" for 1, "s" for all else."""
    return "" if count == 1 else "s"


def epsilon_text(value: float) -> str:
    """Privacy loss: three digits below a thousand, above as ``"5.0e5"``."""
    if float(f"{value:.3g}") < 1000:
        return number(value)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def percent(share: float) -> str:
    """Share in [0, 1] as whole per cent: ``"35 %"``."""
    return f"{100 * share:.0f} %"


def decibel(gain: float) -> str:
    """Gain in decibels with its sign: ``"−5.0 dB"``."""
    return f"{round(gain, 1) + 0.0:+.1f} dB".replace("-", "−")  # + 0.0 makes 0 of -0


def gain_text(gain: Interval) -> str:
    """Gain in decibels with its interval where there is one: ``"+2.1 [+0.9, +3.3]"``."""
    if gain.mean is None:
        return "–"
    if gain.low is None or gain.high is None:
        return f"{gain.mean:+.1f}"
    return f"{gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"


def share_text(share: Interval) -> str:
    """Share with its interval: ``"61% [43%, 79%]"``; empty where there is no interval."""
    if share.mean is None or share.low is None or share.high is None:
        return ""
    return f"{share.mean:.0%} [{max(0.0, share.low):.0%}, {min(1.0, share.high):.0%}]"


def ratio(value: float | None) -> str:
    """Ratio of bytes to two digits: ``"×0.031"``, ``"×1"``."""
    return "–" if value is None else f"×{number(float(f'{value:.2g}'))}"


def number(value: float | None) -> str:
    """Number to three digits, without an exponent below a million: ``"1230"``, ``"0.031"``."""
    if value is None:
        return "–"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def finite(value: object) -> float | None:
    """Number as float; None for None, NaN, infinities and anything that is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
