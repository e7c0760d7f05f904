"""Numbers of one step: an input of the captured iteration, so that each iteration may have other ones."""

from __future__ import annotations

import torch
from torch import Tensor

from vleak.descent.problem import DescentSettings, Values
from vleak.native import StepSettings, operators

__all__ = ["settings_of", "settings_table"]


def settings_of(values: Values) -> StepSettings[Tensor]:
    """Return the numbers of an iteration, whose values hold them as the row "settings"."""
    return StepSettings(*values["settings"].unbind())


def settings_table(settings: DescentSettings, first: int = 0, count: int | None = None) -> Tensor:
    """Return the numbers of some steps, a row each: (steps, numbers) float64.

    Args:
        settings: whose schedule it is.
        first: the first step, from 0.
        count: number of steps, fewer at the end of the schedule; None for all that are left.
    """
    last = settings.iterations if count is None else min(first + count, settings.iterations)
    rows = [
        operators.step_settings(
            step=i + 1, lr=settings.rate(i), prior_weight=settings.prior_weight, spatial=settings.spatial,
            temporal=settings.temporal, low=settings.low, high=settings.high,
        )
        for i in range(first, last)
    ]  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64)
