"""Derivatives of GELU, SiLU and softmax: against autograd in float64, plain and on every instruction set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from native_cases import assert_near, assert_refused, normal
from torch import Tensor
from torch.nn import functional as F

from vleak.native import ACTIVATIONS, activation_backward, activation_second, softmax_second

SHAPES = [(2, 3, 48), (7,), (5, 0), (3, 333), (70000,)]
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu}


def _draw(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return normal(*shape, seed=seed, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(each_implementation: str, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    of_x, dy, x = (_draw(*shape, dtype=dtype, seed=s) for s in range(3))
    x = 4 * x
    wide_x, wide_dy = x.double().requires_grad_(), dy.double().requires_grad_()
    (first,) = torch.autograd.grad(FUNCTIONS[kind](wide_x), wide_x, wide_dy, create_graph=True)
    second = torch.autograd.grad(first, [wide_dy, wide_x], of_x.double())
    assert_near(activation_backward(dy, x, kind=kind), first.detach())
    for got, expected in zip(activation_second(of_x, dy, x, kind=kind), second, strict=True):
        assert_near(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_slopes_far_out_are_those_of_the_limits(
    each_implementation: str, kind: str, dtype: torch.dtype
) -> None:
    x = torch.tensor([-1e30, -800.0, -90.0, -30.0, 0.0, 30.0, 90.0, 800.0, 1e30], dtype=dtype)
    ones = torch.ones_like(x)
    by_dy, by_x = activation_second(ones, ones, x, kind=kind)
    expected = (x > 0).to(dtype)
    expected[x == 0] = 0.5
    torch.testing.assert_close(by_dy, expected, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(activation_backward(ones, x, kind=kind), by_dy, rtol=0, atol=0)
    assert not by_x[x.abs() >= 30].abs().gt(1e-9).any()


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_nan_stays_nan(each_implementation: str, kind: str) -> None:
    x = torch.full((17,), float("nan"))
    assert activation_backward(torch.ones(17), x, kind=kind).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 5, 16), (4, 37), (9,), (3, 1), (2, 0), (0, 4)], ids=str)
def test_softmax(each_implementation: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    of_x, dy, x = (_draw(*shape, dtype=dtype, seed=s) for s in range(3))
    y = x.softmax(-1)
    wide_y, wide_dy = y.double().requires_grad_(), dy.double().requires_grad_()
    dx = wide_y * (wide_dy - (wide_dy * wide_y).sum(-1, keepdim=True))
    expected = torch.autograd.grad(dx, [wide_dy, wide_y], of_x.double())
    for got, truth in zip(softmax_second(of_x, dy, y), expected, strict=True):
        assert_near(got, truth)


def test_any_strides_are_read(each_implementation: str) -> None:
    of_x, dy, x = (normal(5, 6, 4, seed=s).transpose(0, 2) for s in range(3))
    assert not x.is_contiguous()
    plain = [t.contiguous() for t in (of_x, dy, x)]
    for kind in ACTIVATIONS:
        assert activation_backward(dy, x, kind=kind).is_contiguous()
        assert_near(activation_backward(dy, x, kind=kind), activation_backward(*plain[1:], kind=kind))
        for got, expected in zip(
            activation_second(of_x, dy, x, kind=kind), activation_second(*plain, kind=kind), strict=True
        ):
            assert_near(got, expected)
    for got, expected in zip(softmax_second(of_x, dy, x), softmax_second(*plain), strict=True):
        assert_near(got, expected)


def test_bad_arguments_are_refused() -> None:
    x = normal(3, 4)
    assert_refused(lambda: activation_backward(x, x, kind="relu"), "expected one of gelu, silu, got 'relu'")
    assert_refused(lambda: activation_backward(x[:1], x, kind="gelu"), "expected dy of shape (3, 4)")
    assert_refused(lambda: activation_second(x, x, x.half(), kind="gelu"), "float32 or torch.float64")
    assert_refused(lambda: softmax_second(x, x, x[0, 0]), "expected y of shape (..., entry)")
    assert_refused(lambda: softmax_second(x, x.float(), x), "expected dy of dtype torch.float64")
    with pytest.raises(RuntimeError, match="no such activation"):
        torch.ops.vleak.activation_backward.default(x, x, 7)
