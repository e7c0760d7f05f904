"""Gradient match: autograd of a plain formula in float64, known answers, and native code against both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import assert_as_good_as_torch, assert_refused, assert_same, normal, using
from torch import Tensor

from vleak.errors import CapabilityError
from vleak.native import gradient_match

#: Shapes of the parameters: one tensor, a scalar, a network, empty tensors, more than one piece of a sum.
#: Each with and without masks, and with both kinds.
CASES: list[tuple[list[tuple[int, ...]], bool, str]] = [
    ([(3, 5)], False, "cosine"),
    ([(3, 5)], True, "l2"),
    ([()], False, "l2"),
    ([()], True, "cosine"),
    ([(16, 3, 3, 3, 3), (16,), (10, 64), (10,)], False, "l2"),
    ([(16, 3, 3, 3, 3), (16,), (10, 64), (10,)], True, "cosine"),
    ([(0,), (7,), (2, 0, 3)], False, "cosine"),
    ([(0,), (7,), (2, 0, 3)], True, "l2"),
    ([(40000,), (17,)], False, "cosine"),
    ([(40000,), (17,)], False, "l2"),
    ([(40000,), (17,)], True, "cosine"),
    ([(40000,), (17,)], True, "l2"),
]


def lists(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    gradients = [normal(*shape, seed=("g", i), dtype=dtype) for i, shape in enumerate(shapes)]
    return gradients, [normal(*shape, seed=("t", i), dtype=dtype) for i, shape in enumerate(shapes)]


def plain_distance(gradients: list[Tensor], targets: list[Tensor], kind: str) -> Tensor:
    g = torch.cat([tensor.reshape(-1) for tensor in gradients])
    t = torch.cat([tensor.reshape(-1) for tensor in targets])
    return ((g - t) ** 2).sum() if kind == "l2" else 1 - (g @ t) / (g.norm() * t.norm())


def plain_match(
    gradients: list[Tensor], targets: list[Tensor], masks: list[Tensor] | None, kind: str
) -> tuple[Tensor, list[Tensor]]:
    """Return the distance of the plain formula, and its derivative by autograd."""
    leaves = [tensor.detach().requires_grad_() for tensor in gradients]
    masks = masks or [torch.ones(g.shape, dtype=torch.bool) for g in gradients]
    kept = [leaf * mask for leaf, mask in zip(leaves, masks, strict=True)]
    wanted = [t.to(gradients[0].dtype) * mask for t, mask in zip(targets, masks, strict=True)]
    value = plain_distance(kept, wanted, kind)
    return value.detach(), list(torch.autograd.grad(value, leaves))


@pytest.mark.parametrize(("shapes", "masked", "kind"), CASES, ids=str)
def test_agrees_with_autograd_of_the_plain_formula(
    implementation: str, shapes: list[tuple[int, ...]], masked: bool, kind: Any
) -> None:
    for dtype in (torch.float32, torch.float64):
        gradients, targets = lists(shapes, dtype)
        masks = [normal(*shape, seed="mask") > -0.5 for shape in shapes] if masked else None
        distance, residuals = gradient_match(gradients, targets, masks=masks, kind=kind)
        plain = plain_match(gradients, targets, masks, kind)
        exact = plain_match([g.double() for g in gradients], targets, masks, kind)
        # The derivative of the cosine is the difference of two terms of this size.
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        size = 1 / norm if kind == "cosine" else 0.0
        assert_as_good_as_torch(distance, plain[0], exact[0])
        for mine, theirs, truth in zip(residuals, plain[1], exact[1], strict=True):
            assert_as_good_as_torch(mine, theirs, truth, size)


@pytest.mark.parametrize(("kind", "masked"), [("cosine", False), ("cosine", True), ("l2", True)])
def test_gradcheck(implementation: str, kind: Any, masked: bool) -> None:
    gradients, targets = lists([(3, 2), (4,), ()], torch.float64)
    masks = [torch.tensor([[True, False]]).expand(3, 2), torch.ones(4) > 0, torch.tensor(True)]

    def distance(*gradients: Tensor) -> Tensor:
        return gradient_match(gradients, targets, masks=masks if masked else None, kind=kind)[0]

    assert torch.autograd.gradcheck(distance, [g.requires_grad_() for g in gradients])


@pytest.mark.parametrize(
    ("sign", "expected", "dtype"),
    [(1.0, 0.0, torch.float32), (1.0, 0.0, torch.float64), (-1.0, 2.0, torch.float32)],
)
def test_parallel_vectors(implementation: str, sign: float, expected: float, dtype: torch.dtype) -> None:
    gradients, _ = lists([(1000,), (30, 7)], dtype)
    distance, _ = gradient_match([sign * 3 * g for g in gradients], gradients)
    assert distance.item() == pytest.approx(expected, abs=4 * torch.finfo(dtype).eps)
    assert distance.item() >= 0


def test_right_angle(implementation: str) -> None:
    distance, (residual,) = gradient_match([torch.tensor([2.0, 0.0])], [torch.tensor([0.0, 5.0])])
    assert distance.item() == 1.0
    assert residual.tolist() == [0.0, -0.5]


@pytest.mark.parametrize("zero", ["gradients", "targets", "both", "masked away"])
def test_a_zero_norm_gives_distance_one_and_no_direction(implementation: str, zero: str) -> None:
    gradients, targets = [torch.ones(3, requires_grad=True)], [torch.ones(3)]
    masks = [torch.zeros(3, dtype=torch.bool)] if zero == "masked away" else None
    if zero in ("gradients", "both"):
        gradients = [torch.zeros(3, requires_grad=True)]
    if zero in ("targets", "both"):
        targets = [torch.zeros(3)]
    distance, residuals = gradient_match(gradients, targets, masks=masks)
    assert distance.item() == 1.0
    assert residuals[0].tolist() == [0.0] * 3
    distance.backward()
    assert gradients[0].grad is not None
    assert gradients[0].grad.tolist() == [0.0] * 3


def test_only_empty_tensors(implementation: str) -> None:
    empty = [torch.empty(0), torch.empty(2, 0)]
    assert gradient_match(empty, empty)[0].item() == 1.0
    assert gradient_match(empty, empty, kind="l2")[0].item() == 0.0


@pytest.mark.parametrize("kind", ["cosine", "l2"])
def test_masked_entries_do_not_reach_the_result(implementation: str, kind: Any) -> None:
    mask = torch.tensor([True, True, False])
    clean = gradient_match([torch.tensor([1.0, 2, 3])], [torch.tensor([2.0, 1, 3])], masks=[mask], kind=kind)
    broken = [torch.tensor([1.0, 2, math.nan])], [torch.tensor([2.0, 1, math.inf])]
    distance, (residual,) = gradient_match(*broken, masks=[mask], kind=kind)
    assert distance == clean[0]
    assert torch.equal(residual, clean[1][0])
    assert residual[2] == 0


@pytest.mark.parametrize("kind", ["cosine", "l2"])
def test_nan_stays_nan(implementation: str, kind: Any) -> None:
    distance, _ = gradient_match([torch.tensor([1.0, math.nan])], [torch.ones(2)], kind=kind)
    assert distance.isnan()


def test_float32_sums_do_not_drift(implementation: str) -> None:
    # In float32 a running sum of ones stops at 2**24.
    many = torch.ones(2**24 + 2**20)
    distance, _ = gradient_match([many], [torch.zeros_like(many)], kind="l2")
    assert distance.item() == 2**24 + 2**20


def test_reads_any_strides(implementation: str) -> None:
    g, t = normal(6, 5, seed="g"), normal(6, 5, seed="t")
    mask = normal(6, 5, seed="m") > 0
    straight = gradient_match([g, g[2:4]], [t, t[2:4]], masks=[mask, mask[2:4]])
    turned = gradient_match(
        [g.T.contiguous().T, g[2:4].expand(2, 5)],
        [t.T.contiguous().T, t.repeat(1, 2)[2:4, :5]],
        masks=[mask.T.contiguous().T, mask[2:4]],
    )
    assert_same(straight[0], turned[0], implementation)
    for a, b in zip(straight[1], turned[1], strict=True):
        assert_same(a, b, implementation)
        assert b.is_contiguous()


def test_flows_through_the_model_to_the_clip(implementation: str) -> None:
    weight, x = normal(4, 3).requires_grad_(), normal(1, 3, seed="x").requires_grad_()
    target = normal(4, 3, seed="t")
    for distance in (
        lambda g: gradient_match([g], [target])[0],
        lambda g: plain_distance([g], [target], "cosine"),
    ):
        (g,) = torch.autograd.grad((x @ weight.T).tanh().square().sum(), weight, create_graph=True)
        distance(g).backward(inputs=[x])
    assert x.grad is not None
    twice = x.grad.clone()
    x.grad = None
    (g,) = torch.autograd.grad((x @ weight.T).tanh().square().sum(), weight, create_graph=True)
    plain_distance([g], [target], "cosine").backward(inputs=[x])
    torch.testing.assert_close(twice, 2 * x.grad)


def test_second_derivative_is_refused(implementation: str) -> None:
    gradients, targets = lists([(3,), (2, 2)], torch.float64)
    leaf = gradients[0].requires_grad_()
    distance, _ = gradient_match(gradients, targets)
    (first,) = torch.autograd.grad(distance, leaf, create_graph=True)
    with pytest.raises(CapabilityError, match="once"):
        (first.sum() + leaf.sum()).backward()


def test_differentiating_through_the_residuals_is_refused(implementation: str) -> None:
    gradients, targets = lists([(3,), (2, 2)], torch.float64)
    gradients[1].requires_grad_()
    _, residuals = gradient_match(gradients, targets)
    assert not residuals[0].requires_grad
    with pytest.raises(CapabilityError, match="detach"):
        residuals[1].sum().backward()


def test_residuals_serve_as_constants(implementation: str) -> None:
    weight, x = normal(3).requires_grad_(), normal(3, seed="x").requires_grad_()
    (g,) = torch.autograd.grad((x * weight).sin().sum(), weight, create_graph=True)
    distance, residuals = gradient_match([g], [normal(3, seed="t")])
    (direct,) = torch.autograd.grad(distance, x, retain_graph=True)
    (mixed,) = torch.autograd.grad(g, x, residuals[0])
    torch.testing.assert_close(direct, mixed)


@given(
    sizes=st.lists(st.integers(0, 70), min_size=1, max_size=5),
    factor=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_cosine_ignores_length_and_order(sizes: list[int], factor: float, seed: int) -> None:
    gradients = [normal(size, seed=(seed, "g", i)) for i, size in enumerate(sizes)]
    targets = [normal(size, seed=(seed, "t", i)) for i, size in enumerate(sizes)]
    for implementation in ("native", "torch"):
        with using(implementation):
            distance, residuals = gradient_match(gradients, targets)
            scaled, _ = gradient_match([factor * g for g in gradients], targets)
            turned, _ = gradient_match(gradients[::-1], targets[::-1])
        torch.testing.assert_close(scaled, distance)
        torch.testing.assert_close(turned, distance)
        # The cosine does not change along g, so its derivative is orthogonal to g.
        along = sum(((g * r).sum() for g, r in zip(gradients, residuals, strict=True)), torch.zeros(()))
        assert abs(float(along)) < 1e-12


# ---------------------------------------------------------------------------------------------------------
# Bad input


def match_with(gradients: Any, targets: Any, **rest: Any) -> Callable[[], Any]:
    return lambda: gradient_match(gradients, targets, **rest)


A, B = torch.zeros(3), torch.zeros(2, 2)
BAD_INPUTS: list[tuple[Callable[[], Any], str]] = [
    (match_with([], []), "gradient_match: expected at least one gradient, got an empty list"),
    (match_with([A, B], [A]), "gradient_match: expected 2 targets, one a gradient, got 1"),
    (match_with([A, B], [A, B], masks=[A > 0]), "expected 2 masks, one a gradient, got 1"),
    (match_with([A, B], [A, A]), "expected targets[1] of shape (2, 2), got (3,); gradients and targets"),
    (match_with([A, B.double()], [A, B]), "expected gradients[1] of dtype torch.float32 like gradients[0]"),
    (match_with([A, B], [A, B.double()]), "expected targets[1] of dtype torch.float32"),
    (match_with([A, B], [A, B.to("meta")]), "expected targets[1] on cpu like gradients[0], got meta"),
    (match_with([A.bfloat16()], [A.bfloat16()]), "got torch.bfloat16; convert it with gradients[0].float()"),
    (match_with([A], [A.clone().requires_grad_()]), "targets are constants, but targets[0] requires grad"),
    (match_with([A], [A], masks=[A]), "expected masks[0] of dtype torch.bool, got torch.float32"),
    (match_with([A], [A], masks=[B > 0]), "expected masks[0] of shape (3,) on cpu, got (2, 2) on cpu"),
    (match_with([A], [A], kind="cos"), "expected kind to be one of cosine, l2, got 'cos'"),
    (match_with([None], [A]), "expected gradients[0] to be a tensor, got NoneType"),
]


@pytest.mark.parametrize(("call", "message"), BAD_INPUTS, ids=[message[:60] for _, message in BAD_INPUTS])
def test_bad_input_is_refused(implementation: str, call: Callable[[], Any], message: str) -> None:
    assert_refused(call, message)
