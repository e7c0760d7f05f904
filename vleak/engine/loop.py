"""Gradient matching, iteration by iteration: forward, gradient, distance, second derivative, step.

Both engines run this loop. ``reference`` uses the plain PyTorch form of every operator and is the oracle
of the tests; ``native`` lets the compiled kernels of ``vleak.ops`` do the passes over parameters and pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vleak import ops
from vleak.backends import differentiable_rnn
from vleak.errors import InputError

ENGINES = ("native", "reference")


@dataclass(frozen=True)
class Problem:
    """What is to be matched: find clips whose gradient is the target.

    Attributes:
        model: maps (B, C, T, H, W) in [0, 1] to logits (B, classes); used in the mode it is in.
        loss: (logits, labels) -> scalar.
        labels: (B,) int64.
        target: one tensor a parameter, by name; what arrived at the server.
        masks: boolean tensors by name, True where an entry is to be matched; None matches all.
        distance: "cosine" or "l2".
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    labels: Tensor
    target: Mapping[str, Tensor]
    masks: Mapping[str, Tensor] | None = None
    distance: Literal["cosine", "l2"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How to descend.

    Attributes:
        iterations: length of the schedule, at least 1.
        learning_rate: first step, in pixel values.
        rule: "adam", "sign" or "sign_adam" (`vleak.ops.descend`).
        schedule: "cosine" decays to a hundredth; "steps" divides by 10 at 3/8, 5/8 and 7/8, as
            Inverting Gradients does (NeurIPS 2020, arXiv 2003.14053).
        spatial, temporal, isotropic, smoothing: total variation (`vleak.ops.total_variation`).
        prior: (B, C, T, H, W), or (C, T, H, W) for all clips, towards which they are drawn; or None.
        prior_weight: weight of half the mean squared distance to the prior.
    """

    iterations: int
    learning_rate: float = 0.1
    rule: Literal["adam", "sign", "sign_adam"] = "adam"
    schedule: Literal["cosine", "steps"] = "cosine"
    spatial: float = 0.0
    temporal: float = 0.0
    isotropic: bool = False
    smoothing: float = 0.0
    prior: Tensor | None = None
    prior_weight: float = 0.0

    def rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        done = iteration / self.iterations
        if self.schedule == "cosine":
            return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        return self.learning_rate * float(0.1 ** sum(done >= drop for drop in (3 / 8, 5 / 8, 7 / 8)))


@dataclass
class State:
    """Where a descent stands. All tensors have the shape of the start, (B, C, T, H, W).

    Attributes:
        x: the current clips.
        best: the clips of the smallest objective so far.
        best_objective: that objective; infinity before the first iteration.
        history: objective at the start of every iteration.
        nan_at: iteration whose objective was not a number, which ended the descent; else None.
    """

    x: Tensor
    best: Tensor
    best_objective: float = math.inf
    history: list[float] = field(default_factory=list)
    nan_at: int | None = None


class Loop:
    """Prepare once, run iterations, read the state."""

    def __init__(self, problem: Problem, descent: Descent, start: Tensor, *, engine: str = "native") -> None:
        """Check that everything fits together before the first iteration.

        Args:
            problem: what to match.
            descent: how to descend.
            start: (B, C, T, H, W) in [0, 1].
            engine: "native" or "reference".

        Raises:
            InputError: a tensor is missing, has another shape, or is not finite (the message names it).
        """
        if engine not in ENGINES:
            raise InputError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
        if descent.iterations < 1:
            raise InputError(f"iterations: expected at least 1, got {descent.iterations}")
        _check_start(problem, descent, start)
        _check_target(problem)
        self.problem, self.descent, self.engine = problem, descent, engine
        self.state = State(start.clone(), start.clone())
        self._parameters = {name: p.detach().requires_grad_() for name, p in problem.model.named_parameters()}
        self._targets = [problem.target[name].to(start) for name in self._parameters]
        masks = problem.masks
        self._masks = None if masks is None else [masks[name].to(start.device) for name in self._parameters]
        # The clips of one batch share one distance, so they are one trial: batch and channels are one axis.
        flat = start.flatten(0, 1)[None]
        self._m, self._v = torch.zeros_like(flat), torch.zeros_like(flat)
        self._best, self._best_objective = flat.clone(), flat.new_full((1,), math.inf)
        self._prior = (
            None if descent.prior is None else descent.prior.to(start).expand_as(start).flatten(0, 1)[None]
        )

    def run(
        self,
        iterations: int,
        *,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> State:
        """Run up to so many further iterations; fewer at the end of the schedule, at NaN, or when stopped.

        Args:
            iterations: how many.
            progress: called after every iteration with the number done in all.
            stop: asked before every iteration; True ends the call, which may be taken up again.
        """
        state = self.state
        with self._contexts():
            for _ in range(iterations):
                done = len(state.history)
                if (
                    done >= self.descent.iterations
                    or state.nan_at is not None
                    or (stop is not None and stop())
                ):
                    break
                self._step(done)
                if progress is not None:
                    progress(done + 1)
        state.best = self._best[0].view_as(state.x).clone()
        state.best_objective = float(self._best_objective)
        return state

    def _contexts(self) -> ExitStack:
        stack = ExitStack()
        kernels: AbstractContextManager[object] = (
            ops.use_reference() if self.engine == "reference" else nullcontext()
        )
        stack.enter_context(kernels)
        stack.enter_context(differentiable_rnn(self.problem.model))
        return stack

    def distance_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return D(dL/dw(x), target), a scalar, and its derivative by x, shaped (B, C, T, H, W)."""
        with self._contexts():
            return self._distance_and_gradient(x)

    def _distance_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Without the contexts: `run` holds them once for all its iterations.
        x = x.detach().requires_grad_()
        problem, parameters = self.problem, self._parameters
        buffers = {name: buffer.clone() for name, buffer in problem.model.named_buffers()}
        with torch.enable_grad():
            value = problem.loss(
                functional_call(problem.model, {**parameters, **buffers}, (x,)), problem.labels
            )
            gradients = torch.autograd.grad(
                value, list(parameters.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
            distance, _ = ops.gradient_match(
                gradients, self._targets, masks=self._masks, kind=problem.distance
            )
            (gradient,) = torch.autograd.grad(distance, x, allow_unused=True, materialize_grads=True)
        return distance.detach(), gradient

    def _step(self, done: int) -> None:
        descent, state = self.descent, self.state
        distance, gradient = self._distance_and_gradient(state.x)
        moved, objective = ops.descend(
            state.x.flatten(0, 1)[None],
            gradient.flatten(0, 1)[None],
            distance[None],
            self._m,
            self._v,
            self._best,
            self._best_objective,
            step=done + 1,
            lr=descent.rate(done),
            prior=self._prior,
            prior_weight=descent.prior_weight,
            spatial=descent.spatial,
            temporal=descent.temporal,
            isotropic=descent.isotropic,
            smoothing=descent.smoothing,
            rule=descent.rule,
        )
        state.history.append(float(objective))
        if math.isnan(state.history[-1]):
            state.nan_at = done + 1
            return
        state.x = moved[0].view_as(state.x)


def _check_start(problem: Problem, descent: Descent, start: Tensor) -> None:
    if start.ndim != 5 or start.numel() == 0:
        raise InputError(
            f"start: expected shape (clip, channel, frame, height, width), got {tuple(start.shape)}"
        )
    if not torch.isfinite(start).all():
        raise InputError("start holds NaN or infinity; expected pixel values in [0, 1]")
    if problem.labels.shape != start.shape[:1]:
        raise InputError(
            f"labels: expected shape {tuple(start.shape[:1])}, one a clip, got {tuple(problem.labels.shape)}"
        )
    prior = descent.prior
    if prior is not None and prior.shape not in (start.shape, start.shape[1:]):
        raise InputError(f"prior: expected shape {tuple(start.shape)}, got {tuple(prior.shape)}")


def _check_target(problem: Problem) -> None:
    for name, parameter in problem.model.named_parameters():
        for kind, tensors in (("target", problem.target), ("mask", problem.masks)):
            if tensors is None:
                continue
            if name not in tensors:
                raise InputError(
                    f"the update has no {kind} for parameter {name!r}; is it an update of this model?"
                )
            if tensors[name].shape != parameter.shape:
                raise InputError(
                    f"{kind} {name!r}: expected shape {tuple(parameter.shape)}, got "
                    f"{tuple(tensors[name].shape)}; is it an update of this model?"
                )
        if not torch.isfinite(problem.target[name]).all():
            raise InputError(f"target {name!r} holds NaN or infinity; the update cannot be attacked")
