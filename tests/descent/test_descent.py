"""The inner loop: both engines against an oracle in float64, its bookkeeping, and what it refuses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from descents import (
    CLASSES,
    FRAMES,
    SIZE,
    Cliff,
    Smooth,
    assert_near,
    built_in,
    distances,
    doubled,
    draw,
    engines,
    make_problem,
    make_settings,
    models,
    oracle,
    penalty,
)
from tiny import Conv, Residual, build
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

from vleak.descent import ENGINES, Descent, DescentSettings, Problem
from vleak.errors import InputError
from vleak.native import loader, operators
from vleak.seeds import generator


class Fickle(Smooth):
    """Returns one class fewer at every other call."""

    calls = 0

    def forward(self, clips: Tensor) -> Tensor:
        Fickle.calls += 1
        return super().forward(clips)[:, : CLASSES - (Fickle.calls + 1) % 2]


def broken() -> nn.Module:
    model = build(Smooth)
    with torch.no_grad():
        model.head.bias[0] = math.nan
    return model


class Twice(Smooth):
    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(clips), clips


class Refusing(Smooth):
    def forward(self, clips: Tensor) -> Tensor:
        raise AssertionError("too dark")


combinations = pytest.mark.parametrize(
    ("distance", "masked", "clips"),
    [
        ("cosine", True, 2),
        ("l2", False, 1),
        pytest.param("cosine", False, 1, marks=pytest.mark.slow),
        pytest.param("cosine", True, 1, marks=pytest.mark.slow),
        pytest.param("cosine", False, 2, marks=pytest.mark.slow),
        pytest.param("l2", True, 1, marks=pytest.mark.slow),
        pytest.param("l2", False, 2, marks=pytest.mark.slow),
        pytest.param("l2", True, 2, marks=pytest.mark.slow),
    ],
)


class Asking(Smooth):
    """Asks something once the derivative by the clips is there."""

    asked: Callable[[], None]

    def forward(self, clips: Tensor) -> Tensor:
        if clips.requires_grad:
            clips.register_hook(lambda gradient: self.asked())
        return super().forward(clips)


# ---- the derivative


def test_residuals_are_given_back_on_the_way_to_the_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are as large as the weights, and would be the peak of wide networks."""
    residuals: list[StorageWeakRef] = []
    left: list[int] = []
    match = operators.gradient_match

    def recorded(*arguments: Any, **settings: Any) -> tuple[Tensor, list[Tensor]]:
        distance, made = match(*arguments, **settings)
        residuals[:] = [StorageWeakRef(residual.untyped_storage()) for residual in made]
        return distance, made

    monkeypatch.setattr(operators, "gradient_match", recorded)
    model = build(Asking)
    model.asked = lambda: left.append(sum(not residual.expired() for residual in residuals))
    problem = make_problem(model)
    Descent(problem, make_settings(problem), draw(1, "start"), engine="reference").run(1)
    assert len(residuals) == len(list(model.parameters()))
    assert left == [0]


@models
@combinations
def test_engines_agree_with_the_oracle_along_a_descent(
    name: str, distance: str, masked: bool, clips: int
) -> None:
    problem = make_problem(built_in(name), clips, masked=masked, distance=distance)
    descents = [Descent(problem, make_settings(problem), draw(clips, "start"), engine=e) for e in ENGINES]
    for _ in range(3):
        x = descents[1].run(1).x
        distance_64, gradient_64 = oracle(problem, x)
        for loop in descents:
            value, gradient = loop.distance_and_gradient(x)
            assert value.item() == pytest.approx(distance_64.item(), rel=1e-5, abs=1e-6)
            assert_near(gradient, gradient_64, 1e-4)


@models
@combinations
def test_engines_take_the_same_path(name: str, distance: str, masked: bool, clips: int) -> None:
    if operators.backend() != "native":
        pytest.skip(f"no native code here: {loader.status().reason}")
    problem = make_problem(built_in(name), clips, masked=masked, distance=distance)
    # In float32 a pixel that sits on a kink of a ReLU may fall to either side and part the paths.
    problem = doubled(problem)
    start = draw(clips, "start").double()
    native, reference = (Descent(problem, make_settings(problem), start, engine=e).run(20) for e in ENGINES)
    assert len(native.history) == 20
    assert native.history == pytest.approx(reference.history, rel=1e-9)
    torch.testing.assert_close(native.x, reference.x, rtol=0, atol=1e-9)
    torch.testing.assert_close(native.best, reference.best, rtol=0, atol=1e-9)
    assert reference.best_objective < 0.8 * reference.history[0]


class Gated(nn.Module):
    """A GRU, in which PyTorch writes into parts of products; the first of them has fixed factors only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(3 * SIZE * SIZE, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.layer(clips.transpose(1, 2).flatten(2))[0][:, -1])


def test_a_gru_takes_the_path_of_the_reference() -> None:
    if operators.backend() != "native":
        pytest.skip(f"no native code here: {loader.status().reason}")
    problem, start = doubled(make_problem(build(Gated))), draw(1, "start").double()
    native, reference = (Descent(problem, make_settings(problem), start, engine=e) for e in ENGINES)
    assert native.engine == "native"
    assert native.run(10).history == pytest.approx(reference.run(10).history, rel=1e-9)
    torch.testing.assert_close(native.state.x, reference.state.x, rtol=0, atol=1e-9)


@models
def test_engines_start_alike_in_float32(name: str) -> None:
    problem = make_problem(built_in(name), 2)
    native, reference = (
        Descent(problem, make_settings(problem, rule="sign"), draw(2, "start"), engine=e).run(2)
        for e in ENGINES
    )
    assert native.history == pytest.approx(reference.history, rel=1e-4)
    # A sign may flip where a gradient vanishes.
    assert ((native.x - reference.x).abs() > 1e-6).double().mean() < 1e-3


@distances
@pytest.mark.parametrize("name", ["c3d_tiny", "lrcn"])
def test_scales_of_tensors_count_in_both_engines(name: str, distance: str) -> None:
    problem = make_problem(built_in(name), 2, distance=distance, masked=True, scaled=True)
    plain, start = oracle(replace(problem, scales=None), draw(2, "start"))[0], draw(2, "start")
    for engine in ENGINES:
        loop = Descent(problem, make_settings(problem), start, engine=engine)
        assert loop.engine == engine or operators.backend() != "native"
        value, gradient = loop.distance_and_gradient(loop.run(2).x)
        expected = oracle(problem, loop.state.x)
        assert value.item() == pytest.approx(expected[0].item(), rel=1e-5)
        assert abs(oracle(problem, start)[0] - plain) > 1e-3 * plain
        assert_near(gradient, expected[1], 1e-4)
        assert loop.state.history[0] == pytest.approx(
            float(oracle(problem, start)[0] + penalty(start.double(), make_settings(problem))), rel=1e-4
        )


@distances
@engines
def test_gradient_agrees_with_finite_differences(distance: str, engine: str) -> None:
    model = build(Smooth)
    problem = make_problem(model, 2, distance=distance, masked=True)
    problem = doubled(problem)
    x = draw(2, "start").double()
    loop = Descent(problem, make_settings(problem), x, engine=engine)
    gradient = loop.distance_and_gradient(x)[1]
    for index in range(6):
        direction = torch.randn(x.shape, generator=generator("direction", index), dtype=torch.float64)
        ahead, behind = (loop.distance_and_gradient(x + h * direction)[0] for h in (1e-5, -1e-5))
        slope = (gradient * direction).sum().item()
        assert (ahead - behind).item() / 2e-5 == pytest.approx(slope, rel=1e-5)


def test_unused_parameters_take_part() -> None:
    model = build(Conv).eval()
    problem = make_problem(model)
    assert not problem.target["unused"].any()
    x = draw(1, "start")
    distance, gradient = Descent(problem, make_settings(problem), x).distance_and_gradient(x)
    expected = oracle(problem, x)
    assert distance.item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert_near(gradient, expected[1], 1e-4)


# ---- the objective and the step


@distances
@engines
@pytest.mark.parametrize("clips", [1, 2])
def test_objective_is_distance_plus_total_variation_plus_prior(
    distance: str, engine: str, clips: int
) -> None:
    problem = make_problem(build(Smooth), clips, distance=distance)
    descent, start = make_settings(problem), draw(clips, "start")
    data = oracle(problem, start)[0].item()
    expected = data + penalty(start.double(), descent).item()
    assert expected > 1.02 * data
    assert Descent(problem, descent, start, engine=engine).run(1).history == pytest.approx(
        [expected], rel=1e-5
    )


@engines
def test_step_descends_the_whole_objective(engine: str) -> None:
    problem = make_problem(build(Smooth), 2)
    start = draw(2, "start")
    descent = make_settings(problem, rule="sign", learning_rate=0.05, schedule="steps")
    x = start.double().requires_grad_()
    total = oracle(problem, start)[1] + torch.autograd.grad(penalty(x, descent), x)[0]
    expected = (start - 0.05 * total.sign()).clamp(0, 1)
    moved = Descent(problem, descent, start, engine=engine).run(1).x
    clear = total.abs() > 1e-5 * total.abs().max()
    torch.testing.assert_close(moved[clear], expected[clear].float(), rtol=0, atol=1e-6)
    assert clear.double().mean() > 0.99
    assert ((moved == 0) | (moved == 1)).any()


@engines
def test_path_is_that_of_adam(engine: str) -> None:
    problem = make_problem(build(Smooth))
    problem = doubled(problem)
    descent, start = make_settings(problem, 6), draw(1, "start").double()
    x = start.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=1.0)
    for iteration in range(6):
        x.grad = oracle(problem, x)[1] + torch.autograd.grad(penalty(x, descent), x)[0]
        adam.param_groups[0]["lr"] = descent.rate(iteration)
        adam.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    got = Descent(problem, descent, start, engine=engine).run(6).x
    torch.testing.assert_close(got, x.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("term", ["spatial", "temporal", "prior_weight"])
def test_every_term_changes_the_path(term: str) -> None:
    problem = make_problem(build(Smooth))
    with_it, without = (
        Descent(problem, make_settings(problem, **change), draw(1, "start")).run(5).x
        for change in ({}, {term: 0.0})
    )
    assert not torch.equal(with_it, without)


def test_learning_rates_of_the_schedules() -> None:
    cosine = DescentSettings(iterations=10, learning_rate=0.2)
    assert cosine.rate(0) == pytest.approx(0.2)
    assert cosine.rate(5) == pytest.approx(0.2 * 0.505)
    assert cosine.rate(10) == pytest.approx(0.002)
    steps = DescentSettings(iterations=8, learning_rate=0.2, schedule="steps")
    expected = [0.2, 0.2, 0.2, 0.02, 0.02, 0.002, 0.002, 0.0002]
    assert [steps.rate(i) for i in range(8)] == pytest.approx(expected)
    flat = DescentSettings(iterations=10, learning_rate=0.2, schedule="trapezoid")
    assert [flat.rate(i) for i in (0, 4, 7)] == pytest.approx([0.2] * 3)
    assert [flat.rate(i) for i in (8, 9, 10)] == pytest.approx([0.2 * (0.01 + 0.33 * i) for i in (2, 1, 0)])
    risen = [each * share for each, share in zip(expected, [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1], strict=True)]
    assert [replace(steps, warmup=4).rate(i) for i in range(8)] == pytest.approx(risen)


def test_schedule_reaches_the_step() -> None:
    problem = make_problem(build(Smooth))
    descent = make_settings(problem, 8, rule="sign", schedule="steps", learning_rate=0.01)
    loop = Descent(problem, descent, torch.full((1, 3, FRAMES, SIZE, SIZE), 0.5))
    xs = [loop.state.x] + [loop.run(1).x.clone() for _ in range(8)]
    steps = [(b - a).abs().max().item() for a, b in pairwise(xs)]
    assert steps == pytest.approx([descent.rate(i) for i in range(8)], rel=1e-2)


# ---- bookkeeping


@engines
def test_best_is_the_best_of_the_history(engine: str) -> None:
    problem = make_problem(build(Smooth))
    # Steps far too long, so that the last iterate is not the best.
    descent = make_settings(problem, 30, rule="sign", learning_rate=0.4, schedule="steps")
    loop = Descent(problem, descent, draw(1, "start"), engine=engine)
    visited = []
    for _ in range(11):
        visited.append(loop.state.x.clone())
        loop.run(1)
    state = loop.state
    smallest = min(range(11), key=lambda i: state.history[i])
    assert 0 < smallest < 10
    assert state.best_objective == state.history[smallest]
    assert torch.equal(state.best, visited[smallest])


@models
@engines
def test_two_halves_are_one_run(name: str, engine: str) -> None:
    problem = make_problem(built_in(name))
    whole, halves = (
        Descent(problem, make_settings(problem, 12), draw(1, "start"), engine=engine) for _ in range(2)
    )
    expected = whole.run(12)
    halves.run(5)
    got = halves.run(100)
    assert got.history == expected.history
    assert len(got.history) == 12
    assert torch.equal(got.x, expected.x)
    assert torch.equal(got.best, expected.best)
    assert got.best_objective == expected.best_objective


@engines
def test_progress_counts_and_stop_pauses(engine: str) -> None:
    problem = make_problem(build(Smooth))
    loop, undisturbed = (
        Descent(problem, make_settings(problem, 9), draw(1, "start"), engine=engine) for _ in range(2)
    )
    seen: list[int] = []
    assert len(loop.run(9, progress=seen.append, stop=lambda: len(seen) == 2, every=2).history) == 4
    assert seen == [2, 4]
    assert len(loop.run(9, stop=lambda: True).history) == 4
    state = loop.run(9, progress=seen.append, every=3)
    assert seen == [2, 4, 7, 9]
    assert torch.equal(state.x, undisturbed.run(9).x)
    assert state.history == undisturbed.state.history


@engines
def test_a_plateau_ends_the_descent_however_the_run_is_cut(engine: str) -> None:
    problem = make_problem(build(Smooth))
    descent = make_settings(problem, 400, patience=5, tolerance=0.02)
    whole, cut = (Descent(problem, descent, draw(1, "start"), engine=engine) for _ in range(2))
    state = whole.run(400)
    while not cut.state.settled:
        cut.run(3, every=2)
    assert state.settled
    assert cut.state.history == state.history
    assert 10 < len(state.history) < 400
    assert len(whole.run(10).history) == len(state.history)
    # The last five brought less than 2 % below what stood before them.
    assert min(state.history[-5:]) >= 0.98 * min(state.history[:-5])
    assert state.best_objective == min(state.history)


@engines
def test_no_iteration_changes_nothing(engine: str) -> None:
    problem, start = make_problem(build(Smooth)), draw(1, "start")
    state = Descent(problem, make_settings(problem), start, engine=engine).run(0)
    assert (state.history, state.best_objective, state.nan_at) == ([], math.inf, None)
    assert torch.equal(state.x, start)
    assert torch.equal(state.best, start)


@engines
def test_nan_ends_the_descent_and_is_named(engine: str) -> None:
    problem = make_problem(build(Cliff))
    # A pull to black that the match cannot resist.
    descent = make_settings(problem, rule="sign", schedule="steps", learning_rate=0.02, prior_weight=1e9)
    descent = replace(descent, prior=torch.zeros(3, FRAMES, SIZE, SIZE))
    loop, healthy = (Descent(problem, descent, draw(1, "start"), engine=engine) for _ in range(2))
    state = loop.run(20)
    before = (state.nan_at or 1) - 1
    assert 2 < before < 10
    assert len(state.history) == before + 1
    assert math.isnan(state.history[-1])
    assert healthy.run(before).history == state.history[:-1]
    assert state.best_objective == min(state.history[:-1])
    assert torch.equal(state.best, healthy.state.best)
    assert torch.isfinite(state.x).all()
    assert len(loop.run(5).history) == before + 1


@engines
def test_nan_from_the_start_leaves_the_start(engine: str) -> None:
    problem = make_problem(build(Cliff))
    dark = 0.1 * draw(1, "start")
    state = Descent(problem, make_settings(problem), dark, engine=engine).run(5)
    assert state.nan_at == 1
    assert state.best_objective == math.inf
    assert torch.equal(state.best, dark)


def test_nothing_outside_changes() -> None:
    model = build(lambda: Residual(nn.BatchNorm3d)).train()
    problem = make_problem(model)
    start = draw(1, "start")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    target = {name: value.clone() for name, value in problem.target.items()}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    Descent(problem, make_settings(problem), start).run(5)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert torch.equal(start, draw(1, "start"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, target[name]) for name, value in problem.target.items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training


def test_reference_engine_never_calls_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(build(Smooth))
    loop = Descent(problem, make_settings(problem), draw(1, "start"), engine="reference")
    called = []
    monkeypatch.setattr(loader, "ensure_loaded", lambda device: called.append(device) or False)
    loop.run(2)
    loop.distance_and_gradient(loop.state.x)
    assert not called
    Descent(problem, make_settings(problem), draw(1, "start"), engine="native").run(1)
    assert called


# ---- refusals


def without(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key != name}


Change = Callable[[Problem], Problem]
REFUSED: dict[str, tuple[Change, list[str]]] = {
    "no target": (
        lambda p: replace(p, target=without(p.target, "head.bias")),
        ["target", "'head.bias'"],
    ),
    "target of another shape": (
        lambda p: replace(p, target={**p.target, "conv.weight": torch.zeros(4, 3)}),
        ["'conv.weight'", "(4, 3, 3, 3, 3)", "(4, 3)"],
    ),
    "NaN in the target": (
        lambda p: replace(p, target={**p.target, "conv.bias": torch.full((4,), math.nan)}),
        ["'conv.bias'", "NaN"],
    ),
    "no mask": (
        lambda p: replace(p, masks=without(p.masks or {}, "conv.bias")),
        ["mask", "'conv.bias'"],
    ),
    "no scale": (lambda p: replace(p, scales={"conv.weight": 1.0}), ["scale", "'conv.bias'", "None"]),
    "scale of zero": (
        lambda p: replace(p, scales=dict.fromkeys(p.target, 0.0)),
        ["scale", "'conv.weight'", "above 0", "0.0"],
    ),
    "mask of another shape": (
        lambda p: replace(p, masks={**(p.masks or {}), "head.bias": torch.ones(2, dtype=torch.bool)}),
        ["mask", "'head.bias'", "(6,)", "(2,)"],
    ),
    "target of another dtype": (
        lambda p: replace(p, target={n: t.double() for n, t in p.target.items()}),
        ["'conv.weight'", "float64", "float32"],
    ),
    "target on another device": (
        lambda p: replace(p, target={**p.target, "head.bias": torch.zeros(6, device="meta")}),
        ["'head.bias'", "meta", "cpu"],
    ),
    "mask that is not boolean": (
        lambda p: replace(p, masks={n: t.float() for n, t in (p.masks or {}).items()}),
        ["mask", "'conv.weight'", "bool"],
    ),
    "model that changes shape between calls": (
        lambda p: replace(p, model=build(Fickle)),
        ["changes shape between calls", "(1, 6)", "(1, 5)"],
    ),
    "target of no parameter": (
        lambda p: replace(p, target={**p.target, "tail.bias": torch.zeros(6)}),
        ["'tail.bias'", "no such parameter"],
    ),
    "sparse target": (
        lambda p: replace(p, target={**p.target, "head.bias": torch.zeros(6).to_sparse()}),
        ["'head.bias'", "dense"],
    ),
    "label of no class": (lambda p: replace(p, labels=torch.tensor([CLASSES])), ["labels", "0 to 5", "[6]"]),
    "label that is ignored": (lambda p: replace(p, labels=torch.tensor([-100])), ["labels", "[-100]"]),
    "labels that are no integers": (
        lambda p: replace(p, labels=torch.tensor([2.0])),
        ["labels", "int64", "float32"],
    ),
    "labels in a list": (lambda p: replace(p, labels=[2]), ["labels", "tensor", "list"]),
    "NaN in a parameter": (lambda p: replace(p, model=broken()), ["'head.bias'", "NaN"]),
    "model of two answers": (lambda p: replace(p, model=build(Twice)), ["tuple", "class scores"]),
    "model that raises": (lambda p: replace(p, model=build(Refusing)), ["does not take", "too dark"]),
    "model without parameters": (
        lambda p: replace(p, model=nn.Flatten(), target={}, masks=None),
        ["no parameters"],
    ),
    "loss that is cut off": (
        lambda p: replace(p, loss=lambda a, b: F.cross_entropy(a.detach(), b)),
        ["loss", "depends on the parameters"],
    ),
    "loss that is no number": (
        lambda p: replace(p, loss=lambda a, b: F.cross_entropy(a, b, reduction="none")),
        ["loss", "(1,)"],
    ),
    "labels of another batch": (
        lambda p: replace(p, labels=torch.tensor([0, 1])),
        ["labels", "(1,)", "(2,)"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tensors_that_do_not_fit_are_named(case: str) -> None:
    change, words = REFUSED[case]
    problem = make_problem(build(Smooth), masked=True)
    with pytest.raises(InputError) as caught:
        Descent(change(problem), make_settings(problem), draw(1, "start"))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (torch.zeros(3, 4, 8, 8), ["start", "(3, 4, 8, 8)"]),
        (torch.zeros(0, 3, 4, 8, 8), ["start", "(0, 3, 4, 8, 8)"]),
        (torch.full((1, 3, 4, 8, 8), math.nan), ["start", "NaN"]),
        (torch.full((1, 3, 4, 8, 8), -0.25), ["start", "box [0.0, 1.0]", "-0.25"]),
        (torch.full((1, 3, 4, 8, 8), 1.5), ["start", "box [0.0, 1.0]", "1.5"]),
        (torch.zeros(1, 3, 1, 8, 8), ["one frame", "temporal=0"]),
        (torch.zeros(1, 3, 4, 8, 8).half(), ["start", "float16"]),
        (torch.zeros(1, 3, 4, 8, 8).double(), ["'conv.weight'", "float64", "float32"]),
        (torch.zeros(1, 3, 4, 9, 9), ["does not take", "(1, 3, 4, 9, 9)"]),
    ],
    ids=["no clip axis", "no clip", "NaN", "below", "above", "one frame", "half", "double", "other size"],
)
def test_start_that_does_not_fit_is_refused(start: Tensor, words: list[str]) -> None:
    problem = make_problem(build(Smooth))
    with pytest.raises(InputError) as caught:
        Descent(problem, make_settings(problem, prior=None, prior_weight=0.0), start)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_start_on_the_bounds_as_float32_has_them_is_taken() -> None:
    problem = make_problem(build(Smooth))
    descent = make_settings(problem, low=-0.1, high=0.7, prior=None, prior_weight=0.0)
    first = Descent(problem, descent, (2 * draw(1, "start") - 0.5).clamp(-0.1, 0.7))
    assert Descent(problem, descent, first.run(3).x.clone()).run(2).history


@pytest.mark.parametrize(
    ("change", "engine", "words"),
    [
        ({"iterations": 0}, "native", ["iterations", "0"]),
        ({"iterations": -3}, "native", ["iterations", "-3"]),
        ({"prior": torch.zeros(3, 4, 8, 9)}, "native", ["prior", "(3, 4, 8, 9)"]),
        ({"prior": torch.full((3, 4, 8, 8), math.inf)}, "native", ["prior", "infinity"]),
        ({"low": 1.0, "high": 1.0}, "native", ["box", "low 1.0", "high 1.0"]),
        ({"low": math.nan}, "native", ["box", "nan"]),
        ({"patience": -1}, "native", ["patience", "-1"]),
        ({"iterations": 2.5}, "native", ["iterations", "2.5"]),
        ({"smoothing": -1.0}, "native", ["smoothing", "-1.0"]),
        ({"prior_weight": 0.5}, "native", ["prior_weight", "0.5"]),
        ({"prior": torch.zeros(3, 4, 8, 8, device="meta")}, "native", ["prior", "meta", "cpu"]),
        ({"warmup": -2}, "native", ["warmup", "-2"]),
        ({"rule": "sgd"}, "native", ["'sgd'", "adam"]),
        ({"schedule": "linear"}, "native", ["'linear'", "cosine"]),
        ({}, "fast", ["'fast'", "native", "reference"]),
    ],
)
def test_settings_that_cannot_run_are_refused(change: dict[str, Any], engine: str, words: list[str]) -> None:
    problem = make_problem(build(Smooth))
    with pytest.raises(InputError) as caught:
        Descent(problem, DescentSettings(**{"iterations": 5, **change}), draw(1, "start"), engine=engine)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_state_copies_nothing_that_the_descent_works_on() -> None:
    problem, start = doubled(make_problem(build(Smooth))), draw(1, "start").double()
    given = start.clone()
    loop = Descent(problem, make_settings(problem, 6), start)
    first = loop.run(3).best.clone()
    for name in ("x", "best"):
        held = getattr(loop.state, name)
        assert held.data_ptr() == loop.runner.values[name].data_ptr()
        assert held.shape == start.shape
    assert not torch.equal(loop.run(3).best, first)
    assert torch.equal(start, given)
