"""Cases of the inner-loop benchmark: models, starts and the updates to match.

Weights, clips, starts and labels are drawn from generators seeded by the case's name, not process-wide ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.federated import LocalTraining
from vleak.models import build_model
from vleak.models.classifiers import initialise
from vleak.seeds import generator

SPATIAL, TEMPORAL = 0.01, 0.03
"""Weights of total variation for clips; rows of features have none."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """Update to match, with start and labels.

    Attributes:
        start: (B, C, T, H, W) in [0, 1], or rows of features (B, features).
        labels: (B,) int64.
        target: by parameter name, what a client sends of other inputs with the same labels: the gradient,
            or the mean of its local steps.
    """

    start: Tensor
    labels: Tensor
    target: dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Case: a model and the trials that share its weights.

    Attributes:
        local: local training whose mean step is matched; None for a gradient.
    """

    name: str
    title: str
    model: nn.Module
    trials: tuple[Trial, ...]
    spatial: float
    temporal: float
    local: LocalTraining | None = None


def sent_update(
    case: Case, weights: Mapping[str, Tensor], x: Tensor, labels: Tensor, *, differentiable: bool
) -> list[Tensor]:
    """Return what a client sends of clips, in plain PyTorch: the gradient, or the mean of its local steps."""
    total, steps = (
        [torch.zeros_like(weight) for weight in weights.values()],
        case.local.steps if case.local else 1,
    )
    now = dict(weights)
    for _ in range(steps):
        loss = F.cross_entropy(torch.func.functional_call(case.model, now, (x,)), labels)
        step = torch.autograd.grad(loss, list(now.values()), create_graph=differentiable or steps > 1)
        total = [sum_ + move for sum_, move in zip(total, step, strict=True)]
        if case.local:
            rate = case.local.learning_rate
            now = {name: w - rate * move for (name, w), move in zip(now.items(), step, strict=True)}
    return [sum_ / steps for sum_ in total]


@dataclass(frozen=True)
class _Recipe:
    title: str
    build: Callable[[int, Shape, int], nn.Module]  # (width, shape of the input, classes)
    width: int
    shape: Shape
    classes: int
    trials: int = 1
    train: bool = False
    local: LocalTraining | None = None


def lenet3d(width: int, shape: Shape, classes: int) -> nn.Module:
    """5x5x5 convolutions, ReLU, MaxPool3d; (B, 3, T, H, W) to (B, classes)."""
    positions = shape[2] // 4 * (shape[3] // 4) * (shape[4] // 4)
    return nn.Sequential(
        nn.Conv3d(3, width, 5, padding=2), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(width, width, 5, padding=2), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(width, width, 5, padding=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(width * positions, classes),
    )  # fmt: skip


def mlp(width: int, shape: Shape, classes: int) -> nn.Module:
    """Linear layers and ReLU; (B, features) to (B, classes)."""
    return nn.Sequential(
        nn.Linear(shape[-1], width), nn.ReLU(), nn.Linear(width, 32), nn.ReLU(),
        nn.Linear(32, classes),
    )  # fmt: skip


def cnn3d(width: int, _: Shape, classes: int) -> nn.Module:
    """3x3x3 convolutions, ReLU, MaxPool3d, average over space and time; (B, 3, T, H, W) to (B, classes)."""
    return nn.Sequential(
        nn.Conv3d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(2 * width, 4 * width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4 * width, classes),
    )  # fmt: skip


class FramesThenLSTM(nn.Module):
    """Three strided convolutions on every frame, an LSTM over time; (B, 3, T, H, W) to (B, classes)."""

    def __init__(self, width: int, shape: Shape, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.lstm = nn.LSTM(4 * width * (shape[3] // 8) * (shape[4] // 8), 8 * width, batch_first=True)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, clips: Tensor) -> Tensor:
        frames = clips.transpose(1, 2)
        features = self.features(frames.flatten(0, 1)).flatten(1).unflatten(0, frames.shape[:2])
        logits: Tensor = self.head(self.lstm(features)[0][:, -1])
        return logits


def published(name: str) -> Callable[[int, Shape, int], nn.Module]:
    """Return a recipe of a network by its name, in which {width} stands for the width."""

    def build(width: int, shape: Shape, classes: int) -> nn.Module:
        named = name.replace("{width}", str(width))
        model = build_model(named, frames=shape[2], size=shape[3], classes=classes, seed=0)
        for parameter in model.parameters():
            if not parameter.any():  # residual branches that begin as nothing would cost less
                nn.init.ones_(parameter)
        return model

    return build


_A = _Recipe("3-D LeNet, 5x5x5, 1x3x8x32x32", lenet3d, 12, (1, 3, 8, 32, 32), 10)
_RECIPES = {
    "A": _A,
    "B": _Recipe("MLP 2048-512-32-2, 32 rows", mlp, 512, (32, 2048), 2),
    "C": _Recipe("3-D CNN 32-64-128, 3x3x3, 1x3x16x64x64", cnn3d, 32, (1, 3, 16, 64, 64), 10),
    "D": _Recipe("CNN on frames + LSTM, 1x3x16x64x64", FramesThenLSTM, 16, (1, 3, 16, 64, 64), 10),
    "E": _Recipe("eight trials of A, shared weights", _A.build, _A.width, _A.shape, _A.classes, trials=8),
    "F": _Recipe("R3D-18, 1x3x8x64x64", published("r3d_18:width={width}"), 64, (1, 3, 8, 64, 64), 10),
    "G": _Recipe("X3D-S, 1x3x8x64x64", published("x3d_s:width={width}"), 24, (1, 3, 8, 64, 64), 10),
    "H": _Recipe(
        "tubelet transformer, 6 blocks of width 192, 256 tokens, 1x3x8x64x64",
        published("vit_tubelet:width={width},depth=6,heads=3,patch=8"), 192, (1, 3, 8, 64, 64), 10,
    ),
    "I": _Recipe(
        "R3D-18 of width 16 in train mode, 4x3x8x32x32",
        published("r3d_18:width={width}"), 16, (4, 3, 8, 32, 32), 10, train=True,
    ),
    "K": _Recipe(
        "A, four local steps", _A.build, _A.width, _A.shape, _A.classes,
        local=LocalTraining(steps=4, learning_rate=0.01),
    ),
}  # fmt: skip
CASES = tuple(_RECIPES)


def build(name: str, *, tiny: bool = False) -> Case:
    """Return a case; ``tiny`` is the same kind of model and input, small, for loading all code."""
    recipe = _RECIPES[name]
    width, shape = recipe.width, recipe.shape
    if tiny:
        width, shape = min(width, 12), tuple(min(length, 16) for length in shape)
    if recipe.build in (lenet3d, mlp, cnn3d, FramesThenLSTM):
        with torch.device("meta"):  # allocating weights there draws no random numbers
            model = recipe.build(width, shape, recipe.classes)
        model = model.to_empty(device="cpu")
        initialise(model, generator("inner loop", name, "weights"))
    else:
        model = recipe.build(width, shape, recipe.classes)
    model.train(recipe.train)
    spatial, temporal = (SPATIAL, TEMPORAL) if len(shape) == 5 else (0.0, 0.0)
    case = Case(name, recipe.title, model, (), spatial, temporal, recipe.local)
    trials = (_trial(case, shape, recipe.classes, (name, i)) for i in range(recipe.trials))
    return replace(case, trials=tuple(trials))


def _trial(case: Case, shape: Shape, classes: int, seed: tuple[object, ...]) -> Trial:
    draws = generator("inner loop", *seed)
    private, start = torch.rand(shape, generator=draws), torch.rand(shape, generator=draws)
    labels = torch.randint(classes, shape[:1], generator=draws)
    weights = dict(case.model.named_parameters())
    update = sent_update(case, weights, private, labels, differentiable=False)
    return Trial(start, labels, dict(zip(weights, (u.detach() for u in update), strict=True)))
