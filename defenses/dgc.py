"""Deep Gradient Compression: the largest entries of what momentum has piled up, over rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from vleak.defenses.dp_client import DpClient
from vleak.defenses.prune import Prune
from vleak.defenses.ranges import check_number
from vleak.errors import InputError
from vleak.federated import (
    Channel,
    Claim,
    ClearsSent,
    Defense,
    KeepsEntries,
    Message,
    Update,
    surviving_entries,
)

__all__ = ["Dgc"]

_MOMENTUM, _WITHHELD = "dgc/momentum/", "dgc/withheld/"
"""What the names in a client's memory begin with."""


@dataclass(frozen=True, kw_only=True)
class Dgc(Defense):
    """Deep Gradient Compression (Lin et al., ICLR 2018, arXiv 1712.01887), without its warm-up.

    In every round the gradient g is clipped; momentum u becomes m u + g and what is withheld v becomes v + u
    (momentum correction); the largest entries of v are sent, and there u and v are set to zero (momentum
    factor masking). `Prune` with error feedback is this without momentum. A server that knows what it was
    sent in earlier rounds takes these sums apart; of one round the entries are those of the gradient.

    Attributes:
        fraction: part of the entries that is dropped, in [0, 1).
        momentum: m, in [0, 1).
        max_norm: largest norm of a client's gradient before it is added, above 0; the paper takes that of the
            whole gradient by the root of the number of clients. 0 for none.
    """

    name: ClassVar[str] = "dgc"
    fraction: float = 0.999
    momentum: float = 0.9
    max_norm: float = 0.0

    def __post_init__(self) -> None:
        """Check every setting."""
        for setting in ("fraction", "momentum"):
            if not 0 <= getattr(self, setting) < 1:
                raise InputError(f"dgc: {setting} is {getattr(self, setting)}, expected a number in [0, 1)")
        check_number(self.name, "max_norm", self.max_norm, 0.0, 1e12)
        if 0 < self.max_norm < 1e-12:
            raise InputError(f"dgc: max_norm is {self.max_norm}, expected 0 or at least 1e-12")

    @property
    def label(self) -> str:
        """Name and percentage, such as "dgc 99.9 %"."""
        return f"dgc {100 * self.fraction:g} %"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the fractions 0.9, 0.99 and 0.999."""
        return [cls(fraction=fraction) for fraction in (0.9, 0.99, 0.999)]

    def channel(self, update: Update) -> Channel:
        """Return that the entries which arrived are exact, and that they were the largest."""
        return Channel(
            masks=surviving_entries(update),
            kept_fraction=1 - self.fraction,
            clip_norm=self.max_norm if self.max_norm and update.facts.batch_size == 1 else math.inf,
            key=(self.name, self.fraction, self.max_norm),
        )

    def claims(self) -> Sequence[Claim]:
        """Return how many entries are sent and which, and that nothing of them is left."""
        kept = () if self.max_norm else (KeepsEntries(fraction=1 - self.fraction),)
        return (*kept, ClearsSent())

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send values and positions of the largest entries, in one round."""
        return self.transmit_in_round(gradient, generator, {})

    def transmit_in_round(
        self, gradient: dict[str, Tensor], generator: torch.Generator, memory: dict[str, Tensor]
    ) -> Message:
        """Send the largest entries of what is withheld, and keep the others with their momentum."""
        if self.max_norm:
            clip = DpClient(noise_multiplier=0.0, max_norm=self.max_norm)
            gradient = clip.transmit(gradient, generator).tensors
        momenta, sums = {}, {}
        for name, tensor in gradient.items():
            own = tensor.detach().to("cpu", torch.float32)
            before = memory.get(_MOMENTUM + name, torch.zeros_like(own))
            momenta[name] = self.momentum * before + own
            sums[name] = memory.get(_WITHHELD + name, torch.zeros_like(own)) + momenta[name]
        message = Prune(fraction=self.fraction).transmit(sums, generator)
        for name, sent in message.tensors.items():
            memory[_MOMENTUM + name] = torch.where(sent != 0, 0.0, momenta[name])
            memory[_WITHHELD + name] = torch.where(sent != 0, 0.0, sums[name])
        return message
