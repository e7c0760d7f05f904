"""One iteration as a function from tensors to tensors, which both engines run.

The reference engine calls a step as it is. The native engine captures it once, so a step holds no state,
and no control flow that depends on what its tensors hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vleak import ops
from vleak.engine.problem import Descent, Problem

Values = dict[str, Tensor]
"""Every tensor of an iteration by name; those of parameters as "kind:name of the parameter"."""

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x -> distance of its gradient to the target (), and the derivative of that by x."""

#: What an iteration changes; everything else is fixed for a descent.
STATE = ("x", "m", "v", "best", "best_objective", "settings")


def first_values(problem: Problem, descent: Descent, start: Tensor) -> Values:
    """Return the tensors of the first iteration; nothing in them is changed by running a `Step` natively."""
    flat = as_trial(start)
    values = {"x": start.clone(), "labels": problem.labels}
    values |= {f"parameter:{name}": p.detach() for name, p in problem.model.named_parameters()}
    values |= {f"buffer:{name}": b.detach() for name, b in problem.model.named_buffers()}
    values |= {f"target:{name}": problem.target[name] for name, _ in problem.model.named_parameters()}
    if problem.masks is not None:
        values |= {f"mask:{name}": problem.masks[name] for name, _ in problem.model.named_parameters()}
    if descent.prior is not None:
        values["prior"] = as_trial(descent.prior.to(start).expand_as(start))
    values |= {"m": torch.zeros_like(flat), "v": torch.zeros_like(flat), "best": flat.clone()}
    values["best_objective"] = flat.new_full((1,), math.inf)
    return values


def settings_table(descent: Descent) -> Tensor:
    """Return the numbers of every step, (iterations, numbers) float64, see `vleak.ops.step_settings`."""
    rows = [
        ops.step_settings(
            step=i + 1, lr=descent.rate(i), prior_weight=descent.prior_weight, spatial=descent.spatial,
            temporal=descent.temporal, low=descent.low, high=descent.high,
        )
        for i in range(descent.iterations)
    ]  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64)


def as_trial(tensor: Tensor) -> Tensor:
    """Return clips that share one distance, and so are one trial, as `vleak.ops.descend` takes them."""
    # Batch and channels become one axis; rows of features have no neighbors, so they are one long row.
    return tensor.flatten(0, 1)[None] if tensor.ndim == 5 else tensor.reshape(1, 1, 1, 1, -1)


@dataclass(frozen=True)
class Step:
    """One iteration: x to the next x, and the objective at the old one.

    The tensors of the model are not used, only its code: they come with the values.
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    distance: str
    descent: Descent

    def __call__(self, values: Values) -> Values:
        """Return "x", "objective", a scalar, and "gradient", the derivative of the distance by the old x.

        The optimizer's state ("m", "v", "best", "best_objective") is changed in place.
        """
        x = values["x"]
        distance, gradient = self.evaluate(values, x)
        moved, objective = ops.descend_with(
            values["settings"],
            *(as_trial(x), as_trial(gradient), distance[None]),
            *(values[name] for name in ("m", "v", "best", "best_objective")),
            prior=values.get("prior"),
            isotropic=self.descent.isotropic,
            smoothing=self.descent.smoothing,
            rule=self.descent.rule,
        )
        return {"x": moved.view(x.shape), "objective": objective[0], "gradient": gradient}

    def evaluate(self, values: Values, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return D(dL/dw(x), target), a scalar, and its derivative by x."""
        x = x.detach().requires_grad_()
        parameters = {name: value.requires_grad_() for name, value in _of_kind("parameter", values)}
        buffers = {name: value.clone() for name, value in _of_kind("buffer", values)}
        with torch.enable_grad():
            logits = functional_call(self.model, {**parameters, **buffers}, (x,))
            gradients = torch.autograd.grad(
                self.loss(logits, values["labels"]), list(parameters.values()), create_graph=True,
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
        targets = [values[f"target:{name}"] for name in parameters]
        masks = [value for _, value in _of_kind("mask", values)]
        distance, residuals = ops.gradient_match(
            [g.detach() for g in gradients], targets, masks=masks or None, kind=self.distance
        )
        return distance, _pull_back(gradients, residuals, x)


def _of_kind(kind: str, values: Values) -> list[tuple[str, Tensor]]:
    prefix = f"{kind}:"
    return [(key.removeprefix(prefix), value.detach()) for key, value in values.items() if key.startswith(prefix)]


def _pull_back(gradients: Iterable[Tensor], residuals: Iterable[Tensor], x: Tensor) -> Tensor:
    """Return the derivative by x of <gradients, residuals>, the residuals held constant."""
    pairs = [(g, r) for g, r in zip(gradients, residuals, strict=True) if g.requires_grad]
    if not pairs:
        return torch.zeros_like(x)
    outputs, weights = zip(*pairs, strict=True)
    (gradient,) = torch.autograd.grad(
        outputs, x, grad_outputs=weights, allow_unused=True, materialize_grads=True
    )
    return gradient
