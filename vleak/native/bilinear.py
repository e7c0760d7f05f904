"""Convolutions, their two derivatives and products of few rows, as operators without autograd.

The inner loop is captured after differentiation and calls these in place of ATen's: a convolution is linear
in its input and in its weight, so the forward pass, the gradient and the second derivative are made of the
same three sums. Like the operators of :mod:`vleak.native.operators`, each exists in plain PyTorch (namespace
``vleak_reference``) and, on the CPU, in native code.

Native results do not depend on the number of threads. They may differ between instruction sets in the last
digits, since products and sums are fused where the machine can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.native.operators import _check_dtype, _check_like, _check_same_kind, _declare, _operator

__all__ = ["PANEL", "conv_input", "conv_output", "conv_weight", "panel_product", "panels", "product"]

#: Columns of a panel; csrc/kernels/product.h has the same number.
PANEL = 64

# Beyond these no padded input fits into memory, and products of sizes into 64 bits.
_LARGEST_SIZE = 2**31 - 1
_LARGEST_INPUT = 2**40

# ---------------------------------------------------------------------------------------------------------
# Checks: those of the public functions are also those of the fake kernels, which PyTorch calls as soon as one
# tensor is on "meta", wherever the others are


def _check_axes(op: str, name: str, tensor: Tensor) -> None:
    if tensor.ndim not in (4, 5):
        raise InputError(
            f"{op}: expected {name} of shape (clip, channel, [frame,] height, width), "
            f"got {tuple(tensor.shape)}"
        )


def _check_settings(op: str, axes: int, **settings: Sequence[int]) -> None:
    for name, values in settings.items():
        least = 0 if name == "padding" else 1
        if len(values) != axes or any(type(value) is not int or value < least for value in values):
            raise InputError(
                f"{op}: expected {name} to be {axes} integers >= {least}, one a spatial axis, "
                f"got {list(values)}"
            )
        if any(value > _LARGEST_SIZE for value in values):
            raise InputError(f"{op}: expected {name} of at most {_LARGEST_SIZE} each, got {list(values)}")


def _output_shape(
    op: str, x: Sequence[int], w: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """Return the shape of y; raises InputError where x, w, stride and padding do not belong together."""
    if len(w) != len(x) or w[1] != x[1] or min(w) < 1:
        raise InputError(
            f"{op}: expected a weight of shape (out, {x[1]}, {len(x) - 2} kernel sizes), all at least 1, for "
            f"an input of shape {tuple(x)}, got {tuple(w)}; groups are not supported"
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


def _check_lengths(op: str, names: tuple[str, str], left: list[Tensor], right: list[Tensor]) -> None:
    if not left or len(left) != len(right):
        raise InputError(
            f"{op}: expected as many {names[0]} as {names[1]}, at least one, got {len(left)} and {len(right)}"
        )


def _check_pairs(op: str, name: str, inputs: list[Tensor], ws: list[Tensor]) -> None:
    _check_lengths(op, (name, "ws"), inputs, ws)
    _check_dtype(op, f"{name}[0]", inputs[0])
    _check_axes(op, f"{name}[0]", inputs[0])
    for label, tensors in ((name, inputs), ("ws", ws)):
        for index, tensor in enumerate(tensors):
            _check_same_kind(op, f"{label}[{index}]", tensor, f"{name}[0]", inputs[0])
            advice = f"all {label} need one shape"
            _check_like(op, f"{label}[{index}]", tensor, f"{name}[0]", inputs[0], tensors[0].shape, advice)


def _checked_output(
    xs: list[Tensor], ws: list[Tensor], bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """Return the shape of conv_output's result."""
    op = "conv_output"
    _check_pairs(op, "xs", xs, ws)
    shape = _output_shape(op, xs[0].shape, ws[0].shape, stride, padding)
    if bias is not None:
        advice = "it holds one number an output channel"
        _check_like(op, "bias", bias, "xs[0]", xs[0], ws[0].shape[:1], advice)
    return shape


def _check_input(
    dys: list[Tensor],
    ws: list[Tensor],
    input_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> None:
    op = "conv_input"
    _check_pairs(op, "dys", dys, ws)
    if len(input_shape) != dys[0].ndim:
        raise InputError(
            f"{op}: expected input_shape of {dys[0].ndim} sizes like dys, got {list(input_shape)}"
        )
    expected = _output_shape(op, input_shape, ws[0].shape, stride, padding)
    _check_like(op, "dys[0]", dys[0], "dys[0]", dys[0], expected, "that is the output for input_shape")


def _check_weight(
    x: Tensor, dy: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> None:
    op = "conv_weight"
    _check_dtype(op, "x", x)
    _check_axes(op, "x", x)
    _check_same_kind(op, "dy", dy, "x", x)
    _check_axes(op, "dy", dy)
    _check_settings(op, x.ndim - 2, kernel=kernel)
    expected = _output_shape(op, x.shape, (dy.shape[1], x.shape[1], *kernel), stride, padding)
    _check_like(op, "dy", dy, "x", x, expected, "that is the output for x")


# ---------------------------------------------------------------------------------------------------------
# Convolutions


def conv_output(
    xs: Sequence[Tensor],
    ws: Sequence[Tensor],
    bias: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Convolve and add up: y = sum over i of conv(x_i, w_i), plus the bias.

    Args:
        xs: inputs of one shape, (clip, channel, [frame,] height, width), any strides; float32 or float64.
        ws: as many weights of one shape, (out, channel, [frames,] rows, columns).
        bias: (out,), or None.
        stride: one step a spatial axis, >= 1.
        padding: zeros put on both ends of each spatial axis, >= 0.

    Returns:
        (clip, out, [frame,] height, width), contiguous. Nothing is recorded for autograd.

    Raises:
        InputError: lists of different lengths, shapes, dtypes or devices that disagree, or a kernel that is
            larger than the padded input.
    """
    xs, ws = list(xs), list(ws)
    _checked_output(xs, ws, bias, stride, padding)
    return _call("conv_output", xs[0].device, xs, ws, bias, list(stride), list(padding))


def conv_input(
    dys: Sequence[Tensor],
    ws: Sequence[Tensor],
    *,
    input_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Derivative of :func:`conv_output` in its input: dx = sum over i of conv_transpose(dy_i, w_i).

    Args:
        dys: derivatives of one shape, that of the convolution's output.
        ws: as many weights of one shape, (out, channel, [frames,] rows, columns).
        input_shape: shape of the convolution's input, (clip, channel, [frame,] height, width).
        stride, padding: those of the convolution.

    Returns:
        dx of shape ``input_shape``, contiguous. Nothing is recorded for autograd.

    Raises:
        InputError: as :func:`conv_output`; or dys do not have the shape that ``input_shape`` leads to.
    """
    dys, ws = list(dys), list(ws)
    _check_input(dys, ws, input_shape, stride, padding)
    return _call("conv_input", dys[0].device, dys, ws, list(input_shape), list(stride), list(padding))


def conv_weight(
    x: Tensor, dy: Tensor, *, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Derivative of :func:`conv_output` in a weight, summed over the clips.

    Args:
        x: the convolution's input, (clip, channel, [frame,] height, width).
        dy: derivative with respect to its output, (clip, out, [frame,] height, width).
        kernel: the weight's spatial sizes, >= 1.
        stride, padding: those of the convolution.

    Returns:
        dw of shape (out, channel, *kernel), contiguous. Nothing is recorded for autograd.

    Raises:
        InputError: as :func:`conv_output`; or dy does not have the shape that x leads to.
    """
    _check_weight(x, dy, kernel, stride, padding)
    return _call("conv_weight", x.device, x, dy, list(kernel), list(stride), list(padding))


def _call(name: str, device: torch.device, *arguments: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = _operator(name, device)(*arguments)
    return result


def _output_kernel(
    xs: list[Tensor], ws: list[Tensor], bias: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    # A call without any tensor comes here, past the checks.
    _check_lengths("conv_output", ("xs", "ws"), xs, ws)
    conv = torch.nn.functional.conv2d if xs[0].ndim == 4 else torch.nn.functional.conv3d
    total = conv(xs[0], ws[0], bias, stride, padding)
    for x, w in zip(xs[1:], ws[1:], strict=True):
        total = total + conv(x, w, None, stride, padding)
    return total.contiguous()


def _output_fake(
    xs: list[Tensor], ws: list[Tensor], bias: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    return xs[0].new_empty(_checked_output(xs, ws, bias, stride, padding))


def _backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: list[int], padding: list[int], mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    axes = len(stride)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        dy, x, w, None, stride, padding, [1] * axes, False, [0] * axes, 1, mask
    )
    return found


def _input_kernel(
    dys: list[Tensor], ws: list[Tensor], input_shape: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    _check_lengths("conv_input", ("dys", "ws"), dys, ws)
    x = dys[0].new_empty(input_shape)
    found = [
        _backward(dy, x, w, stride, padding, [True, False, False])[0] for dy, w in zip(dys, ws, strict=True)
    ]
    return sum(found[1:], found[0]).contiguous()


def _input_fake(
    dys: list[Tensor], ws: list[Tensor], input_shape: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    _check_input(dys, ws, input_shape, stride, padding)
    return dys[0].new_empty(input_shape)


def _weight_kernel(x: Tensor, dy: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    w = x.new_empty([dy.shape[1], x.shape[1], *kernel])
    return _backward(dy, x, w, stride, padding, [False, True, False])[1].contiguous()


def _weight_fake(x: Tensor, dy: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    _check_weight(x, dy, kernel, stride, padding)
    return x.new_empty([dy.shape[1], x.shape[1], *kernel])


_declare(
    "conv_output",
    "(Tensor[] xs, Tensor[] ws, Tensor? bias, int[] stride, int[] padding) -> Tensor",
    _output_kernel,
    _output_fake,
)
_declare(
    "conv_input",
    "(Tensor[] dys, Tensor[] ws, int[] input_shape, int[] stride, int[] padding) -> Tensor",
    _input_kernel,
    _input_fake,
)
_declare(
    "conv_weight",
    "(Tensor x, Tensor dy, int[] kernel, int[] stride, int[] padding) -> Tensor",
    _weight_kernel,
    _weight_fake,
)

# ---------------------------------------------------------------------------------------------------------
# Products


def product(xs: Sequence[Tensor], ms: Sequence[Tensor]) -> Tensor:
    """Multiply and add up: y = sum over i of x_i @ m_i.

    Args:
        xs: (rows, depth_i) each, any strides; float32 or float64.
        ms: as many matrices (depth_i, columns), large ones: each is read once, where it lies, if its rows or
            its columns are contiguous, as those of a transposed view are.

    Returns:
        (rows, columns), contiguous. Nothing is recorded for autograd.

    Raises:
        InputError: lists of different lengths, or shapes, dtypes or devices that disagree.
    """
    xs, ms = list(xs), list(ms)
    _check_products(xs, ms)
    return _call("product", xs[0].device, xs, ms)


def _check_products(xs: list[Tensor], ms: list[Tensor]) -> None:
    op = "product"
    _check_lengths(op, ("xs", "ms"), xs, ms)
    _check_dtype(op, "xs[0]", xs[0])
    for name, tensors in (("xs", xs), ("ms", ms)):
        for index, tensor in enumerate(tensors):
            if tensor.ndim != 2:
                raise InputError(
                    f"{op}: expected {name}[{index}] to be a matrix, got shape {tuple(tensor.shape)}"
                )
    for index, (x, m) in enumerate(zip(xs, ms, strict=True)):
        sizes = (xs[0].shape[0], x.shape[1]), (x.shape[1], ms[0].shape[1])
        _check_like(op, f"xs[{index}]", x, "xs[0]", xs[0], sizes[0], "all xs need as many rows")
        advice = "as many rows as xs has columns, and all ms as many columns"
        _check_like(op, f"ms[{index}]", m, "xs[0]", xs[0], sizes[1], advice)


def _product_kernel(xs: list[Tensor], ms: list[Tensor]) -> Tensor:
    _check_lengths("product", ("xs", "ms"), xs, ms)
    total = xs[0] @ ms[0]
    for x, m in zip(xs[1:], ms[1:], strict=True):
        total = torch.addmm(total, x, m)
    return total.contiguous()


def _product_fake(xs: list[Tensor], ms: list[Tensor]) -> Tensor:
    _check_products(xs, ms)
    return xs[0].new_empty(xs[0].shape[0], ms[0].shape[1])


_declare("product", "(Tensor[] xs, Tensor[] ms) -> Tensor", _product_kernel, _product_fake)

# ---------------------------------------------------------------------------------------------------------
# Products with a matrix that has been cut into panels


def panels(matrix: Tensor) -> Tensor:
    """Cut a matrix into panels of columns, for :func:`panel_product`; worth it for one that is used often.

    Args:
        matrix: (depth, columns), any strides.

    Returns:
        (panels, depth, PANEL), contiguous. Column c of the matrix is column c % PANEL of panel c // PANEL;
        what fills up the last panel is zero.

    Raises:
        InputError: it is no matrix.
    """
    if matrix.ndim != 2:
        raise InputError(f"panels: expected a matrix, got shape {tuple(matrix.shape)}")
    depth, columns = matrix.shape
    count = -(-columns // PANEL)
    filled = torch.constant_pad_nd(matrix, [0, count * PANEL - columns])
    return filled.view(depth, count, PANEL).permute(1, 0, 2).contiguous()


def panel_product(
    xs: Sequence[Tensor], panels: Sequence[Tensor], columns: int, *, turned: bool = False
) -> Tensor:
    """Multiply with matrices that lie in panels, and add up: y = sum over i of x_i @ m_i, or x_i @ m_i.T.

    Where many entries of xs are zero, as those of a gradient behind a ReLU, only the others are multiplied:
    a zero times infinity counts as zero.

    Args:
        xs: (rows, depth_i) each, turned (rows, columns); any strides; float32 or float64.
        panels: as many matrices (depth_i, columns), as :func:`panels` cuts them, zeros in the last one
            included; turned, of one depth.
        columns: those of the matrices, which the last panel does not tell.
        turned: multiply with the transposed matrices.

    Returns:
        (rows, columns), turned (rows, depth), contiguous. Nothing is recorded for autograd.

    Raises:
        InputError: lists of different lengths, or shapes, dtypes or devices that disagree.
    """
    xs, panels = list(xs), list(panels)
    _check_panels(xs, panels, columns, turned)
    return _call("panel_product", xs[0].device, xs, panels, columns, turned)


def _check_panels(xs: list[Tensor], panels: list[Tensor], columns: int, turned: bool) -> None:
    op = "panel_product"
    _check_lengths(op, ("xs", "panels"), xs, panels)
    _check_dtype(op, "xs[0]", xs[0])
    if columns < 0:
        raise InputError(f"{op}: expected columns >= 0, got {columns}")
    for name, tensors, axes in (("xs", xs, 2), ("panels", panels, 3)):
        for index, tensor in enumerate(tensors):
            if tensor.ndim != axes:
                raise InputError(
                    f"{op}: expected {name}[{index}] to have {axes} axes, got shape {tuple(tensor.shape)}"
                )
    for index, (x, m) in enumerate(zip(xs, panels, strict=True)):
        depth = (panels[0] if turned else m).shape[1]
        rows = (xs[0].shape[0], columns if turned else depth)
        advice = "all xs need as many rows, and the entries that the matrices have columns, turned, or rows"
        _check_like(op, f"xs[{index}]", x, "xs[0]", xs[0], rows, advice)
        advice = "vleak.native.bilinear.panels cuts a matrix so"
        _check_like(op, f"panels[{index}]", m, "xs[0]", xs[0], (-(-columns // PANEL), depth, PANEL), advice)


def _whole(panels: Tensor, columns: int) -> Tensor:
    """Return the matrix that was cut into panels."""
    count, depth, _ = panels.shape
    return panels.permute(1, 0, 2).reshape(depth, count * PANEL)[:, :columns]


def _panel_kernel(xs: list[Tensor], panels: list[Tensor], columns: int, turned: bool) -> Tensor:
    _check_lengths("panel_product", ("xs", "panels"), xs, panels)
    matrices = [_whole(m, columns) for m in panels]
    return _product_kernel(xs, [m.t() for m in matrices] if turned else matrices)


def _panel_fake(xs: list[Tensor], panels: list[Tensor], columns: int, turned: bool) -> Tensor:
    _check_panels(xs, panels, columns, turned)
    return xs[0].new_empty(xs[0].shape[0], panels[0].shape[1] if turned else columns)


_declare(
    "panel_product",
    "(Tensor[] xs, Tensor[] panels, int columns, bool turned) -> Tensor",
    _panel_kernel,
    _panel_fake,
)
