"""Rounds of training as a server sees them: weights sent out, updates that come back, weights moved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vleak.federated import Client, Update, moved

__all__ = ["Round", "bystander", "move"]


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
