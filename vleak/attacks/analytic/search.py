"""Search for the segments of a space: sparse columns of the gradient, and edges of a cone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from vleak.attacks.analytic.segment_check import SegmentCheck
from vleak.attacks.analytic.space import exact_on_zeros, fresh_direction, is_new

__all__ = ["cone_edges", "sparse_columns"]

_WIDTHS = (1.0, 0.3, 0.1, 0.03)
"""First widths of the reweighting; in turn, as a narrow one finds what a wide one passes by."""


def sparse_columns(
    check: SegmentCheck, starts: int, generator: torch.Generator, stop: Callable[[], bool]
) -> Tensor | None:
    """Return the sparse columns of D as coordinates (k, k) in `left`, one a column; None if one is missing.

    A row of X is orthogonal to all columns but its own, in coordinates, so that some of them alone tell
    nothing.
    """
    space, pull = check.space, check.layer.pull
    k = len(space.values)
    if pull is not None:
        # All columns have the signs of the pull, or all the other: edges of a cone. Differences of columns,
        # which are sparser still where segments are alike, are not in it.
        cone = _Cone(space.left * pull.sign()[:, None], 1e-6 / len(pull) ** 0.5)
        kept = _corners(cone, starts // 4, check.column, generator, stop)
        if kept.shape[1] == k:
            return kept
    kept = space.left.new_zeros(k, 0)
    for start in range(min(starts, 20 * k + 80)):
        if kept.shape[1] == k or stop():
            break
        draw = fresh_direction(kept, start, generator)
        q = check.column(_reweighted(space.left, draw, _WIDTHS[start % len(_WIDTHS)]))
        if q is not None and is_new(kept, q):
            kept = torch.cat([kept, q[:, None]], 1)
    return kept if kept.shape[1] == k else None


def _reweighted(left: Tensor, q: Tensor, width: float) -> Tensor:
    """Descend from a direction (k,) to one whose column left @ q is sparse, by reweighted least squares."""
    units = len(left)
    q = q / q.norm()
    for _ in range(40):
        weights = 1 / ((left @ q).square() * units + width**2)
        following = torch.linalg.eigh(left.T @ (left * weights[:, None]))[1][:, 0]
        if width < 1e-4 and float((following @ q).abs()) > 1 - 1e-12:
            break
        q, width = following, max(0.7 * width, 1e-5)
    return q


def cone_edges(
    check: SegmentCheck, programs: int, generator: torch.Generator, stop: Callable[[], bool]
) -> Tensor:
    """Return segments (k, count) among the edges of the cone of rows that are nowhere negative.

    With enough zeros in every segment that others do not share the segments are its only edges.
    """
    space = check.space
    sizes = space.right.norm(dim=1)
    # What no segment has tells nothing.
    right = space.right[sizes > 1e-6 * sizes.max()]
    slack = min(1e-6 + 2 * space.noise / float(space.values[-1]), 1e-2) / len(right) ** 0.5

    def refine(z: Tensor) -> Tensor | None:
        exact = exact_on_zeros(right, z, space.error(z))
        return None if exact is None or check.row(exact) is None else exact

    return _corners(_Cone(right, slack), programs, refine, generator, stop)


def _corners(
    cone: _Cone,
    programs: int,
    refine: Callable[[Tensor], Tensor | None],
    generator: torch.Generator,
    stop: Callable[[], bool],
) -> Tensor:
    """Return different corners (k, count) of a cone, refined, without those that are refused.

    Each program looks along a direction in which no corner kept so far lies lowest.
    """
    k = cone.dimensions
    kept = torch.zeros(k, 0, dtype=torch.float64)
    for _ in range(max(1, min(programs // 2, 2 * k + 8))):
        draw = fresh_direction(kept, 0, generator)
        for direction in (draw, -draw):
            if kept.shape[1] == k or stop():
                return kept
            corner = cone.lowest(direction)
            z = None if corner is None else refine(corner)
            if z is not None and is_new(kept, z):
                kept = torch.cat([kept, z[:, None]], 1)
    return kept


class _Cone:
    """The rows right @ z that are at least -slack, cut off at the sum that a row of norm 1 has, about."""

    def __init__(self, right: Tensor, slack: float) -> None:
        self._right = right.numpy()
        self._sum = self._right.sum(0)
        self._slack = np.full(len(right), slack)
        self._size = 0.5 * len(right) ** 0.5
        self.dimensions = right.shape[1]

    def lowest(self, direction: Tensor) -> Tensor | None:
        """Return the corner (k,), of norm 1, that lies lowest along a direction; None if there is none."""
        solved = linprog(
            direction.numpy(),
            A_ub=-self._right,
            b_ub=self._slack,
            A_eq=self._sum[None],
            b_eq=[self._size],
            bounds=(None, None),
            method="highs",
        )
        if solved.status != 0:
            return None
        z = torch.from_numpy(np.asarray(solved.x, dtype=np.float64))
        corner: Tensor = z / z.norm()
        return corner
