"""Defenses of the protocol: the sum over clients, and masks that cancel in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from vleak.defenses.none import NoDefense
from vleak.defenses.ranges import check_number, check_whole
from vleak.errors import InputError
from vleak.federated import Changes, Channel, Claim, Defense, GaussianNoise, Message, SumsClients, Update


@dataclass(frozen=True, kw_only=True)
class SecureSum(Defense):
    """Secure sum over clients: the server sees the mean of their messages, and none of them.

    Ideal secure aggregation (Bonawitz et al., CCS 2017): masks that are uniform over the whole ring in which
    the sum is taken, of which a message alone says nothing. The clips of a batch are dealt out to the clients
    in order, evenly. Clients that drop out leave the sum smaller, and below a threshold there is none. Of
    gradients the mean is that of a batch of all clips, and is attacked as such: that a clip is among those of
    the sum, and which of its clips an answer is, is all that linkage and identification say.

    Behind other defenses it is the sum of what they send, ``prune+secure_sum``. Sparse updates are summed
    with their positions, which the server sees: what one client alone sends arrives as it is (arXiv
    2508.04285; `sent_by_one`), and the rest is a mean over clients whose entries are known
    (`vleak.federated.Channel.senders`).

    Attributes:
        clients: that take part, at least 2.
        dropped: how many of them drop out.
        threshold: least number of clients whose sum is revealed, at least 2.
    """

    name: ClassVar[str] = "secure_sum"
    clients: int = 4
    dropped: int = 0
    threshold: int = 2

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_whole(self.name, "clients", self.clients, 2)
        check_whole(self.name, "dropped", self.dropped, 0)
        check_whole(self.name, "threshold", self.threshold, 2)
        if self.summed_clients() < self.threshold:
            raise InputError(
                f"secure_sum: of {self.clients} clients {self.dropped} drop out, and no sum of fewer than "
                f"{self.threshold} is revealed, so that nothing is sent; let fewer drop out"
            )

    @property
    def label(self) -> str:
        """Number of clients in the sum, such as "sum of 4"."""
        return f"sum of {self.summed_clients()}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return sums of 2 and of 4 clients."""
        return [cls(clients=clients) for clients in (2, 4)]

    def summed_clients(self) -> int:
        """Return how many clients are left."""
        return self.clients - self.dropped

    def channel(self, update: Update) -> Channel | None:
        """Return that every entry is exact, of all clips; None of several local steps, on parts of them."""
        local = update.facts.local
        return (
            None if local is not None and local.steps > 1 else Channel(key=(self.name, self.summed_clients()))
        )

    def claims(self) -> Sequence[Claim]:
        """Return that it is the sum of undefended clients."""
        return (SumsClients(clients=self.summed_clients(), each=NoDefense()),)


def sent_by_one(messages: Sequence[Message]) -> float:
    """Return the share of the entries in a sum that one client alone sent, whose values are not hidden by it.

    Args:
        messages: of the clients that are summed; what is zero was not sent.
    """
    flat = [torch.cat([tensor.flatten() for tensor in message.tensors.values()]) != 0 for message in messages]
    senders = torch.stack(flat).sum(0)
    return float((senders == 1).sum() / (senders > 0).sum().clamp(min=1))


@dataclass(frozen=True, kw_only=True)
class WeakMasks(Defense):
    """Pairwise masks of Gaussian floats, which cancel in the sum over clients; the message of one client.

    In secure aggregation (Bonawitz et al., CCS 2017) the masks are uniform over the whole ring in which the
    sum is taken, so that a message alone says nothing. Floats of a standard deviation s, as shipped under
    the same name, have no such range: the masks that a client shares with ``clients - 1`` others, added to
    its update with their signs, are Gaussian noise of ``s sqrt(clients - 1)`` in every entry. Nothing is
    clipped, so nothing is proven. The masks of partners that drop out have to be revealed for the sum, and
    the server takes them off. What the server learns from the sum alone: `SecureSum`.

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
