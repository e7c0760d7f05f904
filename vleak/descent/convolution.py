"""Convolutions as vleak's own operators while a step is captured.

A convolution is linear in its input and in its weight, so all of its derivatives are the three sums of
`vleak.native.convolution`. PyTorch's second derivative is many operators more, most of them copies; of a
grouped convolution it is some hundred for each group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from vleak.native import DTYPES, conv_input, conv_output, conv_weight

__all__ = ["REPLACEMENTS"]


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Return what torch.conv2d or conv3d does; None where vleak's operators do not serve."""
    if not _serves(input, weight, bias, dilation):
        return None
    depthwise = groups > 1 and weight.shape[:2] == (groups, 1) and input.shape[1] == groups
    dense = groups == 1 and weight.shape[1] == input.shape[1]
    axes = weight.ndim - 2
    if padding == "same" and all(size % 2 for size in weight.shape[2:]):
        padding = [size // 2 for size in weight.shape[2:]]
    elif isinstance(padding, str):
        return None
    if not (dense or depthwise):
        return None
    return _output(input, weight, bias, _per_axis(stride, axes), _per_axis(padding, axes), depthwise)


def _transposed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    *others: Any,
    **named: Any,
) -> Tensor | None:
    """Return what torch.conv_transpose2d or 3d does; None where vleak's operators do not serve."""
    groups, dilation = _groups_and_dilation(*others, **named)
    if not _serves(input, weight, bias, dilation) or groups != 1 or weight.shape[0] != input.shape[1]:
        return None
    axes = weight.ndim - 2
    stride, padding, more = (_per_axis(each, axes) for each in (stride, padding, output_padding))
    sizes = zip(input.shape[2:], weight.shape[2:], stride, padding, more, strict=True)
    spread = [(size - 1) * step - 2 * pad + kernel + end for size, kernel, step, pad, end in sizes]
    shape = (input.shape[0], weight.shape[1], *spread)
    result = _input(input, weight, shape, stride, padding, False)
    return result if bias is None else result + bias.view(-1, *[1] * axes)


def _groups_and_dilation(groups: int = 1, dilation: Any = 1) -> tuple[int, Any]:
    return groups, dilation


REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    torch.conv_transpose2d: _transposed,
    torch.conv_transpose3d: _transposed,
}
"""Functions of PyTorch and what replaces them, for one group, or one group a channel, without dilation."""


def _serves(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Any) -> bool:
    """Return whether the operators take these tensors: batches without dilation, of one float type."""
    tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
    batched = x.ndim == weight.ndim and x.numel() > 0
    one_type = x.dtype in DTYPES and all(tensor.dtype == x.dtype for tensor in tensors)
    return batched and one_type and set(_per_axis(dilation, weight.ndim - 2)) == {1}


def _per_axis(lengths: Any, axes: int) -> tuple[int, ...]:
    given: tuple[int, ...] = (lengths,) if isinstance(lengths, int) else tuple(lengths)
    return given * axes if len(given) == 1 else given


class _Output(Function):
    """Convolution of x with w."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, stride: Any, padding: Any, depthwise: bool
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = stride, padding, depthwise
        return conv_output([x], [w], bias, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        need_x, need_w, need_bias, *_ = ctx.needs_input_grad
        dx = _input(dy, w, x.shape, *ctx.geometry) if need_x else None
        dw = _weight(x, dy, w.shape[2:], *ctx.geometry) if need_w else None
        return dx, dw, _bias(dy) if need_bias else None, None, None, None


class _Bias(Function):
    """Derivative of a convolution by its bias, whose own derivative is a view that a convolution can add."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor) -> Tensor:
        ctx.shape = dy.shape
        return dy.sum([0, *range(2, dy.ndim)])

    @staticmethod
    def backward(ctx: Any, bias: Tensor) -> Tensor:
        return bias.view(1, -1, *[1] * (len(ctx.shape) - 2)).expand(ctx.shape)


class _Input(Function):
    """Derivative of a convolution by its input, linear in dy and in w."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, w: Tensor, shape: Any, stride: Any, padding: Any, depthwise: bool
    ) -> Tensor:
        ctx.save_for_backward(dy, w)
        ctx.geometry = stride, padding, depthwise
        return conv_input([dy], [w], input_shape=shape, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        dy, w = ctx.saved_tensors
        need_dy, need_w, *_ = ctx.needs_input_grad
        by_dy = _output(dx, w, None, *ctx.geometry) if need_dy else None
        by_w = _weight(dx, dy, w.shape[2:], *ctx.geometry) if need_w else None
        return by_dy, by_w, None, None, None, None


class _Weight(Function):
    """Derivative of a convolution by its weight, linear in x and in dy."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dy: Tensor, kernel: Any, stride: Any, padding: Any, depthwise: bool
    ) -> Tensor:
        ctx.save_for_backward(x, dy)
        ctx.geometry = stride, padding, depthwise
        kernel = tuple(kernel)
        return conv_weight([x], [dy], kernel=kernel, stride=stride, padding=padding, depthwise=depthwise)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor | None, ...]:
        x, dy = ctx.saved_tensors
        need_x, need_dy, *_ = ctx.needs_input_grad
        by_x = _input(dy, dw, x.shape, *ctx.geometry) if need_x else None
        by_dy = _output(x, dw, None, *ctx.geometry) if need_dy else None
        return by_x, by_dy, None, None, None, None


_output: Callable[..., Tensor] = _Output.apply
_bias: Callable[..., Tensor] = _Bias.apply
_input: Callable[..., Tensor] = _Input.apply
_weight: Callable[..., Tensor] = _Weight.apply
