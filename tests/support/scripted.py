"""A step whose objectives a table dictates, and a stand-in for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vleak.descent.capture import Capture, capture

Values = dict[str, Tensor]


def scripted(values: Values) -> Values:
    """Move x by one number of the row; the other is the objective."""
    move, objective = values["settings"]
    values["m"].add_(values["x"])
    return {"x": values["x"] + move * values["scale"], "objective": objective + 0 * values["x"].sum()}


def script(*objectives: float) -> Tensor:
    moves = torch.arange(1.0, len(objectives) + 1, dtype=torch.float64)
    return torch.stack([moves, torch.tensor(objectives, dtype=torch.float64)], 1)


def scripted_values() -> Values:
    ones = torch.ones(2, 3, dtype=torch.float64)
    return {"x": ones, "m": 0 * ones, "scale": 0.5 * ones, "settings": torch.zeros(2, dtype=torch.float64)}


def scripted_capture() -> Capture:
    return capture(scripted, scripted_values(), ["scale"])


class FakeGraph:
    """Stands in for a CUDA graph: replays by calling."""

    def __init__(self) -> None:
        self.recorded = self.replays = 0

    def record(self, iterate: Callable[[], None]) -> Callable[[], None]:
        for _ in range(3):
            iterate()
        self.recorded += 1

        def replay() -> None:
            self.replays += 1
            iterate()

        return replay
