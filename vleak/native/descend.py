"""One step of an attack's first-order optimiser on independent trials."""

from __future__ import annotations

import math
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.native.backend import find_operator
from vleak.native.checks import check_choice, check_clip, check_like, check_number
from vleak.native.declare import declare
from vleak.native.total_variation import variation_terms

__all__ = ["Rule", "StepSettings", "descend", "descend_with", "step_settings"]

Rule = Literal["adam", "sign", "sign_adam"]

_RULES = ("adam", "sign", "sign_adam")


N = TypeVar("N")
"""Kind of the numbers of a step: float, or tensors () of a captured iteration."""


class StepSettings(NamedTuple, Generic[N]):
    """Numbers of one step, in the order in which csrc/kernels/descend.h reads them from a float64 tensor."""

    lr: N
    prior_weight: N
    spatial: N
    temporal: N
    beta1: N
    beta2: N
    eps: N
    low: N
    high: N
    bias1: N
    """1 - beta1^step"""
    bias2_root: N
    """sqrt(1 - beta2^step)"""


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
    """One step of an attack's optimiser on independent trials, priors included, in one pass over x.

    The objective of a trial is ``distance`` + total variation
    (:func:`~vleak.native.total_variation.total_variation`) + ``prior_weight`` * mean((x - prior)^2) / 2. The
    gradients of the last two are added to ``data_gradient``, and x moves by

    - ``adam``: Adam on the total gradient (ICLR 2015, arXiv 1412.6980);
    - ``sign``: -lr times the sign of the total gradient; ``m`` and ``v`` are left alone;
    - ``sign_adam``: Adam on the sign of the total gradient (signed Adam of Inverting Gradients, NeurIPS 2020,
      arXiv 2003.14053);

    and is clamped to [low, high]. Where the objective at x (the point before the step) is below
    ``best_objective``, ``best`` becomes a copy of that x; an objective that is NaN never counts as better.

    Args:
        x: (clip, channel, frame, height, width): one trial per clip. Read only; float32 or float64.
        data_gradient: derivative of ``distance`` with respect to x, same shape.
        distance: (clip,) the data term at x.
        m, v: Adam's moments, same shape as x, zeros before step 1; changed in place.
        best: best point so far of each trial, same shape as x; changed in place.
        best_objective: (clip,) its objective, inf before step 1; changed in place.
        step: number of this step, from 1, for Adam's bias correction.
        lr: step length, >= 0, in pixel values.
        prior: (channel, frame, height, width), or one per trial; None for no such term.
        prior_weight: >= 0.
        spatial, temporal, isotropic, smoothing: as in total_variation.
        betas, eps: Adam's constants; betas in [0, 1), eps >= 0.
        rule: ``"adam"``, ``"sign"`` or ``"sign_adam"``.
        low, high: bounds of x; may be infinite.

    Returns:
        The new x, a fresh tensor, and the (clip,) objective at the old x. Nothing is recorded for autograd:
        inputs that require a gradient are read as constants.

    Raises:
        InputError: a shape, dtype or device disagrees with x, or a number lies outside its range.
    """
    check_clip("descend", "x", x)
    _check_state(x, data_gradient, distance, m, v, best, best_objective)
    check_number("descend", "smoothing", smoothing, 0.0)
    numbers = step_settings(
        step=step, lr=lr, prior_weight=prior_weight, spatial=spatial, temporal=temporal, betas=betas, eps=eps,
        low=low, high=high,
    )  # fmt: skip
    check_choice("descend", "rule", rule, _RULES)
    prior = None if prior is None else _batched_prior(x, prior)
    return descend_with(
        torch.tensor(numbers, dtype=torch.float64, device=x.device), x.detach(), data_gradient.detach(),
        distance.detach(), m, v, best, best_objective, prior=prior, isotropic=isotropic, smoothing=smoothing,
        rule=rule,
    )  # fmt: skip


def descend_with(
    settings: Tensor,
    x: Tensor,
    data_gradient: Tensor,
    distance: Tensor,
    *state: Tensor,
    prior: Tensor | None = None,
    isotropic: bool = False,
    smoothing: float = 0.0,
    rule: Rule = "adam",
) -> tuple[Tensor, Tensor]:
    """Step of :func:`descend` with its numbers in a tensor, as a captured iteration needs it.

    Args:
        settings: (11,) float64 on the device of x: a :class:`StepSettings`.
        x, data_gradient, distance: as for :func:`descend`. They are not checked again.
        *state: m, v, best and best_objective, changed in place.
        prior: (1 or clip, channel, frame, height, width), or None.
        isotropic, smoothing, rule: as for :func:`descend`.

    Returns:
        As :func:`descend`.
    """
    operator = find_operator("descend", x.device)
    with torch.no_grad():
        result: tuple[Tensor, Tensor] = operator(
            x, data_gradient, distance, *state, prior, settings, isotropic, smoothing, rule
        )
    return result


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
) -> StepSettings[float]:
    """Numbers of one step of :func:`descend`, checked.

    The operator reads them from a tensor and not from its call, so that a captured step can take other ones
    at every iteration. The arguments are those of :func:`descend`.

    Raises:
        InputError: a number lies outside its range.
    """
    op = "descend"
    if step < 1:
        raise InputError(f"{op}: expected step to count from 1, got {step}")
    if not low <= high:
        raise InputError(f"{op}: expected low <= high, got low {low} and high {high}")
    weights = {"prior_weight": prior_weight, "spatial": spatial, "temporal": temporal}
    for name, value in {"lr": lr, "eps": eps, **weights}.items():
        check_number(op, name, value, 0.0)
    for value in betas:
        check_number(op, "betas", value, 0.0, 1.0)
    bias1, bias2_root = 1.0 - betas[0] ** step, math.sqrt(1.0 - betas[1] ** step)
    return StepSettings(lr, prior_weight, spatial, temporal, *betas, eps, low, high, bias1, bias2_root)


def _check_state(
    x: Tensor, data_gradient: Tensor, distance: Tensor, m: Tensor, v: Tensor, best: Tensor, objective: Tensor
) -> None:
    clips = {"data_gradient": data_gradient, "m": m, "v": v, "best": best}
    for name, tensor in clips.items():
        check_like("descend", name, tensor, "x", x, x.shape, "it needs the shape of x")
    for name, tensor in {"distance": distance, "best_objective": objective}.items():
        check_like("descend", name, tensor, "x", x, x.shape[:1], "it holds one number a clip of x")


def _batched_prior(x: Tensor, prior: Tensor) -> Tensor:
    """The prior as (1 or clip, channel, frame, height, width)."""
    advice = "give one clip without the clip axis, or one a clip of x"
    shape = x.shape if isinstance(prior, Tensor) and prior.ndim == 5 else x.shape[1:]
    check_like("descend", "prior", prior, "x", x, shape, advice)
    prior = prior.detach()
    return prior if prior.ndim == 5 else prior[None]


class _Arguments(NamedTuple):
    """Arguments of the operator, in the order of its schema."""

    x: Tensor
    data_gradient: Tensor
    distance: Tensor
    m: Tensor
    v: Tensor
    best: Tensor
    best_objective: Tensor
    prior: Tensor | None
    settings: Tensor
    isotropic: bool
    smoothing: float
    rule: str


def _plain(*arguments: Any) -> tuple[Tensor, Tensor]:
    a = _Arguments(*arguments)
    numbers: StepSettings[float] = StepSettings(*a.settings.tolist())
    total, objective = _objective(a, numbers)
    _keep_best(a.x, objective, a.best, a.best_objective)
    direction = total if a.rule == "adam" else total.sign()
    if a.rule != "sign":
        direction = _adam(direction, a.m, a.v, numbers)
    return (a.x - numbers.lr * direction).clamp(numbers.low, numbers.high).contiguous(), objective


def _objective(a: _Arguments, numbers: StepSettings[float]) -> tuple[Tensor, Tensor]:
    """The gradient of the objective at x, and the objective in the dtype of x."""
    value, total = variation_terms(a.x, numbers.spatial, numbers.temporal, a.isotropic, a.smoothing)
    total += a.data_gradient
    value += a.distance
    if a.prior is not None and numbers.prior_weight and a.x.numel():
        gap = a.x - a.prior
        total.add_(gap, alpha=numbers.prior_weight / a.x[0].numel())
        value += 0.5 * numbers.prior_weight * gap.square().mean((1, 2, 3, 4), dtype=torch.float64)
    return total, value.to(a.x.dtype, copy=True)


def _keep_best(x: Tensor, objective: Tensor, best: Tensor, best_objective: Tensor) -> None:
    better = objective < best_objective
    best.copy_(torch.where(better.view(-1, 1, 1, 1, 1), x, best))
    best_objective.copy_(torch.where(better, objective, best_objective))


def _adam(gradient: Tensor, m: Tensor, v: Tensor, numbers: StepSettings[float]) -> Tensor:
    """The direction of Adam; m and v are changed in place."""
    m.mul_(numbers.beta1).add_(gradient, alpha=1.0 - numbers.beta1)
    v.mul_(numbers.beta2).add_(gradient * gradient, alpha=1.0 - numbers.beta2)
    return m / numbers.bias1 / (v.sqrt() / numbers.bias2_root + numbers.eps)


def _fake(x: Tensor, data_gradient: Tensor, distance: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0])


declare(
    "descend",
    "(Tensor x, Tensor data_gradient, Tensor distance, Tensor(a!) m, Tensor(b!) v, Tensor(c!) best, "
    "Tensor(d!) best_objective, Tensor? prior, Tensor settings, bool isotropic, float smoothing, str rule) "
    "-> (Tensor, Tensor)",
    _plain,
    _fake,
)
