"""Rounds of training as a server sees them: weights sent out, updates that come back, weights moved."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vleak.attacks import Knowledge
from vleak.federated import Client, Update, moved

__all__ = ["Round", "bystander", "move", "own_copies"]


@dataclass(frozen=True)
class Round:
    """One round in which a client took part.

    Attributes:
        model: with the weights that the client was sent.
        update: what it sent back.
    """

    model: nn.Module
    update: Update


def move(model: nn.Module, update: Update, rate: float) -> nn.Module:
    """Return a copy of the model after the server has taken in an update.

    Args:
        model: with the weights of the round.
        update: a delta is added; a gradient is a step of SGD.
        rate: learning rate of that step.
    """
    factor = 1.0 if update.facts.kind == "fedavg" else -rate
    return moved(model, update.tensors, factor)


def bystander(client: Client, clips: Tensor, labels: Tensor, numbers: torch.Generator) -> Update:
    """Return the update of another client, on public clips, for a round without the client.

    Args:
        client: undefended, with the weights of the round.
        clips: (M, ...), public, of which up to 8 are drawn.
        labels: (M,) int64.
        numbers: draws the clips.
    """
    chosen = torch.randperm(len(clips), generator=numbers)[:8]
    return client.update(clips[chosen], labels[chosen], numbers)


def own_copies(knowledge: Knowledge, update: Update) -> tuple[Knowledge, Update]:
    """Copies that an attack may write into; their storage holds neither truth nor what other cells use."""
    own = replace(
        knowledge,
        public_clips=_copy(knowledge.public_clips),
        public_groups=_copy(knowledge.public_groups),
        public_labels=_copy(knowledge.public_labels),
    )
    return own, replace(update, tensors={name: tensor.clone() for name, tensor in update.tensors.items()})


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
