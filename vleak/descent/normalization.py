"""Batch norm as vleak's own operators while a step is captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from vleak.native import DTYPES, batch_norm, batch_norm_backward, batch_norm_second, batch_statistics

__all__ = ["OwnBatchNorm"]


class OwnBatchNorm(TorchFunctionMode):
    """Mode in which torch.nn.functional.batch_norm is recorded as vleak's operators.

    In train mode the running statistics stay as they are: nothing in an iteration reads them.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace supported calls of batch norm; leave every other function alone."""
        if func is torch.nn.functional.batch_norm:
            arguments = _arguments(*args, **(kwargs or {}))
            if arguments is not None:
                return _norm(*arguments)
        return func(*args, **(kwargs or {}))


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
    """Return the arguments of `_Norm` for those of batch norm; None where vleak's operators do not serve."""
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


class _Norm(Function):
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
        dx, dweight, dbias = _backward(dy, *ctx.saved_tensors, ctx.train)
        return dx, dweight, dbias, None, None, None


class _Backward(Function):
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


_norm: Callable[..., Tensor] = _Norm.apply
_backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Backward.apply
