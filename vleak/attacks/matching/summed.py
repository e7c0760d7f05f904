"""Matching a sum over clients each of whom sent entries of its own choice: the mean of masked gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vleak.attacks.observation import Observation
from vleak.federated import Channel

__all__ = ["SummedClients", "in_sum"]


class SummedClients(nn.Module):
    """A model of which each client moves the weights W along the entries alone that it sent: W + M_j A.

    The clips of a batch belong to the clients in order, evenly. At A = 0 every client has the model, and the
    gradient of the batch's mean loss by A is the mean over clients of M_j times their own gradient.
    """

    def __init__(self, model: nn.Module, senders: Sequence[Mapping[str, Tensor]]) -> None:
        """Take a model, which is copied, and by client the entries (bool) that it sent, by parameter name."""
        super().__init__()
        self.model = copy.deepcopy(model)
        self.names = list(senders[0])
        self.clients = len(senders)
        self.moves = nn.ParameterList()
        for index, name in enumerate(self.names):
            path, _, attribute = name.rpartition(".")
            owner = self.model.get_submodule(path)
            weight = getattr(owner, attribute).detach()
            delattr(owner, attribute)
            owner.register_buffer(attribute, weight)
            self.register_buffer(f"sent_{index}", torch.stack([sent[name] for sent in senders]).to(weight))
            self.moves.append(nn.Parameter(torch.zeros_like(weight)))
        self.train(model.training)

    def forward(self, clips: Tensor) -> Tensor:
        """Return the model's output, each clip's at the weights of its client."""
        buffers = dict(self.model.named_buffers())
        outputs = []
        for client, own in enumerate(clips.chunk(self.clients)):
            moved = {
                name: buffers[name] + self.get_buffer(f"sent_{index}")[client] * self.moves[index]
                for index, name in enumerate(self.names)
            }
            outputs.append(functional_call(self.model, moved, (own,)))
        return torch.cat(outputs)


def in_sum(observation: Observation, channel: Channel) -> tuple[Observation, Channel]:
    """Return the observation whose model has the sum as its gradient, exactly (`SummedClients`).

    Args:
        observation: of a gradient.
        channel: with senders.
    """
    model = SummedClients(observation.model, channel.senders)
    places = {name: f"moves.{index}" for index, name in enumerate(model.names)}
    tensors = {places[name]: observation.update.tensors[name] for name in model.names}
    masks = {places[name]: mask for name, mask in (channel.masks or {}).items()}
    update = replace(observation.update, tensors=tensors, senders=())
    return replace(observation, model=model, update=update), replace(channel, masks=masks, senders=())
