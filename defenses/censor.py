"""CENSOR: noise orthogonal to the gradient instead of the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vleak.defenses.ranges import check_whole
from vleak.errors import InputError
from vleak.federated import Channel, Claim, Defense, Loss, OrthogonalUpdate, Update, mean_gradient


@dataclass(frozen=True, kw_only=True)
class Censor(Defense):
    """Send noise that is orthogonal to each tensor's gradient and as long, the best of several draws.

    CENSOR (Zhang et al., NDSS 2025, arXiv 2501.15718). Of some draws that one is sent after whose step the
    loss of the batch is lowest. The projection divides by the gradient's squared norm, as the paper has it;
    published code divides by the norm, and sends a part of the gradient unless its norm is 1. The norms of
    all tensors are those of the gradient.

    Attributes:
        trials: how many draws, at least 1.
        learning_rate: of the step that is tried, above 0.
    """

    name: ClassVar[str] = "censor"
    trials: int = 20
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        """Check every setting."""
        check_whole(self.name, "trials", self.trials, 1, 10**6)
        if not 0 < self.learning_rate <= 1e6:
            raise InputError(
                f"censor: learning_rate is {self.learning_rate}, expected a number above 0, at most 1e6"
            )

    @property
    def label(self) -> str:
        """Name and number of trials."""
        return f"censor {self.trials}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the published 20 trials."""
        return [cls()]

    def channel(self, update: Update) -> Channel:
        """Return that all of the update is noise."""
        energy = sum(float(tensor.double().square().sum()) for tensor in update.tensors.values())
        return Channel(noise_energy=energy, key=(self.name, self.trials, self.learning_rate))

    def claims(self) -> Sequence[Claim]:
        """Return that nothing along the gradient is sent."""
        return (OrthogonalUpdate(),)

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the draw after whose step the loss is lowest, on the CPU."""
        gradient = {name: g.cpu() for name, g in mean_gradient(model, loss, clips, labels).items()}
        draws = [
            {name: orthogonal_noise(tensor, generator) for name, tensor in gradient.items()}
            for _ in range(self.trials)
        ]
        return min(draws, key=lambda draw: self._loss_after(model, loss, clips, labels, draw))

    def _loss_after(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, draw: dict[str, Tensor]
    ) -> float:
        tensors = {name: buffer.clone() for name, buffer in model.named_buffers()}
        for name, parameter in model.named_parameters():
            tensors[name] = parameter.detach() - self.learning_rate * draw[name].to(parameter)
        with torch.no_grad():
            return float(loss(functional_call(model, tensors, (clips,)), labels))


def orthogonal_noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise of a tensor's shape and norm, orthogonal to it; zero where there is no such direction."""
    along = tensor.double()
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    square = along.square().sum()
    if tensor.numel() < 2 or not square:
        return torch.zeros_like(tensor)
    noise -= (noise * along).sum() / square * along
    scaled: Tensor = noise * (square.sqrt() / noise.norm())
    return scaled.to(tensor.dtype)
