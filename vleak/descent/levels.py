"""Multi-scale descents: a sequence of levels, each on clips of higher resolution than the one before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.descent.problem import DescentSettings, Problem
from vleak.descent.step import Step

__all__ = ["Level", "ResizedInput", "Size", "levels_of", "resize"]

Held = TypeVar("Held")
Size = tuple[int, ...]
"""Frames, height and width."""


@dataclass(frozen=True)
class Level:
    """Part of a descent on clips of one resolution, with a schedule of its own.

    Attributes:
        problem: whose model takes clips of that resolution.
        settings: of the level, with its own number of iterations.
        size: of the clips; None for what has no resolution, rows of features.
    """

    problem: Problem
    settings: DescentSettings
    size: Size | None

    @property
    def step(self) -> Step:
        """One of its iterations."""
        problem = self.problem
        return Step(
            problem.model, problem.loss, problem.distance, self.settings, problem.local,
            tuple(problem.unknown), problem.per_clip,
        )  # fmt: skip


def levels_of(problem: Problem, settings: DescentSettings, start: Tensor) -> list[Level]:
    """Return the levels of a descent, the coarsest first; the last is the problem itself.

    A coarse level halves frames, height and width, rounding up; what is 1 stays 1. Each takes the part
    ``settings.coarse_share`` of the iterations; there is none if that is less than an iteration.
    """
    share = int(settings.coarse_share * settings.iterations)
    if not settings.coarse or not share:
        return [Level(problem, settings, None)]
    shape = start.shape[2:]
    sizes = [
        tuple(math.ceil(length / 2**level) for length in shape) for level in range(settings.coarse, 0, -1)
    ]
    coarse = [_coarse(problem, replace(settings, iterations=share), start, size) for size in sizes]
    remaining = replace(settings, iterations=settings.iterations - settings.coarse * share)
    return [*coarse, Level(problem, remaining, tuple(shape))]


def resize(clips: Tensor, size: Size | None) -> Tensor:
    """Return clips (B, C, T, H, W) in another size: linear between pixels, or their mean where it shrinks.

    Clips that have the size already are returned as they are.

    Args:
        clips: with whatever size; rows of features where there is no size.
        size: the new one; no axis may grow where another shrinks.
    """
    if size is None or tuple(clips.shape[2:]) == size:
        return clips
    if any(new < old for new, old in zip(size, clips.shape[2:], strict=True)):
        return F.adaptive_avg_pool3d(clips, size)  # type: ignore[arg-type]  # three numbers
    return _enlarge(
        clips, *(_weights(clips, axis, length) for axis, length in zip((2, 3, 4), size, strict=True))
    )


class ResizedInput(nn.Module):
    """Model that takes smaller clips and enlarges them first; differentiable as often as the model is."""

    def __init__(self, model: nn.Module, small: Tensor, size: Size) -> None:
        """Take clips like `small` (B, C, T, H, W) to a size."""
        super().__init__()
        self.model = model
        for name, axis, length in zip(("frames", "rows", "columns"), (2, 3, 4), size, strict=True):
            self.register_buffer(name, _weights(small, axis, length))

    def forward(self, clips: Tensor) -> Tensor:
        """Return the model's logits of the enlarged clips."""
        weights = (self.get_buffer(name) for name in ("frames", "rows", "columns"))
        logits: Tensor = self.model(_enlarge(clips, *weights))
        return logits


def _coarse(problem: Problem, settings: DescentSettings, start: Tensor, size: Size) -> Level:
    small = resize(start, size)
    smaller = replace(
        problem,
        model=ResizedInput(problem.model, small, tuple(start.shape[2:])),
        target=_prefixed(problem.target),
        masks=None if problem.masks is None else _prefixed(problem.masks),
        scales=None if problem.scales is None else _prefixed(problem.scales),
        unknown=_prefixed(problem.unknown),
        per_clip=tuple(f"model.{name}" for name in problem.per_clip),
    )
    prior = settings.prior
    if prior is not None:
        prior = resize(prior.to(start).expand_as(start), size)
    # Pixels twice as far apart differ twice as much: weighed so that the clip counts as its enlargement.
    in_time, in_space = (size[axis] / start.shape[2 + axis] for axis in (0, 1))
    spatial, temporal = settings.spatial * in_space, settings.temporal * in_time
    return Level(smaller, replace(settings, prior=prior, spatial=spatial, temporal=temporal), size)


def _prefixed(named: Mapping[str, Held]) -> dict[str, Held]:
    return {f"model.{name}": held for name, held in named.items()}


def _weights(clips: Tensor, axis: int, length: int) -> Tensor:
    """Return the matrix (length now, new length) of linear interpolation along an axis."""
    identity = torch.eye(clips.shape[axis], dtype=clips.dtype, device=clips.device)
    return F.interpolate(identity[None], size=length, mode="linear")[0]


def _enlarge(clips: Tensor, frames: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # Products, because the derivative of F.interpolate adds in any order on CUDA.
    within = rows.T @ (clips @ columns)
    return (frames.T @ within.flatten(3)).view(*within.shape[:2], -1, *within.shape[3:])
