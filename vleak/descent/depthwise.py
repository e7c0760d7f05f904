"""Depthwise convolutions as vleak's own operators while a step is captured.

PyTorch differentiates a grouped convolution twice by cutting it into its groups: some hundred operators for
each group, none of which is needed. A convolution is linear in its input and in its weight, so all of its
derivatives are the three sums of `vleak.native.convolution`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from vleak.native import conv_input, conv_output, conv_weight

__all__ = ["OwnDepthwise"]

_DTYPES = (torch.float32, torch.float64)


class OwnDepthwise(TorchFunctionMode):
    """Mode in which torch.conv2d and conv3d of one group a channel are recorded as vleak's operators."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace supported depthwise convolutions; leave every other function alone."""
        if func in (torch.conv2d, torch.conv3d):
            geometry = _geometry(*args, **(kwargs or {}))
            if geometry is not None:
                return _output(*geometry)
        return func(*args, **(kwargs or {}))


def _geometry(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...] | None:
    """Return the arguments of `_Output` for a convolution's; None where vleak's operator does not serve."""
    axes = weight.ndim - 2
    depthwise = groups > 1 and weight.shape[:2] == (groups, 1)
    if not depthwise or isinstance(padding, str) or set(_per_axis(dilation, axes)) != {1}:
        return None
    batched = input.ndim == axes + 2 and input.numel() > 0
    if not batched or input.dtype not in _DTYPES or weight.dtype != input.dtype:
        return None
    return input, weight, bias, _per_axis(stride, axes), _per_axis(padding, axes)


def _per_axis(lengths: Any, axes: int) -> tuple[int, ...]:
    given: tuple[int, ...] = (lengths,) if isinstance(lengths, int) else tuple(lengths)
    return given * axes if len(given) == 1 else given


class _Output(Function):
    """Convolution of x with w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = stride, padding
        return conv_output([x], [w], bias, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        need_x, need_w, need_bias, *_ = ctx.needs_input_grad
        dx = _input(dy, w, x.shape, *ctx.geometry) if need_x else None
        dw = _weight(x, dy, w.shape[2:], *ctx.geometry) if need_w else None
        bias = dy.sum([0, *range(2, dy.ndim)]) if need_bias else None
        return dx, dw, bias, None, None


class _Input(Function):
    """Derivative of a convolution by its input, linear in dy and in w."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, w: Tensor, shape: Any, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(dy, w)
        ctx.geometry = stride, padding
        return conv_input([dy], [w], input_shape=shape, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        dy, w = ctx.saved_tensors
        need_dy, need_w, *_ = ctx.needs_input_grad
        by_dy = _output(dx, w, None, *ctx.geometry) if need_dy else None
        by_w = _weight(dx, dy, w.shape[2:], *ctx.geometry) if need_w else None
        return by_dy, by_w, None, None, None


class _Weight(Function):
    """Derivative of a convolution by its weight, linear in x and in dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dy: Tensor, kernel: Any, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(x, dy)
        ctx.geometry = stride, padding
        kernel, depthwise = tuple(kernel), True
        return conv_weight([x], [dy], kernel=kernel, stride=stride, padding=padding, depthwise=depthwise)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor | None, ...]:
        x, dy = ctx.saved_tensors
        need_x, need_dy, *_ = ctx.needs_input_grad
        by_x = _input(dy, dw, x.shape, *ctx.geometry) if need_x else None
        by_dy = _output(x, dw, None, *ctx.geometry) if need_dy else None
        return by_x, by_dy, None, None, None


_output: Callable[..., Tensor] = _Output.apply
_input: Callable[..., Tensor] = _Input.apply
_weight: Callable[..., Tensor] = _Weight.apply
