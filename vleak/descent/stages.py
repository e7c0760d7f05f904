"""From coarse to fine: a descent as a row of descents on clips of growing resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.descent.problem import DescentSettings, Problem
from vleak.descent.steps import Step

Size = tuple[int, ...]
"""Frames, height and width."""


@dataclass(frozen=True)
class Stage:
    """A part of a descent, on clips of one resolution: a descent of its own, with a schedule of its own.

    Attributes:
        problem: whose model takes clips of that resolution.
        descent: its settings, with its own number of iterations.
        size: of the clips; None for what has no resolution, rows of features.
    """

    problem: Problem
    descent: DescentSettings
    size: Size | None

    @property
    def step(self) -> Step:
        """One of its iterations."""
        return Step(self.problem.model, self.problem.loss, self.problem.distance, self.descent)


def divide(problem: Problem, descent: DescentSettings, start: Tensor) -> list[Stage]:
    """Divide a descent into its stages, the coarsest first; the last is the problem itself.

    A level halves frames, height and width, rounding up; what is 1 stays 1. Each takes the part
    ``descent.coarse_share`` of the iterations; without an iteration for each there is none.
    """
    share = int(descent.coarse_share * descent.iterations)
    if not descent.coarse or not share:
        return [Stage(problem, descent, None)]
    shape = start.shape[2:]
    sizes = [
        tuple(math.ceil(length / 2**level) for length in shape) for level in range(descent.coarse, 0, -1)
    ]
    stages = [_coarse(problem, replace(descent, iterations=share), start, size) for size in sizes]
    left = replace(descent, iterations=descent.iterations - descent.coarse * share)
    return [*stages, Stage(problem, left, tuple(shape))]


def resize(clips: Tensor, size: Size | None) -> Tensor:
    """Return clips (B, C, T, H, W) of another size: linear between pixels, or their mean where it shrinks.

    Args:
        clips: with whatever size; rows of features where there is no size.
        size: the new one; no axis may grow where another shrinks.
    """
    if size is None or tuple(clips.shape[2:]) == size:
        return clips.clone()
    if any(new < old for new, old in zip(size, clips.shape[2:], strict=True)):
        return F.adaptive_avg_pool3d(clips, size)  # type: ignore[arg-type]  # three numbers
    return _enlarge(
        clips, *(_weights(clips, axis, length) for axis, length in zip((2, 3, 4), size, strict=True))
    )


class Enlarged(nn.Module):
    """A model behind a resize, so that it takes smaller clips; differentiable as often as the model is."""

    def __init__(self, model: nn.Module, small: Tensor, size: Size) -> None:
        """Take clips like `small` (B, C, T, H, W) to a size."""
        super().__init__()
        self.model = model
        for name, axis, length in zip(("frames", "rows", "columns"), (2, 3, 4), size, strict=True):
            self.register_buffer(name, _weights(small, axis, length))

    def forward(self, clips: Tensor) -> Tensor:
        """Return what the model says of the enlarged clips."""
        weights = (self.get_buffer(name) for name in ("frames", "rows", "columns"))
        logits: Tensor = self.model(_enlarge(clips, *weights))
        return logits


def _coarse(problem: Problem, descent: DescentSettings, start: Tensor, size: Size) -> Stage:
    small = resize(start, size)
    smaller = replace(
        problem,
        model=Enlarged(problem.model, small, tuple(start.shape[2:])),
        target=_behind(problem.target),
        masks=None if problem.masks is None else _behind(problem.masks),
    )
    prior = descent.prior
    if prior is not None:
        prior = resize(prior.to(start).expand_as(start), size)
    # Pixels twice as far apart differ twice as much: weighed so that the clip counts as its enlargement.
    in_time, in_space = (size[axis] / start.shape[2 + axis] for axis in (0, 1))
    spatial, temporal = descent.spatial * in_space, descent.temporal * in_time
    return Stage(smaller, replace(descent, prior=prior, spatial=spatial, temporal=temporal), size)


def _behind(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def _weights(clips: Tensor, axis: int, length: int) -> Tensor:
    """Return the matrix (length now, new length) of linear interpolation along an axis."""
    every = torch.eye(clips.shape[axis], dtype=clips.dtype, device=clips.device)
    return F.interpolate(every[None], size=length, mode="linear")[0]


def _enlarge(clips: Tensor, frames: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # Products, because the derivative of F.interpolate adds in any order on CUDA.
    within = rows.T @ (clips @ columns)
    return (frames.T @ within.flatten(3)).view(*within.shape[:2], -1, *within.shape[3:])
