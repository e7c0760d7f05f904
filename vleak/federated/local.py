"""Local training of a client (FedAvg), between the weights that it gets and the delta that it sends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal

from vleak.errors import InputError, unknown_name

__all__ = ["OPTIMIZERS", "LocalTraining"]

OPTIMIZERS = ("sgd", "adam")
"""Optimizers of local training by name, with PyTorch's defaults for what is no field of `LocalTraining`."""


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """Local training between two rounds (FedAvg, McMahan et al., AISTATS 2017, arXiv 1602.05629).

    Attributes:
        steps: steps of the optimizer in all, at least 1.
        batch_size: clips of one step, in an order that the client draws anew for every pass over its clips;
            0 for all clips of the client in every step.
        learning_rate: above 0.
        momentum: of SGD, in [0, 1).
        weight_decay: added to the gradient times the weight, 0 or more.
        optimizer: "sgd" or "adam".
    """

    steps: int = 1
    batch_size: int = 0
    learning_rate: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: a value is out of its range.
        """
        if not isinstance(self.optimizer, str) or self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", str(self.optimizer), OPTIMIZERS)
        for name, least in (("steps", 1), ("batch_size", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"local training: {name} is {value!r}, expected a whole number from {least}")
        for name, low, high in (("learning_rate", 0, math.inf), ("momentum", 0, 1),
                                ("weight_decay", 0, math.inf)):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
                raise InputError(f"local training: {name} is {value!r}, expected a number in [{low}, {high})")
        if not self.learning_rate:
            raise InputError("local training: learning_rate is 0, so that no weight moves; give one above 0")
        if self.optimizer == "adam" and self.momentum:
            raise InputError("local training: momentum is a setting of sgd; adam has its own")

    def step_size(self, clips: int) -> int:
        """Return how many clips one step takes, of a client with so many."""
        return min(self.batch_size, clips) or clips

    def uses(self, clips: int) -> int:
        """Return in how many steps a clip takes part at most, of a client with so many clips."""
        return math.ceil(self.steps * self.step_size(clips) / clips)

    def to_dict(self) -> dict[str, str | int | float]:
        """Return the settings by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, object]) -> LocalTraining:
        """Return local training from settings by name; one that is missing has its default.

        Raises:
            InputError: an unknown setting, or a value out of its range.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise unknown_name("setting of local training", str(name), known)
        return cls(**settings)  # type: ignore[arg-type]  # __post_init__ checks the types
