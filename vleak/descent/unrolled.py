"""Local training as a differentiable function of the clips: what a delta measures, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vleak.federated import LocalTraining

__all__ = ["sum_of_steps", "sum_over_mean"]

_ADAM = (0.9, 0.999, 1e-8)
"""Betas and epsilon of PyTorch's Adam."""
_SOFTENING = 0.1
"""What is added to Adam's root, in root mean squares of it: its steps are nearly signs, which have no slope.
Chosen of 0, 0.003, 0.01, 0.03, 0.1, 0.3, 1 and 3 on synthetic clips of seed 3, which no default run draws."""


def sum_over_mean(local: LocalTraining) -> float:
    """Return what `sum_of_steps` is in units of -delta / (learning rate * steps), the mean step."""
    return _rate(local) * local.steps


def _rate(local: LocalTraining) -> float:
    """Return the factor of the loss.

    SGD is linear in the gradients: the loss, a single number, takes the learning rate, and no pass over the
    weights multiplies by it, in either direction.
    """
    return 1.0 if local.optimizer == "adam" else -local.learning_rate


def sum_of_steps(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    parameters: Mapping[str, Tensor],
    buffers: Callable[[int, slice], Mapping[str, Tensor]],
    local: LocalTraining,
) -> list[Tensor]:
    """Return a multiple of the delta of local training on x, differentiable by x.

    Over `sum_over_mean` it is -delta / (learning rate * steps), for plain SGD the mean gradient of the steps.
    A step takes the next clips of x in their order, over and over: which clips the client took is unknown,
    and within one pass the order of x is as good as any (Dimitrov et al., TMLR 2022, arXiv 2206.12395).

    Args:
        model: its code; the tensors come as arguments.
        loss: (logits or scores, labels) -> scalar.
        x: (B, ...), of which derivatives are wanted.
        labels: (B,) int64.
        parameters: by name, before training; each requires grad.
        buffers: (step, rows of x that it takes) -> buffers by name; not changed.
        local: how the client trains.

    Returns:
        one tensor a parameter, in their order.
    """
    size = local.step_size(len(x))
    rows = [slice(first, first + size) for first in range(0, len(x), size)]
    # Not cut where all clips are one batch: their derivatives of all steps are then summed in one place.
    batches = [(x[each], labels[each]) for each in rows] if len(rows) > 1 else [(x, labels)]
    weights = list(parameters.values())
    rate = _rate(local)
    moments = _Moments(local, rate)
    total: list[Tensor] = []
    for step in range(local.steps):
        place = step % len(batches)
        clips, classes = batches[place]
        named = {**dict(zip(parameters, weights, strict=True)), **buffers(step, rows[place])}
        gradients = torch.autograd.grad(
            rate * loss(functional_call(model, named, (clips,)), classes), weights,
            create_graph=True, allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        moves = moments.moves(weights, list(gradients))
        total = [sum_ + move for sum_, move in zip(total, moves, strict=True)] if total else moves
        # From the first weights, not from the last ones: a derivative then passes through the sum alone.
        weights = [
            torch.add(first, sum_, alpha=-local.learning_rate / rate)
            for first, sum_ in zip(parameters.values(), total, strict=True)
        ]
    return total


class _Moments:
    """What the optimizer makes of the gradients, step by step: moves of the weights over -learning rate."""

    def __init__(self, local: LocalTraining, rate: float) -> None:
        """Begin without moments; the gradients come multiplied by `rate`."""
        self._local, self._rate, self._step = local, rate, 0
        self._first: list[Tensor] = []
        self._second: list[Tensor] = []

    def moves(self, weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """Return the move of every weight."""
        self._step += 1
        if self._local.weight_decay:
            decay = self._rate * self._local.weight_decay
            gradients = [g + decay * w for g, w in zip(gradients, weights, strict=True)]
        return self._adam(gradients) if self._local.optimizer == "adam" else self._sgd(gradients)

    def _sgd(self, gradients: list[Tensor]) -> list[Tensor]:
        if self._local.momentum and self._first:
            momentum = self._local.momentum
            gradients = [momentum * v + g for v, g in zip(self._first, gradients, strict=True)]
        self._first = gradients
        return gradients

    def _adam(self, gradients: list[Tensor]) -> list[Tensor]:
        beta, second, epsilon = _ADAM
        before = self._first or [torch.zeros_like(g) for g in gradients]
        squares = self._second or [torch.zeros_like(g) for g in gradients]
        self._first = [beta * m + (1 - beta) * g for m, g in zip(before, gradients, strict=True)]
        self._second = [second * v + (1 - second) * g * g for v, g in zip(squares, gradients, strict=True)]
        means = [m / (1 - beta**self._step) for m in self._first]
        variances = [v / (1 - second**self._step) for v in self._second]
        # 1e-24 keeps the root's derivative finite where all is 0.
        soft = [(v + _SOFTENING**2 * v.detach().mean() + 1e-24).sqrt() for v in variances]
        scales = [root + epsilon for root in soft]
        return [m / s for m, s in zip(means, scales, strict=True)]
