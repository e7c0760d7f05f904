"""Stand-ins for classifiers as packages bring them: other layouts of clips, and more returned than logits."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Frames(nn.Module):
    """2-D convolutions on clips (N, T, C, H, W), as TSN, TSM and video transformers take them."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4 * 4 * 4, classes)

    def forward(self, clips: Tensor) -> Any:
        features = self.conv(clips.flatten(0, 1)).tanh().flatten(1)
        return self.head(features).unflatten(0, clips.shape[:2]).mean(1)


class PerFrame(Frames):
    """Logits (N, T, classes)."""

    def forward(self, clips: Tensor) -> Tensor:
        features = self.conv(clips.flatten(0, 1)).tanh().flatten(1)
        return self.head(features).unflatten(0, clips.shape[:2])


class SlowFast(nn.Module):
    """Two pathways; the fast one joins the slow one by a convolution of stride alpha in time."""

    def __init__(self, classes: int = 6, alpha: int = 4) -> None:
        super().__init__()
        self.slow, self.fast = (nn.Conv3d(3, width, 3, stride=(1, 2, 2), padding=1) for width in (4, 2))
        self.lateral = nn.Conv3d(2, 4, (alpha, 1, 1), stride=(alpha, 1, 1))
        self.head = nn.Linear(10, classes)

    def forward(self, pathways: list[Tensor]) -> Tensor:
        slow, fast = pathways
        slow, fast = self.slow(slow).tanh(), self.fast(fast).tanh()
        joined = torch.cat([slow, self.lateral(fast)], 1).mean((2, 3, 4))
        return self.head(torch.cat([joined, fast.mean((2, 3, 4))], 1))


class ModelOutput(OrderedDict[str, Any]):
    """Answer with keys that are attributes too, as the `transformers` package has it."""


class Transformer(Frames):
    """Clips (N, T, C, H, W) under a name of their own, to an answer with "logits"."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ModelOutput:
        return ModelOutput(hidden_states=(pixel_values,), logits=super().forward(pixel_values))


@dataclass
class Answer:
    """Answer as an object."""

    features: Tensor
    logits: Tensor


class Volumes(nn.Module):
    """A 3-D convolution, and whatever a subclass or a function makes of its logits and features."""

    def __init__(self, classes: int = 6, made: Any = lambda logits, features: logits) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4 * 2 * 4 * 4, classes)
        self.made = made

    def forward(self, clips: Tensor) -> Any:
        features = self.conv(clips).tanh().flatten(1)
        return self.made(self.head(features), features)


class Lazy(nn.Module):
    """Layers that learn their input's size from the first clip."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.LazyConv3d(4, 3, stride=2, padding=1), nn.LazyBatchNorm3d()
        self.head = nn.LazyLinear(classes)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(clips)).tanh().flatten(1))
