"""Defenses of the representation: Soteria prunes what the last layer's gradient tells of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vleak.errors import CapabilityError, InputError
from vleak.federated import Changes, Channel, Claim, Defense, Loss, Update, mean_gradient
from vleak.switches import differentiable_rnn

_PROBES = 32
_TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class Soteria(Defense):
    """Soteria (Sun et al., CVPR 2021, arXiv 2012.06043): features that tell most of the clip are not sent.

    The gradient of the last linear layer holds its input, the representation r of the clip. The features
    with the largest ``|r_i| / |dr_i/dx|`` are taken for zero in it: their columns of the weight's gradient
    are zero. All other tensors are sent as they are, by which an attacker who leaves these columns out loses
    little. Of a batch the ratios are summed, and the same columns pruned for all clips.

    Norms of the derivatives are estimated from 32 random directions, to about an eighth: one pass a feature,
    of which a layer has thousands, would take minutes.

    Attributes:
        fraction: part of the features that is pruned, in (0, 1); at least one is.
    """

    name: ClassVar[str] = "soteria"
    fraction: float = 0.4

    def __post_init__(self) -> None:
        """Check the fraction."""
        if not 0 < self.fraction < 1:
            raise InputError(
                f"soteria: fraction is {self.fraction}, expected 0 < fraction < 1, such as 0.4 for 40 %"
            )

    @property
    def label(self) -> str:
        """Name and percentage, such as "soteria 40 %"."""
        return f"soteria {100 * self.fraction:g} %"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the fractions 0.1, 0.4 and 0.8."""
        return [cls(fraction=fraction) for fraction in (0.1, 0.4, 0.8)]

    def channel(self, update: Update) -> Channel | None:
        """Return that columns of zeros of the defended layer are no measurement, and all else is exact.

        Of a delta of several steps, each of which pruned other columns, nothing is stated.
        """
        local = update.facts.local
        if local is not None and local.steps > 1:
            return None
        masks = {name: torch.ones(t.shape, dtype=torch.bool) for name, t in update.tensors.items()}
        matrices = [name for name, tensor in update.tensors.items() if tensor.dim() == 2]
        if matrices:
            weight = update.tensors[matrices[-1]]
            masks[matrices[-1]] = (weight != 0).any(0).expand(weight.shape).clone()
        return Channel(masks=masks, key=(self.name, self.fraction))

    def claims(self) -> Sequence[Claim]:
        """Return that the message is not the undefended one."""
        return (Changes(),)

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model whose last matrix is not the weight of a linear layer."""
        last_linear(model, self.name)

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the gradient of the batch without some columns of the last linear layer's weight.

        Raises:
            CapabilityError: the model has no such layer.
        """
        name, layer = last_linear(model, self.name)
        gradient = mean_gradient(model, loss, clips, labels)
        ratios = _ratios(model, layer, clips, generator)
        pruned = ratios.topk(max(1, round(self.fraction * len(ratios)))).indices
        gradient[name] = gradient[name].index_fill(1, pruned, 0.0)
        return gradient


def last_linear(model: nn.Module, defense: str) -> tuple[str, nn.Linear]:
    """Return the last linear layer, and the name of its weight, which has to be the last matrix of all.

    Args:
        model: of a client.
        defense: that asks, for the message.

    Raises:
        CapabilityError: the last matrix belongs to another kind of layer, or there is none.
    """
    trained = model.named_parameters()
    matrices = [name for name, parameter in trained if parameter.dim() == 2 and parameter.requires_grad]
    found = matrices[-1] if matrices else ""
    place, _, kind = found.rpartition(".")
    layer = model.get_submodule(place)
    if not isinstance(layer, nn.Linear) or kind != "weight":
        held = f"the last matrix is {found!r} of {type(layer).__name__}" if found else "it has no matrix"
        raise CapabilityError(
            f"{defense}: the model {type(model).__name__} does not end in a trained linear layer ({held}); "
            "use a model that does, such as c3d_tiny, or pruning"
        )
    return found, layer


def _ratios(model: nn.Module, layer: nn.Linear, clips: Tensor, generator: torch.Generator) -> Tensor:
    """Return (L,) the sum over clips of |r_i| / |dr_i/dx| for the inputs r of a layer.

    J v for random v has in every entry the variance of the squared norm of that row of J. It is had from two
    backward passes, which every model has that can be attacked; u J is linear in u, so any u will do.
    """
    clips = clips.detach().requires_grad_()
    # Of its own, as batch norm in train mode would change the model's.
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    with torch.enable_grad(), differentiable_rnn(model), _inputs(layer) as inputs:
        functional_call(model, state, (clips,))
        features = torch.cat([each.flatten(0, -2) for each in inputs])
        mask = torch.zeros_like(features).requires_grad_()
        (rows,) = torch.autograd.grad(features, clips, mask, create_graph=True)
        squares = torch.zeros_like(features)
        for _ in range(_PROBES):
            direction = torch.randn(clips.shape, generator=generator).to(clips)
            (along,) = torch.autograd.grad(rows, mask, direction, retain_graph=True)
            squares += along.square() / _PROBES
    return (features.detach().abs() / squares.sqrt().clamp(min=_TINY) * (features != 0)).sum(0)


@contextmanager
def _inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """List to which the layer adds what it is given, (..., L)."""
    found: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
        found.append(given[0])

    hook = layer.register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        hook.remove()
