"""Small problems and descents that several test files share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.descent import ENGINES, Descent, DescentSettings, Problem, State
from vleak.descent.batch import Batch, TrialRunner
from vleak.federated import Client
from vleak.models import SMALL_MODELS, build_model
from vleak.seeds import generator

FRAMES, SIZE, CLASSES = 4, 8, 6
WEIGHTS = {"spatial": 0.03, "temporal": 0.09, "prior_weight": 0.2}

models = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "c3d_tiny_pool" else ()) for name in SMALL_MODELS],
)
distances = pytest.mark.parametrize("distance", ["cosine", "l2"])
engines = pytest.mark.parametrize("engine", ENGINES)


class Smooth(nn.Module):
    """No kinks, so that finite differences mean something."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4 * 2 * 4 * 4, CLASSES)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(clips)).flatten(1))


def draw(clips: int, *seed: object) -> Tensor:
    return torch.rand(clips, 3, FRAMES, SIZE, SIZE, generator=generator("engine", clips, *seed))


def built_in(name: str) -> nn.Module:
    return build_model(name, frames=FRAMES, size=SIZE, classes=CLASSES, seed=0)


def make_problem(
    model: nn.Module,
    clips: int = 1,
    *,
    masked: bool = False,
    distance: Any = "cosine",
    scaled: bool = False,
) -> Problem:
    """Return the problem of a client's update.

    The masks leave out the smaller half of every tensor; scales are 1/2, 1, 3/2 ... in turn.
    """
    labels = torch.tensor([2, 4][:clips])
    update = Client(model).update(draw(clips, "truth"), labels, generator(0)).tensors
    masks = {name: t.abs() >= t.abs().median() for name, t in update.items()} if masked else None
    scales = {name: 0.5 * (index + 1) for index, name in enumerate(update)} if scaled else None
    return Problem(model, F.cross_entropy, labels, update, masks, distance, scales=scales)


def doubled(problem: Problem) -> Problem:
    """Return the problem in float64."""
    target = {name: t.double() for name, t in problem.target.items()}
    return replace(problem, model=copy.deepcopy(problem.model).double(), target=target)


def make_settings(problem: Problem, iterations: int = 20, **changes: Any) -> DescentSettings:
    """Return a descent with every term; for l2 the weights are in units of the target's energy."""
    energy = sum(float(t.square().sum()) for t in problem.target.values())
    unit = 1.0 if problem.distance == "cosine" else energy
    prior = draw(1, "prior")[0]
    settings = {name: unit * weight for name, weight in WEIGHTS.items()} | {"prior": prior, **changes}
    return DescentSettings(iterations=iterations, **settings)


def oracle(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance and its derivative by x in float64, by double backward through plain PyTorch."""
    model = copy.deepcopy(problem.model).double().requires_grad_(True)
    x = x.detach().double().requires_grad_()
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradient = torch.autograd.grad(
        problem.loss(model(x), problem.labels), parameters, create_graph=True, materialize_grads=True
    )
    keep = torch.cat([mask_of(problem, name).flatten() for name in names])
    scales = problem.scales or dict.fromkeys(names, 1.0)
    got = torch.cat([scales[name] * g.flatten() for name, g in zip(names, gradient, strict=True)])[keep]
    wanted = torch.cat([scales[name] * problem.target[name].double().flatten() for name in names])[keep]
    if problem.distance == "l2":
        distance = (got - wanted).square().sum()
    else:
        distance = 1 - got @ wanted / got.norm() / wanted.norm()
    return distance.detach(), torch.autograd.grad(distance, x)[0]


def mask_of(problem: Problem, name: str) -> Tensor:
    all_entries = torch.ones_like(problem.target[name], dtype=torch.bool)
    return all_entries if problem.masks is None else problem.masks[name]


def assert_near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare in units of the largest entry."""
    gap = (got.double() - expected.double()).abs().max()
    assert gap <= tolerance * expected.double().abs().max()


def penalty(x: Tensor, settings: DescentSettings) -> Tensor:
    """Return total variation and prior of one trial from their definitions."""
    space = x.diff(dim=3).abs().mean() + x.diff(dim=4).abs().mean()
    pull = 0.0 if settings.prior is None else (x - settings.prior).square().mean() / 2
    return (
        settings.spatial * space
        + settings.temporal * x.diff(dim=2).abs().mean()
        + settings.prior_weight * pull
    )


class Cliff(Smooth):
    """Has no answer for clips that are too dark."""

    def forward(self, clips: Tensor) -> Tensor:
        return super().forward(clips) + (clips.mean() - 0.4).sqrt()


def problems(
    model: nn.Module, clips: int = 1, *, masked: bool = False, distance: Any = "cosine"
) -> list[Problem]:
    """Return three problems in float64 that share a model and nothing else, not even the labels."""
    first = doubled(make_problem(model, clips, distance=distance))
    found = []
    for trial in range(3):
        labels = (torch.tensor([2, 4])[:clips] + trial) % CLASSES
        update = update_of(first.model, draw(clips, "truth", trial).double(), labels)
        masks = {name: t.abs() >= t.abs().median() for name, t in update.items()} if masked else None
        found.append(replace(first, labels=labels, target=update, masks=masks))
    return found


def update_of(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = nn.functional.cross_entropy(model(x), labels)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def starts(clips: int = 1) -> list[Tensor]:
    return [draw(clips, "start", trial).double() for trial in range(3)]


def descents_of(every: Sequence[tuple[Problem, DescentSettings, Tensor]], **changes: Any) -> list[Descent]:
    return [Descent(problem, descent, start, **changes) for problem, descent, start in every]


def assert_alike(got: State, expected: State) -> None:
    """Compare all of two states; in float64 nothing but the order of sums may differ."""
    for of in ("x", "best", "best_objective", "history"):
        torch.testing.assert_close(
            getattr(got, of), getattr(expected, of), rtol=1e-7, atol=1e-9, equal_nan=True
        )
    assert (got.nan_at, got.settled) == (expected.nan_at, expected.settled)


def batch_of(descent: Descent) -> Batch:
    assert isinstance(descent.runner, TrialRunner)
    return descent.runner.batch
