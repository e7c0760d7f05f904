"""PRECODE: a variational bottleneck before the last layer, through which nobody computes the same twice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.defenses.ranges import check_number, check_whole
from vleak.defenses.representation import last_linear
from vleak.errors import CapabilityError
from vleak.federated import Changes, Channel, Claim, Defense, DrawsAnew, Loss, Update, mean_gradient
from vleak.seeds import generator as seeded

__all__ = ["Bottleneck", "Precode"]

_PLACE = "bottleneck"
"""Name of the bottleneck in the layer that it stands before."""


class Bottleneck(nn.Module):
    """Encoder to means and deviations of a Gaussian code, and decoder of a draw from it.

    Outside of a client nothing is drawn, and the means are decoded.
    """

    def __init__(self, features: int, width: int) -> None:
        """Draw the weights from a seed of their own, as all clients begin with the same.

        Args:
            features: of what comes in and goes out.
            width: of the code.
        """
        super().__init__()
        self.encoder = nn.Linear(features, 2 * width, device="meta").to_empty(device="cpu")
        self.decoder = nn.Linear(width, features, device="meta").to_empty(device="cpu")
        self.draws: torch.Generator | None = None
        self.divergence = torch.zeros(())
        numbers = seeded("precode", features, width)
        with torch.no_grad():
            for layer in (self.encoder, self.decoder):
                bound = layer.in_features**-0.5  # as nn.Linear begins
                for tensor in (layer.weight, layer.bias):
                    tensor.uniform_(-bound, bound, generator=numbers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what is decoded, (..., features), and keep how far the code is from standard normal."""
        means, raw = self.encoder(inputs).chunk(2, -1)
        if self.draws is None:
            return self.decoder(means)  # type: ignore[no-any-return]
        deviations = F.softplus(raw).clamp(min=1e-6)
        noise = torch.randn(means.shape, generator=self.draws).to(means)
        terms = means.square() + deviations.square() - 2 * deviations.log() - 1
        self.divergence = terms.sum(-1).mean() / 2
        return self.decoder(means + deviations * noise)  # type: ignore[no-any-return]


class _Behind(nn.Linear):
    """A linear layer with a bottleneck before it; its own parameters keep their names."""

    def __init__(self, layer: nn.Linear, width: int) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.bottleneck = Bottleneck(layer.in_features, width).to(layer.weight.device)
        self.train(layer.training)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(self.bottleneck(inputs), self.weight, self.bias)


@dataclass(frozen=True, kw_only=True)
class Precode(Defense):
    """PRECODE (Scheliga et al., WACV 2022, arXiv 2108.04725): a variational bottleneck before the last layer.

    Server and clients train a model with a bottleneck (`Bottleneck`) before its last linear layer: a code is
    drawn from a Gaussian whose means and deviations the layer before gives, and decoded. To the loss comes
    ``weight`` times the divergence of the code from the standard normal. The bottleneck is trained and sent
    like any layer. Drawn anew for every clip and step are the gradients of the bottleneck and of the layer
    behind it; those before it only take on another direction of the loss. So whoever leaves the former out
    rebuilds the clip (Balunović et al., ICLR 2022, arXiv 2111.04706; Scheliga et al., arXiv 2208.04767), at
    the expected code. Of one clip alone the gradient of the encoder's bias is all that comes back to the
    layers before, draw and divergence included, so that these are matched exactly.

    A trained model loses what it learned, as the bottleneck is untrained: compare both at equal training.

    Attributes:
        width: of the code, at least 1; 256 in the paper.
        weight: of the divergence, from 0; 0.001 in the paper.
    """

    name: ClassVar[str] = "precode"
    width: int = 256
    weight: float = 1e-3

    def __post_init__(self) -> None:
        """Check both."""
        check_whole(self.name, "width", self.width, 1, 2**16)
        check_number(self.name, "weight", self.weight, 0.0, 1e6)

    @property
    def label(self) -> str:
        """Name and width."""
        return f"precode {self.width}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the widths 256 and 32."""
        return [cls(width=width) for width in (256, 32)]

    def channel(self, update: Update) -> Channel:
        """Return that the bottleneck and the layer behind it are no measurement, and all else is exact."""
        places = {n.partition(f"{_PLACE}.")[0] for n in update.tensors if f"{_PLACE}." in n}
        masks = {
            name: torch.full(tensor.shape, not any(name.startswith(place) for place in places))
            for name, tensor in update.tensors.items()
        }
        local = update.facts.local
        single = local is None or (local.steps == 1 and local.optimizer == "sgd")
        behind = next((f"{place}{_PLACE}.encoder" for place in places), None) if single else None
        return Channel(masks=masks, random_behind=behind, key=(self.name, self.width, self.weight))

    def claims(self) -> Sequence[Claim]:
        """Return that every message is drawn anew."""
        return (Changes(), DrawsAnew())

    def extend_model(self, model: nn.Module) -> nn.Module:
        """Return a copy of the model with the bottleneck; a model that has one is returned as it is.

        Raises:
            CapabilityError: the model does not end in a trained linear layer.
        """
        if any(isinstance(module, Bottleneck) for module in model.modules()):
            return model
        model = copy.deepcopy(model)
        name, layer = last_linear(model, self.name)
        place = name.rpartition(".")[0]
        if not place:
            return _Behind(layer, self.width)
        model.set_submodule(place, _Behind(layer, self.width))
        return model

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the gradient of the batch through a code that is drawn.

        Raises:
            CapabilityError: the model has no bottleneck.
        """
        # The layers are copied, for the draws are kept in one, and their parameters are not.
        model = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
        found = [module for module in model.modules() if isinstance(module, Bottleneck)]
        if not found:
            raise CapabilityError(
                "precode: the model has no bottleneck; give it to a vleak.Client with precode"
            )
        found[0].draws = generator
        return mean_gradient(
            model, lambda out, own: loss(out, own) + self.weight * found[0].divergence, clips, labels
        )
