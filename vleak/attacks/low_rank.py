"""SPEAR for feature matrices: the gradient of a linear layer gives up the segments one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor
from torch.func import functional_call

from vleak.attacks.base import Attack, Knowledge, Observation, Reconstruction
from vleak.attacks.first_layer import FirstLayer, first_layer
from vleak.attacks.rows import NEAR_ZERO, centre, labels_of, mean_row, numerical_rank, placed, rounding
from vleak.errors import InputError

NOTHING_VERIFIED = "no segment passed the attack's own checks"
ROW_SPACE_ONLY = "without ReLU or nonnegative features only the space of the segments can be told"

_Stop = Callable[[], bool]
#: A row that is known worse than this is not claimed: the errors of other estimates then count too.
_WORST = 0.05
#: Cosine from which two rows are one.
_SAME = 0.999


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
    made = []
    for k in ranks:
        scale = None if bias is None else left[:, :k].T @ bias / values[:k]
        made.append(Space(left[:, :k], values[:k], right[:k].T, float(following[k - 1]), scale))
    return made


class LowRank(Attack):
    """Exact segments from the rank and the sparsity of a linear layer's gradient (SPEAR).

    Dimitrov et al., NeurIPS 2024, arXiv 2403.03945, with segments as the batch. The gradient is D X; ReLU
    leaves zeros in the columns of D. Where features are known to be at least 0, segments are looked for as
    the edges of the cone that this cuts from their space, by linear programs; that needs no ReLU, and like
    segments do no harm. Else the columns are: as edges of a cone where one ReLU alone lies ahead, and by
    reweighted least squares, in place of SPEAR's sampling of rows. Every segment is checked by itself, on the
    layer's weights (which units it leaves silent) and on its norm, if known.

    What it does not find: many like segments of features that may be negative behind two layers of ReLU, as
    differences of columns are sparser than columns then; it claims nothing.

    Order is not claimed. Equal segments are one segment of the gradient; behind "bce" how often it occurred
    follows from its weight. Segments that the loss gives no gradient are not found, and counted in a flag.
    """

    name: ClassVar[str] = "low_rank"
    takes: ClassVar[frozenset[str]] = frozenset({"features"})

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

    def _reconstruct(
        self,
        observation: Observation,
        generator: torch.Generator,
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> Reconstruction:
        layer = first_layer(observation, generator)
        weight, bias = layer.gradients(observation)
        if not bool(weight.any()):
            return _answer(observation, layer, [], (NEAR_ZERO,))
        found: list[Tensor] = []
        suggested = spaces(weight, bias, layer.rows)
        for space in suggested:
            if len(found) == len(suggested[0].values):
                break
            check = _Check(observation, layer, space, suggested[0])
            for z in self._search(check, generator, stop or (lambda: False)):
                row = check.row(z)
                if row is not None and all(float(_cosine(row, other)) < _SAME for other in found):
                    found.append(row)
        flags = (ROW_SPACE_ONLY,) if not (layer.rectified or observation.knowledge.nonnegative) else ()
        return _answer(observation, layer, found, flags)

    def _search(self, check: _Check, generator: torch.Generator, stop: _Stop) -> Iterator[Tensor]:
        """Yield coordinates of rows that may be segments."""
        if check.knowledge.nonnegative:
            edges = _edges(check, self.programs, generator, stop)
            yield from edges.T
            if edges.shape[1] == len(edges):
                return
        if check.layer.rectified:
            columns = _sparse_columns(check, self.starts, generator, stop)
            if columns is not None:
                yield from torch.linalg.inv(columns) * check.space.values


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    made: Tensor = a @ b / (a.norm() * b.norm()).clamp(min=1e-300)
    return made


# ---------------------------------------------------------------------------------------------------------
# Is it a segment?


@dataclass(frozen=True)
class _Check:
    """Checks a candidate by itself, on nothing but the observation."""

    observation: Observation
    layer: FirstLayer
    space: Space
    whole: Space

    @property
    def knowledge(self) -> Knowledge:
        return self.observation.knowledge

    def row(self, z: Tensor) -> Tensor | None:
        """Return the segment (width,) at coordinates (k,), with its scale; None where a check says no."""
        error, scaled = self.space.error(z), self._scaled(z)
        if scaled is None or error > _WORST:
            return None
        row = self.space.right @ scaled
        norm_known = self.knowledge.unit_norm and self.space.scale is not None
        if norm_known and abs(float(row.norm()) - 1) > 1e-3 + 2 * error:
            return None
        if self.knowledge.nonnegative and float(row.clamp(max=0).norm()) > (1e-3 + 2 * error) * float(
            row.norm()
        ):
            return None
        checked = self._explains(row, error) if self.layer.rectified else norm_known
        return row if checked else None

    def column(self, q: Tensor) -> Tensor | None:
        """Return a sparse column of D at coordinates (k,), made exact; None if no segment can have caused it.

        Its zeros are the units that a segment leaves silent, so some row of the space must have all of these
        below zero and the others above: differences of columns, though sparse, have zeros on both sides.
        """
        q_exact = _on_zeros(self.space.left, q / q.norm(), self.space.error(q))
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
        made: Tensor = sign * z / z.norm()
        return made

    def _explains(self, row: Tensor, error: float) -> bool:
        """Tell whether a column of the gradient's space is zero wherever this row is silent.

        A space of k columns has one that is zero on any k - 1 units; beyond these it is no accident. Of a row
        from a smaller space there may be only one: several say that it is known too badly to be told from
        others that are like it, as a mean of them is.
        """
        silent = self.layer.silent(self.observation, row, error * float(row.norm()))
        left = self.whole.left[silent]
        if len(left) < left.shape[1] + 4:
            return False
        values, vectors = torch.linalg.eigh(left.T @ left)
        tolerances = [1e-3 + 3 * self.whole.error(q) for q in vectors.T[:2]]
        first = float(values[0].clamp(min=0).sqrt()) < tolerances[0] < 3 * _WORST
        if len(values) == 1 or self.space is self.whole:
            return first
        return first and float(values[1].clamp(min=0).sqrt()) > tolerances[1]


# ---------------------------------------------------------------------------------------------------------
# Sparse columns


def _sparse_columns(check: _Check, starts: int, generator: torch.Generator, stop: _Stop) -> Tensor | None:
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
        draw = _fresh(kept, start, generator)
        q = check.column(_reweighted(space.left, draw, _WIDTHS[start % len(_WIDTHS)]))
        if q is not None and _is_new(kept, q):
            kept = torch.cat([kept, q[:, None]], 1)
    return kept if kept.shape[1] == k else None


def _is_new(kept: Tensor, z: Tensor) -> bool:
    return not bool((kept.T @ z).abs().gt(_SAME).any())


def _on_zeros(basis: Tensor, z: Tensor, error: float) -> Tensor | None:
    """Return z (k,) made exact on the zeros of basis @ z; None where there are no more than an accident has.

    Any k - 1 zeros can be had in a space of k dimensions.
    """
    values = (basis @ z).abs()
    zero = values < (1e-4 + 3 * error) * float(values.max())
    if int(zero.sum()) <= len(z) + max(2, len(values) // 50):
        return None
    refined = torch.linalg.eigh(basis[zero].T @ basis[zero])[1][:, 0]
    made: Tensor = refined * torch.sign(refined @ z)
    return made


#: First widths of the reweighting; in turn, as a narrow one finds what a wide one passes by.
_WIDTHS = (1.0, 0.3, 0.1, 0.03)


def _fresh(kept: Tensor, start: int, generator: torch.Generator) -> Tensor:
    """Draw a direction away from those that were found; two times of three not quite."""
    draw = torch.randn(len(kept), generator=generator, dtype=kept.dtype)
    basis = torch.linalg.qr(kept)[0]
    away = draw - basis @ (basis.T @ draw)
    made: Tensor = away / away.norm() + (0.0, 1.0, 0.3)[start % 3] * draw / draw.norm()
    return made


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


# ---------------------------------------------------------------------------------------------------------
# Edges of a cone


def _edges(check: _Check, programs: int, generator: torch.Generator, stop: _Stop) -> Tensor:
    """Return segments (k, found) among the edges of the cone of rows that are nowhere negative.

    With enough zeros in every segment that others do not share the segments are its only edges.
    """
    space = check.space
    sizes = space.right.norm(dim=1)
    # What no segment has tells nothing.
    right = space.right[sizes > 1e-6 * sizes.max()]
    slack = min(1e-6 + 2 * space.noise / float(space.values[-1]), 1e-2) / len(right) ** 0.5

    def refine(z: Tensor) -> Tensor | None:
        exact = _on_zeros(right, z, space.error(z))
        return None if exact is None or check.row(exact) is None else exact

    return _corners(_Cone(right, slack), programs, refine, generator, stop)


def _corners(
    cone: _Cone,
    programs: int,
    refine: Callable[[Tensor], Tensor | None],
    generator: torch.Generator,
    stop: _Stop,
) -> Tensor:
    """Return different corners (k, found) of a cone, refined, without those that are refused.

    Each program looks along a direction in which no corner found so far lies lowest.
    """
    k = cone.dimensions
    kept = torch.zeros(k, 0, dtype=torch.float64)
    for _ in range(max(1, min(programs // 2, 2 * k + 8))):
        draw = _fresh(kept, 0, generator)
        for direction in (draw, -draw):
            if kept.shape[1] == k or stop():
                return kept
            corner = cone.lowest(direction)
            z = None if corner is None else refine(corner)
            if z is not None and _is_new(kept, z):
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
        made: Tensor = z / z.norm()
        return made


# ---------------------------------------------------------------------------------------------------------
# The answer


def _answer(
    observation: Observation, layer: FirstLayer, found: list[Tensor], flags: tuple[str, ...]
) -> Reconstruction:
    """Put the segments found first in their bags; the others get the mean of all, and are not claimed."""
    knowledge = observation.knowledge
    weight, bias = layer.gradients(observation)
    rows = centre(knowledge).double().expand(knowledge.batch_shape).reshape(layer.rows, layer.width).clone()
    claimed = torch.zeros(layer.rows, dtype=torch.bool)
    if bias is not None and bool(bias.any()):
        rows[:] = mean_row(weight, bias)
    objective = float("nan")
    if found:
        segments = torch.stack(found[: layer.rows])
        columns = weight @ torch.linalg.pinv(segments)
        objective = float((weight - columns @ segments).norm() / weight.norm())
        slots = _slots(observation, layer, segments, columns)
        for slot, index in slots.items():
            rows[slot], claimed[slot] = segments[index], True
        silent = layer.rows - len(slots)
        if silent and objective < _WORST:
            flags += (f"{silent} of {layer.rows} segments not seen in the gradient",)
    elif not flags:
        flags = (NOTHING_VERIFIED,)
    clips, mask = placed(knowledge, rows, claimed)
    return Reconstruction(
        clips=clips,
        labels=labels_of(observation),
        found=mask,
        ordered=False,
        objective=objective,
        flags=flags,
    )


def _slots(observation: Observation, layer: FirstLayer, segments: Tensor, columns: Tensor) -> dict[int, int]:
    """Choose which segment (k, width) stands where: slot -> index."""
    loss, knowledge = observation.update.facts.loss, observation.knowledge
    if loss == "bce" and layer.bias is not None:
        copies = _copies(observation, layer, segments, columns)
        return dict(enumerate(index for index, count in enumerate(copies) for _ in range(count)))
    if loss == "ranking" and layer.bias is not None and knowledge.batch_size == 1:
        return _bags(observation, layer, segments, columns)
    return {index: index for index in range(len(segments))}


def _copies(observation: Observation, layer: FirstLayer, segments: Tensor, columns: Tensor) -> list[int]:
    """Count how often each segment occurred: its weight in the update over that of one segment.

    Behind binary cross-entropy, a mean over the segments, one of score p moves it by (p - y) / (p (1 - p))
    over the number of segments. A weight that is no whole multiple, or too much in all, counts once.
    """
    counts = []
    for segment, column in zip(segments, columns.T, strict=True):
        score, slope = _influence(observation, layer, segment)
        along = float(column @ slope) / max(float(slope.square().sum()), 1e-300) * layer.rows
        # p - y is negative for y = 1 and positive for y = 0.
        one = -1 / max(score, 1e-12) if along < 0 else 1 / max(1 - score, 1e-12)
        ratio = along / one
        counts.append(round(ratio) if ratio > 1.5 and abs(ratio - round(ratio)) < 0.1 else 1)
    return counts if sum(counts) <= layer.rows else [1] * len(counts)


def _bags(observation: Observation, layer: FirstLayer, segments: Tensor, columns: Tensor) -> dict[int, int]:
    """Tell the bags of a pair apart: the ranking loss lifts scores of the first and lowers the second's.

    In the second bag it weighs the selected segment alone; what else it lowers, by less, is of the first.
    """
    slopes = [_influence(observation, layer, segment)[1] for segment in segments]
    pushes = [
        float(c @ slope) / max(float(slope.square().sum()), 1e-300)
        for c, slope in zip(columns.T, slopes, strict=True)
    ]
    normal = max(range(len(pushes)), key=lambda index: pushes[index])
    bag = layer.rows // 2
    if pushes[normal] <= 0:
        normal = -1
    others = [index for index in range(len(pushes)) if index != normal][:bag]
    return dict(enumerate(others)) | ({bag: normal} if normal >= 0 else {})


def _influence(observation: Observation, layer: FirstLayer, segment: Tensor) -> tuple[float, Tensor]:
    """Return a segment's score and the score's derivative by the layer's units, (units,) float64.

    The model sees a batch of nothing but this segment, of which the first score is taken.
    """
    parameters = {name: p.detach() for name, p in observation.model.named_parameters()}
    bias = parameters[str(layer.bias)].clone().requires_grad_()
    batch = segment.to(bias).expand(observation.knowledge.batch_shape)
    with torch.enable_grad():
        scores = functional_call(observation.model, {**parameters, str(layer.bias): bias}, (batch,))
        (slope,) = torch.autograd.grad(scores.reshape(-1)[0], bias)
    return float(scores.detach().reshape(-1)[0]), slope.detach().cpu().double()
