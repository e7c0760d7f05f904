"""Layer norm and its two derivatives: against autograd in float64, plain and on every instruction set."""

from __future__ import annotations

import pytest
import torch
from native_cases import IMPLEMENTATIONS, assert_near, assert_refused, need_native_code, normal
from torch.nn import functional as F

from vleak.native import layer_norm, layer_norm_backward, layer_norm_second

EPS = 1e-3
SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "tokens": ((2, 9, 48), 1),
    "rows": ((7, 33), 1),
    "one row": ((21,), 1),
    "rows of several axes": ((3, 4, 5, 6), 2),
    "fewer entries than a vector": ((5, 3), 1),
    "more rows than a block": ((3, 67, 20), 1),
    "one frame": ((1, 1, 64), 1),
}


class _Case:
    """Layer norm by autograd in float64, and its arguments in a dtype."""

    def __init__(self, shape: tuple[int, ...], axes: int, dtype: torch.dtype) -> None:
        row = shape[len(shape) - axes :]
        self.x, self.dy, self.of_x = (normal(*shape, seed=s, dtype=dtype) for s in range(3))
        self.x = 2 * self.x + 3
        rows = [normal(*row, seed=s, dtype=dtype) for s in range(3, 7)]
        self.weight, self.bias, self.of_weight, self.of_bias = rows
        wide = [t.double().requires_grad_() for t in (self.x, self.weight, self.bias, self.dy)]
        x, weight, bias, dy = wide
        self.y = F.layer_norm(x, row, weight, bias, EPS)
        self.first = torch.autograd.grad(self.y, wide[:3], dy, create_graph=True)
        slopes = [t.double() for t in (self.of_x, self.of_weight, self.of_bias)]
        self.second = torch.autograd.grad(self.first, [dy, x, weight], slopes)

    def check(self) -> None:
        y, mean, scale = layer_norm(self.x, weight=self.weight, bias=self.bias, eps=EPS)
        assert y.is_contiguous()
        assert_near(y, self.y.detach())
        constants = {"mean": mean, "scale": scale, "weight": self.weight}
        first = layer_norm_backward(self.dy, self.x, **constants)
        for got, expected in zip(first, self.first, strict=True):
            assert_near(got, expected.detach())
        slopes = self.of_x, self.of_weight, self.of_bias
        for got, expected in zip(
            layer_norm_second(*slopes, self.dy, self.x, **constants), self.second, strict=True
        ):
            assert_near(got, expected)


@pytest.mark.parametrize("name", SHAPES)
def test_values_and_both_derivatives(each_implementation: str, name: str) -> None:
    place = list(SHAPES).index(name) + IMPLEMENTATIONS.index(each_implementation)
    _Case(*SHAPES[name], (torch.float32, torch.float64)[place % 2]).check()


def test_any_strides_are_read(each_implementation: str) -> None:
    case = _Case((6, 5, 8), 1, torch.float64)
    case.x, case.dy, case.of_x = (
        t.transpose(0, -1).contiguous().transpose(0, -1) for t in (case.x, case.dy, case.of_x)
    )
    assert not case.x.is_contiguous()
    case.check()


def test_rows_of_large_numbers_close_together(each_implementation: str) -> None:
    x = (1000 + normal(4, 300)).float()
    ones = torch.ones(300)
    _, mean, scale = layer_norm(x, weight=ones, bias=ones, eps=0.0)
    variance, truth = torch.var_mean(x.double(), 1, correction=0)
    assert_near(mean, truth)
    assert_near(scale, variance.rsqrt())


def test_rows_of_one_entry_are_the_bias(each_implementation: str) -> None:
    x, weight, bias = normal(4, 1), normal(1), normal(1, seed=1)
    y, mean, scale = layer_norm(x, weight=weight, bias=bias, eps=EPS)
    assert torch.equal(y, bias.expand(4, 1))
    dx, dweight, dbias = layer_norm_backward(x, x, mean=mean, scale=scale, weight=weight)
    assert not dx.any()
    assert not dweight.any()
    assert_near(dbias, x.sum(0))


def test_no_rows_are_no_entries(each_implementation: str) -> None:
    x, row = normal(0, 4), normal(4)
    y, mean, scale = layer_norm(x, weight=row, bias=row, eps=EPS)
    assert (y.shape, mean.shape, scale.shape) == ((0, 4), (0,), (0,))
    dx, dweight, dbias = layer_norm_backward(x, x, mean=mean, scale=scale, weight=row)
    assert dx.shape == x.shape
    assert not dweight.any()
    assert not dbias.any()


def test_bad_arguments_are_refused() -> None:
    x, row = normal(2, 3, 4), normal(4)
    numbers = {"mean": normal(6), "scale": normal(6), "weight": row}
    assert_refused(
        lambda: layer_norm(x, weight=normal(3), bias=row, eps=EPS), "expected weight of shape (4,)"
    )
    assert_refused(lambda: layer_norm(x, weight=row, bias=normal(3), eps=EPS), "expected bias of shape (4,)")
    assert_refused(lambda: layer_norm(x.half(), weight=row, bias=row, eps=EPS), "float32 or torch.float64")
    empty = normal(2, 0)
    assert_refused(lambda: layer_norm(empty, weight=empty[0], bias=empty[0], eps=EPS), "not empty")
    assert_refused(lambda: layer_norm_backward(x[:1], x, **numbers), "expected dy of shape (2, 3, 4)")
    numbers["mean"] = row
    assert_refused(lambda: layer_norm_backward(x, x, **numbers), "expected mean of shape (6,)")


def test_a_direct_call_refuses_arguments_of_another_shape() -> None:
    need_native_code()
    x, row = normal(2, 6, 4), normal(4)
    with pytest.raises(RuntimeError, match="bias does not match in shape"):
        torch.ops.vleak.layer_norm.default(x, row, row[None], EPS)
    with pytest.raises(RuntimeError, match="does not consist of rows of the weight"):
        torch.ops.vleak.layer_norm.default(x, normal(6), normal(6), EPS)
