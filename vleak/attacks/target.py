"""Target of a descent: what arrived, and where nothing did."""

from __future__ import annotations

import torch
from torch import Tensor

from vleak.attacks.observation import Observation
from vleak.errors import CapabilityError
from vleak.federated import Channel

__all__ = ["masked_target", "refuse_partial"]


def masked_target(
    observation: Observation, channel: Channel | None, weight: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Return by parameter what is to be matched, and the masks of what is; None for all.

    A descent needs a target for every parameter: one that a partial update lacks gets zeros, and a mask that
    matches none of them.

    Args:
        observation: whose update it is.
        channel: of the defense, or None.
        weight: a parameter of the model, of the type and on the device of all tensors.
    """
    tensors, held = observation.update.tensors, None if channel is None else channel.masks
    named = {name: p.detach() for name, p in observation.model.named_parameters()}
    target = {n: tensors[n].to(weight) if n in tensors else torch.zeros_like(p) for n, p in named.items()}
    if held is None and len(tensors) == len(named):
        return target, None
    masks = {n: torch.full(p.shape, n in tensors, device=weight.device) for n, p in named.items()}
    return target, masks | {n: mask.to(weight.device) for n, mask in (held or {}).items()}


def refuse_partial(observation: Observation, attack: str) -> None:
    """Refuse an update that lacks parameters, for an attack that needs all of them.

    Raises:
        CapabilityError: some are missing.
    """
    missing = [n for n, _ in observation.model.named_parameters() if n not in observation.update.tensors]
    if missing:
        raise CapabilityError(
            f"{attack} needs every parameter, and the update lacks {missing[0]!r}; choose matching"
        )
