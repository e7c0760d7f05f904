"""Optimizers L-BFGS and Gauss-Newton, as functions from tensors to tensors.

Both try a point, and go on from it or back to where they were. Which of the two is chosen by
``torch.where``, never by Python, so that the step can be captured once. What they remember between two
iterations is among the values; all of it has one row, for clips that share a distance are one trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from vleak.descent.problem import DescentSettings, Values
from vleak.descent.step_settings import settings_of
from vleak.native import StepSettings, operators

__all__ = [
    "FIRST_DAMPING",
    "INNER",
    "PAIRS",
    "RULES",
    "STATE",
    "Curvature",
    "add_priors",
    "as_trial",
    "first_state",
    "gauss_newton",
    "keep_best",
    "lbfgs",
    "prior_product",
]

Curvature = Callable[[Tensor], Tensor]
"""Product of a positive semi-definite matrix with a tensor of the shape of the clips."""

RULES = ("lbfgs", "gauss_newton")
#: Pairs of moves and changes of gradient that L-BFGS remembers.
PAIRS = 10
#: Iterations of conjugate gradients within one of Gauss-Newton.
INNER = 6
#: Damping of the first step, in units of the curvature along the slope.
FIRST_DAMPING = 0.1
#: Fall that a step of L-BFGS must bring, as a part of what its gradient promised (Armijo's rule).
_FALL = 1e-4
#: Differences between neighbors are taken as no smaller than this where the curvature of total variation
#: divides by them; in pixel values.
_EDGE = 0.02

#: What the steps of this module carry from one iteration to the next.
STATE = ("base", "base_objective", "base_slope", "move", "length", "moves", "changes", "promised", "damping")


def first_state(rule: str, x: Tensor) -> Values:
    """Return what a rule remembers before its first iteration.

    Args:
        rule: "lbfgs" or "gauss_newton".
        x: the start as one trial, see `as_trial`.
    """
    one = torch.ones((), dtype=torch.float64, device=x.device)
    # No point before the first: whatever it brings is a gain.
    values = {"base": x.clone(), "base_objective": math.inf * one, "move": torch.zeros_like(x)}
    if rule == "gauss_newton":
        return values | {"promised": one.clone(), "damping": FIRST_DAMPING * one}
    pairs = x.new_zeros(PAIRS, x.numel())
    return values | {
        "base_slope": torch.zeros_like(x), "length": one.clone(), "moves": pairs, "changes": pairs.clone()
    }  # fmt: skip


def as_trial(tensor: Tensor) -> Tensor:
    """Return clips that share one distance, and so are one trial, in the shape that the step takes."""
    # Batch and channels become one axis; rows of features, which have no neighbors, are those of an image.
    return tensor.flatten(0, 1)[None] if tensor.ndim == 5 else tensor.reshape(1, 1, 1, len(tensor), -1)


def add_priors(
    values: Values, x: Tensor, distance: Tensor, gradient: Tensor, settings: DescentSettings
) -> tuple[Tensor, Tensor]:
    """Add total variation and the pull to the prior, as `vleak.native.operators.descend` does.

    Args:
        values: of the iteration; "settings" and "prior" are read.
        x: the clips as one trial.
        distance, gradient: of the clips, () and as x.
        settings: of the descent, which name the kind of total variation.

    Returns:
        The objective, () float64, and its derivative by x.
    """
    step = settings_of(values)
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        added = torch.zeros_like(distance, dtype=torch.float64)
        for space, weight in ((1.0, step.spatial), (0.0, step.temporal)):
            value = operators.total_variation(
                x, spatial=space, temporal=1 - space, isotropic=settings.isotropic,
                smoothing=settings.smoothing,
            )  # fmt: skip
            added = added + weight * value[0]
        if "prior" in values:
            added = added + 0.5 * step.prior_weight * (x - values["prior"]).square().mean(dtype=torch.float64)
        (slope,) = torch.autograd.grad(added, x)
    return distance.double() + added.detach(), slope + gradient


def keep_best(values: Values, x: Tensor, objective: Tensor) -> Values:
    """Return "best" and "best_objective" after x was tried; NaN never counts as better."""
    objective = objective.to(x.dtype)[None]
    better = objective < values["best_objective"]
    return {
        "best": torch.where(better, x, values["best"]),
        "best_objective": torch.where(better, objective, values["best_objective"]),
    }


# ---------------------------------------------------------------------------------------------------------
# L-BFGS


def lbfgs(values: Values, x: Tensor, objective: Tensor, slope: Tensor) -> Values:
    """Take one step of limited-memory BFGS within a box, at one evaluation of objective and gradient.

    Liu and Nocedal (Mathematical Programming 45, 1989), with which Deep Leakage from Gradients (NeurIPS
    2019, arXiv 1906.08935) descends. A point that does not bring the fall that the gradient promised is
    given up for one nearer to where the search started, so an iteration is one trial, not one success.
    Pixels that the gradient holds at the box rest (two-metric projection, Bertsekas, SIAM Journal on
    Control and Optimization 20, 1982). A pair without positive curvature is not used; without any, or
    where the direction does not descend, the step is along the gradient with its largest change of a pixel
    as long as the learning rate.

    Args:
        values: of the iteration, see `first_state`.
        x: the point that is tried, as one trial.
        objective, slope: at x.

    Returns:
        "x", the next point to try, as one trial, and what is to be remembered.
    """
    move, change = x - values["base"], slope - values["base_slope"]
    promised = _dot(values["base_slope"], move)
    accepted = objective <= values["base_objective"] + _FALL * promised
    length = _shorter(values["length"], promised, objective - values["base_objective"])
    # Far shorter than the direction was meant to be: what is remembered misleads.
    lost = ~accepted & (length < 1e-3)
    pairs = _remember(values, move, change, accepted & (_dot(move, change) > 0))
    moves, changes = (torch.where(lost, 0.0, tensor) for tensor in pairs)
    base = torch.where(accepted, x, values["base"])
    base_slope = torch.where(accepted, slope, values["base_slope"])
    renewed = accepted | lost
    ahead = _direction(settings_of(values), base, base_slope, moves, changes)
    direction = torch.where(renewed, ahead, values["move"])
    length = torch.where(renewed, torch.where(lost, 0.1, 1.0), length)
    return {
        "x": _in_box(values, base + length * direction),
        "base": base,
        "base_objective": torch.where(accepted, objective, values["base_objective"]),
        "base_slope": base_slope,
        "move": direction,
        "length": length,
        "moves": moves,
        "changes": changes,
    }


def _shorter(length: Tensor, promised: Tensor, gained: Tensor) -> Tensor:
    """Return the length at which the parabola through what is known of a failed step is lowest."""
    factor = -0.5 * promised / (gained - promised)
    return length * torch.where(factor.isfinite(), factor, 0.1).clamp(0.1, 0.5)


def _remember(values: Values, move: Tensor, change: Tensor, use: Tensor) -> tuple[Tensor, Tensor]:
    """Return the remembered pairs, the oldest replaced by a new one where it is of use."""
    return tuple(
        torch.where(use, torch.cat([values[name][1:], new.view(1, -1)]), values[name])
        for name, new in (("moves", move), ("changes", change))
    )  # type: ignore[return-value]


def _direction(
    step: StepSettings[Tensor], x: Tensor, slope: Tensor, moves: Tensor, changes: Tensor
) -> Tensor:
    free = _free(step, x, slope)
    inside = (slope * free).view(-1)
    kept = free.view(1, -1)
    product, known = _inverse_product(moves * kept, changes * kept, inside)
    ahead = -product * free.view(-1)
    downhill = _dot(ahead, inside) < -1e-6 * (_dot(ahead, ahead) * _dot(inside, inside)).sqrt()
    along = inside * (-step.lr / inside.abs().max().clamp(min=1e-30))
    return torch.where(known & downhill, ahead, along).view_as(x)


def _inverse_product(moves: Tensor, changes: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply by the inverse Hessian that the pairs approximate, and return whether any pair is usable.

    The compact form of Byrd, Nocedal and Schnabel (Mathematical Programming 63, 1994), which needs a few
    products with all pairs at once instead of two loops over them.

    Args:
        moves, changes: (pairs, n), the oldest first; rows without positive curvature are left out.
        vector: (n,).
    """
    between = (moves @ changes.T).double()
    squares = (changes @ changes.T).double()
    curvature, size = between.diagonal(), squares.diagonal()
    use = curvature > 1e-8 * size
    both = use[:, None] & use[None]
    # Rows that are left out become those of the identity, and meet zeros.
    upper = torch.where(both, between, 0.0).triu() + torch.diag((~use).double())
    along = torch.where(use, (moves @ vector).double(), 0.0)
    across = torch.where(use, (changes @ vector).double(), 0.0)
    newest = torch.where(use, torch.arange(len(use), device=use.device), -1).argmax()
    scale = torch.where(use, curvature / size, 0.0).gather(0, newest[None])
    inner = torch.linalg.solve_triangular(upper, along[:, None], upper=True)[:, 0]
    squares = torch.where(both, squares, 0.0)
    outer = torch.where(use, curvature, 0.0) * inner + scale * (squares @ inner) - scale * across
    outer = torch.linalg.solve_triangular(upper.T, outer[:, None], upper=False)[:, 0]
    ahead = torch.where(use, outer, 0.0).to(vector.dtype) @ moves
    back = torch.where(use, scale * inner, 0.0).to(vector.dtype) @ changes
    return scale.to(vector.dtype) * vector + ahead - back, use.any()


# ---------------------------------------------------------------------------------------------------------
# Gauss-Newton


def gauss_newton(values: Values, x: Tensor, objective: Tensor, slope: Tensor, curvature: Curvature) -> Values:
    """Take one step of Gauss-Newton, damped after Levenberg and Marquardt, within a box.

    The step solves (H + damping) step = -slope by `INNER` iterations of conjugate gradients; H is the
    curvature of the objective with the model of the gradient linearized (Nocedal and Wright, Numerical
    Optimization, chapter 10). The damping, in units of the curvature along the slope, follows the ratio
    of the fall to the one that was promised (Marquardt, Journal of SIAM 11, 1963). A point that does not
    bring a fall is given up for one nearer to the last. Pixels that the gradient holds at the box rest.

    Every iteration of conjugate gradients takes two more derivatives of the gradient, so that one of
    Gauss-Newton is worth about 2 * `INNER` + 1 evaluations of objective and gradient (measured: 13). Made
    for networks without kinks; on those of ReLUs the linearization holds only as far as the kinks.

    Args:
        values: of the iteration, see `first_state`.
        x: the point that is tried, as one trial.
        objective, slope: at x.
        curvature: multiplies by H at x.

    Returns:
        "x", the next point to try, as one trial, and what is to be remembered.
    """
    accepted = objective <= values["base_objective"]
    ratio = (values["base_objective"] - objective) / values["promised"].clamp(min=1e-300)
    factor = torch.where(ratio > 0.75, 1 / 3, torch.where(ratio < 0.25, 2.0, 1.0))
    damping = (values["damping"] * torch.where(accepted, factor, 4.0)).clamp(1e-8, 1e8)
    step, promised = _solve(curvature, slope, _free(settings_of(values), x, slope), damping)
    # A quarter of the way to the lowest point of a parabola brings 7/16 of the fall.
    move = torch.where(accepted, step, 0.25 * values["move"])
    base = torch.where(accepted, x, values["base"])
    return {
        "x": _in_box(values, base + move),
        "base": base,
        "base_objective": torch.where(accepted, objective, values["base_objective"]),
        "move": move,
        "promised": torch.where(accepted, promised, 7 / 16 * values["promised"]),
        "damping": damping,
    }


def _solve(curvature: Curvature, slope: Tensor, free: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Return the step, and the fall of the objective that its parabola promises."""
    step, residual = torch.zeros_like(slope), -slope * free
    direction, energy = residual, _dot(residual, residual)
    bend = curvature(direction) * free
    damping = damping * _divide(_dot(direction, bend), energy)
    for index in range(INNER):
        if index:
            bend = curvature(direction) * free
        bend = bend + damping * direction
        reach = _divide(energy, _dot(direction, bend))
        step, residual = step + reach * direction, residual - reach * bend
        before, energy = energy, _dot(residual, residual)
        direction = residual + _divide(energy, before) * direction
    # (H + damping) step = -slope - residual, so that its product with the step needs no product with H.
    bent = _dot(step, -slope * free - residual) - damping * _dot(step, step)
    return step, -_dot(step, slope) - 0.5 * bent


def _divide(over: Tensor, under: Tensor) -> Tensor:
    """Divide, and return 0 where there is nothing left to divide by."""
    return torch.where(under > 0, over / under, 0.0)


def prior_product(values: Values, x: Tensor, vector: Tensor, settings: DescentSettings) -> Tensor:
    """Multiply by the curvature of total variation and prior at x.

    Total variation is not a square. Where the difference between two neighbors is d, it is taken as the
    parabola of the same slope at d: 1 / |d| times half the squared difference (lagged diffusivity, Vogel
    and Oman, SIAM Journal on Scientific Computing 17, 1996).

    Args:
        values: of the iteration; "settings" and "prior" are read.
        x, vector: as one trial.
        settings: of the descent, which name the kind of total variation.
    """
    step = settings_of(values)
    edge = max(settings.smoothing, _EDGE)
    product = step.prior_weight / x.numel() * vector if "prior" in values else torch.zeros_like(vector)
    differences = {axis: x.diff(dim=axis) for axis in (2, 3, 4) if x.shape[axis] > 1}
    for axis, difference in differences.items():
        square, pairs = difference.square(), difference.numel()
        if settings.isotropic and axis > 2:
            # A mean over all pixels, with a difference of 0 where there is no neighbor.
            square, pairs = _within_frame(differences, square, axis), x.numel()
        weight = (step.temporal if axis == 2 else step.spatial) / pairs
        flow = weight * vector.diff(dim=axis) / (square + edge * edge).sqrt()
        before, after = _ends(axis)
        product = product + F.pad(flow, before) - F.pad(flow, after)
    return product


def _within_frame(steps: dict[int, Tensor], square: Tensor, axis: int) -> Tensor:
    """Return the squared length of the gradient within a frame, where there is a difference along an axis."""
    other = 7 - axis
    if other not in steps:
        return square
    across = F.pad(steps[other].square(), _ends(other)[1])
    return square + across.narrow(axis, 0, square.shape[axis])


def _ends(axis: int) -> tuple[list[int], list[int]]:
    """Return the paddings by one before and after an axis of clips."""
    index = 2 * (4 - axis)
    return [int(i == index) for i in range(6)], [int(i == index + 1) for i in range(6)]


# ---------------------------------------------------------------------------------------------------------
# Shared


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(dtype=torch.float64)


def _free(step: StepSettings[Tensor], x: Tensor, slope: Tensor) -> Tensor:
    """Return 1 where a pixel may move, 0 where the slope holds it at the box."""
    held = ((x <= step.low) & (slope > 0)) | ((x >= step.high) & (slope < 0))
    return (~held).to(x.dtype)


def _in_box(values: Values, x: Tensor) -> Tensor:
    step = settings_of(values)
    return x.clamp(step.low.to(x.dtype), step.high.to(x.dtype))
