"""Total variation: known answers, autograd of a plain formula in float64, and native code against both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import (
    PENALTIES,
    VARIATIONS,
    assert_as_good_as_torch,
    assert_refused,
    assert_same,
    plain_tv,
    uniform,
    using,
    with_gradient,
)
from torch import Tensor

from vleak.errors import CapabilityError
from vleak.native import total_variation


def stripes(axis: int) -> Tensor:
    """Return a clip that alternates 0, 1 along one axis only."""
    x = torch.zeros(1, 2, 4, 6, 8)
    return x + (torch.arange(x.shape[axis]) % 2).view([-1 if i == axis else 1 for i in range(5)])


# ---------------------------------------------------------------------------------------------------------
# Known answers


@pytest.mark.parametrize("isotropic", [False, True])
def test_constant_is_zero(implementation: str, isotropic: bool) -> None:
    x = torch.full((2, 3, 4, 5, 6), 0.3)
    value, gradient = with_gradient(lambda x: total_variation(x, isotropic=isotropic), x)
    assert value.tolist() == [0.0, 0.0]
    assert not gradient.any()


def test_stripes_count_on_their_axis_alone(implementation: str) -> None:
    for axis, spatial, temporal in ((4, 1.0, 0.0), (3, 1.0, 0.0), (2, 0.0, 1.0)):
        x = stripes(axis)
        assert total_variation(x, spatial=1.0, temporal=0.0).item() == spatial
        assert total_variation(x, spatial=0.0, temporal=1.0).item() == temporal


def test_vertical_and_horizontal_stripes_differ_where_the_clip_is_not_square(implementation: str) -> None:
    # In the isotropic form, L - 1 of L pixels of an axis have a pair.
    for axis in (3, 4):
        x = stripes(axis)
        expected = (x.shape[axis] - 1) / x.shape[axis]
        assert total_variation(x, temporal=0.0, isotropic=True).item() == pytest.approx(expected)


def test_ramps_have_the_slope_of_their_axis(implementation: str) -> None:
    steps = [0.5 * torch.arange(5.0).view(1, 1, -1, 1, 1), 0.25 * torch.arange(4.0).view(1, 1, 1, -1, 1)]
    x = (steps[0] + steps[1] + 0.125 * torch.arange(3.0)).expand(1, 2, 5, 4, 3)
    assert total_variation(x, spatial=1.0, temporal=0.0).item() == 0.375
    assert total_variation(x, spatial=0.0, temporal=1.0).item() == 0.5


def test_value_does_not_depend_on_the_size(implementation: str) -> None:
    small = torch.arange(4.0).expand(1, 1, 1, 4, 4)
    large = torch.arange(40.0).expand(1, 3, 5, 40, 40)
    assert total_variation(small).item() == total_variation(large).item() == 1.0


def test_smoothing_is_the_charbonnier_penalty(implementation: str) -> None:
    x = torch.tensor([0.0, 3.0]).view(1, 1, 1, 1, 2)
    assert total_variation(x, smoothing=4.0).item() == pytest.approx(1.0)


def test_isotropic_couples_the_axes(implementation: str) -> None:
    x = torch.tensor([[0.0, 3.0], [4.0, 0.0]]).view(1, 1, 1, 2, 2)
    # (0,0): sqrt(9 + 16); (0,1): down -3; (1,0): right -4; the corner has no neighbour.
    assert total_variation(x, isotropic=True).item() == pytest.approx((5 + 3 + 4 + 0) / 4)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5, 6), (2, 0, 4, 5, 6), (2, 3, 0, 5, 6), (2, 3, 4, 0, 6)])
def test_an_empty_clip_has_no_variation(implementation: str, shape: tuple[int, ...]) -> None:
    value, gradient = with_gradient(lambda x: total_variation(x), torch.empty(shape))
    assert value.tolist() == [0.0] * shape[0]
    assert gradient.shape == shape


# ---------------------------------------------------------------------------------------------------------
# Against the plain formula


@pytest.mark.parametrize(("shape", "penalty"), VARIATIONS, ids=str)
def test_agrees_with_autograd_of_the_plain_formula(
    implementation: str, shape: tuple[int, ...], penalty: dict[str, Any]
) -> None:
    for dtype in (torch.float32, torch.float64):
        x = uniform(*shape, dtype=dtype)
        result = with_gradient(lambda x: total_variation(x, **penalty), x)
        plain = with_gradient(lambda x: plain_tv(x, **penalty), x)
        truth = with_gradient(lambda x: plain_tv(x, **penalty), x.double())
        for mine, theirs, exact in zip(result, plain, truth, strict=True):
            assert_as_good_as_torch(mine, theirs, exact)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_gradcheck(implementation: str, penalty: dict[str, Any]) -> None:
    x = uniform(2, 1, 3, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: total_variation(x, **penalty), x)


@pytest.mark.parametrize("penalty", [PENALTIES[0], PENALTIES[-1]], ids=str)
def test_reads_any_strides(implementation: str, penalty: dict[str, Any]) -> None:
    x = uniform(2, 3, 4, 5, 6)
    permuted = x.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    assert not permuted.is_contiguous()
    results = [with_gradient(lambda x: total_variation(x, **penalty), clip) for clip in (x, permuted)]
    for straight, other in zip(*results, strict=True):
        assert_same(straight, other, implementation)


def test_a_tiny_smoothing_does_not_divide_by_zero(implementation: str) -> None:
    _, gradient = with_gradient(lambda x: total_variation(x, smoothing=1e-30), torch.zeros(1, 1, 2, 2, 2))
    assert not gradient.any()


def test_second_derivative_is_refused(implementation: str) -> None:
    x = uniform(1, 1, 2, 3, 3).requires_grad_()
    (first,) = torch.autograd.grad(total_variation(x, smoothing=0.1).sum(), x, create_graph=True)
    with pytest.raises(CapabilityError, match="once"):
        (first.square().sum() + x.sum()).backward()


def test_first_derivative_flows_on_to_the_source_of_x(implementation: str) -> None:
    latent = uniform(1, 1, 2, 3, 3).requires_grad_()
    total_variation(3 * latent).sum().backward()
    _, expected = with_gradient(lambda x: plain_tv(3 * x), latent)
    torch.testing.assert_close(latent.grad, expected)


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 5),
    offset=st.floats(-5, 5),
    factor=st.floats(0.1, 10),
    isotropic=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_symmetries(shape: tuple[int, ...], offset: float, factor: float, isotropic: bool) -> None:
    x = uniform(*shape)
    for implementation in ("native", "torch"):
        with using(implementation):
            value = total_variation(x, isotropic=isotropic)
            moved = total_variation(factor * x + offset, isotropic=isotropic)
            backwards = total_variation(x.flip(2), isotropic=isotropic)
            alone = torch.cat([total_variation(clip[None], isotropic=isotropic) for clip in x])
        torch.testing.assert_close(moved, factor * value)
        torch.testing.assert_close(backwards, value)
        torch.testing.assert_close(alone, value)


# ---------------------------------------------------------------------------------------------------------
# Bad input

CLIP = torch.zeros(2, 3, 4, 5, 6)
BAD_INPUTS: list[tuple[Any, dict[str, Any], str]] = [
    (
        torch.zeros(3, 8, 16, 16),
        {},
        "tv: expected x of shape (clip, channel, frame, height, width), got (3, 8, 16, 16); "
        "add the clip axis with x[None].",
    ),
    (torch.zeros(3), {}, "got (3,); pass a batch of clips"),
    ([1.0], {}, "tv: expected x to be a tensor, got list"),
    (CLIP.half(), {}, "tv: expected x of dtype torch.float32 or torch.float64, got torch.float16"),
    (CLIP.long(), {}, "got torch.int64; convert it with x.float()"),
    (CLIP.to_sparse(), {}, "dense"),
    (CLIP, {"spatial": -1.0}, "tv: expected spatial to be a finite number >= 0, got -1.0"),
    (CLIP, {"temporal": torch.nan}, "temporal"),
    (CLIP, {"smoothing": torch.inf}, "smoothing"),
]


@pytest.mark.parametrize(("x", "penalty", "message"), BAD_INPUTS, ids=[case[-1][:60] for case in BAD_INPUTS])
def test_bad_input_is_refused(implementation: str, x: Any, penalty: dict[str, Any], message: str) -> None:
    assert_refused(lambda: total_variation(x, **penalty), message)
