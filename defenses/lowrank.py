"""Updates of low rank: a matrix leaves the client as a product of two narrow ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from vleak.defenses.codecs import decode, encode_low_rank
from vleak.defenses.ranges import check_whole
from vleak.federated import (
    CarriesError,
    Changes,
    Channel,
    Claim,
    Defense,
    LimitsRank,
    Message,
    Update,
    column_bases,
)

_MEMORY = "powersgd/"
"""What the names in a client's memory begin with: the right factors of the round before."""


@dataclass(frozen=True, kw_only=True)
class PowerSgd(Defense):
    """Send every matrix as a product of two narrow ones, by one step of power iteration.

    PowerSGD (Vogels et al., NeurIPS 2019, arXiv 1905.13727) for one client. A tensor (n, ...) is a matrix M
    of n rows; from a right factor Q (m, r), at first random, P = M Q is made orthonormal and sent with
    Q = M' P, and P Q' arrives. Over rounds Q is that of the round before (warm start). Tensors of one axis,
    and those of at most ``rank`` rows or columns, are sent whole.

    Attributes:
        rank: r, at least 1.
        error_feedback: whether what one round leaves out is added to the next one.
    """

    name: ClassVar[str] = "powersgd"
    rank: int = 2
    error_feedback: bool = True

    def __post_init__(self) -> None:
        """Check the rank."""
        check_whole(self.name, "rank", self.rank, 1)

    @property
    def label(self) -> str:
        """Name and rank."""
        return f"powersgd rank {self.rank}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the ranks 4, 2 and 1."""
        return [cls(rank=rank) for rank in (4, 2, 1)]

    def channel(self, update: Update) -> Channel:
        """Return the spans onto which the matrices were projected; all that lies in them is exact."""
        return Channel(bases=column_bases(update, self.rank), key=(self.name, self.rank))

    def claims(self) -> Sequence[Claim]:
        """Return the rank of what is sent."""
        carried = (CarriesError(),) if self.error_feedback else ()
        return (LimitsRank(most=self.rank), Changes(), *carried)

    def keeps_error(self) -> bool:
        """Return whether what is left out is carried on."""
        return self.error_feedback

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send the factors; what arrives is their product."""
        return self.transmit_in_round(gradient, generator, {})

    def transmit_in_round(
        self, gradient: dict[str, Tensor], generator: torch.Generator, memory: dict[str, Tensor]
    ) -> Message:
        """Send the factors, and keep the right ones for the next round."""
        factors = {}
        for name, tensor in gradient.items():
            matrix = tensor.detach().to("cpu", torch.float32).flatten(1) if tensor.ndim > 1 else None
            if matrix is None or min(matrix.shape) <= self.rank:
                continue
            start = memory.get(_MEMORY + name)
            if start is None:
                start = torch.randn(matrix.shape[1], self.rank, generator=generator)
            factors[name] = power_step(matrix, start)
        content = encode_low_rank(gradient, factors)
        memory.update({_MEMORY + name: right for name, (_, right) in factors.items()})
        shapes = {name: tuple(tensor.shape) for name, tensor in gradient.items()}
        return Message(decode(content, shapes), len(content))


def power_step(matrix: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors P (n, r), orthonormal, and Q (m, r) of a matrix (n, m) by one power iteration.

    Args:
        matrix: (n, m) float32.
        start: (m, r), the right factor to begin with.
    """
    left = torch.linalg.qr(matrix.double() @ start.double()).Q
    return left.float(), (matrix.double().T @ left).float()
