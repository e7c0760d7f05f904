"""Layer norm, its derivative and the derivative of that, as operators without autograd.

PyTorch differentiates layer norm twice in some thirty operators, each of which reads and writes whole
activations. These are one operator each, which reads every row from the nearest cache.
"""

from __future__ import annotations

from torch import Tensor

from vleak.errors import InputError
from vleak.native.backend import results_without_autograd
from vleak.native.checks import check_like, check_tensor
from vleak.native.declare import declare

__all__ = ["layer_norm", "layer_norm_backward", "layer_norm_second"]


def layer_norm(x: Tensor, *, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rows normalised by their own mean and deviation: y = weight * scale * (x - mean) + bias.

    Args:
        x: (..., *row), any strides; float32 or float64.
        weight, bias: of the shape of a row, not empty.
        eps: added to the variance.

    Returns:
        y of the shape of x, contiguous; mean and scale = 1 / sqrt(variance + eps), (rows,) each. Nothing is
        recorded for autograd, here and below.

    Raises:
        InputError: shapes, types or devices that disagree.
    """
    _check("layer_norm", x, weight, bias=bias)
    return results_without_autograd("layer_norm", x.device, x, weight, bias, eps)  # type: ignore[return-value]


def layer_norm_backward(
    dy: Tensor, x: Tensor, *, mean: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of <dy, y> by x, weight and bias, for y of :func:`layer_norm`.

    Args:
        dy: of the shape of x.
        x, mean, scale, weight: arguments and results of :func:`layer_norm`.

    Returns:
        dx of the shape of x; dweight and dbias of the shape of a row.

    Raises:
        InputError: shapes, types or devices that disagree.
    """
    _check("layer_norm_backward", x, weight, dy=dy, mean=mean, scale=scale)
    arguments = dy, x, mean, scale, weight
    return results_without_autograd("layer_norm_backward", x.device, *arguments)  # type: ignore[return-value]


def layer_norm_second(
    of_x: Tensor,
    of_weight: Tensor,
    of_bias: Tensor,
    dy: Tensor,
    x: Tensor,
    *,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of <of_x, dx> + <of_weight, dweight> + <of_bias, dbias> of :func:`layer_norm_backward`.

    Args:
        of_x: of the shape of x.
        of_weight, of_bias: of the shape of a row.
        dy, x, mean, scale, weight: as for :func:`layer_norm_backward`.

    Returns:
        the derivatives by dy and by x, of the shape of x, and by weight, of the shape of a row.

    Raises:
        InputError: shapes, types or devices that disagree.
    """
    _check_second(of_x, of_weight, of_bias, dy, x, mean, scale, weight)
    arguments = of_x, of_weight, of_bias, dy, x, mean, scale, weight
    return results_without_autograd("layer_norm_second", x.device, *arguments)  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------------------
# Checks

#: Arguments of the shape of x, and those of one number a row; all others are of the shape of a row.
_WHOLE, _ROWS = ("dy", "of_x"), ("mean", "scale")


def _check(op: str, x: Tensor, weight: Tensor, **tensors: Tensor) -> None:
    check_tensor(op, "x", x)
    row = x.shape[x.ndim - weight.ndim :]
    check_like(op, "weight", weight, "x", x, row, "it is of the shape of a row")
    if weight.ndim < 1 or weight.numel() == 0:
        raise InputError(
            f"{op}: expected a weight of the last axes of x, not empty, got {tuple(weight.shape)}"
        )
    for name, tensor in tensors.items():
        if name in _WHOLE:
            check_like(op, name, tensor, "x", x, x.shape, "it is of the shape of x")
        elif name in _ROWS:
            rows = (x.numel() // weight.numel(),)
            check_like(op, name, tensor, "x", x, rows, "it holds one number a row")
        else:
            check_like(op, name, tensor, "x", x, row, "it is of the shape of a row")


def _check_second(
    of_x: Tensor, of_weight: Tensor, of_bias: Tensor, dy: Tensor, x: Tensor, *constants: Tensor
) -> None:
    mean, scale, weight = constants
    rows = {"of_weight": of_weight, "of_bias": of_bias}
    _check("layer_norm_second", x, weight, of_x=of_x, dy=dy, mean=mean, scale=scale, **rows)


# ---------------------------------------------------------------------------------------------------------
# Plain PyTorch and fakes


def _flat(tensor: Tensor, weight: Tensor) -> Tensor:
    return tensor.reshape(-1, weight.numel())


def _normalised(x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    return (_flat(x, weight) - mean[:, None]) * scale[:, None]


def _plain_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    _check("layer_norm", x, weight, bias=bias)
    rows = _flat(x, weight)
    mean = rows.mean(1)
    scale = ((rows - mean[:, None]).square().mean(1) + eps).rsqrt()
    y = _normalised(x, mean, scale, weight) * weight.flatten() + bias.flatten()
    return y.reshape(x.shape), mean, scale


def _fake_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    _check("layer_norm", x, weight, bias=bias)
    rows = x.numel() // weight.numel()
    return x.new_empty(x.shape), x.new_empty(rows), x.new_empty(rows)


def _centred(rows: Tensor, normalised: Tensor) -> Tensor:
    """Return rows without their means and their parts along the normalised rows."""
    return rows - rows.mean(1, keepdim=True) - normalised * (rows * normalised).mean(1, keepdim=True)


def _plain_backward(
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _check("layer_norm_backward", x, weight, dy=dy, mean=mean, scale=scale)
    normalised, rows = _normalised(x, mean, scale, weight), _flat(dy, weight)
    dx = scale[:, None] * _centred(rows * weight.flatten(), normalised)
    dweight, dbias = (rows * normalised).sum(0), rows.sum(0)
    return dx.reshape(x.shape), dweight.reshape(weight.shape), dbias.reshape(weight.shape)


def _fake_backward(
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _check("layer_norm_backward", x, weight, dy=dy, mean=mean, scale=scale)
    return x.new_empty(x.shape), x.new_empty(weight.shape), x.new_empty(weight.shape)


def _plain_second(
    of_x: Tensor, of_weight: Tensor, of_bias: Tensor, dy: Tensor, x: Tensor, *constants: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    mean, scale, weight = constants
    _check_second(of_x, of_weight, of_bias, dy, x, *constants)
    normalised, factor = _normalised(x, mean, scale, weight), scale[:, None]
    rows, slopes = _flat(dy, weight), _flat(of_x, weight)
    weighted, pulled = rows * weight.flatten(), rows * of_weight.flatten()
    centred = factor * _centred(slopes, normalised)
    by_dy = weight.flatten() * centred + of_weight.flatten() * normalised + of_bias.flatten()
    along_dy, along_x = ((t * normalised).mean(1, keepdim=True) for t in (weighted, slopes))
    by_normalised = pulled - factor * (along_x * weighted + along_dy * slopes)
    # The scale depends on x as well: its derivative is -scale^2 / entries times the normalised row.
    spread = (weighted * centred).mean(1, keepdim=True)
    by_x = factor * (_centred(by_normalised, normalised) - normalised * spread)
    by_weight = (rows * centred).sum(0)
    return by_dy.reshape(x.shape), by_x.reshape(x.shape), by_weight.reshape(weight.shape)


def _fake_second(
    of_x: Tensor, of_weight: Tensor, of_bias: Tensor, dy: Tensor, x: Tensor, *constants: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _check_second(of_x, of_weight, of_bias, dy, x, *constants)
    weight = constants[-1]
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(weight.shape)


_THREE = "(Tensor, Tensor, Tensor)"
_NUMBERS = "Tensor mean, Tensor scale, Tensor weight"
declare(
    "layer_norm", f"(Tensor x, Tensor weight, Tensor bias, float eps) -> {_THREE}", _plain_norm, _fake_norm
)
declare(
    "layer_norm_backward", f"(Tensor dy, Tensor x, {_NUMBERS}) -> {_THREE}", _plain_backward, _fake_backward
)
declare(
    "layer_norm_second",
    f"(Tensor of_x, Tensor of_weight, Tensor of_bias, Tensor dy, Tensor x, {_NUMBERS}) -> {_THREE}",
    _plain_second,
    _fake_second,
)
