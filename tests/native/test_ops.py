"""Every operator, three ways: known answers, plain PyTorch in float64, and native code against both."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vleak.errors import CapabilityError, InputError
from vleak.native import loader, operators
from vleak.seeds import generator

DTYPES = [torch.float32, torch.float64]
STATES = ["native", "torch"]
# (clip, channel, frame, height, width): odd, prime, single-frame, degenerate, wider than any register.
SHAPES = [
    (1, 3, 8, 16, 16),
    (2, 1, 1, 5, 7),
    (3, 2, 4, 1, 9),
    (2, 3, 2, 11, 1),
    (1, 1, 5, 1, 1),
    (2, 3, 3, 13, 37),
    (1, 1, 2, 3, 131),
]
PENALTIES = [
    {},
    {"spatial": 0.3, "temporal": 0.0},
    {"spatial": 0.0, "temporal": 0.7},
    {"smoothing": 0.05},
    {"isotropic": True, "spatial": 0.4},
    {"isotropic": True, "smoothing": 0.02, "temporal": 0.1},
]


@pytest.fixture(params=STATES)
def state(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once in native code, where there is any, and once in plain PyTorch."""
    with using(request.param):
        yield request.param


def using(state: str) -> AbstractContextManager[None]:
    if state == "torch":
        return operators.use_reference()
    if operators.backend() != "native":
        pytest.skip(f"no native code here: {loader.status().reason}")
    return nullcontext()


def uniform(*shape: int, seed: object = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=generator("ops", shape, seed), dtype=torch.float64).to(dtype)


def normal(*shape: int, seed: object = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator("ops", shape, seed), dtype=torch.float64).to(dtype)


def assert_as_good_as_torch(got: Tensor, plain: Tensor, truth: Tensor, scale: float = 0.0) -> None:
    """Check that the error against float64 is at most twice what plain PyTorch makes in the same precision.

    The floor of 8 units in the last place of the largest entry is for the cases in which PyTorch happens to
    be exact: a gradient entry adds up to seven rounded terms. Where large terms cancel, ``scale`` is their
    size.
    In float64 the truth is rounded as well, so there the two may differ as two orders of a long sum do.
    """
    assert got.shape == truth.shape
    assert got.dtype == plain.dtype
    if not truth.numel():
        return
    scale = max(scale, truth.abs().max().item())
    if got.dtype == torch.float64:
        torch.testing.assert_close(got, truth, rtol=0.0, atol=1e-13 * scale)
        return
    floor = 8 * torch.finfo(got.dtype).eps * scale
    assert (got.double() - truth).abs().max() <= 2 * (plain.double() - truth).abs().max() + floor


def assert_same(got: Tensor, expected: Tensor, state: str) -> None:
    """Native code gives the same bits whatever the strides; PyTorch may add in another order."""
    if state == "native":
        assert torch.equal(got, expected)
    else:
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-15)


# ---------------------------------------------------------------------------------------------------------
# Plain formulas, written apart from the library, differentiated by autograd


def plain_tv(
    x: Tensor, spatial: float = 1.0, temporal: float = 1.0, isotropic: bool = False, smoothing: float = 0.0
) -> Tensor:
    def mean(d: Tensor) -> Tensor:
        if not d[0].numel():
            return x.new_zeros(len(x))
        size = d.abs() if smoothing == 0 else (d * d + smoothing**2).sqrt() - smoothing
        return size.mean((1, 2, 3, 4))

    if isotropic:
        right = torch.cat([x[..., 1:] - x[..., :-1], torch.zeros_like(x[..., :1])], 4)
        down = torch.cat([x[..., 1:, :] - x[..., :-1, :], torch.zeros_like(x[..., :1, :])], 3)
        square = right**2 + down**2 + smoothing**2
        root = torch.where(square == 0, 0.0, torch.where(square == 0, 1.0, square).sqrt())
        space = (root - smoothing).mean((1, 2, 3, 4))
    else:
        space = mean(x[..., 1:] - x[..., :-1]) + mean(x[..., 1:, :] - x[..., :-1, :])
    return spatial * space + temporal * mean(x[:, :, 1:] - x[:, :, :-1])


def plain_distance(gradients: list[Tensor], targets: list[Tensor], kind: str) -> Tensor:
    g = torch.cat([tensor.reshape(-1) for tensor in gradients])
    t = torch.cat([tensor.reshape(-1) for tensor in targets])
    return ((g - t) ** 2).sum() if kind == "l2" else 1 - (g @ t) / (g.norm() * t.norm())


def with_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value = function(x)
    (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True, materialize_grads=True)
    return value.detach(), gradient


# ---------------------------------------------------------------------------------------------------------
# total_variation


def pattern(axis: int) -> Tensor:
    """Return a clip that alternates 0, 1 along one axis only."""
    x = torch.zeros(1, 2, 4, 6, 8)
    return x + (torch.arange(x.shape[axis]) % 2).view([-1 if i == axis else 1 for i in range(5)])


class TestTotalVariationKnownAnswers:
    @pytest.mark.parametrize("isotropic", [False, True])
    def test_constant_is_zero(self, state: str, isotropic: bool) -> None:
        x = torch.full((2, 3, 4, 5, 6), 0.3)
        value, gradient = with_gradient(lambda x: operators.total_variation(x, isotropic=isotropic), x)
        assert value.tolist() == [0.0, 0.0]
        assert not gradient.any()

    @pytest.mark.parametrize(
        ("axis", "spatial", "temporal"), [(4, 1.0, 0.0), (3, 1.0, 0.0), (2, 0.0, 1.0)], ids=["W", "H", "T"]
    )
    def test_each_pattern_is_seen_by_its_axis_alone(
        self, state: str, axis: int, spatial: float, temporal: float
    ) -> None:
        x = pattern(axis)
        assert operators.total_variation(x, spatial=1.0, temporal=0.0).item() == spatial
        assert operators.total_variation(x, spatial=0.0, temporal=1.0).item() == temporal

    @pytest.mark.parametrize("axis", [3, 4])
    def test_vertical_and_horizontal_stripes_differ_where_the_clip_is_not_square(
        self, state: str, axis: int
    ) -> None:
        # By pairs, an axis of length L has L - 1 of L pixels at work in the isotropic form.
        x = pattern(axis)
        expected = (x.shape[axis] - 1) / x.shape[axis]
        assert operators.total_variation(x, temporal=0.0, isotropic=True).item() == pytest.approx(expected)

    def test_ramps_have_the_slope_of_their_axis(self, state: str) -> None:
        steps = [0.5 * torch.arange(5.0).view(1, 1, -1, 1, 1), 0.25 * torch.arange(4.0).view(1, 1, 1, -1, 1)]
        x = (steps[0] + steps[1] + 0.125 * torch.arange(3.0)).expand(1, 2, 5, 4, 3)
        assert operators.total_variation(x, spatial=1.0, temporal=0.0).item() == 0.375
        assert operators.total_variation(x, spatial=0.0, temporal=1.0).item() == 0.5

    def test_value_does_not_depend_on_the_size(self, state: str) -> None:
        small = torch.arange(4.0).expand(1, 1, 1, 4, 4)
        large = torch.arange(40.0).expand(1, 3, 5, 40, 40)
        assert operators.total_variation(small).item() == operators.total_variation(large).item() == 1.0

    def test_smoothing_is_the_charbonnier_penalty(self, state: str) -> None:
        x = torch.tensor([0.0, 3.0]).view(1, 1, 1, 1, 2)
        assert operators.total_variation(x, smoothing=4.0).item() == pytest.approx(1.0)

    def test_isotropic_couples_the_axes(self, state: str) -> None:
        x = torch.tensor([[0.0, 3.0], [4.0, 0.0]]).view(1, 1, 1, 2, 2)
        # (0,0): sqrt(9 + 16); (0,1): down -3; (1,0): right -4; the corner has no neighbour.
        assert operators.total_variation(x, isotropic=True).item() == pytest.approx((5 + 3 + 4 + 0) / 4)

    @pytest.mark.parametrize("shape", [(0, 3, 4, 5, 6), (2, 0, 4, 5, 6), (2, 3, 0, 5, 6), (2, 3, 4, 0, 6)])
    def test_nothing_varies_in_an_empty_clip(self, state: str, shape: tuple[int, ...]) -> None:
        value, gradient = with_gradient(lambda x: operators.total_variation(x), torch.empty(shape))
        assert value.tolist() == [0.0] * shape[0]
        assert gradient.shape == shape


class TestTotalVariation:
    @pytest.mark.parametrize("penalty", PENALTIES, ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_agrees_with_autograd_of_the_plain_formula(
        self, state: str, dtype: torch.dtype, shape: tuple[int, ...], penalty: dict[str, Any]
    ) -> None:
        x = uniform(*shape, dtype=dtype)
        got = with_gradient(lambda x: operators.total_variation(x, **penalty), x)
        plain = with_gradient(lambda x: plain_tv(x, **penalty), x)
        truth = with_gradient(lambda x: plain_tv(x, **penalty), x.double())
        for mine, theirs, exact in zip(got, plain, truth, strict=True):
            assert_as_good_as_torch(mine, theirs, exact)

    def test_reads_any_strides(self, state: str) -> None:
        x = uniform(2, 3, 4, 5, 6)
        folded = x.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
        assert not folded.is_contiguous()
        for penalty in PENALTIES:
            same = [
                with_gradient(lambda x, p=penalty: operators.total_variation(x, **p), c) for c in (x, folded)
            ]
            assert_same(same[0][0], same[1][0], state)
            assert_same(same[0][1], same[1][1], state)

    @pytest.mark.parametrize("penalty", PENALTIES, ids=str)
    def test_gradcheck(self, state: str, penalty: dict[str, Any]) -> None:
        x = uniform(2, 1, 3, 3, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: operators.total_variation(x, **penalty), x)

    def test_a_tiny_smoothing_does_not_divide_by_zero(self, state: str) -> None:
        _, gradient = with_gradient(
            lambda x: operators.total_variation(x, smoothing=1e-30), torch.zeros(1, 1, 2, 2, 2)
        )
        assert not gradient.any()

    def test_second_derivative_is_refused(self, state: str) -> None:
        x = uniform(1, 1, 2, 3, 3).requires_grad_()
        (first,) = torch.autograd.grad(
            operators.total_variation(x, smoothing=0.1).sum(), x, create_graph=True
        )
        with pytest.raises(CapabilityError, match="once"):
            (first.square().sum() + x.sum()).backward()

    def test_first_derivative_flows_on_to_what_x_came_from(self, state: str) -> None:
        latent = uniform(1, 1, 2, 3, 3).requires_grad_()
        operators.total_variation(3 * latent).sum().backward()
        _, expected = with_gradient(lambda x: plain_tv(3 * x), latent)
        torch.testing.assert_close(latent.grad, expected)

    @given(
        shape=st.tuples(*[st.integers(1, 6)] * 5),
        offset=st.floats(-5, 5),
        factor=st.floats(0.1, 10),
        isotropic=st.booleans(),
    )
    @settings(max_examples=40, deadline=None)
    def test_symmetries(self, shape: tuple[int, ...], offset: float, factor: float, isotropic: bool) -> None:
        x = uniform(*shape)
        for state in STATES:
            with using(state):
                value = operators.total_variation(x, isotropic=isotropic)
                moved = operators.total_variation(factor * x + offset, isotropic=isotropic)
                backwards = operators.total_variation(x.flip(2), isotropic=isotropic)
                alone = torch.cat([operators.total_variation(clip[None], isotropic=isotropic) for clip in x])
            torch.testing.assert_close(moved, factor * value)
            torch.testing.assert_close(backwards, value)
            torch.testing.assert_close(alone, value)


# ---------------------------------------------------------------------------------------------------------
# gradient_match

LISTS = [
    [(3, 5)],
    [()],
    [(16, 3, 3, 3, 3), (16,), (10, 64), (10,)],
    [(0,), (7,), (2, 0, 3)],
    [(40000,), (17,)],
]


def lists(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    gradients = [normal(*shape, seed=("g", i), dtype=dtype) for i, shape in enumerate(shapes)]
    return gradients, [normal(*shape, seed=("t", i), dtype=dtype) for i, shape in enumerate(shapes)]


class TestGradientMatch:
    @pytest.mark.parametrize("kind", ["cosine", "l2"])
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("shapes", LISTS, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_agrees_with_autograd_of_the_plain_formula(
        self, state: str, dtype: torch.dtype, shapes: list[tuple[int, ...]], masked: bool, kind: Any
    ) -> None:
        gradients, targets = lists(shapes, dtype)
        masks = [normal(*shape, seed="mask") > -0.5 for shape in shapes] if masked else None
        distance, residuals = operators.gradient_match(gradients, targets, masks=masks, kind=kind)

        def plain(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            there = masks or [torch.ones(shape, dtype=torch.bool) for shape in shapes]
            kept = [leaf * mask for leaf, mask in zip(leaves, there, strict=True)]
            wanted = [t.to(tensors[0].dtype) * mask for t, mask in zip(targets, there, strict=True)]
            value = plain_distance(kept, wanted, kind)
            return value.detach(), list(torch.autograd.grad(value, leaves))

        same, exact = plain(gradients), plain([g.double() for g in gradients])
        # The cosine's derivative is the difference of two terms of this size.
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        size = 1 / norm if kind == "cosine" else 0.0
        assert_as_good_as_torch(distance, same[0], exact[0])
        for mine, theirs, truth in zip(residuals, same[1], exact[1], strict=True):
            assert_as_good_as_torch(mine, theirs, truth, size)

    @pytest.mark.parametrize("kind", ["cosine", "l2"])
    @pytest.mark.parametrize("masked", [False, True])
    def test_gradcheck(self, state: str, kind: Any, masked: bool) -> None:
        gradients, targets = lists([(3, 2), (4,), ()], torch.float64)
        masks = [torch.tensor([[True, False]]).expand(3, 2), torch.ones(4) > 0, torch.tensor(True)]

        def distance(*gradients: Tensor) -> Tensor:
            return operators.gradient_match(gradients, targets, masks=masks if masked else None, kind=kind)[0]

        assert torch.autograd.gradcheck(distance, [g.requires_grad_() for g in gradients])

    @pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.0), (-1.0, 2.0)])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_parallel_vectors(self, state: str, dtype: torch.dtype, sign: float, expected: float) -> None:
        gradients, _ = lists([(1000,), (30, 7)], dtype)
        distance, _ = operators.gradient_match([sign * 3 * g for g in gradients], gradients)
        assert distance.item() == pytest.approx(expected, abs=4 * torch.finfo(dtype).eps)
        assert distance.item() >= 0

    def test_right_angle(self, state: str) -> None:
        distance, (residual,) = operators.gradient_match(
            [torch.tensor([2.0, 0.0])], [torch.tensor([0.0, 5.0])]
        )
        assert distance.item() == 1.0
        assert residual.tolist() == [0.0, -0.5]

    @pytest.mark.parametrize("zero", ["gradients", "targets", "both", "masked away"])
    def test_a_zero_norm_gives_distance_one_and_no_direction(self, state: str, zero: str) -> None:
        gradients, targets = [torch.ones(3, requires_grad=True)], [torch.ones(3)]
        masks = [torch.zeros(3, dtype=torch.bool)] if zero == "masked away" else None
        if zero in ("gradients", "both"):
            gradients = [torch.zeros(3, requires_grad=True)]
        if zero in ("targets", "both"):
            targets = [torch.zeros(3)]
        distance, residuals = operators.gradient_match(gradients, targets, masks=masks)
        assert distance.item() == 1.0
        assert residuals[0].tolist() == [0.0] * 3
        distance.backward()
        assert gradients[0].grad is not None
        assert gradients[0].grad.tolist() == [0.0] * 3

    def test_only_empty_tensors(self, state: str) -> None:
        empty = [torch.empty(0), torch.empty(2, 0)]
        assert operators.gradient_match(empty, empty)[0].item() == 1.0
        assert operators.gradient_match(empty, empty, kind="l2")[0].item() == 0.0

    @pytest.mark.parametrize("kind", ["cosine", "l2"])
    def test_what_is_masked_is_never_read_into_the_result(self, state: str, kind: Any) -> None:
        mask = torch.tensor([True, True, False])
        clean = operators.gradient_match(
            [torch.tensor([1.0, 2, 3])], [torch.tensor([2.0, 1, 3])], masks=[mask], kind=kind
        )
        broken = [torch.tensor([1.0, 2, math.nan])], [torch.tensor([2.0, 1, math.inf])]
        distance, (residual,) = operators.gradient_match(*broken, masks=[mask], kind=kind)
        assert distance == clean[0]
        assert torch.equal(residual, clean[1][0])
        assert residual[2] == 0

    @pytest.mark.parametrize("kind", ["cosine", "l2"])
    def test_nan_stays_nan(self, state: str, kind: Any) -> None:
        distance, _ = operators.gradient_match([torch.tensor([1.0, math.nan])], [torch.ones(2)], kind=kind)
        assert distance.isnan()

    def test_float32_sums_do_not_drift(self, state: str) -> None:
        # In float32 a running sum of ones stops at 2**24.
        many = torch.ones(2**24 + 2**20)
        assert (
            operators.gradient_match([many], [torch.zeros_like(many)], kind="l2")[0].item() == 2**24 + 2**20
        )

    def test_reads_any_strides(self, state: str) -> None:
        g, t = normal(6, 5, seed="g"), normal(6, 5, seed="t")
        mask = normal(6, 5, seed="m") > 0
        straight = operators.gradient_match([g, g[2:4]], [t, t[2:4]], masks=[mask, mask[2:4]])
        turned = operators.gradient_match(
            [g.T.contiguous().T, g[2:4].expand(2, 5)],
            [t.T.contiguous().T, t.repeat(1, 2)[2:4, :5]],
            masks=[mask.T.contiguous().T, mask[2:4]],
        )
        assert_same(straight[0], turned[0], state)
        for a, b in zip(straight[1], turned[1], strict=True):
            assert_same(a, b, state)
            assert b.is_contiguous()

    def test_flows_through_the_model_to_the_clip(self, state: str) -> None:
        weight, x = normal(4, 3).requires_grad_(), normal(1, 3, seed="x").requires_grad_()
        target = normal(4, 3, seed="t")
        for distance in (
            lambda g: operators.gradient_match([g], [target])[0],
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

    def test_second_derivative_is_refused(self, state: str) -> None:
        gradients, targets = lists([(3,), (2, 2)], torch.float64)
        leaf = gradients[0].requires_grad_()
        distance, _ = operators.gradient_match(gradients, targets)
        (first,) = torch.autograd.grad(distance, leaf, create_graph=True)
        with pytest.raises(CapabilityError, match="once"):
            (first.sum() + leaf.sum()).backward()

    def test_differentiating_through_the_residuals_is_refused(self, state: str) -> None:
        gradients, targets = lists([(3,), (2, 2)], torch.float64)
        gradients[1].requires_grad_()
        _, residuals = operators.gradient_match(gradients, targets)
        assert not residuals[0].requires_grad
        with pytest.raises(CapabilityError, match="detach"):
            residuals[1].sum().backward()

    def test_residuals_serve_as_constants(self, state: str) -> None:
        weight, x = normal(3).requires_grad_(), normal(3, seed="x").requires_grad_()
        (g,) = torch.autograd.grad((x * weight).sin().sum(), weight, create_graph=True)
        distance, residuals = operators.gradient_match([g], [normal(3, seed="t")])
        (direct,) = torch.autograd.grad(distance, x, retain_graph=True)
        (mixed,) = torch.autograd.grad(g, x, residuals[0])
        torch.testing.assert_close(direct, mixed)

    @given(
        sizes=st.lists(st.integers(0, 70), min_size=1, max_size=5),
        factor=st.floats(1e-3, 1e3),
        seed=st.integers(0, 99),
    )
    @settings(max_examples=40, deadline=None)
    def test_cosine_ignores_length_and_order(self, sizes: list[int], factor: float, seed: int) -> None:
        gradients = [normal(size, seed=(seed, "g", i)) for i, size in enumerate(sizes)]
        targets = [normal(size, seed=(seed, "t", i)) for i, size in enumerate(sizes)]
        for state in STATES:
            with using(state):
                distance, residuals = operators.gradient_match(gradients, targets)
                scaled, _ = operators.gradient_match([factor * g for g in gradients], targets)
                turned, _ = operators.gradient_match(gradients[::-1], targets[::-1])
            torch.testing.assert_close(scaled, distance)
            torch.testing.assert_close(turned, distance)
            # The cosine does not change along g, so its derivative is orthogonal to g.
            along = sum(((g * r).sum() for g, r in zip(gradients, residuals, strict=True)), torch.zeros(()))
            assert abs(float(along)) < 1e-12


# ---------------------------------------------------------------------------------------------------------
# descend


class Run:
    """The state of an optimiser on N trials, stepped by operators.descend."""

    def __init__(self, x: Tensor, layout: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        self.x = x
        self.m, self.v, self.best = (layout(torch.zeros_like(x)) for _ in range(3))
        self.best_objective = x.new_full((len(x),), math.inf)
        self.count = 0

    def step(self, gradient: Tensor, distance: Tensor, **rest: Any) -> Tensor:
        self.count += 1
        moments = (self.m, self.v, self.best, self.best_objective)
        self.x, objective = operators.descend(self.x, gradient, distance, *moments, step=self.count, **rest)
        return objective


def plain_objective(x: Tensor, data: Tensor, prior: Tensor | None, weight: float, **penalty: Any) -> Tensor:
    """The data term is a product with a constant, so that its gradient is known."""
    value = (x * data).sum((1, 2, 3, 4)) + plain_tv(x, **penalty)
    return value if prior is None else value + 0.5 * weight * ((x - prior) ** 2).mean((1, 2, 3, 4))


RULES = ["adam", "sign", "sign_adam"]
BOX = {"low": 0.1, "high": 0.9}


def torch_step(x: Tensor, optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
    x.grad = gradient
    optimizer.step()
    with torch.no_grad():
        x.clamp_(BOX["low"], BOX["high"])


class TestDescend:
    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("penalty", PENALTIES[1:], ids=str)
    @pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], SHAPES[5]], ids=str)
    def test_agrees_with_torch_optim(
        self, state: str, shape: tuple[int, ...], penalty: dict[str, Any], rule: Any
    ) -> None:
        penalty = {"spatial": 1.0, "temporal": 1.0} | penalty
        prior, data = uniform(*shape, seed="prior"), normal(*shape, seed="data") / 50
        run = Run(uniform(*shape))
        leaf = run.x.clone().requires_grad_()
        betas = (0.8, 0.95)
        kind = (
            torch.optim.SGD([leaf], lr=0.05)
            if rule == "sign"
            else torch.optim.Adam([leaf], lr=0.05, betas=betas)
        )
        for _ in range(4):
            expected, gradient = with_gradient(
                lambda x: plain_objective(x, data, prior, 0.3, **penalty), leaf
            )
            objective = run.step(
                data, (run.x * data).sum((1, 2, 3, 4)), prior=prior, prior_weight=0.3, lr=0.05, betas=betas,
                rule=rule, **penalty, **BOX,
            )  # fmt: skip
            torch_step(leaf, kind, gradient if rule == "adam" else gradient.sign())
            torch.testing.assert_close(objective, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(run.x, leaf.detach(), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("penalty", PENALTIES, ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_native_is_as_good_as_the_reference(
        self, dtype: torch.dtype, shape: tuple[int, ...], penalty: dict[str, Any], rule: Any
    ) -> None:
        def stepped(state: str, dtype: torch.dtype) -> list[Tensor]:
            with using(state):
                run = Run(start.to(dtype))
                run.m, run.v = (0.1 * moment).to(dtype), (0.1 * moment.abs()).to(dtype)
                objective = run.step(
                    data.to(dtype), distance.to(dtype), lr=0.1, prior=prior.to(dtype), prior_weight=0.2,
                    rule=rule, **penalty,
                )  # fmt: skip
            return [objective, run.x, run.m, run.v, run.best, run.best_objective]

        # Entries come from float32, so that all three start from the same numbers.
        start, prior = (
            uniform(*shape, dtype=torch.float32),
            uniform(*shape[1:], seed="p", dtype=torch.float32),
        )
        data, moment = (
            normal(*shape, seed="d", dtype=torch.float32),
            normal(*shape, seed="m", dtype=torch.float32),
        )
        distance = uniform(shape[0], dtype=torch.float32)
        got, plain, truth = stepped("native", dtype), stepped("torch", dtype), stepped("torch", torch.float64)
        for mine, theirs, exact in zip(got, plain, truth, strict=True):
            assert_as_good_as_torch(mine, theirs, exact.double())

    def test_keeps_the_best_point_of_each_trial(self, state: str) -> None:
        run = Run(uniform(3, 1, 1, 2, 2))
        points, objectives = [], [[3.0, 1.0, math.nan], [2.0, 2.0, 5.0], [4.0, 0.5, math.nan]]
        for objective in objectives:
            points.append(run.x)
            run.step(normal(3, 1, 1, 2, 2), torch.tensor(objective, dtype=torch.float64), lr=0.1)
        assert run.best_objective.tolist() == [2.0, 0.5, 5.0]
        for trial, step in enumerate([1, 2, 1]):
            assert torch.equal(run.best[trial], points[step][trial])

    def test_an_equal_objective_does_not_replace_the_best(self, state: str) -> None:
        run = Run(uniform(1, 1, 1, 2, 2))
        first = run.x
        for _ in range(2):
            run.step(normal(1, 1, 1, 2, 2), torch.ones(1, dtype=torch.float64), lr=0.1)
        assert torch.equal(run.best, first)

    def test_sign_leaves_the_moments_alone(self, state: str) -> None:
        run = Run(uniform(1, 1, 2, 3, 3))
        run.m.fill_(7.0)
        run.step(
            normal(1, 1, 2, 3, 3), torch.zeros(1, dtype=torch.float64), lr=0.25, rule="sign", low=-9, high=9
        )
        assert (run.m == 7).all()
        assert not run.v.any()
        assert torch.equal(run.x, uniform(1, 1, 2, 3, 3) - 0.25 * normal(1, 1, 2, 3, 3).sign())

    def test_the_box_holds_and_may_be_infinite(self, state: str) -> None:
        for low, high in ((0.25, 0.5), (-math.inf, math.inf)):
            run = Run(uniform(1, 2, 2, 3, 3))
            run.step(normal(1, 2, 2, 3, 3), torch.zeros(1, dtype=torch.float64), lr=5.0, low=low, high=high)
            assert low <= run.x.min() < run.x.max() <= high
            assert (run.x.abs().max() > 1) == (high == math.inf)

    def test_x_is_not_touched_and_nothing_is_recorded(self, state: str) -> None:
        x = uniform(1, 1, 2, 3, 3).requires_grad_()
        before = x.detach().clone()
        run = Run(x.detach())
        moments = (run.m, run.v, run.best, run.best_objective)
        moved, objective = operators.descend(
            x, normal(1, 1, 2, 3, 3), torch.zeros(1).double(), *moments, step=1, lr=0.1
        )
        assert torch.equal(x, before)
        assert not moved.requires_grad
        assert not objective.requires_grad

    def test_reads_and_changes_any_strides(self, state: str) -> None:
        def turned(tensor: Tensor) -> Tensor:
            return tensor.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)

        shape = (2, 3, 4, 5, 6)
        runs = Run(uniform(*shape)), Run(turned(uniform(*shape)), turned)
        assert not runs[1].m.is_contiguous()
        for run, layout in zip(runs, (lambda t: t, turned), strict=True):
            for _ in range(2):
                run.step(
                    layout(normal(*shape)), torch.ones(4, dtype=torch.float64)[::2], lr=0.1, spatial=0.1,
                    prior=layout(uniform(*shape, seed="p")), prior_weight=0.5,
                )  # fmt: skip
        for name in ("x", "m", "v", "best", "best_objective"):
            assert_same(getattr(runs[0], name), getattr(runs[1], name), state)

    @pytest.mark.parametrize("shape", [(0, 3, 4, 5, 6), (2, 3, 0, 5, 6), (2, 3, 4, 5, 0)])
    def test_empty_clips(self, state: str, shape: tuple[int, ...]) -> None:
        run = Run(torch.empty(shape))
        objective = run.step(
            torch.empty(shape), torch.full((shape[0],), 0.5), lr=0.1, spatial=1.0, temporal=1.0
        )
        assert objective.tolist() == [0.5] * shape[0]
        assert run.x.shape == shape

    def test_one_prior_for_all_trials(self, state: str) -> None:
        shape = (3, 2, 2, 3, 3)
        prior = uniform(*shape[1:], seed="p")
        answers = []
        for given_prior in (prior, prior.expand(shape)):
            run = Run(uniform(*shape))
            run.step(normal(*shape), torch.zeros(3).double(), lr=0.1, prior=given_prior, prior_weight=2.0)
            answers.append(run.x)
        assert torch.equal(*answers)

    @given(shape=st.tuples(st.integers(1, 4), *[st.integers(1, 5)] * 4), rule=st.sampled_from(RULES))
    @settings(max_examples=25, deadline=None)
    def test_trials_are_independent(self, shape: tuple[int, ...], rule: Any) -> None:
        for state in STATES:
            with using(state):
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
# What holds of all of them


def samples(dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """Arguments of the raw operators."""
    gradients, targets = lists([(3, 4), (5,)], dtype)
    gradients = [g.requires_grad_() for g in gradients]
    x = uniform(2, 3, 3, 4, 5, dtype=dtype)
    zeros = [torch.zeros_like(x) for _ in range(3)]
    settings = operators.step_settings(step=1, lr=0.1, prior_weight=0.3, spatial=0.1, temporal=0.2)
    row = torch.tensor(settings, dtype=torch.float64)
    distance, best = uniform(2, dtype=dtype), torch.full((2,), math.inf, dtype=dtype)
    return {
        "match": (gradients, targets, [], "cosine"),
        "match masked": (gradients, targets, [t > 0 for t in targets], "l2"),
        "tv": (x.clone().requires_grad_(), 1.0, 0.5, False, 0.0),
        "tv isotropic": (x.clone().requires_grad_(), 1.0, 0.5, True, 0.1),
        "descend": (
            x,
            normal(*x.shape, dtype=dtype),
            distance,
            *zeros,
            best,
            None,
            row,
            False,
            0.01,
            "adam",
        ),
        "descend prior": (x, -x, distance, *zeros, best, x[:1].clone(), row, False, 0.01, "sign_adam"),
    }


OPERATORS = {"match": "gradient_match", "tv": "total_variation", "descend": "descend"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", list(samples(torch.float32)))
def test_opcheck(state: str, sample: str, dtype: torch.dtype) -> None:
    namespace = torch.ops.vleak if state == "native" else torch.ops.vleak_reference
    operator = getattr(namespace, OPERATORS[sample.split()[0]]).default
    torch.library.opcheck(operator, samples(dtype)[sample])


def everything(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Run each operator once on enough work for several threads."""
    x, gradient = uniform(*shape, dtype=dtype), normal(*shape, dtype=dtype)
    results = []
    for penalty in PENALTIES:
        results += with_gradient(lambda x, p=penalty: operators.total_variation(x, **p), x)
        run = Run(x)
        results += [run.step(gradient, x.flatten(1).sum(1), lr=0.1, **penalty), run.x, run.m, run.v]
    distance, residuals = operators.gradient_match([gradient, x], [x, gradient])
    return [*results, distance, *residuals]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_does_not_change_a_bit(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    answers = []
    with using("native"):
        try:
            for number in (1, 2, 5):
                torch.set_num_threads(number)
                answers.append(everything((3, 3, 8, 37, 41), dtype))
        finally:
            torch.set_num_threads(threads)
    for other in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_instruction_set_does_not_change_a_bit(dtype: torch.dtype) -> None:
    with using("native"):
        found = loader.status()
        library = ctypes.CDLL(str(found.library))
        library.vleak_use_instruction_set.restype = ctypes.c_bool
        assert found.instruction_set is not None
        answers = {}
        try:
            for name in ("baseline", "avx2", "avx512"):
                if library.vleak_use_instruction_set(name.encode()):
                    assert loader.status().instruction_set == name
                    answers[name] = everything((2, 3, 4, 19, 23), dtype)
        finally:
            library.vleak_use_instruction_set(found.instruction_set.encode())
        assert not library.vleak_use_instruction_set(b"no such set")
    for other in answers.values():
        assert all(torch.equal(a, b) for a, b in zip(answers["baseline"], other, strict=True))


def test_use_reference_is_of_one_thread_and_nests() -> None:
    import threading

    seen: list[str] = []
    outside = operators.backend()
    with operators.use_reference():
        with operators.use_reference():
            assert operators.backend() == "torch"
        assert operators.backend() == "torch"
        thread = threading.Thread(target=lambda: seen.append(operators.backend()))
        thread.start()
        thread.join()
    assert seen == [outside]
    assert operators.backend() == outside


def test_backend_of_another_device_is_torch() -> None:
    assert operators.backend("meta") == "torch"


CLIP = torch.zeros(2, 3, 4, 5, 6)


def descend_with(**changes: Any) -> Callable[[], Any]:
    given: dict[str, Any] = {"x": CLIP, "data_gradient": CLIP, "distance": torch.zeros(2), "m": CLIP.clone()}
    given |= {"v": CLIP.clone(), "best": CLIP.clone(), "best_objective": torch.zeros(2), "step": 1, "lr": 0.1}
    return lambda: operators.descend(**(given | changes))


def match_with(gradients: Any, targets: Any, **rest: Any) -> Callable[[], Any]:
    return lambda: operators.gradient_match(gradients, targets, **rest)


def tv_with(x: Any, **rest: Any) -> Callable[[], Any]:
    return lambda: operators.total_variation(x, **rest)


A, B = torch.zeros(3), torch.zeros(2, 2)
REFUSALS: list[tuple[Callable[[], Any], str]] = [
    (
        tv_with(torch.zeros(3, 8, 16, 16)),
        "tv: expected x of shape (clip, channel, frame, height, width), got (3, 8, 16, 16); "
        "add the clip axis with x[None].",
    ),
    (tv_with(torch.zeros(3)), "got (3,); pass a batch of clips"),
    (tv_with([1.0]), "tv: expected x to be a tensor, got list"),
    (tv_with(CLIP.half()), "tv: expected x of dtype torch.float32 or torch.float64, got torch.float16"),
    (tv_with(CLIP.long()), "got torch.int64; convert it with x.float()"),
    (tv_with(CLIP.to_sparse()), "dense"),
    (tv_with(CLIP, spatial=-1.0), "tv: expected spatial to be a finite number >= 0, got -1.0"),
    (tv_with(CLIP, temporal=math.nan), "temporal"),
    (tv_with(CLIP, smoothing=math.inf), "smoothing"),
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


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message[:60] for _, message in REFUSALS])
def test_refusals_are_alike_in_every_backend(state: str, call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gradient_match", "total_variation", "descend"])
def test_a_direct_call_with_bad_arguments_fails_and_does_not_crash(name: str) -> None:
    bad: dict[str, tuple[Any, ...]] = {
        "gradient_match": ([A, B], [A], [], "cosine"),
        "total_variation": (A, 1.0, 1.0, False, 0.0),
        "descend": (CLIP, A, A, CLIP, CLIP, CLIP, A, None, *samples(torch.float32)["descend"][8:]),
    }
    with using("native"), pytest.raises(RuntimeError, match="vleak"):
        getattr(torch.ops.vleak, name).default(*bad[name])


SUMS = torch.zeros(3, dtype=torch.float64)
DIRECT: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "a meta target": ("gradient_match", ([A], [A.to("meta")], [], "l2"), "targets[0] on cpu like gradients"),
    "a meta gradient": ("gradient_match", ([A, B.to("meta")], [A, B], [], "l2"), "gradients[1] on cpu"),
    "a meta mask": ("gradient_match", ([A], [A], [(A > 0).to("meta")], "l2"), "masks[0] of shape (3,) on"),
    "meta sums": ("gradient_match_partial", ([A], [A], [], SUMS.to("meta"), "l2"), "on cpu, got (3,) of"),
    "sums of CPU": ("gradient_match_partial", ([A.to("meta")],) * 2 + ([], SUMS, "l2"), "on meta, got (3,)"),
    "nothing": ("gradient_match", ([], [], [], "l2"), "expected at least one gradient, got an empty list"),
    "only sums": ("gradient_match_partial", ([], [], [], SUMS, "l2"), "least one gradient"),
}


@pytest.mark.parametrize("name", DIRECT)
@pytest.mark.parametrize("namespace", ["vleak", "vleak_reference"])
def test_a_direct_call_with_other_devices_or_no_tensor_says_so(name: str, namespace: str) -> None:
    operator, arguments, message = DIRECT[name]
    # Native code has its own words.
    expected = (InputError, RuntimeError) if name == "only sums" else InputError
    with pytest.raises(expected) as caught:
        getattr(getattr(torch.ops, namespace), operator).default(*arguments)
    if isinstance(caught.value, InputError):
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        assert "vleak: gradient_match: lists differ in length" in str(caught.value)


def test_all_on_meta_gives_shapes() -> None:
    a, b, sums = (tensor.to("meta") for tensor in (A, B, SUMS))
    distance, residuals = torch.ops.vleak.gradient_match([a, b], [a, b], [], "cosine")
    assert [r.shape for r in (distance, *residuals)] == [(), A.shape, B.shape]
    assert torch.ops.vleak.gradient_match_partial([a], [a], [], sums, "l2")[2].shape == (2,)
