"""Gradient pruning: only the largest entries leave the client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from vleak.defenses.codecs import decode, encode_sparse
from vleak.errors import InputError
from vleak.federated import (
    CarriesError,
    Channel,
    Claim,
    Defense,
    KeepsEntries,
    Message,
    Update,
    surviving_entries,
)


@dataclass(frozen=True, kw_only=True)
class Prune(Defense):
    """Keep the entries of largest magnitude over the whole update and send nothing of the others.

    The sparsification of Deep Gradient Compression (Lin et al., ICLR 2018, arXiv 1712.01887). Of n entries
    exactly ``max(1, round((1 - fraction) n))`` go out.

    Attributes:
        fraction: part of the entries that is dropped, in [0, 1).
        error_feedback: whether what one round drops is added to the next one.
    """

    name: ClassVar[str] = "prune"
    fraction: float = 0.9
    error_feedback: bool = False

    def __post_init__(self) -> None:
        """Check the fraction."""
        if not 0 <= self.fraction < 1:
            raise InputError(
                f"prune: fraction is {self.fraction}, expected 0 <= fraction < 1, such as 0.9 for 90 %"
            )

    @property
    def label(self) -> str:
        """Name and percentage, such as "prune 99.9 %"."""
        return f"prune {100 * self.fraction:g} %"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the fractions 0.7, 0.9, 0.99 and 0.999."""
        return [cls(fraction=fraction) for fraction in (0.7, 0.9, 0.99, 0.999)]

    def channel(self, update: Update) -> Channel:
        """Return that the entries which arrived are exact, and of largest magnitude."""
        return Channel(
            masks=surviving_entries(update),
            kept_fraction=1 - self.fraction,
            key=(self.name, self.fraction),
        )

    def claims(self) -> Sequence[Claim]:
        """Return how many entries are sent, and which."""
        carried = (CarriesError(),) if self.error_feedback else ()
        return (KeepsEntries(fraction=1 - self.fraction), *carried)

    def keeps_error(self) -> bool:
        """Return whether dropped entries are carried on."""
        return self.error_feedback

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send values and positions of the entries kept; the rest arrives as 0."""
        entries = sum(tensor.numel() for tensor in gradient.values())
        content = encode_sparse(gradient, max(1, round((1 - self.fraction) * entries)))
        shapes = {name: tuple(tensor.shape) for name, tensor in gradient.items()}
        return Message(decode(content, shapes), len(content))
