"""OASIS: transformed copies of the clips take part in every gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.errors import CapabilityError, unknown_name
from vleak.federated import Changes, Channel, Claim, Defense, Loss, Update, mean_gradient

__all__ = ["Oasis"]


def _rotation(degrees: float) -> list[list[float]]:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [[cosine, -sine, 0.0], [sine, cosine, 0.0]]


_FLIPS = [[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]]
_ROTATIONS = [_rotation(degrees) for degrees in (90, 180, 270)]
_SHEARS = [[[1.0, shear, 0.0], [0.0, 1.0, 0.0]] for shear in (-0.5, 0.5)]

_COPIES: dict[str, list[list[list[float]]]] = {
    "flips": _FLIPS,
    "rotations": _ROTATIONS,
    "rotations_shears": _ROTATIONS + _SHEARS,
}
"""Affine maps of frames whose sides run from -1 to 1, one a copy."""


@dataclass(frozen=True, kw_only=True)
class Oasis(Defense):
    """OASIS (Jeter et al., ICDCS 2024, arXiv 2311.13739): every clip is joined by transformed copies of it.

    A neuron of the first layer that answers to a clip alone gives it away as the quotient of its gradients,
    by weight over by bias; one that answers to the copies too gives a mixture of all of them. Sent is the
    mean of the gradients of the batch and of each of its transformed copies, with the same labels; public is
    the number of clips without the copies. With batch norm in train mode each copy of the batch has
    statistics of its own.

    Attributes:
        copies: "flips", 2 a clip; "rotations" by 90, 180 and 270 degrees, 3; "rotations_shears", 5. Frames
            that are not square are stretched by a rotation, and what comes from outside of a frame is black.
    """

    name: ClassVar[str] = "oasis"
    copies: str = "rotations"

    def __post_init__(self) -> None:
        """Check the name."""
        if self.copies not in _COPIES:
            raise unknown_name("copies of oasis", str(self.copies), _COPIES)

    @property
    def label(self) -> str:
        """Name and number of copies, such as "oasis +3"."""
        return f"oasis +{len(_COPIES[self.copies])}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return flips, rotations, and rotations with shears."""
        return [cls(copies=copies) for copies in _COPIES]

    def channel(self, update: Update) -> Channel:
        """Return that every entry is exact, of the clips with their copies."""
        return Channel(key=(self.name, self.copies))

    def claims(self) -> Sequence[Claim]:
        """Return that the message is not the undefended one."""
        return (Changes(),)

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the mean gradient of the batch and its copies.

        Raises:
            CapabilityError: features, which cannot be turned.
        """
        if clips.dim() != 5:
            raise CapabilityError("oasis: features cannot be turned; use it in the raw pipeline")
        batches = [clips, *(_moved(clips, affine) for affine in _COPIES[self.copies])]
        gradients = [mean_gradient(model, loss, batch, labels) for batch in batches]
        return {name: torch.stack([g[name] for g in gradients]).mean(0) for name in gradients[0]}


def _moved(clips: Tensor, affine: list[list[float]]) -> Tensor:
    """Return clips (N, C, T, H, W) of which every frame is mapped by an affine (2, 3)."""
    frames = clips.flatten(1, 2)
    theta = torch.tensor([affine], dtype=clips.dtype, device=clips.device).expand(len(clips), -1, -1)
    grid = F.affine_grid(theta, list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, align_corners=False).view_as(clips)
