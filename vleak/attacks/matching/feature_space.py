"""Feature space of gradient matching: in which variable features descend, and from where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from vleak.attacks.expectation import expected_clip
from vleak.attacks.observation import Observation
from vleak.descent.loop import Problem

__all__ = ["FEATURE_PULL", "FeatureSpace", "ScaledModel", "with_model"]

Held = TypeVar("Held")

FEATURE_PULL = 0.05
"""Weight of the pull towards the mean public matrix, against that of clips of frames. Of 0.05 and 0.5 the
better one on features drawn at random, which no run draws; so were the rates below chosen of 2, 4 and 8."""


class ScaledModel(nn.Module):
    """A model of features, of which it takes multiples: a unit in which they are of the order 1.

    Where features are known to have norm 1, every row is put there, so that a descent need not find it.
    """

    def __init__(self, model: nn.Module, unit: float, unit_norm: bool) -> None:
        """Take what a number 1 is worth, and whether rows are normalised."""
        super().__init__()
        self.model, self.unit, self.unit_norm = model, unit, unit_norm

    def compose(self, numbers: Tensor) -> Tensor:
        """Return the features of numbers (..., F)."""
        if self.unit_norm:
            # Not norm(): its second derivative is no number at 0, where a clamped row may lie.
            return numbers * (numbers.square().sum(-1, keepdim=True) + 1e-12).rsqrt()
        return self.unit * numbers

    def forward(self, numbers: Tensor) -> Tensor:
        """Return the model's output for the features."""
        outputs: Tensor = self.model(self.compose(numbers))
        return outputs


class FeatureSpace:
    """The variable of a descent on the features of an observation.

    Attributes:
        prior: (B, *clip_shape), what the attacker expects, in the variable.
        rate: learning rate against that of pixels, whose range is shorter.
    """

    def __init__(self, observation: Observation) -> None:
        """Choose the unit: the size of public features, of those of norm 1, or 1."""
        knowledge = observation.knowledge
        public = knowledge.public_clips
        unit = 1.0
        if public is not None and len(public):
            unit = max(float(public.square().mean().sqrt()), 1e-6)
        if knowledge.unit_norm:
            unit = knowledge.clip_shape[-1] ** -0.5
        self._knowledge = knowledge
        self.rate = 8.0 if knowledge.unit_norm else 4.0
        self._scaled = ScaledModel(observation.model, unit, knowledge.unit_norm)
        self.prior = expected_clip(knowledge).expand(knowledge.batch_shape) / unit

    def problem(self, problem: Problem) -> Problem:
        """Return the same problem in the variable."""
        return with_model(problem, self._scaled)

    def start(self, generator: torch.Generator) -> Tensor:
        """Draw a start (B, *clip_shape): what is expected, and noise that sets rows apart."""
        noise = 0.3 * torch.randn(self.prior.shape, generator=generator)
        return self.prior + (noise.abs() if self._knowledge.nonnegative else noise)

    def compose(self, numbers: Tensor) -> Tensor:
        """Return the features of a variable (B, *clip_shape)."""
        return self._scaled.compose(numbers)


def with_model(problem: Problem, wrapper: nn.Module, per_clip: tuple[str, ...] = ()) -> Problem:
    """Return the same problem for a module that holds the problem's model as its attribute ``model``.

    Args:
        problem: without buffers of its own that have a row for each clip, the unknown ones aside.
        wrapper: the module.
        per_clip: its buffers that have a row for each clip.
    """

    def renamed(named: Mapping[str, Held]) -> dict[str, Held]:
        return {f"model.{name}": held for name, held in named.items()}

    masks = None if problem.masks is None else renamed(problem.masks)
    scales = None if problem.scales is None else renamed(problem.scales)
    return replace(
        problem, model=wrapper, target=renamed(problem.target), masks=masks, unknown=renamed(problem.unknown),
        per_clip=per_clip, scales=scales,
    )  # fmt: skip
