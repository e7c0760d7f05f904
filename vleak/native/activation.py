"""Derivatives of GELU, SiLU and softmax, and their second derivatives, as operators without autograd.

PyTorch has a kernel for each first derivative and computes the second one in up to a dozen operators, each of
which reads and writes whole activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.native.backend import call_without_autograd, results_without_autograd
from vleak.native.checks import check_like, check_tensor
from vleak.native.declare import declare

__all__ = ["ACTIVATIONS", "activation_backward", "activation_second", "softmax_second"]


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    below = 0.5 * torch.erfc(-x * math.sqrt(0.5))
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return below + x * density, density * (2 - x * x)


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    s = x.sigmoid()
    slope = s * (1 - s)
    return s + x * slope, slope * (2 + x * (1 - 2 * s))


ACTIVATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"gelu": _gelu, "silu": _silu}
"""First and second derivative by name, in the order of the enumeration in csrc/kernels/activation.h.

GELU (arXiv 1606.08415) is the exact one, x times the normal distribution; SiLU (arXiv 1702.03118) is x times
its sigmoid.
"""


def activation_backward(dy: Tensor, x: Tensor, *, kind: str) -> Tensor:
    """Derivative of <dy, f(x)> by x.

    Args:
        dy: of the shape of x.
        x: any shape and strides; float32 or float64.
        kind: name of f in `ACTIVATIONS`.

    Returns:
        dy * f'(x), contiguous. Nothing is recorded for autograd, here and below.

    Raises:
        InputError: shapes, types or devices that disagree, or an unknown kind.
    """
    _check("activation_backward", "x", x, dy=dy)
    return call_without_autograd("activation_backward", x.device, dy, x, _number(kind))


def activation_second(of_x: Tensor, dy: Tensor, x: Tensor, *, kind: str) -> tuple[Tensor, Tensor]:
    """Derivatives of <of_x, dx> by dy and x, for dx of :func:`activation_backward`.

    Args:
        of_x: of the shape of x.
        dy, x, kind: as for :func:`activation_backward`.

    Returns:
        of_x * f'(x) and of_x * dy * f''(x), contiguous.

    Raises:
        InputError: shapes, types or devices that disagree, or an unknown kind.
    """
    _check("activation_second", "x", x, of_x=of_x, dy=dy)
    arguments = of_x, dy, x, _number(kind)
    return results_without_autograd("activation_second", x.device, *arguments)  # type: ignore[return-value]


def softmax_second(of_x: Tensor, dy: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of <of_x, dx> by dy and y, for dx = y * (dy - sum of dy * y), the derivative of softmax.

    Args:
        of_x, dy: of the shape of y.
        y: (..., entry), softmax along the last axis; any strides, float32 or float64.

    Returns:
        the derivatives by dy and by y, contiguous.

    Raises:
        InputError: shapes, types or devices that disagree, or y without an axis.
    """
    _check("softmax_second", "y", y, of_x=of_x, dy=dy)
    return results_without_autograd("softmax_second", y.device, of_x, dy, y)  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------------------
# Checks, plain PyTorch and fakes


def _number(kind: str) -> int:
    if kind not in ACTIVATIONS:
        raise InputError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {kind!r}")
    return list(ACTIVATIONS).index(kind)


def _derivatives(x: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    if not 0 <= kind < len(ACTIVATIONS):
        raise InputError(f"activation: expected a number below {len(ACTIVATIONS)}, got {kind}")
    return list(ACTIVATIONS.values())[kind](x)


def _check(op: str, name: str, like: Tensor, **tensors: Tensor) -> None:
    check_tensor(op, name, like)
    if name == "y" and like.ndim == 0:
        raise InputError(f"{op}: expected y of shape (..., entry), got {tuple(like.shape)}")
    for other, tensor in tensors.items():
        check_like(op, other, tensor, name, like, like.shape, f"it is of the shape of {name}")


def _plain_backward(dy: Tensor, x: Tensor, kind: int) -> Tensor:
    _check("activation_backward", "x", x, dy=dy)
    return (dy * _derivatives(x, kind)[0]).contiguous()


def _fake_backward(dy: Tensor, x: Tensor, kind: int) -> Tensor:
    _check("activation_backward", "x", x, dy=dy)
    return x.new_empty(x.shape)


def _plain_second(of_x: Tensor, dy: Tensor, x: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    _check("activation_second", "x", x, of_x=of_x, dy=dy)
    first, second = _derivatives(x, kind)
    return (of_x * first).contiguous(), (of_x * dy * second).contiguous()


def _fake_second(of_x: Tensor, dy: Tensor, x: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    _check("activation_second", "x", x, of_x=of_x, dy=dy)
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _plain_softmax(of_x: Tensor, dy: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    _check("softmax_second", "y", y, of_x=of_x, dy=dy)
    of_dy, of_slope = (dy * y).sum(-1, keepdim=True), (of_x * y).sum(-1, keepdim=True)
    by_y = of_x * (dy - of_dy) - dy * of_slope
    return (y * (of_x - of_slope)).contiguous(), by_y.contiguous()


def _fake_softmax(of_x: Tensor, dy: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    _check("softmax_second", "y", y, of_x=of_x, dy=dy)
    return y.new_empty(y.shape), y.new_empty(y.shape)


declare("activation_backward", "(Tensor dy, Tensor x, int kind) -> Tensor", _plain_backward, _fake_backward)
declare(
    "activation_second",
    "(Tensor of_x, Tensor dy, Tensor x, int kind) -> (Tensor, Tensor)",
    _plain_second,
    _fake_second,
)
declare(
    "softmax_second", "(Tensor of_x, Tensor dy, Tensor y) -> (Tensor, Tensor)", _plain_softmax, _fake_softmax
)
