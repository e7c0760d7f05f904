"""Step of the optimiser: torch.optim on a plain objective, and native code against plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import (
    PENALTIES,
    VARIATIONS,
    Run,
    assert_as_good_as_torch,
    assert_refused,
    assert_same,
    normal,
    plain_tv,
    uniform,
    using,
    with_gradient,
)
from torch import Tensor

from vleak.native import descend

RULES = ("adam", "sign", "sign_adam")
BOX = {"low": 0.1, "high": 0.9}
INPUTS = ("x", "data", "distance", "moment", "prior")
#: Every rule with every kind of penalty, on three shapes in turn.
OPTIMISER_CASES = [
    (shape, penalty, rule)
    for (penalty, rule), shape in zip(
        [(penalty, rule) for penalty in PENALTIES[1:] for rule in RULES],
        cycle([(1, 3, 8, 16, 16), (2, 3, 2, 11, 1), (2, 3, 3, 13, 37), (2, 1, 1, 5, 7)]),
        strict=False,
    )
]
#: Every shape and penalty of the total variation, with the rules in turn.
STEP_CASES = [(*variation, rule) for variation, rule in zip(VARIATIONS, cycle(RULES), strict=False)]


def plain_objective(x: Tensor, data: Tensor, prior: Tensor | None, weight: float, **penalty: Any) -> Tensor:
    """Return the objective; its data term is a product with a constant, so that its gradient is known."""
    value = (x * data).sum((1, 2, 3, 4)) + plain_tv(x, **penalty)
    return value if prior is None else value + 0.5 * weight * ((x - prior) ** 2).mean((1, 2, 3, 4))


def torch_step(x: Tensor, optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
    x.grad = gradient
    optimizer.step()
    with torch.no_grad():
        x.clamp_(BOX["low"], BOX["high"])


@pytest.mark.parametrize(("shape", "penalty", "rule"), OPTIMISER_CASES, ids=str)
def test_agrees_with_torch_optim(
    implementation: str, shape: tuple[int, ...], penalty: dict[str, Any], rule: Any
) -> None:
    penalty = {"spatial": 1.0, "temporal": 1.0} | penalty
    prior, data = uniform(*shape, seed="prior"), normal(*shape, seed="data") / 50
    run = Run(uniform(*shape))
    leaf = run.x.clone().requires_grad_()
    betas = (0.8, 0.95)
    adam = torch.optim.Adam([leaf], lr=0.05, betas=betas)
    optimizer = torch.optim.SGD([leaf], lr=0.05) if rule == "sign" else adam
    for _ in range(4):
        expected, gradient = with_gradient(lambda x: plain_objective(x, data, prior, 0.3, **penalty), leaf)
        objective = run.step(
            data, (run.x * data).sum((1, 2, 3, 4)), prior=prior, prior_weight=0.3, lr=0.05, betas=betas,
            rule=rule, **penalty, **BOX,
        )  # fmt: skip
        torch_step(leaf, optimizer, gradient if rule == "adam" else gradient.sign())
        torch.testing.assert_close(objective, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(run.x, leaf.detach(), rtol=1e-9, atol=1e-9)


def step_once(
    implementation: str, inputs: dict[str, Tensor], dtype: torch.dtype, **rest: Any
) -> list[Tensor]:
    """Return the results and the state after one step, from inputs converted to dtype."""
    x, data, distance, moment, prior = (inputs[name].to(dtype) for name in INPUTS)
    with using(implementation):
        run = Run(x)
        run.m, run.v = 0.1 * moment, 0.1 * moment.abs()
        objective = run.step(data, distance, lr=0.1, prior=prior, prior_weight=0.2, **rest)
    return [objective, run.x, run.m, run.v, run.best, run.best_objective]


@pytest.mark.parametrize(("shape", "penalty", "rule"), STEP_CASES, ids=str)
def test_native_is_as_good_as_plain_torch(shape: tuple[int, ...], penalty: dict[str, Any], rule: Any) -> None:
    # Entries come from float32, so that all start from the same numbers.
    inputs = {
        "x": uniform(*shape, dtype=torch.float32),
        "data": normal(*shape, seed="d", dtype=torch.float32),
        "distance": uniform(shape[0], dtype=torch.float32),
        "moment": normal(*shape, seed="m", dtype=torch.float32),
        "prior": uniform(*shape[1:], seed="p", dtype=torch.float32),
    }
    truth = step_once("torch", inputs, torch.float64, rule=rule, **penalty)
    for dtype in (torch.float32, torch.float64):
        native = step_once("native", inputs, dtype, rule=rule, **penalty)
        plain = step_once("torch", inputs, dtype, rule=rule, **penalty)
        for mine, theirs, exact in zip(native, plain, truth, strict=True):
            assert_as_good_as_torch(mine, theirs, exact)


def test_keeps_the_best_point_of_each_trial(implementation: str) -> None:
    run = Run(uniform(3, 1, 1, 2, 2))
    points, objectives = [], [[3.0, 1.0, math.nan], [2.0, 2.0, 5.0], [4.0, 0.5, math.nan]]
    for objective in objectives:
        points.append(run.x)
        run.step(normal(3, 1, 1, 2, 2), torch.tensor(objective, dtype=torch.float64), lr=0.1)
    assert run.best_objective.tolist() == [2.0, 0.5, 5.0]
    for trial, step in enumerate([1, 2, 1]):
        assert torch.equal(run.best[trial], points[step][trial])


def test_an_equal_objective_does_not_replace_the_best(implementation: str) -> None:
    run = Run(uniform(1, 1, 1, 2, 2))
    first = run.x
    for _ in range(2):
        run.step(normal(1, 1, 1, 2, 2), torch.ones(1, dtype=torch.float64), lr=0.1)
    assert torch.equal(run.best, first)


def test_sign_leaves_the_moments_alone(implementation: str) -> None:
    run = Run(uniform(1, 1, 2, 3, 3))
    run.m.fill_(7.0)
    run.step(normal(1, 1, 2, 3, 3), torch.zeros(1, dtype=torch.float64), lr=0.25, rule="sign", low=-9, high=9)
    assert (run.m == 7).all()
    assert not run.v.any()
    assert torch.equal(run.x, uniform(1, 1, 2, 3, 3) - 0.25 * normal(1, 1, 2, 3, 3).sign())


def test_the_box_holds_and_may_be_infinite(implementation: str) -> None:
    for low, high in ((0.25, 0.5), (-math.inf, math.inf)):
        run = Run(uniform(1, 2, 2, 3, 3))
        run.step(normal(1, 2, 2, 3, 3), torch.zeros(1, dtype=torch.float64), lr=5.0, low=low, high=high)
        assert low <= run.x.min() < run.x.max() <= high
        assert (run.x.abs().max() > 1) == (high == math.inf)


def test_x_is_not_touched_and_nothing_is_recorded(implementation: str) -> None:
    x = uniform(1, 1, 2, 3, 3).requires_grad_()
    before = x.detach().clone()
    run = Run(x.detach())
    moments = (run.m, run.v, run.best, run.best_objective)
    moved, objective = descend(x, normal(1, 1, 2, 3, 3), torch.zeros(1).double(), *moments, step=1, lr=0.1)
    assert torch.equal(x, before)
    assert not moved.requires_grad
    assert not objective.requires_grad


def test_reads_and_changes_any_strides(implementation: str) -> None:
    def permuted(tensor: Tensor) -> Tensor:
        return tensor.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)

    shape = (2, 3, 4, 5, 6)
    runs = Run(uniform(*shape)), Run(permuted(uniform(*shape)), permuted)
    assert not runs[1].m.is_contiguous()
    for run, layout in zip(runs, (lambda t: t, permuted), strict=True):
        for _ in range(2):
            run.step(
                layout(normal(*shape)), torch.ones(4, dtype=torch.float64)[::2], lr=0.1, spatial=0.1,
                prior=layout(uniform(*shape, seed="p")), prior_weight=0.5,
            )  # fmt: skip
    for name in ("x", "m", "v", "best", "best_objective"):
        assert_same(getattr(runs[0], name), getattr(runs[1], name), implementation)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5, 6), (2, 3, 0, 5, 6), (2, 3, 4, 5, 0)])
def test_empty_clips(implementation: str, shape: tuple[int, ...]) -> None:
    run = Run(torch.empty(shape))
    objective = run.step(torch.empty(shape), torch.full((shape[0],), 0.5), lr=0.1, spatial=1.0, temporal=1.0)
    assert objective.tolist() == [0.5] * shape[0]
    assert run.x.shape == shape


def test_one_prior_for_all_trials(implementation: str) -> None:
    shape = (3, 2, 2, 3, 3)
    prior = uniform(*shape[1:], seed="p")
    answers = []
    for one_or_many in (prior, prior.expand(shape)):
        run = Run(uniform(*shape))
        run.step(normal(*shape), torch.zeros(3).double(), lr=0.1, prior=one_or_many, prior_weight=2.0)
        answers.append(run.x)
    assert torch.equal(*answers)


@given(shape=st.tuples(st.integers(1, 4), *[st.integers(1, 5)] * 4), rule=st.sampled_from(RULES))
@settings(max_examples=15, deadline=None)
def test_trials_are_independent(shape: tuple[int, ...], rule: Any) -> None:
    for implementation in ("native", "torch"):
        with using(implementation):
            together = Run(uniform(*shape))
            alone = [Run(clip[None]) for clip in uniform(*shape)]
            for step in range(2):
                gradient, distance = normal(*shape, seed=step), uniform(shape[0], seed=step)
                rest = {"lr": 0.1, "spatial": 0.2, "temporal": 0.3, "rule": rule}
                together.step(gradient, distance, **rest)
                for i, run in enumerate(alone):
                    run.step(gradient[i : i + 1], distance[i : i + 1], **rest)
        torch.testing.assert_close(together.x, torch.cat([run.x for run in alone]))
        torch.testing.assert_close(together.best, torch.cat([run.best for run in alone]))


# ---------------------------------------------------------------------------------------------------------
# Bad input

CLIP = torch.zeros(2, 3, 4, 5, 6)


def descend_with(**changes: Any) -> Callable[[], Any]:
    arguments: dict[str, Any] = {
        "x": CLIP,
        "data_gradient": CLIP,
        "distance": torch.zeros(2),
        "step": 1,
        "lr": 0.1,
    }
    arguments |= {name: CLIP.clone() for name in ("m", "v", "best")} | {"best_objective": torch.zeros(2)}
    return lambda: descend(**(arguments | changes))


BAD_INPUTS: list[tuple[Callable[[], Any], str]] = [
    (descend_with(x=CLIP[0]), "add the clip axis with x[None]"),
    (descend_with(m=CLIP[:1].clone()), "descend: expected m of shape (2, 3, 4, 5, 6), got (1, 3, 4, 5, 6)"),
    (descend_with(v=CLIP.double()), "expected v of dtype torch.float32 like x, got torch.float64"),
    (descend_with(best=CLIP.to("meta")), "expected best on cpu like x, got meta"),
    (descend_with(distance=torch.zeros(())), "expected distance of shape (2,), got ()"),
    (descend_with(best_objective=torch.zeros(3)), "expected best_objective of shape (2,), got (3,)"),
    (descend_with(prior=CLIP[:1]), "expected prior of shape (2, 3, 4, 5, 6), got (1, 3, 4, 5, 6)"),
    (descend_with(prior=CLIP[0, 0]), "expected prior of shape (3, 4, 5, 6), got (4, 5, 6)"),
    (descend_with(step=0), "expected step to count from 1, got 0"),
    (descend_with(lr=-0.1), "expected lr to be a finite number >= 0"),
    (descend_with(betas=(0.9, 1.0)), "expected betas to be a finite number in [0, 1), got 1.0"),
    (descend_with(low=1.0, high=0.0), "expected low <= high, got low 1.0 and high 0.0"),
    (descend_with(rule="sgd"), "expected rule to be one of adam, sign, sign_adam, got 'sgd'"),
    (descend_with(prior_weight=math.nan), "prior_weight"),
    (descend_with(spatial=-1.0), "descend: expected spatial"),
]


@pytest.mark.parametrize(("call", "message"), BAD_INPUTS, ids=[message[:60] for _, message in BAD_INPUTS])
def test_bad_input_is_refused(implementation: str, call: Callable[[], Any], message: str) -> None:
    assert_refused(call, message)
