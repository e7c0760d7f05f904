"""Problem of gradient matching, settings of a descent, and state of a descent."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from vleak.federated import LocalTraining

__all__ = [
    "RULES",
    "SCHEDULES",
    "DescentSettings",
    "Problem",
    "Rule",
    "Schedule",
    "State",
    "Values",
    "lock_of",
]

Values = dict[str, Tensor]
"""Every tensor of an iteration by name."""

Rule = Literal["adam", "sign", "sign_adam", "lbfgs", "gauss_newton"]
RULES = ("adam", "sign", "sign_adam", "lbfgs", "gauss_newton")
Schedule = Literal["cosine", "steps", "trapezoid"]
SCHEDULES = ("cosine", "steps", "trapezoid")


@dataclass(frozen=True)
class Problem:
    """What is to be matched: find clips whose gradient is the target.

    Attributes:
        model: maps (B, C, T, H, W) in [0, 1], or rows of features (B, ...), to logits (B, classes); used in
            the mode it is in.
        loss: (logits, labels) -> scalar.
        labels: (B,) int64.
        target: one tensor a parameter, by name; what arrived at the server.
        masks: boolean tensors by name, True where an entry is to be matched; None matches all.
        distance: "cosine" or "l2".
        local: local training whose mean step is matched, see `vleak.descent.unrolled`; None for a gradient.
        unknown: buffers of the model, a row for each clip, that are searched together with the clips, each
            with its largest value; the least is 0, and the search starts from what they hold. Each step of
            local training has its own.
        per_clip: further buffers with a row for each clip, of which a step on some clips takes theirs.
        scales: a factor above 0 by name, on the entries of that tensor in gradient and target alike, before
            the distance is taken: how much each layer counts. None for 1.
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    labels: Tensor
    target: Mapping[str, Tensor]
    masks: Mapping[str, Tensor] | None = None
    distance: Literal["cosine", "l2"] = "cosine"
    local: LocalTraining | None = None
    unknown: Mapping[str, float] = field(default_factory=dict)
    per_clip: tuple[str, ...] = ()
    scales: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class DescentSettings:
    """How to descend.

    Attributes:
        iterations: length of the schedule, at least 1.
        learning_rate: first step, in pixel values; for "lbfgs" that of every step straight along the
            gradient; "gauss_newton" has none.
        rule: "adam", "sign" or "sign_adam" (`vleak.native.operators.descend`), "lbfgs" or "gauss_newton"
            (`vleak.descent.optimizers`).
        schedule: "cosine" decays to a hundredth; "steps" divides by 10 at 3/8, 5/8 and 7/8, as
            Inverting Gradients does (NeurIPS 2020, arXiv 2003.14053); "trapezoid" stays for seven tenths
            of the iterations, then falls in a line to a hundredth.
        warmup: iterations over which the rate rises to what the schedule says; the first steps of Adam
            are as long as the rate whatever the gradient, and spoil a good start.
        spatial, temporal, isotropic, smoothing: total variation
            (`vleak.native.operators.total_variation`); of clips only.
        prior: of the start's shape, or of one clip's for all of them, towards which they are drawn; or None.
        prior_weight: weight of half the mean squared distance to the prior.
        low, high: the box that x starts and stays in; may be infinite.
        patience: iterations without progress after which the descent, or its coarse level, ends; 0 for
            never.
        tolerance: what counts as progress: the best objective falls by more than this part of itself.
        coarse: levels of lower resolution to begin with, each half of the next in space and time; of clips
            only (`vleak.descent.levels`). Each has its own schedule, and ends where it makes no progress.
        coarse_share: part of the iterations that each of them takes at most, rounded down; a descent too
            short for that begins at full resolution.
    """

    iterations: int
    learning_rate: float = 0.1
    rule: Rule = "adam"
    schedule: Schedule = "cosine"
    warmup: int = 0
    spatial: float = 0.0
    temporal: float = 0.0
    isotropic: bool = False
    smoothing: float = 0.0
    prior: Tensor | None = None
    prior_weight: float = 0.0
    low: float = 0.0
    high: float = 1.0
    patience: int = 0
    tolerance: float = 1e-3
    coarse: int = 0
    coarse_share: float = 0.15

    def rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        done, risen = iteration / self.iterations, min(1.0, (iteration + 1) / (self.warmup + 1))
        return risen * self.learning_rate * _SHAPES[self.schedule](done)


_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)),
    "steps": lambda done: float(0.1 ** sum(done >= drop for drop in (3 / 8, 5 / 8, 7 / 8))),
    "trapezoid": lambda done: min(1.0, 0.01 + 0.99 * (1 - done) / 0.3),
}


@dataclass
class State:
    """Where a descent stands. All tensors have the shape of the start, also on a coarse level.

    They may be those that the descent works on: it changes them when it goes on, so copy what is to stay.

    Attributes:
        x: the current clips.
        best: the clips of the smallest objective so far; objectives of two levels are not compared, so that
            of the level last begun.
        best_objective: that objective; infinity before the first iteration.
        history: objective at the start of every iteration.
        nan_at: iteration whose objective was not a number, which ended the descent; else None.
        settled: whether the descent ended because it made no progress.
        begun: iterations before those of the level last begun, which were of coarser clips.
    """

    x: Tensor
    best: Tensor
    best_objective: float = math.inf
    history: list[float] = field(default_factory=list)
    nan_at: int | None = None
    settled: bool = False
    begun: int = 0


# ---------------------------------------------------------------------------------------------------------
# One at a time

_locks: WeakKeyDictionary[nn.Module, AbstractContextManager[bool]] = WeakKeyDictionary()
_making = threading.Lock()


def lock_of(model: nn.Module) -> AbstractContextManager[bool]:
    """Return the lock to hold while a model is called: functional_call swaps its tensors meanwhile."""
    with _making:
        return _locks.setdefault(model, threading.RLock())
