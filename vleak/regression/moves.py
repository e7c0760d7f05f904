"""Moves of the level of a series: where its nightly mean changed, by one rule."""

from __future__ import annotations

import numpy as np

from vleak.regression.ratios import Floats

__all__ = ["find_moves"]

_FEWEST, _ERRORS = 4, 6.0


def find_moves(series: Floats) -> list[int]:
    """Positions of the first nights of new levels, in order.

    A series is split where two levels leave the least squares of its nights. The split counts if each side
    has
    at least 4 nights and the levels differ by at least 6 standard errors; each side is then split likewise
    (binary segmentation). It describes what happened, and alarms nobody.

    Args:
        series: (nights,), NaN where there is none; these are passed over.
    """
    places = np.flatnonzero(~np.isnan(series))
    return [int(places[cut]) for cut in sorted(_cuts(series[places], 0))]


def _cuts(series: Floats, offset: int) -> list[int]:
    nights = len(series)
    if nights < 2 * _FEWEST:
        return []
    count = np.arange(1, nights)
    before, after = np.cumsum(series)[:-1] / count, np.cumsum(series[::-1])[::-1][1:] / (nights - count)
    gained = count * (nights - count) / nights * (before - after) ** 2
    allowed = gained[_FEWEST - 1 : nights - _FEWEST]
    cut = int(allowed.argmax()) + _FEWEST
    left, right = series[:cut], series[cut:]
    spread = ((left - left.mean()) ** 2).sum() + ((right - right.mean()) ** 2).sum()
    error = float(np.sqrt(spread / (nights - 2) * (1 / cut + 1 / (nights - cut))))
    gap = abs(float(left.mean() - right.mean()))
    if gap <= 1e-9 or gap < _ERRORS * error:
        return []
    return [*_cuts(left, offset), offset + cut, *_cuts(right, offset + cut)]
