"""Several rounds as one problem: one input, the weights of every round, all updates matched together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from vleak.attacks.observation import Observation
from vleak.federated import LOSSES, Channel, Loss

__all__ = ["RoundsLoss", "joined", "loss_of"]


class RoundsModel(nn.Module):
    """Models of several rounds on one input; their outputs are stacked along a last axis."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        """Take the models, each with the weights of its round."""
        super().__init__()
        # A module that stood here twice would be left without its parameters by a functional call.
        own = {index for index, model in enumerate(models) if any(model is m for m in models[:index])}
        self.rounds = nn.ModuleList(
            copy.deepcopy(model) if index in own else model for index, model in enumerate(models)
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Return the outputs of every round, (B, ..., R)."""
        return torch.stack([model(clips) for model in self.rounds], -1)


@dataclass(frozen=True)
class RoundsLoss:
    """Sum of a loss over rounds: the gradient by the weights of each round is that of its own loss."""

    loss: Loss
    rounds: int

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the sum for outputs (B, ..., R)."""
        losses = [self.loss(outputs[..., index], labels) for index in range(self.rounds)]
        return torch.stack(losses).sum()


@lru_cache(maxsize=32)  # problems with one loss object share a captured program
def loss_of(name: str, rounds: int) -> Loss:
    """Return a loss by its name, or its sum over several rounds."""
    return LOSSES[name] if rounds == 1 else RoundsLoss(LOSSES[name], rounds)


def joined(observations: Sequence[Observation]) -> Observation:
    """Return one observation of several rounds; tensors of round i are called ``rounds.i.NAME``.

    Args:
        observations: of gradients (`Observation.as_gradient`), with the same knowledge; the last one's facts
            hold for all. Their channels are joined where each has one.
    """
    last = observations[-1]
    tensors = _prefixed([observation.update.tensors for observation in observations])
    channels = [observation.channel for observation in observations]
    return replace(
        last,
        model=RoundsModel([observation.model for observation in observations]),
        update=replace(last.update, tensors=tensors),
        channel=None if None in channels else _joined_channel(cast("list[Channel]", channels), observations),
        earlier=(),
    )


def _joined_channel(channels: Sequence[Channel], observations: Sequence[Observation]) -> Channel:
    masks = None
    if any(channel.masks is not None for channel in channels):
        everything = [
            {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in o.update.tensors.items()}
            for o in observations
        ]
        masks = _prefixed([c.masks or whole for c, whole in zip(channels, everything, strict=True)])
    bases = _prefixed([channel.bases or {} for channel in channels])
    return replace(
        channels[-1],
        masks=masks,
        bases=bases or None,
        transform=None,
        random_behind=None,
        noise_energy=sum(channel.noise_energy for channel in channels),
        key=("rounds", *(channel.key for channel in channels)),
    )


def _prefixed(rounds: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"rounds.{index}.{name}": tensor
        for index, tensors in enumerate(rounds)
        for name, tensor in tensors.items()
    }
