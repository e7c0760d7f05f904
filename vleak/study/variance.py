"""Shares of variance that the factors of a full grid explain."""

from __future__ import annotations

import math
from collections.abc import Mapping


def variance_shares(values: Mapping[tuple[str, ...], float]) -> tuple[float, ...]:
    """Return the share of the variance that the main effect of each factor explains.

    Omega squared (Hays 1963): the share that chance explains is subtracted, and it is larger for a factor of
    more levels. Shares of factors without effect are about 0 and may lie below.

    Args:
        values: one value for every combination of levels, keyed by the level of each factor.

    Returns:
        One share for each factor; zeros where nothing varies.
    """
    factors = range(len(next(iter(values))))
    mean = _mean(list(values.values()))
    total = math.fsum((value - mean) ** 2 for value in values.values())
    if total == 0:
        return (0.0,) * len(factors)
    groups = [_levels(values, factor) for factor in factors]
    between = [
        math.fsum(len(level) * (_mean(level) - mean) ** 2 for level in levels.values()) for levels in groups
    ]
    freedom = [len(levels) - 1 for levels in groups]
    residual_freedom = len(values) - 1 - sum(freedom)
    residual = (total - sum(between)) / residual_freedom if residual_freedom > 0 else 0.0
    return tuple((b - df * residual) / (total + residual) for b, df in zip(between, freedom, strict=True))


def _levels(values: Mapping[tuple[str, ...], float], factor: int) -> dict[str, list[float]]:
    levels: dict[str, list[float]] = {}
    for combination, value in values.items():
        levels.setdefault(combination[factor], []).append(value)
    return levels


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
