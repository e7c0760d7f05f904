"""Checks before the first iteration: what could only fail, or mislead, later is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from vleak.descent.problem import RULES, SCHEDULES, DescentSettings, Problem
from vleak.errors import InputError

__all__ = ["check"]


def check(problem: Problem, descent: DescentSettings, start: Tensor) -> None:
    """Refuse what could only fail, or mislead, later.

    Raises:
        InputError: one line that names the tensor or the setting.
    """
    for name, tensor in (("start", start), ("labels", problem.labels)):
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    _check_descent(descent)
    _check_start(descent, start)
    _check_prior(descent, start)
    _check_labels(problem, start)
    _check_target(problem, start)
    _check_model(problem, start)
    if problem.local is not None and descent.rule == "gauss_newton":
        raise InputError(
            'rule "gauss_newton" takes gradients, not local steps; give another rule, or the path "midpoint"'
        )


def _check_descent(descent: DescentSettings) -> None:
    if not isinstance(descent.iterations, int) or descent.iterations < 1:
        raise InputError(f"iterations: expected at least 1, got {descent.iterations}")
    if not descent.low < descent.high:
        raise InputError(f"box: expected low < high, got low {descent.low} and high {descent.high}")
    if not descent.smoothing >= 0:
        raise InputError(f"smoothing: expected a number >= 0, got {descent.smoothing}")
    if descent.prior_weight and descent.prior is None:
        raise InputError(f"prior_weight is {descent.prior_weight}, but there is no prior; give one, or 0")
    if descent.warmup < 0:
        raise InputError(f"warmup: expected iterations >= 0, got {descent.warmup}")
    if descent.patience < 0 or not descent.tolerance >= 0:
        raise InputError(
            f"plateau: expected patience and tolerance >= 0, got {descent.patience} and {descent.tolerance}"
        )
    if descent.coarse < 0 or not (descent.coarse_share > 0 and descent.coarse * descent.coarse_share < 1):
        raise InputError(
            "coarse: expected levels >= 0 that leave iterations for the full resolution, got "
            f"{descent.coarse} of {descent.coarse_share} each"
        )
    for kind, given, known in (("rule", descent.rule, RULES), ("schedule", descent.schedule, SCHEDULES)):
        if given not in known:
            raise InputError(f"unknown {kind} {given!r}; known: {', '.join(known)}")


def _check_start(descent: DescentSettings, start: Tensor) -> None:
    varies = bool(descent.spatial or descent.temporal)
    if start.ndim < 2 or start.numel() == 0 or (start.ndim != 5 and varies):
        raise InputError(
            f"start: expected shape (clip, channel, frame, height, width), got {tuple(start.shape)}; "
            "other shapes, of at least one row, are taken without total variation"
        )
    if start.ndim != 5 and descent.coarse:
        raise InputError(f"coarse: expected clips, got a start of shape {tuple(start.shape)}; give coarse=0")
    if descent.temporal and start.shape[2] == 1:
        raise InputError(
            "start: a clip of one frame has no total variation over time; give temporal=0, or more frames"
        )
    if start.dtype not in (torch.float32, torch.float64):
        raise InputError(f"start: expected float32 or float64, got {start.dtype}; convert it with .float()")
    if not torch.isfinite(start).all():
        raise InputError("start holds NaN or infinity; expected pixel values in [0, 1]")
    low, high = (float(bound) for bound in start.aminmax())
    # A step clamps to the bounds as the clips' type has them.
    least, most = torch.tensor([descent.low, descent.high], dtype=start.dtype).tolist()
    if low < least or high > most:
        raise InputError(
            f"start: expected values in the box [{descent.low}, {descent.high}], got {low:g} to {high:g}; "
            "clamp it, or give another low and high"
        )


def _check_prior(descent: DescentSettings, start: Tensor) -> None:
    prior = descent.prior
    if prior is None:
        return
    if prior.shape not in (start.shape, start.shape[1:]):
        raise InputError(f"prior: expected shape {tuple(start.shape)}, got {tuple(prior.shape)}")
    if prior.device != start.device:
        raise InputError(f"prior: expected it on {start.device} like the start, got {prior.device}")
    if not torch.isfinite(prior).all():
        raise InputError("prior holds NaN or infinity; expected pixel values in [0, 1]")


def _check_labels(problem: Problem, start: Tensor) -> None:
    labels = problem.labels
    if labels.shape != start.shape[:1]:
        raise InputError(
            f"labels: expected shape {tuple(start.shape[:1])}, one a clip, got {tuple(labels.shape)}"
        )
    if labels.device != start.device:
        raise InputError(f"labels: expected them on {start.device} like the start, got {labels.device}")
    if labels.dtype != torch.int64:
        raise InputError(f"labels: expected torch.int64, got {labels.dtype}; convert them with .long()")


def _check_target(problem: Problem, start: Tensor) -> None:
    named = dict(problem.model.named_parameters())
    if not named:
        raise InputError("the model has no parameters, so there is no update to match")
    strangers = sorted(set(problem.target) - set(named))
    if strangers:
        raise InputError(f"target {strangers[0]!r}: the model has no such parameter; is it its update?")
    for name, held in [*named.items(), *problem.model.named_buffers()]:
        if held.is_floating_point() and not torch.isfinite(held).all():
            raise InputError(f"{name!r} of the model holds NaN or infinity; load other weights")
    for name, parameter in named.items():
        _check_alike(f"parameter {name!r}", parameter, parameter, start, start.dtype)
        target = _of(problem.target, "target", name)
        _check_alike(f"target {name!r}", target, parameter, start, start.dtype)
        if not torch.isfinite(target).all():
            raise InputError(f"target {name!r} holds NaN or infinity; the update cannot be attacked")
        if problem.masks is not None:
            mask = _of(problem.masks, "mask", name)
            _check_alike(f"mask {name!r}", mask, parameter, start, torch.bool)
        if problem.scales is not None:
            _check_scale(name, problem.scales.get(name))


def _check_scale(name: str, scale: float | None) -> None:
    if scale is None or not 0 < scale < math.inf:
        raise InputError(f"scale {name!r}: expected a number above 0, got {scale}; give one a parameter")


def _of(tensors: Mapping[str, Tensor], kind: str, name: str) -> Tensor:
    if name not in tensors:
        raise InputError(f"the update has no {kind} for parameter {name!r}; is it an update of this model?")
    return tensors[name]


def _check_alike(name: str, tensor: Tensor, parameter: Tensor, start: Tensor, dtype: torch.dtype) -> None:
    if tensor.layout != torch.strided:
        raise InputError(f"{name}: expected a dense tensor, got layout {tensor.layout}; use .to_dense()")
    if tensor.shape != parameter.shape:
        raise InputError(
            f"{name}: expected shape {tuple(parameter.shape)}, got {tuple(tensor.shape)}; "
            "is it an update of this model?"
        )
    if tensor.dtype != dtype or tensor.device != start.device:
        raise InputError(
            f"{name}: expected {dtype} on {start.device}, as the start ({start.dtype}) needs it, "
            f"got {tensor.dtype} on {tensor.device}; convert it with .to()"
        )


def _check_model(problem: Problem, start: Tensor) -> None:
    """Call the model twice: one that answers otherwise the second time has no gradient to match."""
    first, second = (_logits(problem, start) for _ in range(2))
    if first.shape != second.shape:
        raise InputError(
            f"the model changes shape between calls: it returned {tuple(first.shape)}, then "
            f"{tuple(second.shape)}; give a model whose output depends on its input alone"
        )
    labels = problem.labels
    if second.ndim == 2 and not ((labels >= 0) & (labels < second.shape[1])).all():
        raise InputError(f"labels: expected numbers from 0 to {second.shape[1] - 1}, got {labels.tolist()}")
    value = problem.loss(second, labels)
    if value.shape != () or not value.requires_grad:
        raise InputError(
            f"the loss of shape {tuple(value.shape)} is no single number that depends on the parameters; "
            "remove detach() and no_grad() from model and loss, and reduce it to its mean"
        )


def _logits(problem: Problem, start: Tensor) -> Tensor:
    parameters = {name: p.detach().requires_grad_() for name, p in problem.model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in problem.model.named_buffers()}
    try:
        with torch.enable_grad():
            logits = functional_call(problem.model, {**parameters, **buffers}, (start,))
    except Exception as error:  # a stranger's model may raise anything
        message = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"the model does not take an input of shape {tuple(start.shape)}: {message}"
        ) from error
    if not isinstance(logits, Tensor):
        raise InputError(f"the model returned {type(logits).__name__}, expected a tensor of class scores")
    return logits
