"""Matching what a projection left of an update: the model in the coordinates that were measured."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vleak.attacks.observation import Observation
from vleak.federated import Channel

__all__ = ["ProjectedModel", "in_bases"]


class ProjectedModel(nn.Module):
    """A model of which some weights W (n, ...) move along the columns of a basis P (n, r) alone: W + P A.

    At A = 0 it is the model, and the gradient by A is P' times the gradient by W.
    """

    def __init__(self, model: nn.Module, bases: Mapping[str, Tensor]) -> None:
        """Take a model, which is copied, and bases by the names of its parameters."""
        super().__init__()
        self.model = copy.deepcopy(model)
        self.names = list(bases)
        self.factors = nn.ParameterList()
        for index, (name, basis) in enumerate(bases.items()):
            path, _, attribute = name.rpartition(".")
            owner = self.model.get_submodule(path)
            weight = getattr(owner, attribute).detach()
            delattr(owner, attribute)
            owner.register_buffer(attribute, weight)
            self.register_buffer(f"basis_{index}", basis.to(weight))
            self.factors.append(nn.Parameter(weight.new_zeros(basis.shape[1], weight[0].numel())))
        self.train(model.training)

    def forward(self, clips: Tensor) -> Tensor:
        """Return the model's output."""
        buffers = dict(self.model.named_buffers())
        moved = {}
        for index, name in enumerate(self.names):
            step = self.get_buffer(f"basis_{index}") @ self.factors[index]
            moved[name] = buffers[name] + step.view_as(buffers[name])
        outputs: Tensor = functional_call(self.model, moved, (clips,))
        return outputs


def in_bases(observation: Observation, channel: Channel) -> tuple[Observation, Channel]:
    """Return the observation whose update has the measured coordinates in place of what they make.

    A projection of a gradient is no gradient of the model, but its coordinates P' dL/dW are the gradient of
    `ProjectedModel`, exactly: so they are matched as any gradient is.

    Args:
        observation: of a gradient.
        channel: with bases.
    """
    bases = channel.bases or {}
    model = ProjectedModel(observation.model, bases)
    tensors = observation.update.tensors
    measured = {f"model.{name}": tensor for name, tensor in tensors.items() if name not in bases}
    masks = channel.masks
    kept = None if masks is None else {f"model.{n}": m for n, m in masks.items() if n not in bases}
    for index, (name, basis) in enumerate(bases.items()):
        measured[f"factors.{index}"] = basis.T @ tensors[name].flatten(1)
        if kept is not None:
            kept[f"factors.{index}"] = torch.ones_like(measured[f"factors.{index}"], dtype=torch.bool)
    update = replace(observation.update, tensors=measured)
    return replace(observation, model=model, update=update), replace(channel, masks=kept, bases=None)
