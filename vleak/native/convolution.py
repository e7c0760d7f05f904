"""Convolutions in two and three dimensions, and their two derivatives, as operators without autograd.

The inner loop is captured after differentiation and calls these operators in place of ATen's. A convolution
is linear in its input and in its weight, so the forward pass, the gradient and the second derivative consist
of the same three sums.

Native results do not depend on the number of threads. They may differ between instruction sets in the last
digits, because products and sums are fused where the machine can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.native.backend import call_without_autograd
from vleak.native.checks import check_like, check_pair_count, check_same_kind, check_tensor
from vleak.native.declare import declare

__all__ = [
    "Sizes",
    "check_input",
    "check_output",
    "check_weight",
    "conv_input",
    "conv_output",
    "conv_weight",
    "is_depthwise",
]

Sizes = Sequence[int]
"""A number for every axis, or for every spatial axis."""

# Larger padded inputs fit into no memory, and products of larger sizes not into 64 bits.
_LARGEST_SIZE = 2**31 - 1
_LARGEST_INPUT = 2**40


def conv_output(
    xs: Sequence[Tensor], ws: Sequence[Tensor], bias: Tensor | None = None, *, stride: Sizes, padding: Sizes
) -> Tensor:
    """Sum of convolutions: y = sum over i of conv(x_i, w_i), plus the bias.

    Args:
        xs: inputs of one shape, (clip, channel, [frame,] height, width), any strides; float32 or float64.
        ws: as many weights of one shape, (out, channel, [frames,] rows, columns); or, where every channel has
            a kernel of its own, (channel, 1, [frames,] rows, columns).
        bias: (out,), or None.
        stride: one step per spatial axis, >= 1.
        padding: zeros added at both ends of each spatial axis, >= 0.

    Returns:
        (clip, out, [frame,] height, width), contiguous. Nothing is recorded for autograd.

    Raises:
        InputError: lists of different lengths, shapes, dtypes or devices that disagree, or a kernel that is
            larger than the padded input.
    """
    xs, ws = list(xs), list(ws)
    check_output("conv_output", xs, ws, bias, stride, padding)
    return call_without_autograd("conv_output", xs[0].device, xs, ws, bias, list(stride), list(padding))


def conv_input(
    dys: Sequence[Tensor], ws: Sequence[Tensor], *, input_shape: Sizes, stride: Sizes, padding: Sizes
) -> Tensor:
    """Derivative of :func:`conv_output` with respect to its input.

    dx = sum over i of conv_transpose(dy_i, w_i).

    Args:
        dys: derivatives with respect to the output, all of its shape.
        ws: as many weights, as for :func:`conv_output`.
        input_shape: shape of the convolution's input, (clip, channel, [frame,] height, width).
        stride, padding: those of the convolution.

    Returns:
        dx of shape ``input_shape``, contiguous. Nothing is recorded for autograd.

    Raises:
        InputError: as :func:`conv_output`; or dys do not have the output shape for ``input_shape``.
    """
    dys, ws = list(dys), list(ws)
    _check_dense_input(dys, ws, input_shape, stride, padding)
    return call_without_autograd(
        "conv_input", dys[0].device, dys, ws, list(input_shape), list(stride), list(padding)
    )


def conv_weight(
    xs: Sequence[Tensor],
    dys: Sequence[Tensor],
    *,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    depthwise: bool = False,
    start: Tensor | None = None,
) -> Tensor:
    """Derivative of :func:`conv_output` with respect to a weight, summed over pairs and clips.

    Args:
        xs: the convolution's inputs, all of one shape, (clip, channel, [frame,] height, width).
        dys: as many derivatives with respect to its output, (clip, out, [frame,] height, width).
        kernel: the weight's spatial sizes, >= 1.
        stride, padding: those of the convolution.
        depthwise: every channel has a kernel of its own.
        start: of the shape of dw, is added; None for zeros.

    Returns:
        dw of shape (out, channel, *kernel), or (channel, 1, *kernel), contiguous. Nothing is recorded for
        autograd.

    Raises:
        InputError: as :func:`conv_output`; or dys do not have the output shape for xs.
    """
    xs, dys = list(xs), list(dys)
    _check_dense_weight(xs, dys, kernel, stride, padding, depthwise, start)
    return call_without_autograd(
        "conv_weight", xs[0].device, xs, dys, list(kernel), list(stride), list(padding), depthwise, start
    )


# ---------------------------------------------------------------------------------------------------------
# Checks, which those of some outputs share


def check_output(
    op: str, xs: list[Tensor], ws: list[Tensor], bias: Tensor | None, stride: Sizes, padding: Sizes
) -> list[int]:
    """Shape of y; InputError where the arguments do not belong together."""
    _check_pairs(op, ("xs", "ws"), xs, ws)
    shape = _output_shape(op, xs[0].shape, ws[0].shape, stride, padding)
    if bias is not None:
        check_like(op, "bias", bias, "xs[0]", xs[0], ws[0].shape[:1], "it holds one number an output channel")
    return shape


def check_input(
    op: str, dys: list[Tensor], ws: list[Tensor], input_shape: Sizes, stride: Sizes, padding: Sizes
) -> list[int]:
    """Shape of y; InputError where the arguments, but for the sizes of dys, do not belong together."""
    _check_pairs(op, ("dys", "ws"), dys, ws)
    if len(input_shape) != dys[0].ndim:
        raise InputError(
            f"{op}: expected input_shape of {dys[0].ndim} sizes like dys, got {list(input_shape)}"
        )
    return _output_shape(op, input_shape, ws[0].shape, stride, padding)


def check_weight(
    op: str, x: Tensor, dy: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, depthwise: bool = False
) -> list[int]:
    """Shape of y; InputError where the arguments, but for the sizes of dy, do not belong together."""
    check_tensor(op, "x", x)
    _check_axes(op, "x", x)
    check_same_kind(op, "dy", dy, "x", x)
    _check_axes(op, "dy", dy)
    _check_settings(op, x.ndim - 2, kernel=kernel)
    return _output_shape(op, x.shape, _weight_shape(x, dy, kernel, depthwise), stride, padding)


def is_depthwise(x: Sizes, w: Sizes) -> bool:
    """Whether every channel has a kernel of its own, by the shapes of x and w."""
    return x[1] > 1 and w[1] == 1 and w[0] == x[1]


def _check_axes(op: str, name: str, tensor: Tensor) -> None:
    """Refuse a tensor without two or three spatial axes."""
    if tensor.ndim not in (4, 5):
        raise InputError(
            f"{op}: expected {name} of shape (clip, channel, [frame,] height, width), "
            f"got {tuple(tensor.shape)}"
        )


def _check_settings(op: str, axes: int, **settings: Sizes) -> None:
    """Refuse kernels, strides and paddings that are not one number a spatial axis, or out of range."""
    for name, values in settings.items():
        least = 0 if name == "padding" else 1
        if len(values) != axes or any(type(value) is not int or value < least for value in values):
            raise InputError(
                f"{op}: expected {name} to be {axes} integers >= {least}, one a spatial axis, "
                f"got {list(values)}"
            )
        if any(value > _LARGEST_SIZE for value in values):
            raise InputError(f"{op}: expected {name} of at most {_LARGEST_SIZE} each, got {list(values)}")


def _output_shape(op: str, x: Sizes, w: Sizes, stride: Sizes, padding: Sizes) -> list[int]:
    if len(w) != len(x) or (w[1] != x[1] and not is_depthwise(x, w)) or min(w) < 1:
        raise InputError(
            f"{op}: expected a weight of shape (out, {x[1]}, {len(x) - 2} kernel sizes), all at least 1, for "
            f"an input of shape {tuple(x)}, got {tuple(w)}; no groups are supported but of one channel each"
        )
    _check_settings(op, len(x) - 2, stride=stride, padding=padding)
    padded = [size + 2 * pad for size, pad in zip(x[2:], padding, strict=True)]
    if math.prod(padded) > _LARGEST_INPUT:
        raise InputError(
            f"{op}: the input {tuple(x[2:])} with padding {tuple(padding)} is too large; use less padding"
        )
    room = [size - kernel for size, kernel in zip(padded, w[2:], strict=True)]
    if min(room) < 0:
        raise InputError(
            f"{op}: the kernel {tuple(w[2:])} is larger than the input {tuple(x[2:])} with padding "
            f"{tuple(padding)}; use a smaller kernel or more padding"
        )
    return [x[0], w[0], *(space // step + 1 for space, step in zip(room, stride, strict=True))]


def _weight_shape(x: Tensor, dy: Tensor, kernel: Sizes, depthwise: bool) -> list[int]:
    return [dy.shape[1], 1 if depthwise else x.shape[1], *kernel]


def _check_pairs(op: str, names: tuple[str, str], left: list[Tensor], right: list[Tensor]) -> None:
    """Refuse pairs that are not as many, of one kind, and their parts not each of one shape."""
    check_pair_count(op, names, left, right)
    first_name, first = f"{names[0]}[0]", left[0]
    check_tensor(op, first_name, first)
    _check_axes(op, first_name, first)
    for name, tensors in zip(names, (left, right), strict=True):
        for index, tensor in enumerate(tensors):
            check_same_kind(op, f"{name}[{index}]", tensor, first_name, first)
            advice = f"all {name} need one shape"
            check_like(op, f"{name}[{index}]", tensor, first_name, first, tensors[0].shape, advice)


def _check_dense_input(
    dys: list[Tensor], ws: list[Tensor], input_shape: Sizes, stride: Sizes, padding: Sizes
) -> None:
    expected = check_input("conv_input", dys, ws, input_shape, stride, padding)
    advice = "that is the output for input_shape"
    check_like("conv_input", "dys[0]", dys[0], "dys[0]", dys[0], expected, advice)


def _check_dense_weight(
    xs: list[Tensor],
    dys: list[Tensor],
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    depthwise: bool,
    start: Tensor | None,
) -> None:
    op = "conv_weight"
    _check_pairs(op, ("xs", "dys"), xs, dys)
    _check_axes(op, "dys[0]", dys[0])
    expected = check_weight(op, xs[0], dys[0], kernel, stride, padding, depthwise)
    check_like(op, "dys[0]", dys[0], "xs[0]", xs[0], expected, "that is the output for xs")
    if start is not None:
        shape = _weight_shape(xs[0], dys[0], kernel, depthwise)
        check_like(op, "start", start, "xs[0]", xs[0], shape, "that is the shape of the result")


# ---------------------------------------------------------------------------------------------------------
# Plain PyTorch and fakes


def _plain_output(
    xs: list[Tensor], ws: list[Tensor], bias: Tensor | None, stride: Sizes, padding: Sizes
) -> Tensor:
    # A call without any tensor arrives here unchecked.
    check_pair_count("conv_output", ("xs", "ws"), xs, ws)
    conv = torch.nn.functional.conv2d if xs[0].ndim == 4 else torch.nn.functional.conv3d
    groups = xs[0].shape[1] if is_depthwise(xs[0].shape, ws[0].shape) else 1
    total = conv(xs[0], ws[0], bias, stride, padding, groups=groups)
    for x, w in zip(xs[1:], ws[1:], strict=True):
        total = total + conv(x, w, None, stride, padding, groups=groups)
    return total.contiguous()


def _fake_output(
    xs: list[Tensor], ws: list[Tensor], bias: Tensor | None, stride: Sizes, padding: Sizes
) -> Tensor:
    return xs[0].new_empty(check_output("conv_output", xs, ws, bias, stride, padding))


def _backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: Sizes, padding: Sizes, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    axes, groups = len(stride), x.shape[1] if is_depthwise(x.shape, w.shape) else 1
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        dy, x, w, None, stride, padding, [1] * axes, False, [0] * axes, groups, mask
    )
    return gradients


def _plain_input(
    dys: list[Tensor], ws: list[Tensor], input_shape: Sizes, stride: Sizes, padding: Sizes
) -> Tensor:
    check_pair_count("conv_input", ("dys", "ws"), dys, ws)
    x = dys[0].new_empty(input_shape)
    gradients = [
        _backward(dy, x, w, stride, padding, [True, False, False])[0] for dy, w in zip(dys, ws, strict=True)
    ]
    return sum(gradients[1:], gradients[0]).contiguous()


def _fake_input(
    dys: list[Tensor], ws: list[Tensor], input_shape: Sizes, stride: Sizes, padding: Sizes
) -> Tensor:
    _check_dense_input(dys, ws, input_shape, stride, padding)
    return dys[0].new_empty(input_shape)


def _plain_weight(
    xs: list[Tensor],
    dys: list[Tensor],
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    depthwise: bool = False,
    start: Tensor | None = None,
) -> Tensor:
    check_pair_count("conv_weight", ("xs", "dys"), xs, dys)
    w = xs[0].new_empty(_weight_shape(xs[0], dys[0], kernel, depthwise))
    terms = [
        _backward(dy, x, w, stride, padding, [False, True, False])[1] for x, dy in zip(xs, dys, strict=True)
    ]
    terms += [] if start is None else [start]
    return sum(terms[1:], terms[0]).contiguous()


def _fake_weight(
    xs: list[Tensor],
    dys: list[Tensor],
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    depthwise: bool = False,
    start: Tensor | None = None,
) -> Tensor:
    _check_dense_weight(xs, dys, kernel, stride, padding, depthwise, start)
    return xs[0].new_empty(_weight_shape(xs[0], dys[0], kernel, depthwise))


declare(
    "conv_output",
    "(Tensor[] xs, Tensor[] ws, Tensor? bias, int[] stride, int[] padding) -> Tensor",
    _plain_output,
    _fake_output,
)
declare(
    "conv_input",
    "(Tensor[] dys, Tensor[] ws, int[] input_shape, int[] stride, int[] padding) -> Tensor",
    _plain_input,
    _fake_input,
)
declare(
    "conv_weight",
    "(Tensor[] xs, Tensor[] dys, int[] kernel, int[] stride, int[] padding, bool depthwise=False, "
    "Tensor? start=None) -> Tensor",
    _plain_weight,
    _fake_weight,
)
