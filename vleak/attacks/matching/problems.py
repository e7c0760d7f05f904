"""Problem of gradient matching from the setup of an attack, and what each layer counts in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from vleak.attacks.matching.setup import Setup
from vleak.attacks.target import masked_target
from vleak.descent.loop import Problem
from vleak.federated import mask_limits

__all__ = ["balancing_scales", "problem_of"]

_LEAST_NORM = 1e-3
"""Norm that every tensor is taken to have at least, in units of the largest: rounding is not matched."""


def problem_of(setup: Setup, distance: Literal["cosine", "l2"], *, balanced: bool) -> Problem:
    """Return the problem of one attack.

    Args:
        setup: of the attack.
        distance: between gradients.
        balanced: whether layers count by `balancing_scales`, instead of all entries alike.
    """
    observation, weight = setup.observation, setup.weight
    target, masks = masked_target(observation, setup.channel, weight)
    return Problem(
        model=observation.model,
        loss=setup.loss,
        labels=observation.labels.to(weight.device),
        target=target,
        masks=masks,
        distance=distance,
        local=setup.local,
        unknown=mask_limits(observation.model),
        scales=balancing_scales(target, masks) if balanced else None,
    )


def balancing_scales(target: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None) -> dict[str, float]:
    """Return one over the root of each tensor's norm, such that the norm of all together stays.

    Midway between entries that count alike, where the layers of the largest gradients decide, and tensors
    that count alike, where the smallest, and the least certain, do. The noise of a defense is in the norms:
    what is mostly noise is held back as it grows.

    Args:
        target: what arrived, by name.
        masks: of what is to be matched; None for all.
    """
    matched = target if masks is None else {name: t * masks[name] for name, t in target.items()}
    norms = {name: float(tensor.double().norm()) for name, tensor in matched.items()}
    least = _LEAST_NORM * max(norms.values())
    if not least:
        return dict.fromkeys(norms, 1.0)
    scales = {name: max(norm, least) ** -0.5 for name, norm in norms.items()}
    before = sum(norm**2 for norm in norms.values())
    after = sum((scales[name] * norm) ** 2 for name, norm in norms.items())
    return {name: scale * math.sqrt(before / after) for name, scale in scales.items()}
