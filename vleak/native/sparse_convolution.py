"""Convolutions of which few outputs are read, and their two derivatives where few outputs have one.

Behind a max pooling of 2x2x2 outputs, one output of eight has a derivative, and the second derivative is read
there only. These operators compute the same sums as `vleak.native.convolution` for such outputs alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.native.backend import call_without_autograd
from vleak.native.checks import check_like
from vleak.native.convolution import (
    Sizes,
    check_input,
    check_output,
    check_weight,
    conv_input,
    conv_output,
    conv_weight,
    is_depthwise,
)
from vleak.native.declare import declare

__all__ = ["sparse_conv_input", "sparse_conv_output", "sparse_conv_weight"]


def sparse_conv_output(
    xs: Sequence[Tensor],
    ws: Sequence[Tensor],
    bias: Tensor | None,
    places: Tensor,
    *,
    stride: Sizes,
    padding: Sizes,
) -> Tensor:
    """Some entries of :func:`vleak.native.conv_output`.

    Args:
        xs, ws, bias, stride, padding: as for `conv_output`; every weight is (out, channel, *kernel).
        places: (clip, out, [frames,] rows, columns) int64, of any sizes behind the second: for every channel
            of the output the numbers of some outputs, (frame * height + row) * width + column, as the indices
            of a max pooling are.

    Returns:
        y of the shape of ``places``, contiguous. Nothing is recorded for autograd.

    Raises:
        InputError: as `conv_output`; or places of another shape or dtype, or that are no outputs.
    """
    xs, ws = list(xs), list(ws)
    _check_inside("sparse_conv_output", places, _check_output(xs, ws, bias, places, stride, padding))
    return call_without_autograd(
        "sparse_conv_output", xs[0].device, xs, ws, bias, places, list(stride), list(padding)
    )


def sparse_conv_input(
    dys: Sequence[Tensor],
    ws: Sequence[Tensor],
    places: Tensor,
    *,
    input_shape: Sizes,
    stride: Sizes,
    padding: Sizes,
) -> Tensor:
    """:func:`vleak.native.conv_input` of outputs of which some have a derivative.

    Args:
        dys: derivatives with respect to the outputs at ``places``, of its shape. Those of a place that is
            named twice are added.
        ws, input_shape, stride, padding: as for `conv_input`.
        places: as for :func:`sparse_conv_output`.

    Returns:
        dx of shape ``input_shape``, contiguous. Nothing is recorded for autograd.

    Raises:
        InputError: as `conv_input`; or places of another shape or dtype, or that are no outputs.
    """
    dys, ws = list(dys), list(ws)
    _check_inside("sparse_conv_input", places, _check_input(dys, ws, places, input_shape, stride, padding))
    return call_without_autograd(
        "sparse_conv_input", dys[0].device, dys, ws, places, list(input_shape), list(stride), list(padding)
    )


def sparse_conv_weight(
    x: Tensor, dy: Tensor, places: Tensor, *, kernel: Sizes, stride: Sizes, padding: Sizes
) -> Tensor:
    """:func:`vleak.native.conv_weight` of outputs of which some have a derivative.

    Args:
        x, kernel, stride, padding: as for `conv_weight`.
        dy: derivative with respect to the outputs at ``places``, of its shape.
        places: as for :func:`sparse_conv_output`.

    Returns:
        dw of shape (out, channel, *kernel), contiguous. Nothing is recorded for autograd.

    Raises:
        InputError: as `conv_weight`; or places of another shape or dtype, or that are no outputs.
    """
    _check_inside("sparse_conv_weight", places, _check_weight(x, dy, places, kernel, stride, padding))
    return call_without_autograd(
        "sparse_conv_weight", x.device, x, dy, places, list(kernel), list(stride), list(padding)
    )


# ---------------------------------------------------------------------------------------------------------
# Checks


def _check_places(op: str, places: Tensor, like: Tensor, output: list[int]) -> None:
    fits = isinstance(places, Tensor) and places.dtype == torch.int64 and places.device == like.device
    if not fits or places.ndim != len(output) or list(places.shape[:2]) != output[:2]:
        given = (
            f"{places.dtype} {tuple(places.shape)}" if isinstance(places, Tensor) else type(places).__name__
        )
        raise InputError(
            f"{op}: expected places to be int64 of {len(output)} axes beginning with {tuple(output[:2])}, on "
            f"{like.device}, got {given}"
        )


def _check_inside(op: str, places: Tensor, output: list[int]) -> None:
    outputs = torch.Size(output[2:]).numel()
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < outputs:
        raise InputError(
            f"{op}: expected places from 0 to {outputs - 1}, got {int(places.min())} to {int(places.max())}"
        )


def _check_whole_kernels(op: str, x: Sizes, w: Sizes) -> None:
    if is_depthwise(x, w):
        raise InputError(f"{op}: expected a weight of shape (out, {x[1]}, *kernel), got {tuple(w)}")


def _check_output(
    xs: list[Tensor], ws: list[Tensor], bias: Tensor | None, places: Tensor, stride: Sizes, padding: Sizes
) -> list[int]:
    """Return the shape of the dense output."""
    op = "sparse_conv_output"
    shape = check_output(op, xs, ws, bias, stride, padding)
    _check_whole_kernels(op, xs[0].shape, ws[0].shape)
    _check_places(op, places, xs[0], shape)
    return shape


def _check_input(
    dys: list[Tensor], ws: list[Tensor], places: Tensor, input_shape: Sizes, stride: Sizes, padding: Sizes
) -> list[int]:
    """Return the shape of the dense output."""
    op = "sparse_conv_input"
    shape = check_input(op, dys, ws, input_shape, stride, padding)
    _check_whole_kernels(op, input_shape, ws[0].shape)
    _check_places(op, places, dys[0], shape)
    check_like(op, "dys[0]", dys[0], "dys[0]", dys[0], places.shape, "that is the shape of places")
    return shape


def _check_weight(
    x: Tensor, dy: Tensor, places: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes
) -> list[int]:
    """Return the shape of the dense output."""
    op = "sparse_conv_weight"
    shape = check_weight(op, x, dy, kernel, stride, padding)
    _check_places(op, places, x, shape)
    check_like(op, "dy", dy, "x", x, places.shape, "that is the shape of places")
    return shape


# ---------------------------------------------------------------------------------------------------------
# Plain PyTorch and fakes


def _spread(dy: Tensor, places: Tensor, output: list[int]) -> Tensor:
    """Return the dense derivative by the output."""
    dense = dy.new_zeros([*output[:2], torch.Size(output[2:]).numel()])
    return dense.scatter_add(2, places.flatten(2), dy.flatten(2)).view(output)


def _plain_output(
    xs: list[Tensor], ws: list[Tensor], bias: Tensor | None, places: Tensor, stride: Sizes, padding: Sizes
) -> Tensor:
    dense = conv_output(xs, ws, bias, stride=stride, padding=padding)
    return dense.flatten(2).gather(2, places.flatten(2)).view(places.shape)


def _fake_output(
    xs: list[Tensor], ws: list[Tensor], bias: Tensor | None, places: Tensor, stride: Sizes, padding: Sizes
) -> Tensor:
    _check_output(xs, ws, bias, places, stride, padding)
    return xs[0].new_empty(places.shape)


def _plain_input(
    dys: list[Tensor], ws: list[Tensor], places: Tensor, input_shape: Sizes, stride: Sizes, padding: Sizes
) -> Tensor:
    output = _check_input(dys, ws, places, input_shape, stride, padding)
    dense = [_spread(dy, places, output) for dy in dys]
    return conv_input(dense, ws, input_shape=input_shape, stride=stride, padding=padding)


def _fake_input(
    dys: list[Tensor], ws: list[Tensor], places: Tensor, input_shape: Sizes, stride: Sizes, padding: Sizes
) -> Tensor:
    _check_input(dys, ws, places, input_shape, stride, padding)
    return dys[0].new_empty(input_shape)


def _plain_weight(
    x: Tensor, dy: Tensor, places: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes
) -> Tensor:
    output = _check_weight(x, dy, places, kernel, stride, padding)
    return conv_weight([x], [_spread(dy, places, output)], kernel=kernel, stride=stride, padding=padding)


def _fake_weight(
    x: Tensor, dy: Tensor, places: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes
) -> Tensor:
    _check_weight(x, dy, places, kernel, stride, padding)
    return x.new_empty([dy.shape[1], x.shape[1], *kernel])


declare(
    "sparse_conv_output",
    "(Tensor[] xs, Tensor[] ws, Tensor? bias, Tensor places, int[] stride, int[] padding) -> Tensor",
    _plain_output,
    _fake_output,
)
declare(
    "sparse_conv_input",
    "(Tensor[] dys, Tensor[] ws, Tensor places, int[] input_shape, int[] stride, int[] padding) -> Tensor",
    _plain_input,
    _fake_input,
)
declare(
    "sparse_conv_weight",
    "(Tensor x, Tensor dy, Tensor places, int[] kernel, int[] stride, int[] padding) -> Tensor",
    _plain_weight,
    _fake_weight,
)
