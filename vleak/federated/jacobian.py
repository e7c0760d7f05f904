"""Jacobian of an update by its clips, never formed: products with it.

J' r is a second derivative, J v the derivative of J' r by r, and random vectors turn a few such products into
sums over all singular values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["JacobianProducts", "Send", "random_signs"]

Send = Callable[[Tensor], Sequence[Tensor]]
"""Clips (B, C, T, H, W) to the tensors of their update, twice differentiable."""


class JacobianProducts:
    """Products with the Jacobian of an update by its clips, by backward passes over one kept graph."""

    def __init__(self, send: Send, clips: Tensor) -> None:
        """Compute the update once.

        Args:
            send: clips (B, C, T, H, W) to the tensors of the update, twice differentiable.
            clips: where the Jacobian is taken.
        """
        self._clips = clips.detach().clone().requires_grad_()
        self._sent = torch.cat([tensor.flatten() for tensor in send(self._clips)])
        self._weights = torch.zeros_like(self._sent, requires_grad=True)
        # Linear in the weights, so that its derivative by them is J whatever they are.
        (self._back,) = torch.autograd.grad(self._sent, self._clips, self._weights, create_graph=True)

    @property
    def sent(self) -> Tensor:
        """The update itself, (entries of the update,)."""
        return self._sent.detach()

    def times(self, v: Tensor) -> Tensor:
        """Return J v, (entries of the update,), of v (numbers in the clips,)."""
        v = v.to(self._back).view_as(self._back)
        return torch.autograd.grad(self._back, self._weights, v, retain_graph=True)[0]

    def transposed(self, r: Tensor) -> Tensor:
        """Return J' r, (numbers in the clips,), of r (entries of the update,)."""
        return torch.autograd.grad(self._sent, self._clips, r, retain_graph=True)[0].flatten()

    def squared(self, v: Tensor) -> Tensor:
        """Return J'J v in float64."""
        return self.transposed(self.times(v)).double()


def random_signs(count: int, generator: torch.Generator) -> Tensor:
    """Return (count,) float32 of -1 and 1, drawn on the CPU."""
    return torch.randint(2, (count,), generator=generator).float() * 2 - 1
