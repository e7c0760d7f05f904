"""Check of a segment that a search suggests: could the layer have seen it, and sent this gradient?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from vleak.attacks.analytic.first_layer import FirstLayer
from vleak.attacks.analytic.space import Space, exact_on_zeros
from vleak.attacks.knowledge import Knowledge
from vleak.attacks.observation import Observation

__all__ = ["WORST", "SegmentCheck"]

WORST = 0.05
"""A row that is known worse than this is not claimed: the errors of other estimates then count too."""


@dataclass(frozen=True)
class SegmentCheck:
    """Checks a candidate by itself, on nothing but the observation.

    Attributes:
        observation: what was seen.
        layer: the layer.
        space: where the candidate is looked for.
        largest: the space of all that is no noise.
    """

    observation: Observation
    layer: FirstLayer
    space: Space
    largest: Space

    @property
    def knowledge(self) -> Knowledge:
        """The observation's."""
        return self.observation.knowledge

    def row(self, z: Tensor) -> Tensor | None:
        """Return the segment (width,) at coordinates (k,), with its scale; None where a check says no."""
        error, scaled = self.space.error(z), self._scaled(z)
        if scaled is None or error > WORST:
            return None
        row = self.space.right @ scaled
        norm_known = self.knowledge.unit_norm and self.space.scale is not None
        if norm_known and abs(float(row.norm()) - 1) > 1e-3 + 2 * error:
            return None
        negative = float(row.clamp(max=0).norm())
        if self.knowledge.nonnegative and negative > (1e-3 + 2 * error) * float(row.norm()):
            return None
        checked = self._explains(row, error) if self.layer.rectified else norm_known
        return row if checked else None

    def column(self, q: Tensor) -> Tensor | None:
        """Return a sparse column of D at coordinates (k,), made exact; None if no segment can have caused it.

        Its zeros are the units that a segment leaves silent, so some row of the space must have all of these
        below zero and the others above: differences of columns, though sparse, have zeros on both sides.
        """
        q_exact = exact_on_zeros(self.space.left, q / q.norm(), self.space.error(q))
        if q_exact is None:
            return None
        values = (self.space.left @ q_exact).abs()
        limit = float(values.max())
        silent = values < (1e-5 + 3 * self.space.error(q_exact)) * limit
        return q_exact if self._separable(silent, values > 1e-3 * limit) else None

    def _separable(self, silent: Tensor, active: Tensor) -> bool:
        named = dict(self.observation.model.named_parameters())
        weight = named[self.layer.weight].detach().cpu().double()
        levels, k = weight @ self.space.right, len(self.space.values)
        signs = silent.to(levels) - (active & ~silent).to(levels)
        offset = torch.zeros_like(signs)
        if self.layer.bias is not None:
            offset = named[self.layer.bias].detach().cpu().double()
        equal = {} if self.space.scale is None else {"A_eq": self.space.scale.numpy()[None], "b_eq": [1.0]}
        solved = linprog(
            np.zeros(k),
            A_ub=(levels * signs[:, None]).numpy(),
            b_ub=(1e-6 - offset * signs).numpy(),
            bounds=(None, None),
            method="highs",
            **equal,
        )
        return bool(solved.status == 0)

    def _scaled(self, z: Tensor) -> Tensor | None:
        if self.space.scale is not None:
            product = float(z @ self.space.scale)
            return z / product if abs(product) > 1e-9 * float(z.norm() * self.space.scale.norm()) else None
        if not self.knowledge.unit_norm:
            return None
        sign = 1.0 if float((self.space.right @ z).sum()) >= 0 else -1.0
        scaled: Tensor = sign * z / z.norm()
        return scaled

    def _explains(self, row: Tensor, error: float) -> bool:
        """Tell whether a column of the gradient's space is zero wherever this row is silent.

        A space of k columns has one that is zero on any k - 1 units; beyond these it is no accident. Of a row
        from a smaller space there may be only one: several say that it is known too badly to be told from
        others that are like it, as a mean of them is.
        """
        silent = self.layer.silent(self.observation, row, error * float(row.norm()))
        left = self.largest.left[silent]
        if len(left) < left.shape[1] + 4:
            return False
        values, vectors = torch.linalg.eigh(left.T @ left)
        tolerances = [1e-3 + 3 * self.largest.error(q) for q in vectors.T[:2]]
        first = float(values[0].clamp(min=0).sqrt()) < tolerances[0] < 3 * WORST
        if len(values) == 1 or self.space is self.largest:
            return first
        return first and float(values[1].clamp(min=0).sqrt()) > tolerances[1]
