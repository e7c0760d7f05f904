"""How many segments of a feature matrix an attack recovered, in whatever order, and whose they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from vleak.errors import InputError
from vleak.federated.gradients import Loss
from vleak.switches import differentiable_rnn

RECOVERED = 0.99
"""A segment counts as recovered above this cosine to the truth."""

EXACT = 0.01
"""A segment counts as exact below this relative error: no guess, however near, comes so near by luck."""

_TIE = 1e-9
_FLAT = 1e-6  # a segment nearer than this to the mean is rounding, not content
#: Below this part of the largest gradient of a segment there is only rounding.
_ROUNDING = 1e-7


def match_segments(found: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Match answers to true segments, one to one, so that the sum of cosines is largest.

    Args:
        found: (S, F), the rebuilt segments.
        truth: (S, F), the private ones.

    Returns:
        (S,) int64, for every true segment the index of its answer, and (S,) float64, their cosines; the
        cosine with a segment of zeros is 0. Of equally good matchings, segments stay in their own place.
    """
    cosines = _rows(truth) @ _rows(found).T
    # A preference far below what counts, so that equal segments are not called out of order.
    costs = -cosines - 1e-9 * torch.eye(len(cosines), dtype=cosines.dtype)
    rows, columns = linear_sum_assignment(costs.numpy())
    place = torch.from_numpy(np.asarray(columns))[torch.from_numpy(np.asarray(rows)).argsort()]
    return place, cosines.gather(1, place[:, None])[:, 0]


def carrying_segments(model: nn.Module, loss: Loss, sample: Tensor, label: Tensor) -> Tensor:
    """Return which segments of a private sample have any gradient: no attack can see the others.

    Args:
        model: the head, maps (1, S, F) or (1, 2, S, F) to what the loss takes; used in the mode it is in.
        loss: (outputs, labels) -> scalar.
        sample: (S, F) or (2, S, F), on the model's device.
        label: () int64.

    Returns:
        (S,) or (2 S,) bool: the loss moves with the segment by more than rounding.
    """
    given = sample.detach().clone()[None].requires_grad_()
    with torch.enable_grad(), differentiable_rnn(model):
        value = loss(model(given), label.reshape(1))
        (gradient,) = torch.autograd.grad(value, given, allow_unused=True, materialize_grads=True)
    sizes = gradient.flatten(0, -2).norm(dim=1).cpu()
    made: Tensor = (sizes > _ROUNDING * sizes.max()) & (sizes > 0)
    return made


def score_segments(
    found: Tensor,
    truth: Tensor,
    index: int,
    candidates: Tensor,
    nulls: dict[str, Tensor],
    carries: Tensor | None = None,
    *,
    ordered: bool = True,
) -> dict[str, Any]:
    """Return what of a feature matrix was recovered, each figure beside what needs no update at all.

    Segments that carry no gradient are left out of ``recovered``, ``cosine`` and ``relative_error``: that a
    loss never selected them is no merit of a defense.

    Args:
        found: (S, F), the attack's answer; a pair of bags as (2 S, F).
        truth: (S, F), the private matrix; equal to ``candidates[index]``.
        index: which candidate is the truth.
        candidates: (N, S, F).
        nulls: answers (S, F) of attackers who never saw the update, by name; at least one.
        carries: (S,) bool, which true segments have any gradient; None for all.
        ordered: whether the attack claims the order of segments.

    Returns:
        A dict that JSON can hold: ``segments``, ``carrying``, ``recovered`` (of those carrying, cosine above
        0.99 after optimal matching), ``exact`` (with a relative error below 0.01), ``null_exact``
        (the same of the best guess), ``cosine`` and ``relative_error`` (medians over those carrying, matched;
        None where none does), ``in_order`` (share of them that stand in their own place; None without a claim
        to order), ``cosine_gain`` (median cosine over that of the best null, matched alike), ``identified``
        (first of at least two candidates), ``rank`` (1 is best), ``candidates``, ``null`` (name ->
        ``cosine``) and ``best_null``.

    Raises:
        InputError: NaN or infinite values, shapes that differ, no null answer, or a truth that is not the
            candidate.
    """
    _check(found, truth, index, candidates, nulls, carries)
    mask = torch.ones(len(truth), dtype=torch.bool) if carries is None else carries.cpu()
    place, cosines = match_segments(found, truth)
    guesses = {name: match_segments(answer, truth) for name, answer in nulls.items()}
    null = {name: _median(guess[1][mask]) for name, guess in guesses.items()}
    best = max(null, key=lambda name: null[name] or 0.0)
    cosine = _median(cosines[mask])
    rank = segment_rank(found, candidates, index)
    home = (place == torch.arange(len(truth)))[mask].double()
    return {
        "segments": len(truth),
        "carrying": int(mask.sum()),
        "recovered": int((cosines[mask] > RECOVERED).sum()),
        "exact": int((_errors(found[place], truth)[mask] < EXACT).sum()),
        "null_exact": max(
            int((_errors(nulls[name][guess[0]], truth)[mask] < EXACT).sum())
            for name, guess in guesses.items()
        ),
        "cosine": cosine,
        "relative_error": _median(_errors(found[place], truth)[mask]),
        "in_order": float(home.mean()) if ordered and len(home) else None,
        "cosine_gain": None if cosine is None else cosine - (null[best] or 0.0),
        "identified": rank == 1 and len(candidates) > 1,
        "rank": rank,
        "candidates": len(candidates),
        "null": {name: {"cosine": value} for name, value in null.items()},
        "best_null": best,
    }


def segment_rank(found: Tensor, candidates: Tensor, index: int) -> int:
    """Return the place of the private matrix when all candidates are sorted by their similarity to an answer.

    Similarity is the mean cosine of segments, matched in any order, after the mean segment of ALL candidates
    is subtracted from both sides: else the candidate that is most ordinary is nearest to any answer.

    Args:
        found: (S, F), the attack's answer.
        candidates: (N, S, F), the private matrix and its rivals.
        index: which candidate is the private one.

    Returns:
        1 (best) to N; ties count against the attacker, and an answer without content is placed last.
    """
    mean = candidates.detach().cpu().double().flatten(0, 1).mean(0)
    answer = found.detach().cpu().double() - mean
    scores = torch.stack(
        [match_segments(answer, c.detach().cpu().double() - mean)[1].mean() for c in candidates]
    )
    if float(answer.norm(dim=1).max()) < _FLAT:
        return len(candidates)
    return int((scores >= scores[index] - _TIE).sum())


def _rows(matrix: Tensor) -> Tensor:
    rows = matrix.detach().to("cpu", torch.float64)
    made: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return made


def _errors(found: Tensor, truth: Tensor) -> Tensor:
    a, b = (side.detach().to("cpu", torch.float64) for side in (found, truth))
    made: Tensor = (a - b).norm(dim=1) / b.norm(dim=1).clamp(min=1e-12)
    return made


def _median(values: Tensor) -> float | None:
    return float(values.quantile(0.5)) if len(values) else None


def _check(
    found: Tensor,
    truth: Tensor,
    index: int,
    candidates: Tensor,
    nulls: dict[str, Tensor],
    carries: Tensor | None,
) -> None:
    if not nulls:
        raise InputError("score_segments: no null answer given; pass at least one, a gain is over one")
    if truth.dim() != 2 or truth.numel() == 0:
        raise InputError(f"score_segments: expected a matrix (segment, feature), got {tuple(truth.shape)}")
    for name, matrix in (("the answer", found), *nulls.items()):
        if matrix.shape != truth.shape:
            raise InputError(
                f"score_segments: {name} has shape {tuple(matrix.shape)}, the truth {tuple(truth.shape)}"
            )
    for name, matrix in (("the answer", found), ("the truth", truth), *nulls.items()):
        if not bool(torch.isfinite(matrix).all()):
            raise InputError(f"score_segments: {name} holds NaN or infinity; record the cell as failed")
    if carries is not None and (carries.shape != truth.shape[:1] or carries.dtype != torch.bool):
        raise InputError(
            f"score_segments: expected carries of shape ({len(truth)},), bool, got {tuple(carries.shape)}"
        )
    inside = candidates.dim() == 3 and 0 <= index < len(candidates) and candidates.shape[1:] == truth.shape
    if not inside or not torch.allclose(candidates[index].to(truth), truth, atol=1e-5):
        raise InputError(
            f"score_segments: the truth of shape {tuple(truth.shape)} is not candidate {index} of "
            f"{tuple(candidates.shape)}; pass the candidates in the order that the index counts"
        )
