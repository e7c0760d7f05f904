"""Spectrum of the Jacobian of an update by its clips: what of a clip the update tells, to first order.

A client sends g(x) of its clips x. To first order a change v of the clips changes the update by J v, with J
the Jacobian of g. A direction of a small singular value, relative to the largest, is one that a descent
hardly moves along, and that rounding or noise covers; nothing but a prior fills it in. This is a diagnostic,
no bound: it holds near x alone.

J is never formed: `vleak.guarding.JacobianProducts` multiplies with it, and stochastic Lanczos quadrature
(Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38, 2017) turns products with J'J into the density of its
eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vleak.federated import JacobianProducts

__all__ = ["LEVELS", "JacobianProducts", "Product", "Spectrum", "spectrum"]

LEVELS = (0.1, 0.01)
"""Singular values, over the largest one, of which the share is reported."""

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a Jacobian.

    Attributes:
        size: numbers in the clips, n.
        effective_rank: (sum of squares)^2 / sum of fourth powers of the singular values, 1 to n: how many
            equal ones would spread the update's energy alike.
        above: by level of ``LEVELS``, the share of the n directions whose singular value is at least that
            part of the largest one, 0 to 1.
    """

    size: int
    effective_rank: float
    above: tuple[float, ...]


def spectrum(products: Iterable[Product], size: int, steps: int, generator: torch.Generator) -> Spectrum:
    """Return the spectrum that several symmetric, positive products have in the mean.

    Args:
        products: each v (n,) to A v in float64, with A = J'J; one random start is used for each.
        size: n.
        steps: of Lanczos; with n steps a product without equal eigenvalues is taken apart exactly.
        generator: draws the starts.
    """
    rules = []
    for product in products:
        start = torch.randint(2, (size,), generator=generator).double() * 2 - 1  # less variance than normal
        nodes, weights = _quadrature(product, start, steps)
        rules.append((nodes / nodes.max().clamp(min=1e-300), weights))
    values = torch.cat([nodes for nodes, _ in rules]).clamp(min=0.0)
    weights = torch.cat([weights for _, weights in rules]) / len(rules)
    first, second = float((weights * values).sum()), float((weights * values.square()).sum())
    above = tuple(float(weights[values >= level**2].sum()) for level in LEVELS)
    return Spectrum(size, size * first**2 / second if second else 0.0, above)


def _quadrature(product: Product, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights (k,), which sum to 1, of Gauss quadrature over the spectrum of a product."""
    basis = [start / start.norm()]
    diagonal, beside = list[float](), list[float]()
    for _ in range(min(steps, len(start))):
        image = product(basis[-1])
        diagonal.append(float(image @ basis[-1]))
        kept = torch.stack(basis)
        for _ in range(2):  # once is not orthogonal enough where eigenvalues differ by many orders
            image = image - kept.T @ (kept @ image)
        beside.append(float(image.norm()))
        if beside[-1] <= 1e-9 * max(map(abs, diagonal)):
            break
        basis.append(image / beside[-1])
    off = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + off.diag(1) + off.diag(-1)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    return nodes, vectors[0].square()
