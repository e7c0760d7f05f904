"""Distance between a gradient and an observed one, with its derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.native.backend import find_operator
from vleak.native.checks import check_choice, check_like, check_same_kind
from vleak.native.declare import declare, differentiable_once, set_derivative

__all__ = ["Kind", "gradient_match"]

Kind = Literal["cosine", "l2"]

_OP = "gradient_match"
_KINDS = ("cosine", "l2")

#: Entries that are summed at once: PyTorch first converts all of them to float64.
_CHUNK = 1 << 18


def gradient_match(
    gradients: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    masks: Sequence[Tensor] | None = None,
    kind: Kind = "cosine",
) -> tuple[Tensor, list[Tensor]]:
    """Distance between a gradient and an observed one over all parameter tensors, and its derivative.

    ``cosine`` is D = 1 - <g, t> / (|g| |t|) with sums over every entry of every tensor (Inverting Gradients,
    NeurIPS 2020, arXiv 2003.14053); where a norm is 0, D = 1 and the residuals are 0. ``l2`` is the sum of
    (g - t)^2 (Deep Leakage from Gradients, NeurIPS 2019, arXiv 1906.08935). Sums run in float64 and in a
    fixed order, so the native result does not depend on the number of threads.

    Args:
        gradients: g, one tensor per parameter, any shapes and strides; float32 or float64, all alike.
        targets: t, the observed update: constants, of the same shapes, dtype and device.
        masks: boolean tensors of the same shapes; only entries where a mask is True count, and the residual
            is 0 elsewhere. This is how an attacker matches the surviving entries of a pruned update.
        kind: ``"cosine"`` or ``"l2"``.

    Returns:
        The distance, a 0-d tensor that can be differentiated once with respect to ``gradients``, and the
        residuals r = dD/dg, one contiguous tensor per parameter. Differentiating through the residuals, or
        the distance a second time, raises :class:`~vleak.errors.CapabilityError`: detach residuals that
        are meant as constants.

    Raises:
        InputError: empty lists, lists of different lengths, tensors whose shape, dtype or device disagree
            (the message names the index), targets that require a gradient.
    """
    gradients, targets, masks = list(gradients), list(targets), list(masks or ())
    _check_lists(gradients, targets, masks, kind)
    distance, residuals = find_operator(_OP, gradients[0].device)(gradients, targets, masks, kind)
    return distance, [differentiable_once(_OP, g, r) for g, r in zip(gradients, residuals, strict=True)]


# ---------------------------------------------------------------------------------------------------------
# Checks


def _check_lists(gradients: list[Tensor], targets: list[Tensor], masks: list[Tensor], kind: str) -> None:
    _check_lengths(gradients, targets, masks, kind)
    first = gradients[0]
    for index, (gradient, target) in enumerate(zip(gradients, targets, strict=True)):
        check_same_kind(_OP, f"gradients[{index}]", gradient, "gradients[0]", first)
        advice = "gradients and targets must be in the same order"
        check_like(_OP, f"targets[{index}]", target, "gradients[0]", first, gradient.shape, advice)
        if target.requires_grad:
            raise InputError(f"{_OP}: targets are constants, but targets[{index}] requires grad; detach it")
    for index, (gradient, mask) in enumerate(zip(gradients, masks, strict=False)):
        _check_mask(f"masks[{index}]", mask, gradient)


def _check_lengths(gradients: list[Tensor], targets: list[Tensor], masks: list[Tensor], kind: str) -> None:
    check_choice(_OP, "kind", kind, _KINDS)
    if not gradients:
        raise InputError(f"{_OP}: expected at least one gradient, got an empty list; pass one a parameter")
    for name, tensors in (("targets", targets), ("masks", masks)):
        if len(tensors) != len(gradients) and (tensors or name == "targets"):
            raise InputError(f"{_OP}: expected {len(gradients)} {name}, one a gradient, got {len(tensors)}")


def _check_mask(name: str, mask: Tensor, gradient: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"{_OP}: expected {name} of dtype torch.bool, got {got}; convert it with mask != 0")
    if mask.shape != gradient.shape or mask.device != gradient.device:
        raise InputError(
            f"{_OP}: expected {name} of shape {tuple(gradient.shape)} on {gradient.device}, "
            f"got {tuple(mask.shape)} on {mask.device}; give one mask a gradient, in the same order"
        )


# ---------------------------------------------------------------------------------------------------------
# Plain PyTorch


def _plain(
    gradients: list[Tensor], targets: list[Tensor], masks: list[Tensor], kind: str
) -> tuple[Tensor, list[Tensor]]:
    """Operator ``gradient_match``, which is the partial one without a share of other gradients."""
    distance, residuals, _ = _plain_partial(gradients, targets, masks, 0.0, kind)
    return distance, residuals


def _plain_partial(
    gradients: list[Tensor], targets: list[Tensor], masks: list[Tensor], sums: Tensor | float, kind: str
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Operator ``gradient_match_partial``: distance, residuals and factors in the dtype of the gradients."""
    # A call without any tensor arrives here unchecked.
    _check_lengths(gradients, targets, masks, kind)
    gradients, targets = _masked(gradients, masks), _masked(targets, masks)
    distance, factors = _distance(_sums(gradients, targets, kind) + sums, kind)
    distance, factors = distance.to(gradients[0].dtype), factors.to(gradients[0].dtype)
    return distance, _residuals(gradients, targets, factors, kind), factors


def _masked(tensors: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
    if not masks:
        return tensors
    return [torch.where(mask, tensor, 0.0) for tensor, mask in zip(tensors, masks, strict=True)]


def _dot(left: list[Tensor], right: list[Tensor]) -> Tensor:
    sums = [
        torch.sum(a * b, dtype=torch.float64)
        for pair in zip(left, right, strict=True)
        for a, b in zip(*(torch.split(tensor.reshape(-1), _CHUNK) for tensor in pair), strict=True)
    ]
    return torch.stack(sums).sum()


def _sums(gradients: list[Tensor], targets: list[Tensor], kind: str) -> Tensor:
    """<g, t> (|g - t|^2 for l2), |g|^2 and |t|^2, as (3,) float64."""
    if kind == "cosine":
        pairs = ((gradients, targets), (gradients, gradients), (targets, targets))
        return torch.stack([_dot(left, right) for left, right in pairs])
    gaps = [g - t for g, t in zip(gradients, targets, strict=True)]
    square = _dot(gaps, gaps)
    return torch.stack([square, torch.zeros_like(square), torch.zeros_like(square)])


def _distance(sums: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The distance, and the factors a and b of residual = a g + b t."""
    if kind == "l2":
        return sums[0], torch.stack([torch.full_like(sums[0], 2.0), torch.full_like(sums[0], -2.0)])
    norm_g, norm_t = sums[1].sqrt(), sums[2].sqrt()
    product = norm_g * norm_t
    vanishes = product == 0
    cosine = torch.where(vanishes, 0.0, sums[0] / product)
    of_gradient = torch.where(vanishes, 0.0, cosine / norm_g / norm_g)
    of_target = torch.where(vanishes, 0.0, -1.0 / product)
    # Rounding can put the distance of parallel vectors slightly below zero.
    return (1.0 - cosine).clamp(min=0.0), torch.stack([of_gradient, of_target])


def _residuals(gradients: list[Tensor], targets: list[Tensor], factors: Tensor, kind: str) -> list[Tensor]:
    pairs = zip(gradients, targets, strict=True)
    if kind == "l2":  # rounds once, where the sum of two products would round three times
        return [(2.0 * (g - t)).contiguous() for g, t in pairs]
    return [(factors[0] * g).add_(factors[1] * t).contiguous() for g, t in pairs]


# ---------------------------------------------------------------------------------------------------------
# Fakes, derivative, declaration


def _fake(
    gradients: list[Tensor], targets: list[Tensor], masks: list[Tensor], kind: str
) -> tuple[Tensor, list[Tensor]]:
    _check_lists(gradients, targets, masks, kind)
    return gradients[0].new_empty(()), [g.new_empty(g.shape) for g in gradients]


def _fake_partial(
    gradients: list[Tensor], targets: list[Tensor], masks: list[Tensor], sums: Tensor, kind: str
) -> tuple[Tensor, list[Tensor], Tensor]:
    _check_lists(gradients, targets, masks, kind)
    if sums.dtype != torch.float64 or sums.shape != (3,) or sums.device != gradients[0].device:
        raise InputError(
            f"gradient_match_partial: expected sums to be 3 float64 numbers on {gradients[0].device}, "
            f"got {tuple(sums.shape)} of {sums.dtype} on {sums.device}"
        )
    return gradients[0].new_empty(()), [g.new_empty(g.shape) for g in gradients], gradients[0].new_empty(2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    gradients, residuals = inputs[0], output[1]
    ctx.mask_count = len(inputs[2])
    ctx.mark_non_differentiable(*residuals)
    ctx.save_for_backward(*gradients, *residuals)


def _backward(ctx: Any, grad_distance: Tensor, _: list[Tensor]) -> tuple[Any, ...]:
    count = len(ctx.saved_tensors) // 2
    pairs = zip(ctx.saved_tensors[:count], ctx.saved_tensors[count:], strict=True)
    derivatives = [differentiable_once(_OP, g, grad_distance * r) for g, r in pairs]
    return derivatives, [None] * count, [None] * ctx.mask_count, None


declare(
    _OP,
    "(Tensor[] gradients, Tensor[] targets, Tensor[] masks, str kind) -> (Tensor, Tensor[])",
    _plain,
    _fake,
)
set_derivative(_OP, _setup, _backward)

# Only graph passes call this operator. They do not compute the gradients of wide linear layers; the share of
# those comes as sums (float64: <g, t> or |g - t|^2, |g|^2, |t|^2), and their residual is
# factors[0] g + factors[1] t.
declare(
    "gradient_match_partial",
    "(Tensor[] gradients, Tensor[] targets, Tensor[] masks, Tensor sums, str kind) "
    "-> (Tensor, Tensor[], Tensor)",
    _plain_partial,
    _fake_partial,
)
