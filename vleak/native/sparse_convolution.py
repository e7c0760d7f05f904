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
from vleak.native.checks import check_like, check_same_kind, check_tensor
from vleak.native.convolution import (
    check_axes,
    check_pairs,
    check_settings,
    conv_input,
    conv_output,
    conv_weight,
    is_depthwise,
    output_shape,
)
from vleak.native.declare import declare

__all__ = ["sparse_conv_input", "sparse_conv_output", "sparse_conv_weight"]


def sparse_conv_output(
    xs: Sequence[Tensor],
    ws: Sequence[Tensor],
    bias: Tensor | None,
    places: Tensor,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
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
    shape = _check_output(xs, ws, bias, places, stride, padding)
    _check_inside("sparse_conv_output", places, shape)
    return call_without_autograd(
        "sparse_conv_output", xs[0].device, xs, ws, bias, places, list(stride), list(padding)
    )


def sparse_conv_input(
    dys: Sequence[Tensor],
    ws: Sequence[Tensor],
    places: Tensor,
    *,
    input_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
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
    shape = _check_input(dys, ws, places, input_shape, stride, padding)
    _check_inside("sparse_conv_input", places, shape)
    return call_without_autograd(
        "sparse_conv_input", dys[0].device, dys, ws, places, list(input_shape), list(stride), list(padding)
    )


def sparse_conv_weight(
    x: Tensor,
    dy: Tensor,
    places: Tensor,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
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
    shape = _check_weight(x, dy, places, kernel, stride, padding)
    _check_inside("sparse_conv_weight", places, shape)
    return call_without_autograd(
        "sparse_conv_weight", x.device, x, dy, places, list(kernel), list(stride), list(padding)
    )


# ---------------------------------------------------------------------------------------------------------
# Checks


def _check_places(op: str, places: Tensor, like: Tensor, output: Sequence[int]) -> list[int]:
    """Return the shape of the dense output."""
    fits = isinstance(places, Tensor) and places.dtype == torch.int64 and places.device == like.device
    if not fits or places.ndim != len(output) or list(places.shape[:2]) != list(output[:2]):
        given = (
            f"{places.dtype} {tuple(places.shape)}" if isinstance(places, Tensor) else type(places).__name__
        )
        raise InputError(
            f"{op}: expected places to be int64 of {len(output)} axes beginning with {tuple(output[:2])}, on "
            f"{like.device}, got {given}"
        )
    return list(output)


def _check_inside(op: str, places: Tensor, output: list[int]) -> None:
    outputs = torch.Size(output[2:]).numel()
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < outputs:
        raise InputError(
            f"{op}: expected places from 0 to {outputs - 1}, got {int(places.min())} to {int(places.max())}"
        )


def _dense_shape(
    op: str, x: Sequence[int], w: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> list[int]:
    shape = output_shape(op, x, w, stride, padding)
    if is_depthwise(x, w):
        raise InputError(f"{op}: expected a weight of shape (out, {x[1]}, *kernel), got {tuple(w)}")
    return shape


def _check_output(
    xs: list[Tensor],
    ws: list[Tensor],
    bias: Tensor | None,
    places: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
) -> list[int]:
    op = "sparse_conv_output"
    check_pairs(op, "xs", xs, ws)
    shape = _dense_shape(op, xs[0].shape, ws[0].shape, stride, padding)
    if bias is not None:
        check_like(op, "bias", bias, "xs[0]", xs[0], ws[0].shape[:1], "it holds one number an output channel")
    return _check_places(op, places, xs[0], shape)


def _check_input(
    dys: list[Tensor],
    ws: list[Tensor],
    places: Tensor,
    input_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> list[int]:
    op = "sparse_conv_input"
    check_pairs(op, "dys", dys, ws)
    if len(input_shape) != dys[0].ndim:
        raise InputError(
            f"{op}: expected input_shape of {dys[0].ndim} sizes like dys, got {list(input_shape)}"
        )
    shape = _dense_shape(op, input_shape, ws[0].shape, stride, padding)
    _check_places(op, places, dys[0], shape)
    check_like(op, "dys[0]", dys[0], "dys[0]", dys[0], places.shape, "that is the shape of places")
    return shape


def _check_weight(
    x: Tensor,
    dy: Tensor,
    places: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> list[int]:
    op = "sparse_conv_weight"
    check_tensor(op, "x", x)
    check_axes(op, "x", x)
    check_same_kind(op, "dy", dy, "x", x)
    check_axes(op, "dy", dy)
    check_settings(op, x.ndim - 2, kernel=kernel)
    shape = _dense_shape(op, x.shape, (dy.shape[1], x.shape[1], *kernel), stride, padding)
    _check_places(op, places, x, shape)
    check_like(op, "dy", dy, "x", x, places.shape, "that is the shape of places")
    return shape


# ---------------------------------------------------------------------------------------------------------
# Plain PyTorch and fakes


def _spread(dy: Tensor, places: Tensor, output: Sequence[int]) -> Tensor:
    """Return the dense derivative by the output."""
    dense = dy.new_zeros([*output[:2], torch.Size(output[2:]).numel()])
    return dense.scatter_add(2, places.flatten(2), dy.flatten(2)).view(list(output))


def _plain_output(
    xs: list[Tensor],
    ws: list[Tensor],
    bias: Tensor | None,
    places: Tensor,
    stride: list[int],
    padding: list[int],
) -> Tensor:
    dense = conv_output(xs, ws, bias, stride=stride, padding=padding)
    return dense.flatten(2).gather(2, places.flatten(2)).view(places.shape)


def _fake_output(
    xs: list[Tensor],
    ws: list[Tensor],
    bias: Tensor | None,
    places: Tensor,
    stride: list[int],
    padding: list[int],
) -> Tensor:
    _check_output(xs, ws, bias, places, stride, padding)
    return xs[0].new_empty(places.shape)


def _plain_input(
    dys: list[Tensor],
    ws: list[Tensor],
    places: Tensor,
    input_shape: list[int],
    stride: list[int],
    padding: list[int],
) -> Tensor:
    output = _check_input(dys, ws, places, input_shape, stride, padding)
    dense = [_spread(dy, places, output) for dy in dys]
    return conv_input(dense, ws, input_shape=input_shape, stride=stride, padding=padding)


def _fake_input(
    dys: list[Tensor],
    ws: list[Tensor],
    places: Tensor,
    input_shape: list[int],
    stride: list[int],
    padding: list[int],
) -> Tensor:
    _check_input(dys, ws, places, input_shape, stride, padding)
    return dys[0].new_empty(input_shape)


def _plain_weight(
    x: Tensor, dy: Tensor, places: Tensor, kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    output = _check_weight(x, dy, places, kernel, stride, padding)
    return conv_weight(x, _spread(dy, places, output), kernel=kernel, stride=stride, padding=padding)


def _fake_weight(
    x: Tensor, dy: Tensor, places: Tensor, kernel: list[int], stride: list[int], padding: list[int]
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
