"""A defense, an attack, a model, an extractor and a metric of a package that vleak knows nothing of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks import Matching
from vleak.federated import Channel, Defense, Message, Update, surviving_entries
from vleak.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class ZeroSmall(Defense):
    """Zeros every entry below a part of the largest one of its tensor."""

    name: ClassVar[str] = "zero_small"
    part: float = 0.1

    @classmethod
    def sweep(cls) -> Sequence[ZeroSmall]:
        return [cls(part=0.1), cls(part=0.5)]

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        sent = {name: t * (t.abs() >= self.part * t.abs().max()) for name, t in gradient.items()}
        return Message(sent, 8 * sum(int(t.count_nonzero()) for t in sent.values()))

    def channel(self, update: Update) -> Channel:
        return Channel(masks=surviving_entries(update), key=("zero_small", self.part))


class Careless(Defense):
    """Returns what it was given."""

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        return Message(gradient, 0)


class Short(Matching):
    """Gradient matching that begins with little smoothing."""

    name = "short"

    def __init__(
        self, *, iterations: int = 20, restarts: int = 1, engine: Any = "native", smooth: float = 0.01
    ):
        super().__init__(iterations=iterations, restarts=restarts, engine=engine, spatial=smooth)


def one_layer(frames: int, size: int, classes: int, *, width: int = 4) -> nn.Module:
    """Build one convolution and a linear head."""
    places = ((frames + 1) // 2) * ((size + 1) // 2) ** 2
    return nn.Sequential(
        nn.Conv3d(3, width, 3, stride=2, padding=1),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(width * places, classes),
    )


class FrameMeans(nn.Module):
    """Mean colours of the sixteenths of a frame."""

    segment_frames = 1
    nonnegative = True

    def forward(self, segments: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(segments[:, :, 0], 4).flatten(1)


class BrightnessError(Metric):
    """Difference of the mean brightness, in units of a scale."""

    name = "brightness_error"

    def __init__(self, *, scale: float = 1.0) -> None:
        self.scale = scale

    def score(self, reconstruction: Tensor, truth: Tensor) -> float:
        return float((reconstruction.mean() - truth.mean()).abs()) / self.scale
