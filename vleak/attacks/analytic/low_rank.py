"""SPEAR for feature matrices: the gradient of a linear layer gives up the segments one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from vleak.attacks.analytic.layer_attack import LayerAttack, LayerGradient
from vleak.attacks.analytic.placement import slots_of
from vleak.attacks.analytic.search import cone_edges, sparse_columns
from vleak.attacks.analytic.segment_check import WORST, SegmentCheck
from vleak.attacks.analytic.space import SAME, cosine, spaces
from vleak.attacks.base import Hooks, Reconstruction
from vleak.attacks.flags import NEAR_ZERO
from vleak.errors import InputError

__all__ = ["NOTHING_VERIFIED", "ROW_SPACE_ONLY", "LowRank"]

NOTHING_VERIFIED = "no segment passed the attack's own checks"
ROW_SPACE_ONLY = "without ReLU or nonnegative features only the space of the segments can be told"


class LowRank(LayerAttack):
    """Exact segments from the rank and the sparsity of a linear layer's gradient (SPEAR).

    Dimitrov et al., NeurIPS 2024, arXiv 2403.03945, with segments as the batch. The gradient is D X; ReLU
    leaves zeros in the columns of D. Where features are known to be at least 0, segments are looked for as
    the edges of the cone that this cuts from their space, by linear programs; that needs no ReLU, and like
    segments do no harm. Else the columns are: as edges of a cone where one ReLU alone lies ahead, and by
    reweighted least squares, in place of SPEAR's sampling of rows. Every segment is checked by itself, on the
    layer's weights (which units it leaves silent) and on its norm, if known.

    What it does not find: many like segments of features that may be negative behind two layers of ReLU, as
    differences of columns are sparser than columns then; it claims nothing.

    The segments of a batch come back together, as many as the layer's gradient has ranks; with more of them
    than units nothing is claimed. Time grows with the square of their number and faster.

    Neither order nor, in a batch, bag is claimed. Equal segments are one segment of the gradient; behind
    "bce" how often it occurred follows from its weight. Segments that the loss gives no gradient are not
    found, and counted in a flag.
    """

    name: ClassVar[str] = "low_rank"

    def __init__(self, *, starts: int = 400, programs: int = 120) -> None:
        """Set the bounds of the search.

        Args:
            starts: of the search for sparse columns at most for each space, at least 1; about 4 ms each.
            programs: linear programs at most for each space, at least 1; about 30 ms each.

        Raises:
            InputError: fewer than one of either.
        """
        if starts < 1 or programs < 1:
            raise InputError(
                f"low_rank: expected at least 1 start and 1 program, got {starts} and {programs}"
            )
        self.starts, self.programs = starts, programs

    def solve(self, gradient: LayerGradient, generator: torch.Generator, hooks: Hooks) -> Reconstruction:
        """Return the segments that pass their checks, in any order; the mean row for the others."""
        observation, layer, weight = gradient.observation, gradient.layer, gradient.weight
        if not bool(weight.any()):
            return _answer(gradient, [], (NEAR_ZERO,))
        most = min(weight.shape)
        if layer.rows > most:
            return _answer(
                gradient, [], (f"{layer.rows} segments, of which a layer of rank {most} hides some",)
            )
        segments: list[Tensor] = []
        suggested = spaces(weight, gradient.bias, layer.rows)
        for space in suggested:
            if len(segments) == len(suggested[0].values):
                break
            check = SegmentCheck(observation, layer, space, suggested[0])
            for z in self._search(check, generator, hooks.stopped):
                row = check.row(z)
                if row is not None and all(float(cosine(row, other)) < SAME for other in segments):
                    segments.append(row)
        flags = () if layer.rectified or observation.knowledge.nonnegative else (ROW_SPACE_ONLY,)
        return _answer(gradient, segments, flags)

    def _search(
        self, check: SegmentCheck, generator: torch.Generator, stop: Callable[[], bool]
    ) -> Iterator[Tensor]:
        """Yield coordinates of rows that may be segments."""
        if check.knowledge.nonnegative:
            edges = cone_edges(check, self.programs, generator, stop)
            yield from edges.T
            if edges.shape[1] == len(edges):
                return
        if check.layer.rectified:
            columns = sparse_columns(check, self.starts, generator, stop)
            if columns is not None:
                yield from torch.linalg.inv(columns) * check.space.values


def _answer(gradient: LayerGradient, segments: list[Tensor], flags: tuple[str, ...]) -> Reconstruction:
    """Put the segments first in their bags; the others get the mean of all, and are not claimed."""
    layer, weight = gradient.layer, gradient.weight
    rows, claimed = gradient.guess(), gradient.unclaimed()
    objective = float("nan")
    if segments:
        stacked = torch.stack(segments[: layer.rows])
        columns = weight @ torch.linalg.pinv(stacked)
        objective = float((weight - columns @ stacked).norm() / weight.norm())
        slots = slots_of(gradient.observation, layer, stacked, columns)
        for slot, index in slots.items():
            rows[slot], claimed[slot] = stacked[index], True
        silent = layer.rows - len(slots)
        if silent and objective < WORST:
            flags += (f"{silent} of {layer.rows} segments not seen in the gradient",)
    elif not flags:
        flags = (NOTHING_VERIFIED,)
    return replace(gradient.answer(rows, claimed, flags), objective=objective)
