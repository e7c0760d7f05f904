"""Max pooling in two and three dimensions with the places of the maxima, as an operator without autograd.

PyTorch's own kernel reads a volume entry by entry. This one compares vectors; its results are the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.native.backend import results_without_autograd
from vleak.native.checks import check_tensor
from vleak.native.declare import declare

__all__ = ["max_pool"]


def max_pool(x: Tensor, *, kernel: Sequence[int], stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Maxima of windows, without padding.

    Args:
        x: (clip, channel, [frame,] height, width), any strides; float32 or float64.
        kernel: sizes of a window, one a spatial axis, from 1 to the size of that axis.
        stride: from one window to the next, one step a spatial axis, >= 1.

    Returns:
        (values, places), (clip, channel, [frame,] height, width) each, contiguous: the maxima, and where they
        are, (frame * height + row) * width + column, int64. The first of equal entries is taken, and NaN is
        larger than everything. Nothing is recorded for autograd.

    Raises:
        InputError: another type or number of axes, or windows that do not fit.
    """
    _output_shape(x, kernel, stride)
    values, places = results_without_autograd("max_pool", x.device, x, list(kernel), list(stride))
    return values, places


def _output_shape(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> list[int]:
    check_tensor("max_pool", "x", x)
    size = list(x.shape[2:])
    if x.ndim not in (4, 5) or len(kernel) != len(size) or len(stride) != len(size):
        raise InputError(
            "max_pool: expected (clip, channel, [frame,] height, width), kernel and stride of one number a "
            f"spatial axis, got x of {tuple(x.shape)}, kernel {list(kernel)}, stride {list(stride)}"
        )
    fits = all(1 <= k <= length for k, length in zip(kernel, size, strict=True))
    if not fits or min(stride) < 1:
        raise InputError(
            f"max_pool: expected windows within {tuple(size)} and strides of at least 1, got kernel "
            f"{list(kernel)}, stride {list(stride)}"
        )
    steps = zip(size, kernel, stride, strict=True)
    return [*x.shape[:2], *((length - k) // step + 1 for length, k, step in steps)]


def _plain(x: Tensor, kernel: list[int], stride: list[int]) -> tuple[Tensor, Tensor]:
    _output_shape(x, kernel, stride)
    pool = torch.nn.functional.max_pool2d if x.ndim == 4 else torch.nn.functional.max_pool3d
    values, places = pool(x.contiguous(), kernel, stride, return_indices=True)
    return values, places


def _fake(x: Tensor, kernel: list[int], stride: list[int]) -> tuple[Tensor, Tensor]:
    shape = _output_shape(x, kernel, stride)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


declare("max_pool", "(Tensor x, int[] kernel, int[] stride) -> (Tensor, Tensor)", _plain, _fake)
