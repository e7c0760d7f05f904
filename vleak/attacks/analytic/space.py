"""Space of the segments: the leading singular vectors of a linear layer's gradient, with their errors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vleak.attacks.analytic.rows import numerical_rank, rounding

__all__ = ["SAME", "Space", "cosine", "exact_on_zeros", "fresh_direction", "is_new", "spaces"]

SAME = 0.999
"""Cosine from which two rows are one."""


@dataclass(frozen=True)
class Space:
    """The k leading singular triplets of a layer's gradient dW = D X, where every row of X is a segment.

    Attributes:
        left: (units, k), spans the columns of D.
        values: (k,), falling.
        right: (width, k), spans the rows of X.
        noise: the next singular value: what is missing, or is not signal.
        scale: (k,) or None. In coordinates of `right` every segment has product 1 with it, because the bias
            gradient is the sum of the columns of D. None without a bias.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    noise: float
    scale: Tensor | None

    def error(self, z: Tensor) -> float:
        """Return how wrong a row (or column) with coordinates `z` (k,) is, relative to its norm, about.

        The noise turns the j-th singular vector by the part noise / values[j].
        """
        return self.noise * float((z / self.values).norm() / z.norm().clamp(min=1e-300))


def spaces(weight: Tensor, bias: Tensor | None, rows: int) -> list[Space]:
    """Return the spaces that the spectrum suggests: that of all that is no noise, then smaller ones.

    Segments that a loss hardly weighs have singular values near the noise; the space of the others, which
    ends where the spectrum falls steepest, is known better without them.

    Args:
        weight: (units, width) float64, the gradient of a linear layer, not zero.
        bias: (units,) float64 or None.
        rows: how many rows the layer saw.
    """
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    rank = numerical_rank(values, rows)
    floor = rounding(values)
    following = torch.cat([values[1:], values.new_zeros(1)]).clamp(min=floor)
    falls = (following / values)[:rank]
    ranks = dict.fromkeys([rank, *(1 + falls.argsort()[:2]).tolist()] if rank else [])
    suggested = []
    for k in ranks:
        scale = None if bias is None else left[:, :k].T @ bias / values[:k]
        suggested.append(Space(left[:, :k], values[:k], right[:k].T, float(following[k - 1]), scale))
    return suggested


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of two vectors."""
    value: Tensor = a @ b / (a.norm() * b.norm()).clamp(min=1e-300)
    return value


def is_new(kept: Tensor, z: Tensor) -> bool:
    """Return whether a direction (k,) is none of those that are kept, (k, count)."""
    return not bool((kept.T @ z).abs().gt(SAME).any())


def exact_on_zeros(basis: Tensor, z: Tensor, error: float) -> Tensor | None:
    """Return z (k,) made exact on the zeros of basis @ z; None where there are no more than an accident has.

    Any k - 1 zeros can be had in a space of k dimensions.
    """
    values = (basis @ z).abs()
    zero = values < (1e-4 + 3 * error) * float(values.max())
    if int(zero.sum()) <= len(z) + max(2, len(values) // 50):
        return None
    refined = torch.linalg.eigh(basis[zero].T @ basis[zero])[1][:, 0]
    exact: Tensor = refined * torch.sign(refined @ z)
    return exact


def fresh_direction(kept: Tensor, start: int, generator: torch.Generator) -> Tensor:
    """Draw a direction away from those that are kept, (k, count); two times of three not quite."""
    draw = torch.randn(len(kept), generator=generator, dtype=kept.dtype)
    basis = torch.linalg.qr(kept)[0]
    away = draw - basis @ (basis.T @ draw)
    direction: Tensor = away / away.norm() + (0.0, 1.0, 0.3)[start % 3] * draw / draw.norm()
    return direction
