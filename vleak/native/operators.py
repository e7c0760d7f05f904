"""The passes an attack spends its time in, as PyTorch operators with a plain and a native implementation.

Each operator is declared here once: schema, plain-PyTorch kernel, fake kernel, derivative. The native
extension only adds a faster kernel for a device, so every operator exists on every machine. The public
functions check their arguments before any kernel sees them: all implementations refuse alike.

The same declarations are made a second time in the namespace ``vleak_reference``, to which native code
never adds anything; :func:`use_reference` switches the calls of a block over to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor

from vleak.errors import CapabilityError, InputError
from vleak.native import loader

__all__ = [
    "backend",
    "descend",
    "descend_with",
    "gradient_match",
    "step_settings",
    "total_variation",
    "use_reference",
]

Kind = Literal["cosine", "l2"]
Rule = Literal["adam", "sign", "sign_adam"]

_CLIP_AXES = "(clip, channel, frame, height, width)"
_DTYPES = (torch.float32, torch.float64)
_KINDS = ("cosine", "l2")
_RULES = ("adam", "sign", "sign_adam")
_NATIVE, _REFERENCE = "vleak", "vleak_reference"

_reference_only: ContextVar[bool] = ContextVar("vleak_reference_only", default=False)


# ---------------------------------------------------------------------------------------------------------
# Which implementation runs


@contextmanager
def use_reference() -> Iterator[None]:
    """Run the operators of this block in plain PyTorch, whatever is installed.

    Holds for the current thread (or asyncio task) only; blocks may be nested. Used by the reference engine
    and by tests as the oracle for native code.
    """
    token = _reference_only.set(True)
    try:
        yield
    finally:
        _reference_only.reset(token)


def backend(device: str | torch.device = "cpu") -> Literal["native", "torch"]:
    """Say which implementation the next call on ``device`` will run.

    Looks for the native extension if nobody has yet, which may compile it (see
    :mod:`vleak.native.loader`); inside :func:`use_reference` the answer is ``"torch"``.
    """
    if _reference_only.get():
        return "torch"
    return "native" if loader.ensure_loaded(torch.device(device).type) else "torch"


def _operator(name: str, device: torch.device) -> Callable[..., Any]:
    namespace = _REFERENCE if _reference_only.get() else _NATIVE
    if namespace == _NATIVE:
        loader.ensure_loaded(device.type)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, namespace), name).default
    return operator


# ---------------------------------------------------------------------------------------------------------
# Declaring an operator


def _declare(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    for namespace in (_NATIVE, _REFERENCE):
        qualified = f"{namespace}::{name}"
        torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(qualified, "CompositeExplicitAutograd", kernel)
        torch.library.register_fake(qualified, fake)


def _differentiate(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    for namespace in (_NATIVE, _REFERENCE):
        torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=setup)


class _Once(torch.autograd.Function):
    """Pass a tensor on; refuse to be differentiated.

    A derivative that a kernel computed is a constant to autograd. Without this guard, differentiating it
    again would silently drop terms.
    """

    @staticmethod
    def forward(ctx: Any, operator: str, depends_on: Tensor, value: Tensor) -> Tensor:
        ctx.operator = operator
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise CapabilityError(
            f"{ctx.operator}: it can be differentiated once; for second derivatives write the formula in "
            "plain PyTorch, or detach what should be a constant"
        )


def _guard(operator: str, depends_on: Tensor, value: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and depends_on.requires_grad):
        return value
    guarded: Tensor = _Once.apply(operator, depends_on, value)  # type: ignore[no-untyped-call]
    return guarded


# ---------------------------------------------------------------------------------------------------------
# Checks: one wording for every backend


def _check_dtype(op: str, name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(f"{op}: expected {name} to be a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise InputError(
            f"{op}: expected {name} to be dense, got layout {tensor.layout}; use {name}.to_dense()"
        )
    if tensor.dtype not in _DTYPES:
        raise InputError(
            f"{op}: expected {name} of dtype torch.float32 or torch.float64, got {tensor.dtype}; "
            f"convert it with {name}.float()"
        )


def _check_clip(op: str, name: str, tensor: Tensor) -> None:
    _check_dtype(op, name, tensor)
    if tensor.ndim != 5:
        remedy = f"add the clip axis with {name}[None]" if tensor.ndim == 4 else "pass a batch of clips"
        raise InputError(f"{op}: expected {name} of shape {_CLIP_AXES}, got {tuple(tensor.shape)}; {remedy}.")


def _check_same_kind(op: str, name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    _check_dtype(op, name, tensor)
    if tensor.dtype != first.dtype:
        raise InputError(
            f"{op}: expected {name} of dtype {first.dtype} like {first_name}, got {tensor.dtype}; "
            f"convert it with {name}.to({first_name}.dtype)"
        )
    if tensor.device != first.device:
        raise InputError(
            f"{op}: expected {name} on {first.device} like {first_name}, got {tensor.device}; "
            f"move it with {name}.to({first_name}.device)"
        )


def _check_like(
    op: str, name: str, tensor: Tensor, first_name: str, first: Tensor, shape: Sequence[int], advice: str
) -> None:
    _check_same_kind(op, name, tensor, first_name, first)
    if tuple(tensor.shape) != tuple(shape):
        raise InputError(
            f"{op}: expected {name} of shape {tuple(shape)}, got {tuple(tensor.shape)}; {advice}"
        )


def _check_number(op: str, name: str, value: float, low: float, high: float = math.inf) -> None:
    if not (math.isfinite(value) and low <= value < high):
        limits = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g})"
        raise InputError(f"{op}: expected {name} to be a finite number {limits}, got {value}")


def _check_choice(op: str, name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{op}: expected {name} to be one of {', '.join(known)}, got {value!r}")


def _check_tv(op: str, spatial: float, temporal: float, smoothing: float) -> None:
    _check_number(op, "spatial", spatial, 0.0)
    _check_number(op, "temporal", temporal, 0.0)
    _check_number(op, "smoothing", smoothing, 0.0)


# ---------------------------------------------------------------------------------------------------------
# gradient_match


def gradient_match(
    gradients: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    masks: Sequence[Tensor] | None = None,
    kind: Kind = "cosine",
) -> tuple[Tensor, list[Tensor]]:
    """Compare a gradient with an observed one over all parameter tensors, and give the derivative with it.

    ``cosine`` is D = 1 - <g, t> / (|g| |t|) with sums over every entry of every tensor (Inverting Gradients,
    NeurIPS 2020, arXiv 2003.14053); where a norm is 0, D = 1 and the residuals are 0. ``l2`` is the sum of
    (g - t)^2 (Deep Leakage from Gradients, NeurIPS 2019, arXiv 1906.08935). Sums run in float64 and in a
    fixed order, so the native result does not depend on the number of threads.

    Args:
        gradients: g, one tensor a parameter, any shapes and strides; float32 or float64, all alike.
        targets: t, the observed update: constants, of the same shapes, dtype and device.
        masks: boolean tensors of the same shapes; only entries where a mask is True count, and the residual
            is 0 elsewhere. This is how an attacker matches the surviving entries of a pruned update.
        kind: ``"cosine"`` or ``"l2"``.

    Returns:
        The distance, a 0-d tensor that can be differentiated once with respect to ``gradients``, and the
        residuals r = dD/dg, one contiguous tensor a parameter. Differentiating through the residuals, or
        the distance a second time, raises :class:`~vleak.errors.CapabilityError`: detach residuals that
        are meant as constants.

    Raises:
        InputError: empty lists, lists of different lengths, tensors whose shape, dtype or device disagree
            (the message names the index), targets that require a gradient.
    """
    gradients, targets, masks = list(gradients), list(targets), list(masks or ())
    _check_lists(gradients, targets, masks, kind)
    distance, residuals = _operator("gradient_match", gradients[0].device)(gradients, targets, masks, kind)
    guarded = [_guard("gradient_match", g, r) for g, r in zip(gradients, residuals, strict=True)]
    return distance, guarded


def _check_lists(gradients: list[Tensor], targets: list[Tensor], masks: list[Tensor], kind: str) -> None:
    op = "gradient_match"
    _check_lengths(gradients, targets, masks, kind)
    first = gradients[0]
    for index, (gradient, target) in enumerate(zip(gradients, targets, strict=True)):
        _check_same_kind(op, f"gradients[{index}]", gradient, "gradients[0]", first)
        advice = "gradients and targets must be in the same order"
        _check_like(op, f"targets[{index}]", target, "gradients[0]", first, gradient.shape, advice)
        if target.requires_grad:
            raise InputError(f"{op}: targets are constants, but targets[{index}] requires grad; detach it")
    for index, (gradient, mask) in enumerate(zip(gradients, masks, strict=False)):
        _check_mask(op, f"masks[{index}]", mask, gradient)


def _check_lengths(gradients: list[Tensor], targets: list[Tensor], masks: list[Tensor], kind: str) -> None:
    op = "gradient_match"
    _check_choice(op, "kind", kind, _KINDS)
    if not gradients:
        raise InputError(f"{op}: expected at least one gradient, got an empty list; pass one a parameter")
    for name, tensors in (("targets", targets), ("masks", masks)):
        if len(tensors) != len(gradients) and (tensors or name == "targets"):
            raise InputError(f"{op}: expected {len(gradients)} {name}, one a gradient, got {len(tensors)}")


def _check_mask(op: str, name: str, mask: Tensor, gradient: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"{op}: expected {name} of dtype torch.bool, got {given}; convert it with mask != 0")
    if mask.shape != gradient.shape or mask.device != gradient.device:
        raise InputError(
            f"{op}: expected {name} of shape {tuple(gradient.shape)} on {gradient.device}, "
            f"got {tuple(mask.shape)} on {mask.device}; give one mask a gradient, in the same order"
        )


def _match_kernel(
    gradients: list[Tensor], targets: list[Tensor], masks: list[Tensor], kind: str
) -> tuple[Tensor, list[Tensor]]:
    # A call without any tensor comes here, past the checks.
    _check_lengths(gradients, targets, masks, kind)
    if masks:
        gradients = [torch.where(mask, g, 0.0) for g, mask in zip(gradients, masks, strict=True)]
        targets = [torch.where(mask, t, 0.0) for t, mask in zip(targets, masks, strict=True)]
    sums = _match_sums(gradients, targets, kind)
    distance, factors = _match_result(sums, kind)
    distance, factors = distance.to(gradients[0].dtype), factors.to(gradients[0].dtype)
    return distance, _residuals(gradients, targets, factors, kind)


#: Entries that are summed up at once: PyTorch makes float64 of all of them first.
_AT_ONCE = 1 << 18


def _dot(left: list[Tensor], right: list[Tensor]) -> Tensor:
    sums = [
        torch.sum(a * b, dtype=torch.float64)
        for pair in zip(left, right, strict=True)
        for a, b in zip(*(torch.split(tensor.reshape(-1), _AT_ONCE) for tensor in pair), strict=True)
    ]
    return torch.stack(sums).sum()


def _match_sums(gradients: list[Tensor], targets: list[Tensor], kind: str) -> Tensor:
    """Return <g, t> (|g - t|^2 for l2), |g|^2 and |t|^2."""
    if kind == "cosine":
        pairs = ((gradients, targets), (gradients, gradients), (targets, targets))
        return torch.stack([_dot(left, right) for left, right in pairs])
    gaps = [g - t for g, t in zip(gradients, targets, strict=True)]
    square = _dot(gaps, gaps)
    return torch.stack([square, torch.zeros_like(square), torch.zeros_like(square)])


def _match_result(sums: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return the distance, and a and b of residual = a g + b t."""
    if kind == "l2":
        return sums[0], torch.stack([torch.full_like(sums[0], 2.0), torch.full_like(sums[0], -2.0)])
    norm_g, norm_t = sums[1].sqrt(), sums[2].sqrt()
    product = norm_g * norm_t
    vanishes = product == 0
    cosine = torch.where(vanishes, 0.0, sums[0] / product)
    of_gradient = torch.where(vanishes, 0.0, cosine / norm_g / norm_g)
    of_target = torch.where(vanishes, 0.0, -1.0 / product)
    # Rounding can put the distance of parallel vectors a hair below zero.
    return (1.0 - cosine).clamp(min=0.0), torch.stack([of_gradient, of_target])


def _residuals(gradients: list[Tensor], targets: list[Tensor], factors: Tensor, kind: str) -> list[Tensor]:
    pairs = zip(gradients, targets, strict=True)
    if kind == "l2":  # rounds once where the sum of two products would round three times
        return [(2.0 * (g - t)).contiguous() for g, t in pairs]
    return [(factors[0] * g).add_(factors[1] * t).contiguous() for g, t in pairs]


def _match_fake(
    gradients: list[Tensor], targets: list[Tensor], masks: list[Tensor], kind: str
) -> tuple[Tensor, list[Tensor]]:
    # PyTorch comes here as soon as one tensor is on "meta", wherever the others are.
    _check_lists(gradients, targets, masks, kind)
    return gradients[0].new_empty(()), [g.new_empty(g.shape) for g in gradients]


def _match_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    gradients, residuals = inputs[0], output[1]
    ctx.mask_count = len(inputs[2])
    ctx.mark_non_differentiable(*residuals)
    ctx.save_for_backward(*gradients, *residuals)


def _match_backward(ctx: Any, grad_distance: Tensor, _: list[Tensor]) -> tuple[Any, ...]:
    half = len(ctx.saved_tensors) // 2
    gradients, residuals = ctx.saved_tensors[:half], ctx.saved_tensors[half:]
    pairs = zip(gradients, residuals, strict=True)
    derivatives = [_guard("gradient_match", g, grad_distance * r) for g, r in pairs]
    return derivatives, [None] * half, [None] * ctx.mask_count, None


_declare(
    "gradient_match",
    "(Tensor[] gradients, Tensor[] targets, Tensor[] masks, str kind) -> (Tensor, Tensor[])",
    _match_kernel,
    _match_fake,
)
_differentiate("gradient_match", _match_setup, _match_backward)


def _match_partial_kernel(
    gradients: list[Tensor], targets: list[Tensor], masks: list[Tensor], sums: Tensor, kind: str
) -> tuple[Tensor, list[Tensor], Tensor]:
    # A call without any tensor comes here, past the checks.
    _check_lengths(gradients, targets, masks, kind)
    if masks:
        gradients = [torch.where(mask, g, 0.0) for g, mask in zip(gradients, masks, strict=True)]
        targets = [torch.where(mask, t, 0.0) for t, mask in zip(targets, masks, strict=True)]
    distance, factors = _match_result(_match_sums(gradients, targets, kind) + sums, kind)
    distance, factors = distance.to(gradients[0].dtype), factors.to(gradients[0].dtype)
    return distance, _residuals(gradients, targets, factors, kind), factors


def _match_partial_fake(
    gradients: list[Tensor], targets: list[Tensor], masks: list[Tensor], sums: Tensor, kind: str
) -> tuple[Tensor, list[Tensor], Tensor]:
    _check_lists(gradients, targets, masks, kind)
    if sums.dtype != torch.float64 or sums.shape != (3,) or sums.device != gradients[0].device:
        raise InputError(
            f"gradient_match_partial: expected sums to be 3 float64 numbers on {gradients[0].device}, "
            f"got {tuple(sums.shape)} of {sums.dtype} on {sums.device}"
        )
    return gradients[0].new_empty(()), [g.new_empty(g.shape) for g in gradients], gradients[0].new_empty(2)


# Graph passes alone call this one: the gradients of wide linear layers are never made, so their share comes
# as sums (float64: <g, t> or |g - t|^2, |g|^2, |t|^2), and their residual is factors[0] g + factors[1] t.
_declare(
    "gradient_match_partial",
    "(Tensor[] gradients, Tensor[] targets, Tensor[] masks, Tensor sums, str kind) "
    "-> (Tensor, Tensor[], Tensor)",
    _match_partial_kernel,
    _match_partial_fake,
)


# ---------------------------------------------------------------------------------------------------------
# total_variation


def total_variation(
    x: Tensor,
    *,
    spatial: float = 1.0,
    temporal: float = 1.0,
    isotropic: bool = False,
    smoothing: float = 0.0,
) -> Tensor:
    """Total variation of each clip over space and over time, by means rather than sums.

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
        (clip,) values, spatial and temporal terms weighted and added; can be differentiated once.

    Raises:
        InputError: x is not five-dimensional or of another dtype; a weight is negative or not finite.
    """
    _check_clip("tv", "x", x)
    _check_tv("tv", spatial, temporal, smoothing)
    operator = _operator("total_variation", x.device)
    value: Tensor = operator(x, spatial, temporal, isotropic, smoothing)[0]
    return value


def _tv_terms(
    x: Tensor, spatial: float, temporal: float, isotropic: bool, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the values in float64 and the gradient in x's dtype."""
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
    step = x.diff(dim=axis)
    root = (step * step + eps * eps).sqrt() if eps else step.abs()
    # d^2 / (root + eps) is root - eps without its cancellation.
    penalty = step * step / (root + eps) if eps else root
    slope = torch.where(root == 0, 0.0, step / root) if eps else step.sign()
    weight /= step[0].numel()
    value += weight * penalty.sum((1, 2, 3, 4), dtype=torch.float64)
    pairs = step.shape[axis]
    gradient.narrow(axis, 1, pairs).add_(slope, alpha=weight)
    gradient.narrow(axis, 0, pairs).sub_(slope, alpha=weight)


def _add_isotropic(x: Tensor, weight: float, eps: float, value: Tensor, gradient: Tensor) -> None:
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


def _tv_kernel(
    x: Tensor, spatial: float, temporal: float, isotropic: bool, smoothing: float
) -> tuple[Tensor, Tensor]:
    value, gradient = _tv_terms(x, spatial, temporal, isotropic, smoothing)
    return value.to(x.dtype, copy=True), gradient


def _tv_fake(
    x: Tensor, spatial: float, temporal: float, isotropic: bool, smoothing: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0]), x.new_empty(x.shape)


def _tv_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])


def _tv_backward(ctx: Any, grad_value: Tensor, _: Tensor) -> tuple[Any, ...]:
    x, gradient = ctx.saved_tensors
    scaled = grad_value.view(-1, 1, 1, 1, 1) * gradient
    return _guard("tv", x, scaled), None, None, None, None


_declare(
    "total_variation",
    "(Tensor x, float spatial, float temporal, bool isotropic, float smoothing) -> (Tensor, Tensor)",
    _tv_kernel,
    _tv_fake,
)
_differentiate("total_variation", _tv_setup, _tv_backward)


# ---------------------------------------------------------------------------------------------------------
# descend


def descend(
    x: Tensor,
    data_gradient: Tensor,
    distance: Tensor,
    m: Tensor,
    v: Tensor,
    best: Tensor,
    best_objective: Tensor,
    *,
    step: int,
    lr: float,
    prior: Tensor | None = None,
    prior_weight: float = 0.0,
    spatial: float = 0.0,
    temporal: float = 0.0,
    isotropic: bool = False,
    smoothing: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    rule: Rule = "adam",
    low: float = 0.0,
    high: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Take one step of an attack's optimiser on independent trials, priors included, in one pass over x.

    The objective of a trial is ``distance`` + total variation (:func:`total_variation`) + ``prior_weight`` *
    mean((x - prior)^2) / 2. The gradients of the last two are added to ``data_gradient``, and x moves by

    - ``adam``: Adam on the total gradient (ICLR 2015, arXiv 1412.6980);
    - ``sign``: -lr times the sign of the total gradient; ``m`` and ``v`` are left alone;
    - ``sign_adam``: Adam on the sign of the total gradient (signed Adam of Inverting Gradients, NeurIPS 2020,
      arXiv 2003.14053);

    and is clamped to [low, high]. Where the objective at x (the point before the step) is below
    ``best_objective``, ``best`` takes a copy of that x; an objective that is NaN never counts as better.

    Args:
        x: (clip, channel, frame, height, width): one trial a clip. Read only; float32 or float64.
        data_gradient: derivative of ``distance`` with respect to x, same shape.
        distance: (clip,) the data term at x.
        m, v: Adam's moments, same shape as x, zeros before step 1; changed in place.
        best: best point so far of each trial, same shape as x; changed in place.
        best_objective: (clip,) its objective, inf before step 1; changed in place.
        step: number of this step, from 1, for Adam's bias correction.
        lr: step length, >= 0, in pixel values.
        prior: (channel, frame, height, width), or one a trial; None for no such term.
        prior_weight: >= 0.
        spatial, temporal, isotropic, smoothing: as in :func:`total_variation`.
        betas, eps: Adam's constants; betas in [0, 1), eps >= 0.
        rule: ``"adam"``, ``"sign"`` or ``"sign_adam"``.
        low, high: the box; may be infinite.

    Returns:
        The new x, a fresh tensor, and the (clip,) objective at the old x. Nothing here is recorded for
        autograd: inputs that require a gradient are read as constants.

    Raises:
        InputError: a shape, dtype or device disagrees with x, or a number lies outside its range.
    """
    _check_clip("descend", "x", x)
    _check_state(x, data_gradient, distance, m, v, best, best_objective)
    _check_tv("descend", spatial, temporal, smoothing)
    row = step_settings(
        step=step, lr=lr, prior_weight=prior_weight, spatial=spatial, temporal=temporal, betas=betas, eps=eps,
        low=low, high=high,
    )  # fmt: skip
    _check_choice("descend", "rule", rule, _RULES)
    prior = None if prior is None else _prior_like(x, prior)
    return descend_with(
        torch.tensor(row, dtype=torch.float64, device=x.device), x.detach(), data_gradient.detach(),
        distance.detach(), m, v, best, best_objective, prior=prior, isotropic=isotropic, smoothing=smoothing,
        rule=rule,
    )  # fmt: skip


def descend_with(
    settings: Tensor,
    x: Tensor,
    data_gradient: Tensor,
    distance: Tensor,
    m: Tensor,
    v: Tensor,
    best: Tensor,
    best_objective: Tensor,
    *,
    prior: Tensor | None = None,
    isotropic: bool = False,
    smoothing: float = 0.0,
    rule: Rule = "adam",
) -> tuple[Tensor, Tensor]:
    """Take the step of :func:`descend` with numbers from a tensor, as a captured iteration does.

    Args:
        settings: a row of :func:`step_settings` as a float64 tensor on the device of x.
        x, data_gradient, distance, m, v, best, best_objective, prior: as for :func:`descend`, the prior as
            (1 or clip, channel, frame, height, width). They are not checked again.
        isotropic, smoothing, rule: as for :func:`descend`.
    """
    operator = _operator("descend", x.device)
    with torch.no_grad():
        moved: tuple[Tensor, Tensor] = operator(
            x,
            data_gradient,
            distance,
            m,
            v,
            best,
            best_objective,
            prior,
            settings,
            isotropic,
            smoothing,
            rule,
        )
    return moved


def step_settings(
    *,
    step: int,
    lr: float,
    prior_weight: float = 0.0,
    spatial: float = 0.0,
    temporal: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    low: float = 0.0,
    high: float = 1.0,
) -> tuple[float, ...]:
    """Return the numbers of a step of :func:`descend` as the operator reads them, from a float64 tensor.

    They are an input of the operator, not part of its call, so that a captured step takes other ones at
    every iteration. The arguments are those of :func:`descend`.

    Raises:
        InputError: a number lies outside its range.
    """
    op = "descend"
    if step < 1:
        raise InputError(f"{op}: expected step to count from 1, got {step}")
    if not low <= high:
        raise InputError(f"{op}: expected low <= high, got low {low} and high {high}")
    _check_tv(op, spatial, temporal, 0.0)
    for name, value in {"lr": lr, "prior_weight": prior_weight, "eps": eps}.items():
        _check_number(op, name, value, 0.0)
    for value in betas:
        _check_number(op, "betas", value, 0.0, 1.0)
    corrections = 1.0 - betas[0] ** step, math.sqrt(1.0 - betas[1] ** step)
    return (lr, prior_weight, spatial, temporal, *betas, eps, low, high, *corrections)


def _check_state(
    x: Tensor, data_gradient: Tensor, distance: Tensor, m: Tensor, v: Tensor, best: Tensor, objective: Tensor
) -> None:
    clips = {"data_gradient": data_gradient, "m": m, "v": v, "best": best}
    for name, tensor in clips.items():
        _check_like("descend", name, tensor, "x", x, x.shape, "it needs the shape of x")
    for name, tensor in {"distance": distance, "best_objective": objective}.items():
        _check_like("descend", name, tensor, "x", x, x.shape[:1], "it holds one number a clip of x")


def _prior_like(x: Tensor, prior: Tensor) -> Tensor:
    """Return the prior as (1 or clip, channel, frame, height, width)."""
    advice = "give one clip without the clip axis, or one a clip of x"
    shape = x.shape if isinstance(prior, Tensor) and prior.ndim == 5 else x.shape[1:]
    _check_like("descend", "prior", prior, "x", x, shape, advice)
    prior = prior.detach()
    return prior if prior.ndim == 5 else prior[None]


def _descend_kernel(
    x: Tensor,
    data_gradient: Tensor,
    distance: Tensor,
    m: Tensor,
    v: Tensor,
    best: Tensor,
    best_objective: Tensor,
    prior: Tensor | None,
    settings: Tensor,
    isotropic: bool,
    smoothing: float,
    rule: str,
) -> tuple[Tensor, Tensor]:
    row = settings.tolist()
    lr, prior_weight, spatial, temporal = row[:4]
    low, high = row[7:9]
    value, total = _tv_terms(x, spatial, temporal, isotropic, smoothing)
    total += data_gradient
    value += distance
    if prior is not None and prior_weight and x.numel():
        gap = x - prior
        total.add_(gap, alpha=prior_weight / x[0].numel())
        value += 0.5 * prior_weight * gap.square().mean((1, 2, 3, 4), dtype=torch.float64)
    objective = value.to(x.dtype, copy=True)
    _keep_best(x, objective, best, best_objective)
    direction = total if rule == "adam" else total.sign()
    if rule != "sign":
        direction = _adam(direction, m, v, row[4:7], row[9:])
    return (x - lr * direction).clamp(low, high).contiguous(), objective


def _keep_best(x: Tensor, objective: Tensor, best: Tensor, best_objective: Tensor) -> None:
    better = objective < best_objective
    best.copy_(torch.where(better.view(-1, 1, 1, 1, 1), x, best))
    best_objective.copy_(torch.where(better, objective, best_objective))


def _adam(gradient: Tensor, m: Tensor, v: Tensor, constants: list[float], corrections: list[float]) -> Tensor:
    beta1, beta2, eps = constants
    m.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
    v.mul_(beta2).add_(gradient * gradient, alpha=1.0 - beta2)
    return m / corrections[0] / (v.sqrt() / corrections[1] + eps)


def _descend_fake(x: Tensor, data_gradient: Tensor, distance: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0])


_declare(
    "descend",
    "(Tensor x, Tensor data_gradient, Tensor distance, Tensor(a!) m, Tensor(b!) v, Tensor(c!) best, "
    "Tensor(d!) best_objective, Tensor? prior, Tensor settings, bool isotropic, float smoothing, str rule) "
    "-> (Tensor, Tensor)",
    _descend_kernel,
    _descend_fake,
)
