"""Flags that an attack raises about itself; the truth is not asked."""

from __future__ import annotations

import math

from vleak.descent.loop import State

__all__ = [
    "NEAR_ZERO",
    "NEGATED",
    "NOT_A_NUMBER",
    "NOT_FALLING",
    "NO_EVIDENCE",
    "REVERSED",
    "STILL_FALLING",
    "descent_flags",
]

NEAR_ZERO = "target gradient near zero"
NOT_FALLING = "objective did not fall"
STILL_FALLING = "still improving at the end"
NOT_A_NUMBER = "objective became NaN"
NO_EVIDENCE = "no attack gained anything on public clips behind this defense"
NEGATED = "the update looks like a negated gradient or a delta"
REVERSED = "the delta looks reversed: weights before less weights after"


def descent_flags(state: State) -> tuple[str, ...]:
    """Return the flags that a descent's own history raises.

    ``objective became NaN``; ``objective did not fall``: the best is not 1 % below the first;
    ``still improving at the end``: the last tenth of the iterations at full resolution won over 5 % of the
    whole fall, and over 1 % of what is left: among noise the little that the last, short steps settle is
    much of a fall that is next to nothing.
    """
    if state.nan_at is not None:
        return (NOT_A_NUMBER,)
    history = state.history
    if len(history) < 2 or not state.best_objective < 0.99 * history[0]:
        return (NOT_FALLING,)
    # Objectives of clips of two resolutions are not compared.
    last = history[state.begun :]
    before = min(last[: -max(1, len(last) // 10)], default=math.inf)
    late = before - state.best_objective
    fall = history[0] - state.best_objective
    return (STILL_FALLING,) if late > max(0.05 * fall, 0.01 * abs(state.best_objective)) else ()
