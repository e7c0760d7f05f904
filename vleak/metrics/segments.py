"""Recovery of feature matrices: segments matched one to one, and identification among candidates."""

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
"""Cosine to the truth above which a segment counts as recovered."""

EXACT = 0.01
"""Relative error below which a segment counts as exact; no guess gets that near by chance."""

_TIE = 1e-9
_FLAT = 1e-6  # distance from the mean below which a segment is rounding error, not content
#: Share of the largest gradient of a segment below which a gradient is rounding error.
_ROUNDING = 1e-7


def match_segments(reconstruction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the one-to-one matching of rebuilt and true segments with the largest sum of cosines.

    Args:
        reconstruction: (S, F), the rebuilt segments.
        truth: (S, F), the private ones.

    Returns:
        (S,) int64, for every true segment the index of its answer, and (S,) float64, their cosines; the
        cosine with a segment of zeros is 0. Among equally good matchings, one that leaves segments in
        place is preferred.
    """
    cosines = _rows(truth) @ _rows(reconstruction).T
    # A negligible preference for the original order, so that equal segments do not count as out of order.
    costs = -cosines - 1e-9 * torch.eye(len(cosines), dtype=cosines.dtype)
    rows, columns = linear_sum_assignment(costs.numpy())
    matching = torch.from_numpy(np.asarray(columns))[torch.from_numpy(np.asarray(rows)).argsort()]
    return matching, cosines.gather(1, matching[:, None])[:, 0]


def carrying_segments(model: nn.Module, loss: Loss, sample: Tensor, label: Tensor) -> Tensor:
    """Return the mask of segments of a private sample with a gradient; no attack can recover the others.

    Args:
        model: head, maps (1, S, F) or (1, 2, S, F) to the outputs that the loss takes; its mode is unchanged.
        loss: (outputs, labels) -> scalar.
        sample: (S, F) or (2, S, F), on the model's device.
        label: () int64.

    Returns:
        (S,) or (2 S,) bool: whether the loss depends on the segment by more than rounding.
    """
    variable = sample.detach().clone()[None].requires_grad_()
    with torch.enable_grad(), differentiable_rnn(model):
        value = loss(model(variable), label.reshape(1))
        (gradient,) = torch.autograd.grad(value, variable, allow_unused=True, materialize_grads=True)
    sizes = gradient.flatten(0, -2).norm(dim=1).cpu()
    carrying: Tensor = (sizes > _ROUNDING * sizes.max()) & (sizes > 0)
    return carrying


def score_segments(
    reconstruction: Tensor,
    truth: Tensor,
    index: int,
    candidates: Tensor,
    baselines: dict[str, Tensor],
    carries: Tensor | None = None,
    *,
    ordered: bool = True,
) -> dict[str, Any]:
    """Return the scores of a rebuilt feature matrix, with gains over the baselines.

    Segments that carry no gradient are excluded from ``recovered``, ``cosine`` and ``relative_error``: a
    defense gets no credit for segments that the loss did not select.

    Args:
        reconstruction: (S, F), the attack's answer; a pair of bags as (2 S, F).
        truth: (S, F), the private matrix; equal to ``candidates[index]``.
        index: index of the private matrix among the candidates.
        candidates: (N, S, F).
        baselines: answers (S, F) of baselines, who never see the update, by name; at least one.
        carries: (S,) bool, whether a true segment has a gradient; None for all.
        ordered: whether the attack claims the order of segments.

    Returns:
        A dict of JSON values: ``segments``, ``carrying``, ``recovered`` (of those carrying, cosine above
        0.99 after optimal matching), ``exact`` (with a relative error below 0.01), ``baseline_exact``
        (the same for the best baseline), ``cosine`` and ``relative_error`` (medians over those carrying,
        matched; None without any), ``in_order`` (share of them that the matching leaves in place; None
        without a claim of order), ``cosine_gain`` (median cosine less that of the best baseline, matched
        likewise),
        ``identified`` (first of at least two candidates), ``rank`` (1 is best), ``candidates``,
        ``baselines`` (name -> ``cosine``) and ``best_baseline``.

    Raises:
        InputError: NaN or infinite values, shapes that differ, no baseline, or a truth that is not the
            candidate at ``index``.
    """
    _check(reconstruction, truth, index, candidates, baselines, carries)
    mask = torch.ones(len(truth), dtype=torch.bool) if carries is None else carries.cpu()
    matching, cosines = match_segments(reconstruction, truth)
    matched_baselines = {name: match_segments(answer, truth) for name, answer in baselines.items()}
    cosines_of = {name: _median(match[1][mask]) for name, match in matched_baselines.items()}
    best = max(cosines_of, key=lambda name: cosines_of[name] or 0.0)
    cosine = _median(cosines[mask])
    rank = segment_rank(reconstruction, candidates, index)
    in_place = (matching == torch.arange(len(truth)))[mask].double()
    return {
        "segments": len(truth),
        "carrying": int(mask.sum()),
        "recovered": int((cosines[mask] > RECOVERED).sum()),
        "exact": int((_errors(reconstruction[matching], truth)[mask] < EXACT).sum()),
        "baseline_exact": max(
            int((_errors(baselines[name][match[0]], truth)[mask] < EXACT).sum())
            for name, match in matched_baselines.items()
        ),
        "cosine": cosine,
        "relative_error": _median(_errors(reconstruction[matching], truth)[mask]),
        "in_order": float(in_place.mean()) if ordered and len(in_place) else None,
        "cosine_gain": None if cosine is None else cosine - (cosines_of[best] or 0.0),
        "identified": rank == 1 and len(candidates) > 1,
        "rank": rank,
        "candidates": len(candidates),
        "baselines": {name: {"cosine": value} for name, value in cosines_of.items()},
        "best_baseline": best,
    }


def segment_rank(reconstruction: Tensor, candidates: Tensor, index: int) -> int:
    """Return the rank of the private matrix among all candidates, by similarity to an answer.

    Similarity is the mean cosine of segments, matched in any order, after the mean segment of ALL candidates
    is subtracted from both sides; otherwise the most average candidate would be nearest to any answer.

    Args:
        reconstruction: (S, F), the attack's answer.
        candidates: (N, S, F), the private matrix and its rivals.
        index: index of the private matrix among the candidates.

    Returns:
        1 (best) to N; ties count against the attacker, and an answer without content has rank N.
    """
    mean = candidates.detach().cpu().double().flatten(0, 1).mean(0)
    answer = reconstruction.detach().cpu().double() - mean
    scores = torch.stack(
        [match_segments(answer, c.detach().cpu().double() - mean)[1].mean() for c in candidates]
    )
    if float(answer.norm(dim=1).max()) < _FLAT:
        return len(candidates)
    return int((scores >= scores[index] - _TIE).sum())


def _rows(matrix: Tensor) -> Tensor:
    rows = matrix.detach().to("cpu", torch.float64)
    normalised: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return normalised


def _errors(reconstruction: Tensor, truth: Tensor) -> Tensor:
    a, b = (side.detach().to("cpu", torch.float64) for side in (reconstruction, truth))
    errors: Tensor = (a - b).norm(dim=1) / b.norm(dim=1).clamp(min=1e-12)
    return errors


def _median(values: Tensor) -> float | None:
    return float(values.quantile(0.5)) if len(values) else None


def _check(
    reconstruction: Tensor,
    truth: Tensor,
    index: int,
    candidates: Tensor,
    baselines: dict[str, Tensor],
    carries: Tensor | None,
) -> None:
    if not baselines:
        raise InputError(
            "score_segments: no baseline given; pass at least one, since a gain is over the best of them"
        )
    if truth.dim() != 2 or truth.numel() == 0:
        raise InputError(f"score_segments: expected a matrix (segment, feature), got {tuple(truth.shape)}")
    for name, matrix in (("the reconstruction", reconstruction), *baselines.items()):
        if matrix.shape != truth.shape:
            raise InputError(
                f"score_segments: {name} has shape {tuple(matrix.shape)}, the truth {tuple(truth.shape)}"
            )
    for name, matrix in (("the reconstruction", reconstruction), ("the truth", truth), *baselines.items()):
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
