"""The closed form of a linear layer with bias: the weight's gradient over the bias's."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from vleak.attacks.base import Attack, Observation, Reconstruction
from vleak.attacks.first_layer import first_layer
from vleak.attacks.rows import NEAR_ZERO, centre, labels_of, mean_row, numerical_rank, placed
from vleak.errors import CapabilityError


class ClosedForm(Attack):
    """What a first linear layer with bias saw, from its gradient alone: x = dW_i / db_i.

    Of one row x it is exact (Phong et al., IEEE TIFS 2018; Geiping et al., NeurIPS 2020, arXiv 2003.14053):
    here the least-squares answer over all units. Of several it gives a weighted mean, which a flag says, and
    nothing is claimed. Of several that are the same, or of which one alone has a gradient, one is claimed.
    """

    name: ClassVar[str] = "closed_form"
    takes: ClassVar[frozenset[str]] = frozenset({"features"})

    def _reconstruct(
        self,
        observation: Observation,
        generator: torch.Generator,
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> Reconstruction:
        layer, knowledge = first_layer(observation, generator), observation.knowledge
        weight, bias = layer.gradients(observation)
        if bias is None:
            raise CapabilityError(
                f"closed_form: layer {layer.weight!r} has no bias to divide by; choose another attack"
            )
        claimed = torch.zeros(layer.rows, dtype=torch.bool)
        if not bool(bias.any()):
            rows = centre(knowledge).double().expand(knowledge.batch_shape).reshape(layer.rows, layer.width)
            return self._answer(observation, rows, claimed, (NEAR_ZERO,))
        values = torch.linalg.svdvals(weight)
        rank = numerical_rank(values, layer.rows)
        claimed[0] = rank == 1
        flags: tuple[str, ...] = ()
        if rank > 1:
            flags = (f"the mean of {rank} segments, weighted by their gradients",)
        elif rank == 0:
            flags = ("noise hides how many segments are mixed",)
        elif layer.rows > 1:
            flags = ("one segment alone has a gradient, or all that have one are the same",)
        return self._answer(observation, mean_row(weight, bias).expand(layer.rows, -1), claimed, flags)

    def _answer(
        self, observation: Observation, rows: Tensor, claimed: Tensor, flags: tuple[str, ...]
    ) -> Reconstruction:
        clips, found = placed(observation.knowledge, rows.clone(), claimed)
        return Reconstruction(
            clips=clips, labels=labels_of(observation), found=found, ordered=len(rows) == 1, flags=flags
        )
