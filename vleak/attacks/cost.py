"""Cost of an iteration, by which an attack that is to end in minutes has fewer of them on large networks."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vleak.attacks.cache import Cache, digest_of_model
from vleak.attacks.matching.setup import unrolled
from vleak.attacks.observation import Observation
from vleak.descent.problem import lock_of

__all__ = ["slowness"]

_SMALL = 2e9
"""Floating-point operations of an iteration's forward passes up to which a network is small: those of
docs/what_decides.md are. An iteration then takes at most some 0.15 s on one core."""


def slowness(observation: Observation) -> float:
    """Return the cost of an iteration in iterations on the largest network that is small, at least 1.

    It is counted and not timed: an attack does the same on every machine.
    """
    shape, batch = observation.knowledge.clip_shape, observation.knowledge.batch_size
    local = unrolled(observation, "auto")  # a gradient at the midpoint costs what any gradient does
    clips = batch if local is None else local.steps * local.step_size(batch)
    one_clip = _counts.get(
        (digest_of_model(observation.model), shape), lambda: _count(observation.model, shape)
    )
    return max(1.0, one_clip * clips / _SMALL)


def _count(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the floating-point operations of a forward pass on one clip."""
    with lock_of(model):
        own = copy.deepcopy(model).eval()  # counts no batch, and draws no number
    example = next((p for p in own.parameters()), torch.empty(0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        own(torch.zeros(1, *shape, dtype=example.dtype, device=example.device))
    return int(counter.get_total_flops())


_counts: Cache[int] = Cache(64)
