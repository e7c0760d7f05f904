"""GELU, SiLU, softmax and attention with vleak's own second derivatives while a step is captured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vleak.native import DTYPES, activation_backward, activation_second, softmax_second

__all__ = ["REPLACEMENTS"]


def _gelu(input: Tensor, *, approximate: str = "none") -> Tensor | None:
    served = approximate == "none" and input.dtype in DTYPES
    return _activation(input, "gelu") if served else None


def _silu(input: Tensor, inplace: bool = False) -> Tensor | None:
    return None if inplace or input.dtype not in DTYPES else _activation(input, "silu")


def _softmax(input: Tensor, dim: Any = None, *others: Any, **named: Any) -> Tensor | None:
    """Return softmax along the last axis; None for another axis, or where a type or a place is asked for."""
    asked = "out" in named or any(isinstance(option, torch.dtype) for option in (*others, *named.values()))
    last = isinstance(dim, int) and input.ndim > 0 and dim in (-1, input.ndim - 1)
    return _softmax_of(input) if last and not asked and input.dtype in DTYPES else None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Return attention from two products, as PyTorch's math backend; None with a mask, dropout or groups."""
    size = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    plain = attn_mask is None and not dropout_p and not is_causal and not enable_gqa and size > 0
    if not plain or query.dtype not in DTYPES or not query.dtype == key.dtype == value.dtype:
        return None
    scores = (query * math.sqrt(size)) @ (key.transpose(-2, -1) * math.sqrt(size))
    return _softmax_of(scores) @ value


_FORWARD: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu.default,
    "silu": torch.ops.aten.silu.default,
}


class _Activation(Function):
    """An activation of `vleak.native.ACTIVATIONS`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kind = kind
        return _FORWARD[kind](x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return _slope(dy, *ctx.saved_tensors, ctx.kind), None


class _Slope(Function):
    """Derivative of an activation by its input."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, kind: str) -> Tensor:
        ctx.save_for_backward(dy, x)
        ctx.kind = kind
        return activation_backward(dy, x, kind=kind)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_x: Tensor) -> tuple[Tensor | None, ...]:
        return *activation_second(of_x, *ctx.saved_tensors, kind=ctx.kind), None


class _Softmax(Function):
    """Softmax along the last axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._softmax.default(x, -1, False)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return _softmax_slope(dy, *ctx.saved_tensors)


class _SoftmaxSlope(Function):
    """Derivative of softmax by its input, as a function of dy and y."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(dy, y)
        dx: Tensor = torch.ops.aten._softmax_backward_data.default(dy, y, -1, y.dtype)
        return dx

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_x: Tensor) -> tuple[Tensor, Tensor]:
        return softmax_second(of_x, *ctx.saved_tensors)


_activation: Callable[..., Tensor] = _Activation.apply
_slope: Callable[..., Tensor] = _Slope.apply
_softmax_of: Callable[..., Tensor] = _Softmax.apply
_softmax_slope: Callable[..., Tensor] = _SoftmaxSlope.apply


REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.gelu: _gelu,
    F.silu: _silu,
    F.softmax: _softmax,
    torch.softmax: _softmax,
    Tensor.softmax: _softmax,
    F.scaled_dot_product_attention: _attention,
}
"""Functions of PyTorch and what replaces them."""
