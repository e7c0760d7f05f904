"""Batch norm and its two derivatives: against autograd in float64, plain and on every instruction set."""

from __future__ import annotations

import pytest
import torch
from native_cases import IMPLEMENTATIONS, assert_near, assert_refused, need_native_code, normal
from torch import Tensor
from torch.nn import functional as F

from vleak.native import batch_norm, batch_norm_backward, batch_norm_second, batch_statistics

EPS = 1e-3
SHAPES: dict[str, tuple[int, ...]] = {
    "3-D": (2, 5, 4, 7, 9),
    "2-D": (3, 4, 8, 11),
    "features": (9, 6),
    "one frame": (2, 3, 1, 6, 6),
    "one clip": (1, 3, 4, 5, 5),
    "fewer entries than a vector": (3, 7, 1, 1, 2),
    "more entries than a block": (2, 2, 3, 41, 43),
    "many channels": (2, 65, 2, 5, 4),
}


class _Case:
    """Batch norm by autograd in float64, and its arguments in a dtype."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, train: bool) -> None:
        self.train = train
        self.x, self.dy, self.of_x = (normal(*shape, seed=s, dtype=dtype) for s in range(3))
        self.x = 2 * self.x + 3
        numbers = [normal(shape[1], seed=s, dtype=dtype) for s in range(3, 9)]
        self.weight, self.bias, self.of_weight, self.of_bias, self.mean = numbers[:5]
        self.scale = numbers[5].abs() + 0.1
        wide = [t.double().requires_grad_() for t in (self.x, self.weight, self.bias, self.dy)]
        x, weight, bias, dy = wide
        fixed = None if train else self.mean.double(), None if train else self.scale.double() ** -2 - EPS
        self.y = F.batch_norm(x, *fixed, weight, bias, training=train, eps=EPS)
        self.first = torch.autograd.grad(self.y, wide[:3], dy, create_graph=True)
        slopes = [t.double() for t in (self.of_x, self.of_weight, self.of_bias)]
        self.second = torch.autograd.grad(self.first, [dy, x, weight], slopes)

    def statistics(self) -> tuple[Tensor, Tensor]:
        return batch_statistics(self.x, eps=EPS) if self.train else (self.mean, self.scale)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_both_derivatives(each_implementation: str, name: str, train: bool) -> None:
    place = list(SHAPES).index(name) + IMPLEMENTATIONS.index(each_implementation)
    dtype = (torch.float32, torch.float64)[place % 2]
    case = _Case(SHAPES[name], dtype, train)
    mean, scale = case.statistics()
    y = batch_norm(case.x, mean=mean, scale=scale, weight=case.weight, bias=case.bias)
    assert_near(y, case.y.detach())
    settings = {"mean": mean, "scale": scale, "weight": case.weight, "train": train}
    first = batch_norm_backward(case.dy, case.x, **settings)
    for got, expected in zip(first, case.first, strict=True):
        assert_near(got, expected.detach())
    second = batch_norm_second(case.of_x, case.of_weight, case.of_bias, case.dy, case.x, **settings)
    for got, expected in zip(second, case.second, strict=True):
        assert_near(got, expected)


def test_statistics_of_large_numbers_close_together(each_implementation: str) -> None:
    x = (1000 + normal(4, 3, 2, 9, 9)).float()
    mean, scale = batch_statistics(x, eps=0.0)
    variance, truth = torch.var_mean(x.double(), [0, 2, 3, 4], correction=0)
    assert_near(mean, truth)
    assert_near(scale, variance.rsqrt())


def test_any_strides_are_read(each_implementation: str) -> None:
    case = _Case((3, 4, 2, 5, 6), torch.float64, True)
    x, dy, of_x = (t.transpose(1, -1).contiguous().transpose(1, -1) for t in (case.x, case.dy, case.of_x))
    assert not x.is_contiguous()
    mean, scale = batch_statistics(x, eps=EPS)
    y = batch_norm(x, mean=mean, scale=scale, weight=case.weight, bias=case.bias)
    assert y.is_contiguous()
    assert_near(y, case.y.detach())
    settings = {"mean": mean, "scale": scale, "weight": case.weight, "train": True}
    for got, expected in zip(batch_norm_backward(dy, x, **settings), case.first, strict=True):
        assert_near(got, expected.detach())
    second = batch_norm_second(of_x, case.of_weight, case.of_bias, dy, x, **settings)
    for got, expected in zip(second, case.second, strict=True):
        assert_near(got, expected)


def test_no_clips_are_no_entries(each_implementation: str) -> None:
    x, numbers = normal(0, 3, 2, 4, 4), normal(3)
    settings = {"mean": numbers, "scale": numbers, "weight": numbers}
    assert batch_norm(x, bias=numbers, **settings).shape == x.shape
    dx, dweight, dbias = batch_norm_backward(x, x, train=False, **settings)
    assert dx.shape == x.shape
    assert not dweight.any()
    assert not dbias.any()


def test_bad_arguments_are_refused() -> None:
    x, numbers = normal(2, 3, 4, 4), normal(3)
    settings = {"mean": numbers, "scale": numbers, "weight": numbers}
    assert_refused(lambda: batch_statistics(x[:0], eps=EPS), "expected entries in every channel")
    assert_refused(lambda: batch_statistics(x[0, 0, 0], eps=EPS), "expected x of shape (clip, channel, ...)")
    assert_refused(lambda: batch_norm(x, bias=normal(4), **settings), "expected bias of shape (3,), got (4,)")
    assert_refused(lambda: batch_norm(x.half(), bias=numbers, **settings), "float32 or torch.float64")
    assert_refused(
        lambda: batch_norm_backward(x[:1], x, train=True, **settings), "expected dy of shape (2, 3"
    )
    wide = numbers.float()
    second = lambda: batch_norm_second(x, wide, numbers, x, x, train=True, **settings)  # noqa: E731
    assert_refused(second, "expected of_weight of dtype torch.float64")


def test_a_direct_call_refuses_numbers_of_another_shape() -> None:
    need_native_code()
    x, numbers = normal(2, 3, 4, 4), normal(3)
    with pytest.raises(RuntimeError, match="mean does not match in shape"):
        torch.ops.vleak.batch_norm.default(x, numbers[None], numbers, numbers, numbers)
