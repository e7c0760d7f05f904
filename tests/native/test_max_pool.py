"""Max pooling: the bits of PyTorch's, on every instruction set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from native_cases import assert_refused, normal
from torch import Tensor
from torch.nn import functional as F

from vleak.native import max_pool

#: shape, kernel, stride
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "3-D": ((2, 3, 4, 8, 10), (2, 2, 2), (2, 2, 2)),
    "2-D": ((3, 2, 9, 7), (2, 3), (2, 3)),
    "rows of several vectors": ((1, 2, 2, 4, 75), (2, 2, 2), (2, 2, 2)),
    "overlapping": ((1, 3, 5, 9, 11), (3, 3, 3), (2, 1, 2)),
    "stride 1": ((1, 2, 3, 5, 40), (2, 3, 4), (1, 1, 1)),
    "stride above the kernel": ((1, 2, 7, 8, 23), (1, 2, 2), (3, 4, 5)),
    "one window": ((2, 2, 2, 3, 4), (2, 3, 4), (1, 1, 1)),
    "one frame": ((1, 3, 1, 6, 6), (1, 2, 2), (1, 2, 2)),
    "many rows": ((4, 8, 8, 32, 32), (2, 2, 2), (2, 2, 2)),
    "no clip": ((0, 2, 4, 4, 4), (2, 2, 2), (2, 2, 2)),
}


def plain(x: Tensor, kernel: Any, stride: Any) -> tuple[Tensor, Tensor]:
    pool = F.max_pool2d if x.ndim == 4 else F.max_pool3d
    return pool(x, kernel, stride, return_indices=True)  # type: ignore[return-value]


def check(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
    for result, truth in zip(
        max_pool(x, kernel=kernel, stride=stride), plain(x, kernel, stride), strict=True
    ):
        assert result.is_contiguous()
        assert result.dtype == truth.dtype
        torch.testing.assert_close(result, truth, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_values_and_places_are_those_of_torch(each_implementation: str, name: str) -> None:
    shape, kernel, stride = CASES[name]
    for dtype in (torch.float32, torch.float64):
        x = normal(*shape, dtype=dtype)
        check(x, kernel, stride)
        check(x.relu(), kernel, stride)  # with ties


def test_nan_and_infinity_are_taken_as_torch_takes_them(each_implementation: str) -> None:
    for filling in (torch.nan, torch.inf, -torch.inf):
        x = normal(1, 2, 4, 6, 37)
        x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.6] = filling
        x[0, 0] = -torch.inf
        check(x, (2, 2, 2), (2, 2, 2))


def test_any_strides_are_read(each_implementation: str) -> None:
    x = normal(3, 4, 6, 5, 2).permute(4, 3, 2, 1, 0)
    assert not x.is_contiguous()
    check(x, (2, 2, 2), (2, 1, 1))


def test_bad_arguments_are_refused() -> None:
    x = normal(1, 2, 4, 5)
    assert_refused(lambda: max_pool(x, kernel=(5, 2), stride=(1, 1)), "expected windows within (4, 5)")
    assert_refused(lambda: max_pool(x, kernel=(2, 2), stride=(0, 1)), "strides of at least 1, got kernel")
    assert_refused(lambda: max_pool(x, kernel=(2, 2, 2), stride=(1, 1)), "one number a spatial axis, got x")
    assert_refused(lambda: max_pool(x.half(), kernel=(2, 2), stride=(1, 1)), "float32 or torch.float64")
