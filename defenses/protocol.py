"""Defenses of the protocol: masks that cancel in the sum over clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from vleak.defenses.ranges import check_number, check_whole
from vleak.errors import InputError
from vleak.federated import Changes, Channel, Claim, Defense, GaussianNoise, Message, Update


@dataclass(frozen=True, kw_only=True)
class WeakMasks(Defense):
    """Pairwise masks of Gaussian floats, which cancel in the sum over clients; the message of one client.

    In secure aggregation (Bonawitz et al., CCS 2017) the masks are uniform over the whole ring in which the
    sum is taken, so that a message alone says nothing. Floats of a standard deviation s, as shipped under
    the same name, have no such range: the masks that a client shares with ``clients - 1`` others, added to
    its update with their signs, are Gaussian noise of ``s sqrt(clients - 1)`` in every entry. Nothing is
    clipped, so nothing is proven. The masks of partners that drop out have to be revealed for the sum, and
    the server takes them off.

    What the server learns from the sum alone is an update of more clips: for gradients a larger batch.

    Attributes:
        deviation: standard deviation s of one mask, from 1e-12 to 1e6.
        clients: that take part, at least 2.
        dropped: of its partners drop out, fewer than ``clients - 1``.
    """

    name: ClassVar[str] = "masks"
    deviation: float = 1e-3
    clients: int = 10
    dropped: int = 0

    def __post_init__(self) -> None:
        """Check deviation and numbers of clients."""
        check_number(self.name, "deviation", self.deviation, 1e-12, 1e6)
        check_whole(self.name, "clients", self.clients, 2)
        check_whole(self.name, "dropped", self.dropped, 0)
        if self.dropped > self.clients - 2:
            raise InputError(
                f"masks: dropped is {self.dropped} of {self.clients - 1} partners, so that no mask is left; "
                f"expected at most {self.clients - 2}"
            )

    @property
    def label(self) -> str:
        """Name and deviation of one mask, such as "masks s=0.001"."""
        return f"masks s={self.deviation:g}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the deviations 0.001, 0.01 and 0.1."""
        return [cls(deviation=deviation) for deviation in (0.001, 0.01, 0.1)]

    @property
    def noise(self) -> float:
        """Standard deviation of the masks that are left, in every entry of the message."""
        return self.deviation * math.sqrt(self.clients - 1 - self.dropped)

    def channel(self, update: Update) -> Channel:
        """Return the noise that the masks are."""
        entries = sum(tensor.numel() for tensor in update.tensors.values())
        return Channel(
            noise_energy=self.noise**2 * entries,
            noise_deviation=self.noise * update.facts.batch_size,
            key=(self.name, self.noise),
        )

    def claims(self) -> Sequence[Claim]:
        """Return the noise, without a clip."""
        return (GaussianNoise(deviation=self.noise, unit="client"), Changes())

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send the update with the masks of the partners that stay, drawn as their sum."""
        sent = {
            name: t.detach().to("cpu", torch.float32) + self.noise * torch.randn(t.shape, generator=generator)
            for name, t in gradient.items()
        }
        return Message(sent, sum(tensor.nbytes for tensor in sent.values()))
