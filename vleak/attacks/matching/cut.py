"""Matching before what a client drew at random: the model up to the layer that tells what came back to it."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks.expectation import prior_answer
from vleak.attacks.observation import Observation
from vleak.federated import Channel

__all__ = ["CutModel", "cut_off", "total"]


class _Kept(nn.Linear):
    """A linear layer that keeps its output for the thread that called it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.outputs: dict[int, Tensor] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        self.outputs[threading.get_ident()] = F.linear(inputs, self.weight, self.bias)
        return self.outputs[threading.get_ident()]


class CutModel(nn.Module):
    """A model that ends at a linear layer: its output is that of the layer, times what came back to it.

    Of one row the gradient of the layer's bias is the gradient of the loss by its output. Whatever was drawn
    behind it, the gradients of this layer and of all before are those of that sum (`total`).
    """

    def __init__(self, model: nn.Module, layer: str, back: Tensor) -> None:
        """Take a model, which is copied, the name of the layer, and the gradient (outputs,) of its bias."""
        super().__init__()
        self.model = copy.deepcopy(model)
        found = self.model.get_submodule(layer)
        assert isinstance(found, nn.Linear)
        self.model.set_submodule(layer, _Kept(found))
        self.register_buffer("back", back)
        self.train(model.training)

    def forward(self, clips: Tensor) -> Tensor:
        """Return one number a row of the layer's input."""
        kept = next(module for module in self.model.modules() if isinstance(module, _Kept))
        self.model(clips)
        return kept.outputs.pop(threading.get_ident()) @ self.get_buffer("back")


def total(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a `CutModel`."""
    return outputs.sum()


def cut_off(observation: Observation, channel: Channel) -> tuple[Observation, Channel]:
    """Return the observation with a `CutModel`; as it is where the layer has several rows.

    Args:
        observation: of a gradient.
        channel: that names the layer behind which the client drew.
    """
    layer, update, weight = channel.random_behind, observation.update, next(observation.model.parameters())
    if layer is None or f"{layer}.bias" not in update.tensors or f"{layer}.weight" not in update.tensors:
        return observation, channel
    model = CutModel(observation.model, layer, update.tensors[f"{layer}.bias"].to(weight))
    with torch.no_grad():
        rows = model(prior_answer(observation.knowledge).to(weight)).numel()
    if rows > 1:
        return observation, channel
    masks = {f"model.{name}": mask for name, mask in (channel.masks or {}).items()}
    masks |= {f"model.{layer}.weight": torch.ones_like(update.tensors[f"{layer}.weight"], dtype=torch.bool)}
    tensors = {f"model.{name}": tensor for name, tensor in update.tensors.items()}
    whole = {n: masks.get(n, torch.ones_like(t, dtype=torch.bool)) for n, t in tensors.items()}
    update = replace(update, tensors=tensors)
    return replace(observation, model=model, update=update), replace(channel, masks=whole, random_behind=None)
