"""Independent components: the rows that a linear layer saw, as independent sources of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from vleak.attacks.analytic.layer_attack import LayerAttack, LayerGradient
from vleak.attacks.analytic.rows import numerical_rank, prior_rows
from vleak.attacks.base import Hooks, Observation, Reconstruction
from vleak.attacks.flags import NEAR_ZERO
from vleak.errors import InputError

__all__ = ["Independent"]

_STILL = 1e-9
"""A source whose fixed point moves by less than this (one minus the cosine) stands still."""


class Independent(LayerAttack):
    """Independent component analysis of a linear layer's gradient (Cocktail Party).

    Kariyappa et al., ICML 2023, arXiv 2209.05578: the rows of the gradient are mixtures of the segments,
    which are taken to be independent over their features. Their space is whitened, and the symmetric fixed
    point of FastICA (Hyvärinen 1999) unmixes it. It needs no ReLU and no exact rank, but independence:
    segments that resemble each other, as neighbours in a video do, are not, and come out mixed.

    Neither order nor sign nor scale can be told by independence. Sign and scale follow from the bias
    gradient, the sum of the columns of the mixing; without one from what is known of the features.
    Nothing is claimed: no check tells a source from a mixture.
    """

    name: ClassVar[str] = "independent"

    def __init__(self, *, iterations: int = 200, restarts: int = 4) -> None:
        """Set the bounds of the search.

        Args:
            iterations: of the fixed point in each restart at most, at least 1.
            restarts: random rotations to begin with, at least 1; the least Gaussian answer counts.

        Raises:
            InputError: fewer than one of either.
        """
        if iterations < 1 or restarts < 1:
            raise InputError(
                f"independent: expected at least 1 iteration and 1 restart, got {iterations} and {restarts}"
            )
        self.iterations, self.restarts = iterations, restarts

    def solve(self, gradient: LayerGradient, generator: torch.Generator, hooks: Hooks) -> Reconstruction:
        """Return the sources, with sign and scale, in any order; the mean row for those that noise hides."""
        weight, bias, layer = gradient.weight, gradient.bias, gradient.layer
        if not bool(weight.any()):
            rows = prior_rows(gradient.knowledge, layer.rows, layer.width)
            return gradient.answer(rows, gradient.unclaimed(), (NEAR_ZERO,))
        rows = gradient.guess()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        rank = min(numerical_rank(values, layer.rows), layer.rows)
        history: list[float] = []
        if rank:
            basis, history = self._unmix(right[:rank], generator, hooks.stopped)
            scale = None if bias is None else left[:, :rank].T @ bias / values[:rank]
            rows[:rank] = _scaled(basis, right[:rank], scale, gradient.observation)
        flags = () if rank else ("noise hides the space of the segments",)
        return replace(
            gradient.answer(rows, gradient.unclaimed(), flags),
            iterations=len(history),
            restarts=self.restarts if history else 0,
            objective=history[-1] if history else float("nan"),
            history=tuple(history),
        )

    def _unmix(
        self, space: Tensor, generator: torch.Generator, stop: Callable[[], bool]
    ) -> tuple[Tensor, list[float]]:
        """Return coordinates (k, k) in `space` (k, width) of its sources, one a row, and the objective's way.

        The objective is minus the sum over sources of their negentropy, by the contrast log cosh.
        """
        whitener = _whitener(space)
        white = whitener @ (space - space.mean(1, keepdim=True))
        best, history = torch.eye(len(space), dtype=space.dtype), [float("inf")]
        for _ in range(self.restarts):
            rotation, way = self._fixed_point(white, generator, stop)
            if way and way[-1] < history[-1]:
                best, history = rotation, way
        return best @ whitener, [value for value in history if value < float("inf")]

    def _fixed_point(
        self, white: Tensor, generator: torch.Generator, stop: Callable[[], bool]
    ) -> tuple[Tensor, list[float]]:
        k, width = white.shape
        rotation = _orthogonal(torch.randn(k, k, generator=generator, dtype=white.dtype))
        history: list[float] = []
        for _ in range(self.iterations):
            if stop():
                break
            sources = rotation @ white
            history.append(-float((_log_cosh(sources).mean(1) - _GAUSSIAN).square().sum()))
            bent = sources.tanh()
            following = _orthogonal(bent @ white.T / width - (1 - bent.square()).mean(1)[:, None] * rotation)
            moved = 1 - float((following * rotation).sum(1).abs().min())
            rotation = following
            if moved < _STILL:
                break
        return rotation, history


_GAUSSIAN = 0.374567207
"""Mean of log cosh of a standard normal number."""


def _log_cosh(x: Tensor) -> Tensor:
    return x.abs() + torch.log1p(torch.exp(-2 * x.abs())) - 0.6931471805599453


def _whitener(space: Tensor) -> Tensor:
    """Return (k, k): the rows of its product with the centred space have variance 1 and no correlation."""
    values, vectors = torch.linalg.eigh(torch.cov(space, correction=0).reshape(len(space), len(space)))
    scales = values.clamp(min=1e-12 * float(values[-1])).rsqrt()
    whitener: Tensor = vectors @ torch.diag(scales) @ vectors.T
    return whitener


def _orthogonal(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix)
    rotation: Tensor = left @ right
    return rotation


def _scaled(basis: Tensor, space: Tensor, scale: Tensor | None, observation: Observation) -> Tensor:
    """Return sources with the sign and size that the bias gradient, or what is known of them, gives.

    Every segment has product 1 with `scale`; a source that has next to none keeps the norm of the others.
    """
    rows = basis @ space
    rows = rows / rows.norm(dim=1, keepdim=True)
    signs = torch.where(rows.sum(1) < 0, -1.0, 1.0).to(rows)[:, None]
    if observation.knowledge.unit_norm or scale is None:
        if scale is not None and not observation.knowledge.nonnegative:
            signs = torch.where(rows @ (space.T @ scale) < 0, -1.0, 1.0).to(rows)[:, None]
        signed: Tensor = signs * rows
        return signed
    products = rows @ (space.T @ scale)
    usual = products.abs().median()
    signs = torch.where(products < 0, -1.0, 1.0).to(rows)
    scaled: Tensor = rows * (signs / products.abs().clamp(min=0.1 * float(usual)))[:, None]
    return scaled
