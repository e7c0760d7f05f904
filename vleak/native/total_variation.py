"""Total variation of clips over space and time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vleak.native.backend import find_operator
from vleak.native.checks import check_clip, check_number
from vleak.native.declare import declare, differentiable_once, set_derivative

__all__ = ["total_variation", "variation_terms"]


def total_variation(
    x: Tensor,
    *,
    spatial: float = 1.0,
    temporal: float = 1.0,
    isotropic: bool = False,
    smoothing: float = 0.0,
) -> Tensor:
    """Total variation of each clip over space and over time, as means rather than sums.

    Weights therefore mean the same for every clip size. Per clip, with d the difference of neighbours:

    - space: mean of f(d) over all horizontal pairs + mean of f(d) over all vertical pairs;
      isotropic: mean over all pixels of sqrt(dh^2 + dw^2 + smoothing^2) - smoothing, with forward
      differences that are 0 at the far border;
    - time: mean of f(d) over all pairs of successive frames;

    where f(d) = |d| for ``smoothing`` 0 (its derivative taken as 0 at 0) and sqrt(d^2 + smoothing^2) -
    smoothing otherwise. An axis of length 1 contributes nothing. (Rudin, Osher, Fatemi: Physica D 1992; as an
    image prior of gradient inversion: arXiv 2003.14053.)

    Args:
        x: (clip, channel, frame, height, width), float32 or float64, any strides; may hold no clip at all.
        spatial: weight of the two spatial axes, >= 0.
        temporal: weight of the time axis, >= 0.
        isotropic: couple the spatial axes as above.
        smoothing: >= 0, in units of pixel values.

    Returns:
        (clip,) values, the sum of the weighted spatial and temporal terms; can be differentiated once.

    Raises:
        InputError: x is not five-dimensional or of another dtype; a weight is negative or not finite.
    """
    check_clip("tv", "x", x)
    for name, number in {"spatial": spatial, "temporal": temporal, "smoothing": smoothing}.items():
        check_number("tv", name, number, 0.0)
    operator = find_operator("total_variation", x.device)
    value: Tensor = operator(x, spatial, temporal, isotropic, smoothing)[0]
    return value


def variation_terms(
    x: Tensor, spatial: float, temporal: float, isotropic: bool, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Values in float64 and gradient in the dtype of x, in plain PyTorch."""
    value = x.new_zeros(x.shape[0], dtype=torch.float64)
    gradient = x.new_zeros(x.shape)
    if isotropic and spatial and x.numel():
        _add_isotropic(x, spatial, smoothing, value, gradient)
    axes = [(2, temporal)] if isotropic else [(2, temporal), (3, spatial), (4, spatial)]
    for axis, weight in axes:
        if weight and x.numel() and x.shape[axis] > 1:
            _add_axis(x, axis, weight, smoothing, value, gradient)
    return value, gradient


def _add_axis(x: Tensor, axis: int, weight: float, eps: float, value: Tensor, gradient: Tensor) -> None:
    """Add the term of one axis to value and gradient, in place."""
    step = x.diff(dim=axis)
    root = (step * step + eps * eps).sqrt() if eps else step.abs()
    # d^2 / (root + eps) equals root - eps without the cancellation.
    penalty = step * step / (root + eps) if eps else root
    slope = torch.where(root == 0, 0.0, step / root) if eps else step.sign()
    weight /= step[0].numel()
    value += weight * penalty.sum((1, 2, 3, 4), dtype=torch.float64)
    pairs = step.shape[axis]
    gradient.narrow(axis, 1, pairs).add_(slope, alpha=weight)
    gradient.narrow(axis, 0, pairs).sub_(slope, alpha=weight)


def _add_isotropic(x: Tensor, weight: float, eps: float, value: Tensor, gradient: Tensor) -> None:
    """Add the isotropic spatial term to value and gradient, in place."""
    down, right = torch.zeros_like(x), torch.zeros_like(x)
    down[..., :-1, :], right[..., :-1] = x.diff(dim=3), x.diff(dim=4)
    square = down * down + right * right
    root = (square + eps * eps).sqrt()
    penalty = square / (root + eps) if eps else root
    inverse = torch.where(root == 0, 0.0, 1.0 / root)
    weight /= x[0].numel()
    value += weight * penalty.sum((1, 2, 3, 4), dtype=torch.float64)
    down, right = down * inverse, right * inverse
    gradient.sub_(down + right, alpha=weight)
    gradient[..., 1:, :].add_(down[..., :-1, :], alpha=weight)
    gradient[..., 1:].add_(right[..., :-1], alpha=weight)


def _plain(
    x: Tensor, spatial: float, temporal: float, isotropic: bool, smoothing: float
) -> tuple[Tensor, Tensor]:
    value, gradient = variation_terms(x, spatial, temporal, isotropic, smoothing)
    return value.to(x.dtype, copy=True), gradient


def _fake(
    x: Tensor, spatial: float, temporal: float, isotropic: bool, smoothing: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0]), x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])


def _backward(ctx: Any, grad_value: Tensor, _: Tensor) -> tuple[Any, ...]:
    x, gradient = ctx.saved_tensors
    scaled = grad_value.view(-1, 1, 1, 1, 1) * gradient
    return differentiable_once("tv", x, scaled), None, None, None, None


declare(
    "total_variation",
    "(Tensor x, float spatial, float temporal, bool isotropic, float smoothing) -> (Tensor, Tensor)",
    _plain,
    _fake,
)
set_derivative("total_variation", _setup, _backward)
