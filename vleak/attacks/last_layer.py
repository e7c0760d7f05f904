"""Last layer of a classifier, found by running it once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vleak.attacks.observation import Observation
from vleak.descent.problem import lock_of

__all__ = ["LastLayer", "last_layer"]


@dataclass(frozen=True)
class LastLayer:
    """The linear layer, or convolution of kernel 1, that a model called last with an output a class.

    Attributes:
        outputs: numbers that the model returns for a clip.
        weight, bias: names of its parameters; None where there is no such layer, or no bias.
    """

    outputs: int
    weight: str | None = None
    bias: str | None = None


def last_layer(observation: Observation) -> LastLayer:
    """Return the last layer of an observation's model; the update is not looked at."""
    model, knowledge = observation.model, observation.knowledge
    device = next(model.parameters()).device
    # As many clips as the client had: in train mode batch norm refuses fewer than it needs.
    with lock_of(model), torch.no_grad(), _LinearCalls() as calls:
        logits = model(torch.full(knowledge.batch_shape, 0.5, device=device))
    outputs = logits.shape[-1]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # A model of two classes may have one output z, which is read as the logits (0, z).
    widths = (outputs, 1) if outputs == 2 else (outputs,)
    seen = [(id(w), id(b), out is logits, width) for w, b, width, out in calls.seen]
    heads = [(weight, bias, (itself, width)) for weight, bias, itself, width in seen if width in widths]
    # What is the output itself comes before what was called after it, such as an auxiliary head.
    for weight, bias, (_, width) in sorted(heads, key=lambda call: call[2])[-1:]:
        return LastLayer(width, names.get(weight), names.get(bias))
    return LastLayer(outputs)


class _LinearCalls(TorchFunctionMode):
    """Records (weight, bias, width, output) of linear layers as they are called, in this thread alone.

    A hook on the modules would be seen by every other thread that runs the same model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor | None, int, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in (F.linear, F.conv3d):
            named = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
            weight = named["weight"]
            if func is F.linear:
                self.seen.append((weight, named.get("bias"), output.shape[-1], output))
            elif weight[0, 0].numel() == 1:  # a linear layer at every place, as that of S3D
                self.seen.append((weight, named.get("bias"), len(weight), output))
        return output
