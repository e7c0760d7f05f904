"""Sums of matrix products of few rows with large matrices, as an operator without autograd.

Native results do not depend on the number of threads. They may differ between instruction sets in the last
digits, because products and sums are fused where the machine can.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vleak.native.backend import call_without_autograd
from vleak.native.checks import check_axes_count, check_like, check_pair_count, check_tensor
from vleak.native.declare import declare

__all__ = ["plain_product", "product"]


def product(xs: Sequence[Tensor], ms: Sequence[Tensor]) -> Tensor:
    """Sum of matrix products: y = sum over i of x_i @ m_i.

    Args:
        xs: (rows, depth_i) each, any strides; float32 or float64.
        ms: as many matrices (depth_i, columns), usually large: each is read once, where it lies, if its
            rows or its columns are contiguous, as those of a transposed view are.

    Returns:
        (rows, columns), contiguous. Nothing is recorded for autograd.

    Raises:
        InputError: lists of different lengths, or shapes, dtypes or devices that disagree.
    """
    xs, ms = list(xs), list(ms)
    _check(xs, ms)
    return call_without_autograd("product", xs[0].device, xs, ms)


def _check(xs: list[Tensor], ms: list[Tensor]) -> None:
    op = "product"
    check_pair_count(op, ("xs", "ms"), xs, ms)
    check_tensor(op, "xs[0]", xs[0])
    for name, tensors in (("xs", xs), ("ms", ms)):
        for index, tensor in enumerate(tensors):
            check_axes_count(op, f"{name}[{index}]", tensor, 2)
    for index, (x, m) in enumerate(zip(xs, ms, strict=True)):
        x_shape, m_shape = (xs[0].shape[0], x.shape[1]), (x.shape[1], ms[0].shape[1])
        check_like(op, f"xs[{index}]", x, "xs[0]", xs[0], x_shape, "all xs need as many rows")
        advice = "as many rows as xs has columns, and all ms as many columns"
        check_like(op, f"ms[{index}]", m, "xs[0]", xs[0], m_shape, advice)


def plain_product(xs: list[Tensor], ms: list[Tensor]) -> Tensor:
    """Operator ``product`` in plain PyTorch."""
    # A call without any tensor arrives here unchecked.
    check_pair_count("product", ("xs", "ms"), xs, ms)
    total = xs[0] @ ms[0]
    for x, m in zip(xs[1:], ms[1:], strict=True):
        total = torch.addmm(total, x, m)
    return total.contiguous()


def _fake(xs: list[Tensor], ms: list[Tensor]) -> Tensor:
    _check(xs, ms)
    return xs[0].new_empty(xs[0].shape[0], ms[0].shape[1])


declare("product", "(Tensor[] xs, Tensor[] ms) -> Tensor", plain_product, _fake)
