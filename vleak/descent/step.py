"""One iteration as a function from tensors to tensors, which all backends run.

The reference calls a step as it is. The native engine captures it once, so a step holds no state, and no
control flow that depends on the contents of its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vleak.descent import optimizers
from vleak.descent.optimizers import Curvature, as_trial
from vleak.descent.problem import DescentSettings, Problem, Values
from vleak.descent.step_settings import settings_of
from vleak.descent.unrolled import sum_of_steps, sum_over_mean
from vleak.federated import LocalTraining
from vleak.native import operators

__all__ = ["STATE", "Step", "first_values"]

#: What an iteration changes; everything else is fixed for a descent. Values of parameters are named
#: "kind:name of the parameter".
STATE = (
    "x", "m", "v", "best", "best_objective", "settings", "unknown", "unknown_m", "unknown_v",
    *optimizers.STATE,
)  # fmt: skip

#: Learning rate of unknown buffers against that of clips, in units of their largest values; of 0.3, 1 and 3
#: chosen on synthetic clips of seed 1000, which no default run draws.
_UNKNOWN_RATE = 1.0


def first_values(problem: Problem, settings: DescentSettings, start: Tensor) -> Values:
    """Return the tensors of the first iteration, views of the start among them.

    A runner changes none of them; who calls a `Step` itself copies those of `STATE` first.
    """
    flat = as_trial(start)
    values = {"x": start, "labels": problem.labels}
    values |= {f"parameter:{name}": p.detach() for name, p in problem.model.named_parameters()}
    values |= {f"buffer:{name}": b.detach() for name, b in problem.model.named_buffers()}
    names = [name for name, _ in problem.model.named_parameters()]
    target = {name: problem.target[name] for name in names}
    if problem.local is not None and problem.distance == "cosine":
        # A cosine is the same of sums as of means, which would be another pass over the weights.
        target = {name: sum_over_mean(problem.local) * tensor for name, tensor in target.items()}
    if problem.scales is not None:
        scales = {name: start.new_tensor(problem.scales[name]) for name in names}
        target = {name: scale * target[name] for name, scale in scales.items()}
        values |= {f"scale:{name}": scale for name, scale in scales.items()}
    values |= {f"target:{name}": tensor for name, tensor in target.items()}
    if problem.masks is not None:
        values |= {f"mask:{name}": problem.masks[name] for name in names}
    if settings.prior is not None:
        values["prior"] = as_trial(settings.prior.to(start).expand_as(start))
    if settings.rule in optimizers.RULES:
        values |= optimizers.first_state(settings.rule, flat)
    else:
        values |= {"m": torch.zeros_like(flat), "v": torch.zeros_like(flat)}
    values |= {"best": flat, "best_objective": flat.new_full((1,), math.inf)}
    return values | _first_unknown(problem)


def _first_unknown(problem: Problem) -> Values:
    """Return the unknown buffers side by side, (B, numbers), their moments and their largest values.

    The numbers are those of all steps of local training, one step after the other.
    """
    if not problem.unknown:
        return {}
    buffers = dict(problem.model.named_buffers())
    rows = [buffers[name].detach().flatten(1) for name in problem.unknown]
    limits = [torch.full_like(row[0], most) for row, most in zip(rows, problem.unknown.values(), strict=True)]
    steps = 1 if problem.local is None else problem.local.steps
    unknown = torch.cat(rows, 1).repeat(1, steps)
    moments = {name: torch.zeros_like(unknown) for name in ("unknown_m", "unknown_v")}
    return {"unknown": unknown, **moments, "limits": torch.cat(limits).repeat(steps)}


@dataclass(frozen=True)
class Step:
    """One iteration: x to the next x, and the objective at the old one.

    The tensors of the model are not used, only its code: they come with the values.
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    distance: str
    settings: DescentSettings
    local: LocalTraining | None = None
    unknown: tuple[str, ...] = ()
    per_clip: tuple[str, ...] = ()

    def __call__(self, values: Values) -> Values:
        """Return the next "x", and at the old one "objective" and "gradient", that of the distance.

        The state of first-order rules ("m", "v", "best", "best_objective") is changed in place; that of
        the others is returned under its name.
        """
        if self.settings.rule == "gauss_newton":
            return self._gauss_newton(values)
        return self.advance(values, self.evaluate(values, values["x"]))

    def advance(self, values: Values, evaluated: list[Tensor]) -> Values:
        """Return what a call does, from what `evaluate` returned at "x"; not of Gauss-Newton."""
        distance, gradient, *others = evaluated
        if self.settings.rule == "lbfgs":
            return self._lbfgs(values, distance, gradient)
        after = self._first_order(values, distance, gradient)
        return after | self._next_unknown(values, others[0]) if others else after

    def _first_order(self, values: Values, distance: Tensor, gradient: Tensor) -> Values:
        x = values["x"]
        moved, objective = operators.descend_with(
            values["settings"],
            *(as_trial(x), as_trial(gradient), distance[None]),
            *(values[name] for name in ("m", "v", "best", "best_objective")),
            prior=values.get("prior"),
            isotropic=self.settings.isotropic,
            smoothing=self.settings.smoothing,
            rule=self.settings.rule,  # type: ignore[arg-type]  # the rules of vleak.descent.optimizers went elsewhere
        )
        return {"x": moved.view(x.shape), "objective": objective[0], "gradient": gradient}

    def _lbfgs(self, values: Values, distance: Tensor, gradient: Tensor) -> Values:
        x = as_trial(values["x"])
        objective, slope = optimizers.add_priors(values, x, distance, as_trial(gradient), self.settings)
        after = optimizers.lbfgs(values, x, objective, slope)
        return _moved(values, after, objective, gradient)

    def _gauss_newton(self, values: Values) -> Values:
        clips = values["x"]
        x = as_trial(clips)
        distance, gradient, bend = self.linearize(values, clips)
        objective, slope = optimizers.add_priors(values, x, distance, as_trial(gradient), self.settings)

        def curvature(vector: Tensor) -> Tensor:
            priors = optimizers.prior_product(values, x, vector, self.settings)
            return as_trial(bend(vector.view(clips.shape))) + priors

        after = optimizers.gauss_newton(values, x, objective, slope, curvature)
        return _moved(values, after, objective, gradient)

    def evaluate(self, values: Values, x: Tensor) -> list[Tensor]:
        """Return D(dL/dw(x), target), a scalar, and its derivatives by x and by unknown buffers, if any."""
        variables = [x.detach().requires_grad_()]
        if self.unknown:
            variables.append(values["unknown"].detach().requires_grad_())
        gradients = self._gradients(values, *variables)
        distance, residuals = self._match(values, gradients)
        return [distance, *_pull_back_once(gradients, residuals, *variables)]

    def _gradients(self, values: Values, x: Tensor, unknown: Tensor | None = None) -> list[Tensor]:
        """Return what a client sends of x: its gradient; of local steps the sum, or for l2 the mean."""
        if self.local is None:
            parameters, loss = self._loss(values, x, unknown)
            return _derivatives(loss, parameters)
        with torch.enable_grad():
            sums = sum_of_steps(
                self.model, self.loss, x, values["labels"], local=self.local,
                parameters={name: value.requires_grad_() for name, value in _of_kind("parameter", values)},
                buffers=lambda step, rows: self._buffers(values, unknown, step, rows),
            )  # fmt: skip
            return sums if self.distance == "cosine" else [s / sum_over_mean(self.local) for s in sums]

    def _buffers(
        self, values: Values, unknown: Tensor | None, step: int = 0, rows: slice = slice(None)
    ) -> Values:
        """Return the model's buffers in a step on some clips, the unknown ones from a tensor (B, numbers)."""
        buffers = {name: value.clone() for name, value in _of_kind("buffer", values)}
        for name in self.per_clip:
            buffers[name] = buffers[name][rows]
        if unknown is not None:
            sizes = [buffers[name][0].numel() for name in self.unknown]
            own = unknown[rows, step * sum(sizes) : (step + 1) * sum(sizes)]
            parts = torch.split(own, sizes, 1)  # type: ignore[no-untyped-call]
            for name, part in zip(self.unknown, parts, strict=True):
                buffers[name] = part.reshape(len(part), *buffers[name].shape[1:])
        return buffers

    def _next_unknown(self, values: Values, gradient: Tensor) -> Values:
        """Return the unknown buffers after a step of Adam within their limits."""
        step = settings_of(values)
        m = torch.lerp(gradient, values["unknown_m"], step.beta1.to(gradient.dtype))
        v = torch.lerp(gradient.square(), values["unknown_v"], step.beta2.to(gradient.dtype))
        rate = _UNKNOWN_RATE * (step.lr * step.bias2_root / step.bias1).to(m.dtype)
        unknown = values["unknown"] - rate * values["limits"] * m / (v.sqrt() + 1e-12)
        unknown = torch.minimum(unknown.clamp(min=0.0), values["limits"])
        return {"unknown": unknown, "unknown_m": m, "unknown_v": v}

    def linearize(self, values: Values, x: Tensor) -> tuple[Tensor, Tensor, Curvature]:
        """Return what `evaluate` does, and the product with J' W J, the distance's curvature by Gauss-Newton.

        J is the derivative of the gradient by x: J v is that of <dL/dx, v> by the parameters, J' u that of
        <dL/dw, u> by x. W is the curvature of the distance, see `_weigh`. A product costs about as much as
        the second half of `evaluate` twice.
        """
        x = x.detach().requires_grad_()
        parameters, loss = self._loss(values, x)
        *gradients, by_x = _derivatives(loss, [*parameters, x])
        distance, residuals = self._match(values, gradients)
        scales = _tensors("scale", values)
        weigh = _weigh(_scaled(gradients, scales), _tensors("mask", values), self.distance)

        def curvature(vector: Tensor) -> Tensor:
            ahead = _pull_back([by_x], [vector], *parameters)
            return _pull_back(gradients, _scaled(weigh(_scaled(ahead, scales)), scales), x)[0]

        return distance, _pull_back(gradients, residuals, x)[0], curvature

    def _loss(self, values: Values, x: Tensor, unknown: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the parameters as variables of a loss, and the loss."""
        parameters = {name: value.requires_grad_() for name, value in _of_kind("parameter", values)}
        with torch.enable_grad():
            tensors = {**parameters, **self._buffers(values, unknown)}
            logits = functional_call(self.model, tensors, (x,))
            return list(parameters.values()), self.loss(logits, values["labels"])

    def _match(self, values: Values, gradients: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        scales = _tensors("scale", values)
        distance, residuals = operators.gradient_match(
            _scaled(gradients, scales),
            _tensors("target", values),  # already scaled
            masks=_tensors("mask", values) or None,
            kind=self.distance,  # type: ignore[arg-type]
        )
        return distance, _scaled(residuals, scales)


def _moved(values: Values, after: Values, objective: Tensor, gradient: Tensor) -> Values:
    x = values["x"]
    best = optimizers.keep_best(values, as_trial(x), objective)
    at_x = {"objective": objective.to(x.dtype), "gradient": gradient}
    return {**after, **best, **at_x, "x": after["x"].view(x.shape)}


def _weigh(gradients: list[Tensor], masks: list[Tensor], kind: str) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return the product with the curvature of a distance by Gauss-Newton, as a square of residuals.

    "l2" is the square of g - t, so twice the identity; "cosine" is half the square of g / |g| - t / |t|, so
    (1 - g g' / |g|^2) / |g|^2.
    """

    def masked(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.where(m, t, 0.0) for m, t in zip(masks, tensors, strict=True)] if masks else tensors

    if kind == "l2":
        return lambda tensors: [2.0 * tensor for tensor in masked(tensors)]
    gradients = masked(gradients)
    square = _product(gradients, gradients)
    inverse = torch.where(square > 0, 1 / square, 0.0)

    def project(tensors: list[Tensor]) -> list[Tensor]:
        tensors = masked(tensors)
        along = _product(gradients, tensors) * inverse
        return [inverse * (t - along * g) for g, t in zip(gradients, tensors, strict=True)]

    return project


def _scaled(tensors: Iterable[Tensor], scales: list[Tensor]) -> list[Tensor]:
    """Return constants, each times its scale; of no scales as they are."""
    detached = [tensor.detach() for tensor in tensors]
    return [t * s for t, s in zip(detached, scales, strict=True)] if scales else detached


def _product(left: list[Tensor], right: list[Tensor]) -> Tensor:
    sums = [(a * b).sum(dtype=torch.float64) for a, b in zip(left, right, strict=True)]
    return torch.stack(sums).sum()


def _tensors(kind: str, values: Values) -> list[Tensor]:
    return [value for _, value in _of_kind(kind, values)]


def _of_kind(kind: str, values: Values) -> list[tuple[str, Tensor]]:
    prefix = f"{kind}:"
    return [
        (key.removeprefix(prefix), value.detach()) for key, value in values.items() if key.startswith(prefix)
    ]


def _derivatives(loss: Tensor, variables: list[Tensor]) -> list[Tensor]:
    with torch.enable_grad():
        return list(
            torch.autograd.grad(loss, variables, create_graph=True, allow_unused=True, materialize_grads=True)
        )


def _pull_back(
    tensors: Iterable[Tensor], weights: Iterable[Tensor], *variables: Tensor
) -> tuple[Tensor, ...]:
    """Return the derivative by every variable of <tensors, weights>, the weights held constant."""
    pairs = [(t, w) for t, w in zip(tensors, weights, strict=True) if t.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(variable) for variable in variables)
    outputs, weights = zip(*pairs, strict=True)
    return torch.autograd.grad(
        outputs, variables, grad_outputs=weights, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def _pull_back_once(tensors: list[Tensor], weights: list[Tensor], *variables: Tensor) -> tuple[Tensor, ...]:
    """Return what `_pull_back` does, and give back on the way what autograd keeps, and the weights.

    Those of a network with wide layers are as large as all that is kept of its activations.
    """
    pairs = [(t, w) for t, w in zip(tensors, weights, strict=True) if t.requires_grad]
    weights.clear()
    if not pairs:
        return tuple(torch.zeros_like(variable) for variable in variables)
    outputs, slopes = (list(each) for each in zip(*pairs, strict=True))
    pairs.clear()  # who else holds a weight keeps its memory
    zero = _ZeroWithSlopes.apply(slopes, *outputs)  # type: ignore[no-untyped-call]
    return torch.autograd.grad(zero, variables, allow_unused=True, materialize_grads=True)


class _ZeroWithSlopes(torch.autograd.Function):
    """Zero, whose derivatives by tensors are taken out of a list, so that autograd alone holds them."""

    @staticmethod
    def forward(ctx: Any, slopes: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.slopes = slopes
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        slopes = tuple(ctx.slopes)
        ctx.slopes.clear()
        return None, *slopes
