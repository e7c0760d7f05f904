"""Batch norm, its derivative and the derivative of that, as operators without autograd.

PyTorch differentiates batch norm twice in fifty to a hundred operators, each of which reads and writes whole
activations. These are one operator each, which reads every activation twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.native.backend import call_without_autograd, results_without_autograd
from vleak.native.checks import check_like, check_tensor
from vleak.native.declare import declare

__all__ = ["batch_norm", "batch_norm_backward", "batch_norm_second", "batch_statistics"]


def batch_statistics(x: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Mean of every channel, and 1 / sqrt(variance + eps).

    Args:
        x: (clip, channel, ...), any strides, not empty; float32 or float64.
        eps: added to the variance, that of all entries and not of one fewer.

    Returns:
        (mean, scale), (channel,) each. Nothing is recorded for autograd, here and below.

    Raises:
        InputError: another type, no channels or no entries.
    """
    _check_statistics(x)
    return results_without_autograd("batch_statistics", x.device, x, eps)  # type: ignore[return-value]


def batch_norm(x: Tensor, *, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Channels normalised: y = weight * scale * (x - mean) + bias.

    Args:
        x: (clip, channel, ...), any strides; float32 or float64.
        mean, scale, weight, bias: (channel,) each.

    Returns:
        y of the shape of x, contiguous.

    Raises:
        InputError: shapes, types or devices that disagree.
    """
    _check("batch_norm", x, mean=mean, scale=scale, weight=weight, bias=bias)
    return call_without_autograd("batch_norm", x.device, x, mean, scale, weight, bias)


def batch_norm_backward(
    dy: Tensor, x: Tensor, *, mean: Tensor, scale: Tensor, weight: Tensor, train: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of <dy, y> by x, weight and bias, for y of :func:`batch_norm`.

    Args:
        dy: of the shape of x.
        x, mean, scale, weight: as for :func:`batch_norm`.
        train: whether mean and scale are those of x, see :func:`batch_statistics`, and depend on it; they
            are constants otherwise.

    Returns:
        dx of the shape of x; dweight and dbias, (channel,) each.

    Raises:
        InputError: shapes, types or devices that disagree.
    """
    _check("batch_norm_backward", x, dy=dy, mean=mean, scale=scale, weight=weight)
    arguments = dy, x, mean, scale, weight, train
    return results_without_autograd("batch_norm_backward", x.device, *arguments)  # type: ignore[return-value]


def batch_norm_second(
    of_x: Tensor,
    of_weight: Tensor,
    of_bias: Tensor,
    dy: Tensor,
    x: Tensor,
    *,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor,
    train: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of <of_x, dx> + <of_weight, dweight> + <of_bias, dbias> of :func:`batch_norm_backward`.

    Args:
        of_x: of the shape of x.
        of_weight, of_bias: (channel,) each.
        dy, x, mean, scale, weight, train: as for :func:`batch_norm_backward`.

    Returns:
        the derivatives by dy and by x, of the shape of x, and by weight, (channel,).

    Raises:
        InputError: shapes, types or devices that disagree.
    """
    numbers = {"mean": mean, "scale": scale, "weight": weight, "of_weight": of_weight, "of_bias": of_bias}
    _check("batch_norm_second", x, of_x=of_x, dy=dy, **numbers)
    arguments = of_x, of_weight, of_bias, dy, x, mean, scale, weight, train
    return results_without_autograd("batch_norm_second", x.device, *arguments)  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------------------
# Checks

#: Arguments of the shape of x; all others are a number a channel.
_WHOLE = ("dy", "of_x")


def _check(op: str, x: Tensor, **tensors: Tensor) -> None:
    check_tensor(op, "x", x)
    if x.ndim < 2 or x.shape[1] < 1:
        raise InputError(f"{op}: expected x of shape (clip, channel, ...), got {tuple(x.shape)}")
    for name, tensor in tensors.items():
        if name in _WHOLE:
            check_like(op, name, tensor, "x", x, x.shape, "it is of the shape of x")
        else:
            check_like(op, name, tensor, "x", x, x.shape[1:2], "it holds one number a channel")


def _check_statistics(x: Tensor) -> None:
    _check("batch_statistics", x)
    if x.numel() == 0:
        raise InputError(f"batch_statistics: expected entries in every channel, got x of {tuple(x.shape)}")


# ---------------------------------------------------------------------------------------------------------
# Plain PyTorch and fakes


def _axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _spread(numbers: Tensor, x: Tensor) -> Tensor:
    return numbers.view(1, -1, *[1] * (x.ndim - 2))


def _normalised(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (x - _spread(mean, x)) * _spread(scale, x)


def _plain_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _check_statistics(x)
    variance, mean = torch.var_mean(x, _axes(x), correction=0)
    return mean, (variance + eps).rsqrt()


def _fake_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _check_statistics(x)
    return x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _plain_norm(x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (_normalised(x, mean, scale) * _spread(weight, x) + _spread(bias, x)).contiguous()


def _fake_norm(x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    _check("batch_norm", x, mean=mean, scale=scale, weight=weight, bias=bias)
    return x.new_empty(x.shape)


def _centred(tensor: Tensor, normalised: Tensor) -> Tensor:
    """Return a tensor without its mean and its part along normalised x, channel by channel."""
    axes = _axes(tensor)
    along = (tensor * normalised).mean(axes, keepdim=True)
    return tensor - tensor.mean(axes, keepdim=True) - normalised * along


def _plain_backward(
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, train: bool
) -> tuple[Tensor, Tensor, Tensor]:
    axes, normalised = _axes(x), _normalised(x, mean, scale)
    dx = _spread(scale * weight, x) * (_centred(dy, normalised) if train else dy)
    return dx.contiguous(), (dy * normalised).sum(axes), dy.sum(axes)


def _fake_backward(
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, train: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check("batch_norm_backward", x, dy=dy, mean=mean, scale=scale, weight=weight)
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(weight)


def _plain_second(
    of_x: Tensor, of_weight: Tensor, of_bias: Tensor, dy: Tensor, x: Tensor, *constants: Any
) -> tuple[Tensor, Tensor, Tensor]:
    mean, scale, weight, train = constants
    axes, normalised = _axes(x), _normalised(x, mean, scale)
    factor, slope = _spread(scale * weight, x), _spread(of_weight, x)
    centred = _centred(of_x, normalised) if train else of_x
    by_dy = factor * centred + slope * normalised + _spread(of_bias, x)
    by_weight = scale * (dy * centred).sum(axes)
    if not train:
        by_x = slope * _spread(scale, x) * dy
        return by_dy.contiguous(), by_x.contiguous(), by_weight
    along_dy, along_x = ((t * normalised).mean(axes, keepdim=True) for t in (dy, of_x))
    dy_centred = _centred(dy, normalised)
    # The scale depends on x as well: its derivative is -scale^2 / count times normalised x.
    turned = along_x * dy_centred + along_dy * centred + normalised * (dy * centred).mean(axes, keepdim=True)
    by_x = _spread(scale, x) * (slope * dy_centred - factor * turned)
    return by_dy.contiguous(), by_x.contiguous(), by_weight


def _fake_second(
    of_x: Tensor, of_weight: Tensor, of_bias: Tensor, dy: Tensor, x: Tensor, *constants: Any
) -> tuple[Tensor, Tensor, Tensor]:
    mean, scale, weight, _ = constants
    numbers = {"mean": mean, "scale": scale, "weight": weight, "of_weight": of_weight, "of_bias": of_bias}
    _check("batch_norm_second", x, of_x=of_x, dy=dy, **numbers)
    return x.new_empty(x.shape), x.new_empty(x.shape), torch.empty_like(weight)


_NUMBERS = "Tensor mean, Tensor scale, Tensor weight"
declare("batch_statistics", "(Tensor x, float eps) -> (Tensor, Tensor)", _plain_statistics, _fake_statistics)
declare("batch_norm", f"(Tensor x, {_NUMBERS}, Tensor bias) -> Tensor", _plain_norm, _fake_norm)
declare(
    "batch_norm_backward",
    f"(Tensor dy, Tensor x, {_NUMBERS}, bool train) -> (Tensor, Tensor, Tensor)",
    _plain_backward,
    _fake_backward,
)
declare(
    "batch_norm_second",
    "(Tensor of_x, Tensor of_weight, Tensor of_bias, Tensor dy, Tensor x, "
    f"{_NUMBERS}, bool train) -> (Tensor, Tensor, Tensor)",
    _plain_second,
    _fake_second,
)
