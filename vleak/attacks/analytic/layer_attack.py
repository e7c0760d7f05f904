"""Base of the attacks that solve for what a first linear layer saw, from its gradient alone."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vleak.attacks.analytic.first_layer import FirstLayer, first_layer
from vleak.attacks.analytic.rows import mean_row, placed, prior_rows
from vleak.attacks.base import Attack, Hooks, Knowledge, Observation, Reconstruction

__all__ = ["LayerAttack", "LayerGradient"]


@dataclass(frozen=True)
class LayerGradient:
    """The gradient of the first trained layer, and what it belongs to.

    Attributes:
        observation: what was seen.
        layer: the layer.
        weight: (units, width) float64 on the CPU.
        bias: (units,) float64, or None where the layer has none.
    """

    observation: Observation
    layer: FirstLayer
    weight: Tensor
    bias: Tensor | None

    @property
    def knowledge(self) -> Knowledge:
        """The observation's."""
        return self.observation.knowledge

    def mean_row(self) -> Tensor | None:
        """Return the weighted mean (width,) of the rows; None without a bias gradient."""
        if self.bias is None or not bool(self.bias.any()):
            return None
        return mean_row(self.weight, self.bias)

    def guess(self) -> Tensor:
        """Return (rows, width): the mean of the rows everywhere, or what is to be expected without it."""
        rows, mean = prior_rows(self.knowledge, self.layer.rows, self.layer.width), self.mean_row()
        if mean is not None:
            rows[:] = mean
        return rows

    def unclaimed(self) -> Tensor:
        """Return (rows,) of False."""
        return torch.zeros(self.layer.rows, dtype=torch.bool)

    def answer(
        self, rows: Tensor, claimed: Tensor, flags: tuple[str, ...] = (), *, ordered: bool = False
    ) -> Reconstruction:
        """Return rows (rows, width), of which some are claimed (rows,), as an answer."""
        clips, recovered = placed(self.knowledge, rows, claimed)
        return Reconstruction(
            clips=clips, labels=self.observation.labels, recovered=recovered, ordered=ordered, flags=flags
        )


class LayerAttack(Attack):
    """An attack on the gradient of the first trained layer: subclasses write `solve`."""

    takes: ClassVar[frozenset[str]] = frozenset({"features"})

    def answer_to_empty(self, observation: Observation) -> Reconstruction | None:
        """Leave the answer to `prepare`, which claims none of its rows."""
        return None

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Reconstruction:
        """Return the answer.

        Raises:
            CapabilityError: the first trained layer is no linear one on the features themselves.
        """
        layer = first_layer(observation, generator)
        weight, bias = layer.gradients(observation)
        return self.solve(LayerGradient(observation, layer, weight, bias), generator, hooks)

    @abstractmethod
    def solve(self, gradient: LayerGradient, generator: torch.Generator, hooks: Hooks) -> Reconstruction:
        """Return the answer to the gradient of the layer.

        Args:
            gradient: of the layer; it may be zero.
            generator: the only source of randomness.
            hooks: asked whether to go on.
        """
