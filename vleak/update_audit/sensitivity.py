"""Which layer and which frame of an update tell most of the pixels: shares of its squared Jacobian.

Where every entry of the update carries noise of one size, the squared Jacobian is the Fisher information
about the pixels up to that size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from vleak.guarding import JacobianFacts

__all__ = ["sensitivity"]


def sensitivity(
    facts: JacobianFacts, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, float], list[float]]:
    """Return the shares of parameters and of frames in the squared Jacobian.

    Args:
        facts: of the gradient by the rebuilt clips, at the weights before any local step.
        parameters: that are trained, by name, in the order of the gradient.

    Returns:
        by parameter and by frame; both sum to 1, or are 0 throughout.
    """
    sizes = [parameter.numel() for parameter in parameters.values()]
    by_layer = [float(part.double().sum()) for part in torch.split(facts.entries, sizes)]
    return dict(zip(parameters, _shares(by_layer), strict=True)), _shares(facts.frames)


def _shares(amounts: list[float] | tuple[float, ...]) -> list[float]:
    total = sum(amounts)
    return [amount / total if total > 0 else 0.0 for amount in amounts]
