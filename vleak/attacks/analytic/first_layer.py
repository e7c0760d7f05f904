"""First trained layer of a model, where it is a linear one that sees the private features as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vleak.attacks.knowledge import Knowledge
from vleak.attacks.observation import Observation
from vleak.errors import CapabilityError

__all__ = ["FirstLayer", "first_layer"]

_RECTIFIERS = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)


@dataclass(frozen=True)
class FirstLayer:
    """A linear layer z = W x + b, once for every row x of the private batch.

    Attributes:
        weight: name of W, (units, width), in the update.
        bias: name of b, or None.
        rows: how many x there are in the batch.
        width: numbers in each x.
        rectified: whether ReLU follows at once, so that a unit is silent for some rows.
        pull: (units,) float64, by what a unit that is not silent moves the loss, up to a factor of either
            sign that differs from row to row; None where that depends on the row, as behind a second ReLU.
    """

    weight: str
    bias: str | None
    rows: int
    width: int
    rectified: bool
    pull: Tensor | None

    def gradients(self, observation: Observation) -> tuple[Tensor, Tensor | None]:
        """Return the layer's part of the update: (units, width) and (units,) or None, float64 on the CPU."""
        tensors = observation.update.tensors
        bias = tensors.get(self.bias or "")
        sums = None if bias is None else bias.detach().cpu().double()
        return tensors[self.weight].detach().cpu().double(), sums

    def silent(self, observation: Observation, row: Tensor, margin: float) -> Tensor:
        """Return which units are surely silent for a row that is known up to an error of norm `margin`.

        Args:
            observation: whose model has the weights.
            row: (width,) float64.
            margin: at least 0.

        Returns:
            (units,) bool; all False where no ReLU follows.
        """
        named = dict(observation.model.named_parameters())
        weight = named[self.weight].detach().cpu().double()
        if not self.rectified:
            return torch.zeros(len(weight), dtype=torch.bool)
        levels = weight @ row
        if self.bias is not None:
            levels = levels + named[self.bias].detach().cpu().double()
        silent: Tensor = levels < -margin * weight.norm(dim=1)
        return silent


def first_layer(observation: Observation, generator: torch.Generator) -> FirstLayer:
    """Find the first trained layer by running the model on random features.

    Args:
        observation: whose model is looked at; wrappers around a head do not matter.
        generator: of the attack.

    Raises:
        CapabilityError: the first trained layer is no linear one on segments or whole feature matrices.
    """
    model, knowledge = observation.model, observation.knowledge
    probe = torch.rand(knowledge.batch_shape, generator=generator).to(next(model.parameters()))
    with torch.enable_grad(), _Calls(model) as calls:
        model(probe)
    if not calls.linear or not _sees(probe, calls.linear[0].input, knowledge):
        raise CapabilityError(
            f"the first trained layer of {type(model).__name__} is not a linear one on the features "
            "themselves; choose an attack that needs none, such as matching"
        )
    first = calls.linear[0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if (missing := names[id(first.weight)]) not in observation.update.tensors:
        raise CapabilityError(f"the update lacks {missing!r}, the first trained layer; choose matching")
    width = first.input.shape[-1]
    return FirstLayer(
        weight=names[id(first.weight)],
        bias=None if first.bias is None else names[id(first.bias)],
        rows=first.input.numel() // width,
        width=width,
        rectified=first.rectified is not None,
        pull=_pull(calls, observation, names),
    )


@dataclass
class _Call:
    """A linear layer's call: its tensors, its output, and the output of the ReLU that follows, if any."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    output: Tensor
    rectified: Tensor | None = None


class _Calls(TorchFunctionMode):
    """Records the calls of linear layers of the model's own parameters, and of ReLU on the first of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._own = {id(parameter) for parameter in model.parameters()}
        self.linear: list[_Call] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        named = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
        if func is F.linear and id(named["weight"]) in self._own:
            self.linear.append(_Call(named["input"], named["weight"], named.get("bias"), output))
        elif func in _RECTIFIERS and self.linear and named["input"] is self.linear[0].output:
            self.linear[0].rectified = output
        return output


def _sees(probe: Tensor, layer_input: Tensor, knowledge: Knowledge) -> bool:
    """Tell whether a layer's input is the batch itself, cut into segments or whole clips."""
    clip = probe[0].numel()
    widths = (knowledge.clip_shape[-1], clip) if knowledge.of_features else (clip,)
    if layer_input.numel() != probe.numel() or layer_input.shape[-1] not in widths:
        return False
    return torch.equal(layer_input.reshape(-1), probe.reshape(-1))


def _pull(calls: _Calls, observation: Observation, names: dict[int, str]) -> Tensor | None:
    """Pull the last layer's bias gradient back to the first layer's units; None if rows differ in it."""
    first, last = calls.linear[0], calls.linear[-1]
    name = None if last.bias is None else names.get(id(last.bias))
    tensors = observation.update.tensors
    if first.rectified is None or first is last or name not in tensors or not last.output.requires_grad:
        return None
    weights = tensors[name].to(last.output)
    (pulled,) = torch.autograd.grad((last.output * weights).sum(), first.rectified, allow_unused=True)
    if pulled is None:
        return None
    rows = pulled.detach().cpu().double().reshape(-1, pulled.shape[-1])
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)
    alike = len(rows) > 1 and bool((rows @ rows[0] > 1 - 1e-9).all())
    return rows[0] if alike else None
