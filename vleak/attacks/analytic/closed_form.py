"""Closed form of a linear layer with bias: the weight's gradient over the bias's."""

from __future__ import annotations

from typing import ClassVar

import torch

from vleak.attacks.analytic.layer_attack import LayerAttack, LayerGradient
from vleak.attacks.analytic.rows import numerical_rank, prior_rows
from vleak.attacks.base import Hooks, Reconstruction
from vleak.attacks.flags import NEAR_ZERO
from vleak.errors import CapabilityError

__all__ = ["ClosedForm"]


class ClosedForm(LayerAttack):
    """Input of a first linear layer with bias, from its gradient alone: x = dW_i / db_i.

    Of one row x it is exact (Phong et al., IEEE TIFS 2018; Geiping et al., NeurIPS 2020, arXiv 2003.14053):
    here the least-squares answer over all units. Of several it gives a weighted mean, which a flag says, and
    nothing is claimed. Of several that are the same, or of which one alone has a gradient, one is claimed.
    """

    name: ClassVar[str] = "closed_form"

    def solve(self, gradient: LayerGradient, generator: torch.Generator, hooks: Hooks) -> Reconstruction:
        """Return the mean row everywhere.

        Raises:
            CapabilityError: the layer has no bias.
        """
        layer, claimed = gradient.layer, gradient.unclaimed()
        if gradient.bias is None:
            raise CapabilityError(
                f"closed_form: layer {layer.weight!r} has no bias to divide by; choose another attack"
            )
        mean, ordered = gradient.mean_row(), layer.rows == 1
        if mean is None:
            rows = prior_rows(gradient.knowledge, layer.rows, layer.width)
            return gradient.answer(rows, claimed, (NEAR_ZERO,), ordered=ordered)
        rank = numerical_rank(torch.linalg.svdvals(gradient.weight), layer.rows)
        claimed[0] = rank == 1
        rows = mean.expand(layer.rows, -1).clone()
        return gradient.answer(rows, claimed, _flags(rank, layer.rows), ordered=ordered)


def _flags(rank: int, rows: int) -> tuple[str, ...]:
    if rank > 1:
        return (f"the mean of {rank} segments, weighted by their gradients",)
    if rank == 0:
        return ("noise hides how many segments are mixed",)
    return ("one segment alone has a gradient, or all that have one are the same",) if rows > 1 else ()
