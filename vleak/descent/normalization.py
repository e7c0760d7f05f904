"""Batch norm and layer norm as vleak's own operators while a step is captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vleak.native import (
    DTYPES,
    batch_norm,
    batch_norm_backward,
    batch_norm_second,
    batch_statistics,
    layer_norm,
    layer_norm_backward,
    layer_norm_second,
)

__all__ = ["REPLACEMENTS"]


def _batch_norm(*args: Any, **kwargs: Any) -> Tensor | None:
    """Return what torch.nn.functional.batch_norm does; None where vleak's operators do not serve.

    In train mode the running statistics stay as they are: nothing in an iteration reads them.
    """
    arguments = _arguments(*args, **kwargs)
    return None if arguments is None else _batch(*arguments)


def _arguments(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *others: Any,
    **named: Any,
) -> tuple[Any, ...] | None:
    """Return the arguments of `_BatchNorm`; None where vleak's operators do not serve."""
    eps = _epsilon(*others, **named)
    statistics = () if training else (running_mean, running_var)
    entries = input.numel() // max(1, input.shape[1]) if input.ndim > 1 else 0
    if entries < 2 or input.dtype not in DTYPES or any(s is None or s.requires_grad for s in statistics):
        return None  # PyTorch knows what to do, or says what is wrong
    weight = input.new_ones(input.shape[1]) if weight is None else weight
    bias = input.new_zeros(input.shape[1]) if bias is None else bias
    if any(tensor.dtype != input.dtype for tensor in (weight, bias, *statistics)):
        return None
    scale = None if training or running_var is None else (running_var + eps).rsqrt()
    return input, weight, bias, None if training else running_mean, scale, eps


def _epsilon(momentum: float = 0.1, eps: float = 1e-5) -> float:
    return eps


class _BatchNorm(Function):
    """Batch norm by constants; or where there are none, by the mean and the deviation of x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor | None,
        scale: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.train = mean is None or scale is None
        if mean is None or scale is None:
            mean, scale = batch_statistics(x, eps=eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return batch_norm(x, mean=mean, scale=scale, weight=weight, bias=bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight, dbias = _batch_backward(dy, *ctx.saved_tensors, ctx.train)
        return dx, dweight, dbias, None, None, None


class _BatchNormBackward(Function):
    """The derivatives of batch norm by its input, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, train: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(dy, x, weight, mean, scale)
        ctx.train = train
        return batch_norm_backward(dy, x, mean=mean, scale=scale, weight=weight, train=train)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, weight, mean, scale = ctx.saved_tensors
        of_x, of_weight, of_bias = slopes
        by_dy, by_x, by_weight = batch_norm_second(
            of_x, of_weight, of_bias, dy, x, mean=mean, scale=scale, weight=weight, train=ctx.train
        )
        return by_dy, by_x, by_weight, None, None, None


_batch: Callable[..., Tensor] = _BatchNorm.apply
_batch_backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = _BatchNormBackward.apply


# ---------------------------------------------------------------------------------------------------------
# Layer norm


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    """Return what torch.nn.functional.layer_norm does; None where vleak's operators do not serve."""
    shape = tuple(normalized_shape)
    weight = input.new_ones(shape) if weight is None else weight
    bias = input.new_zeros(shape) if bias is None else bias
    rows = bool(shape) and input.shape[-len(shape) :] == weight.shape == bias.shape == shape
    one_type = input.dtype in DTYPES and input.dtype == weight.dtype == bias.dtype
    return _layer(input, weight, bias, eps) if rows and one_type and weight.numel() else None


class _LayerNorm(Function):
    """Layer norm of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, scale = layer_norm(x, weight=weight, bias=bias, eps=eps)
        ctx.save_for_backward(x, mean, scale, weight)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_layer_backward(dy, *ctx.saved_tensors), None


class _LayerNormBackward(Function):
    """The derivatives of layer norm by its input, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(dy, x, mean, scale, weight)
        return layer_norm_backward(dy, x, mean=mean, scale=scale, weight=weight)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, mean, scale, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = slopes
        by_dy, by_x, by_weight = layer_norm_second(
            of_x, of_weight, of_bias, dy, x, mean=mean, scale=scale, weight=weight
        )
        return by_dy, by_x, None, None, by_weight


_layer: Callable[..., Tensor] = _LayerNorm.apply
_layer_backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = _LayerNormBackward.apply


REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    torch.nn.functional.batch_norm: _batch_norm,
    torch.nn.functional.layer_norm: _layer_norm,
}
"""Functions of PyTorch and what replaces them."""
