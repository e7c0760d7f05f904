"""Identification: rank of the private clip among candidates, by similarity to the rebuilt clip."""

from __future__ import annotations

import torch
from torch import Tensor

from vleak.errors import InputError

_FLAT = 1e-6  # root mean square below which a residual is rounding error, not content
_TIE = 1e-9  # difference below which correlations are equal: the order of a sum changes it by about 1e-15


def residual_correlation(x: Tensor, truth: Tensor, prior: Tensor) -> float:
    """Return how far the answer follows the truth beyond the prior: r of x - prior and truth - prior.

    Args:
        x: (C, T, H, W) in [0, 1], the rebuilt clip.
        truth: (C, T, H, W) in [0, 1], the private clip.
        prior: (C, T, H, W) in [0, 1], the attacker's best answer without the update.

    Returns:
        A value in [-1, 1]; 0 when x or the truth equals the prior up to a constant.

    Raises:
        InputError: the shapes differ or a value is NaN or infinite.
    """
    if not x.shape == truth.shape == prior.shape:
        raise InputError(
            f"residual_correlation: expected three clips of one shape, got {tuple(x.shape)}, "
            f"{tuple(truth.shape)} and {tuple(prior.shape)}"
        )
    base = _rows(prior)
    a, b = _rows(x) - base, _rows(truth) - base
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise InputError("residual_correlation: a clip holds NaN or infinite values")
    return float(_correlations(a, b))


def identification_rank(x: Tensor, candidates: Tensor, index: int) -> int:
    """Return the rank of the private clip among all candidates, by similarity to x.

    Similarity is Pearson's r after the mean of ALL candidates, the truth among them, is subtracted from both
    sides. The mean must not depend on `index`: with the mean of the other candidates, an uninformed answer
    would be less similar to the others and so "identify" whichever clip is called the truth.

    Args:
        x: (C, T, H, W) in [0, 1], the rebuilt clip.
        candidates: (N, C, T, H, W) in [0, 1], the private clip and its rivals.
        index: index of the private clip among the candidates.

    Returns:
        1 (best) to N. Ties count against the attacker, so an answer that does not depend on `index` has
        rank 1 for at most one of the N choices. An answer without content (NaN, infinite, or equal to the
        mean) has rank N.

    Raises:
        InputError: shapes do not match, or the index is outside 0..N-1.
    """
    count = candidates.shape[0]
    if candidates.dim() != 5 or candidates.shape[1:] != x.shape:
        raise InputError(
            "identification_rank: expected candidates of shape (candidate, channel, frame, height, width) "
            f"for a clip of shape {tuple(x.shape)}, got {tuple(candidates.shape)}"
        )
    if not 0 <= index < count:
        raise InputError(
            f"identification_rank: index {index} is outside the {count} candidates, 0..{count - 1}"
        )
    rows = candidates.detach().to("cpu", torch.float64).flatten(1)
    mean = rows.mean(0, keepdim=True)
    similarity = _correlations(_rows(x) - mean, rows - mean)
    if not bool(torch.isfinite(similarity).all()) or float(similarity[index].abs()) == 0.0:
        return count
    return int((similarity >= similarity[index] - _TIE).sum())


def _rows(clip: Tensor) -> Tensor:
    """Return a clip as one float64 row of shape (1, C*T*H*W)."""
    return clip.detach().to("cpu", torch.float64).reshape(1, -1)


def _correlations(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's r of one row (1, D) with every row of (N, D), (N,); 0 where a row is constant."""
    a, b = (side - side.mean(1, keepdim=True) for side in (a, b))
    norms = a.norm(dim=1) * b.norm(dim=1)
    flat = (_rms(a) < _FLAT) | (_rms(b) < _FLAT)
    r = (a * b).sum(1) / torch.where(flat, torch.ones_like(norms), norms)
    return torch.where(flat, torch.zeros_like(r), r.clamp(-1.0, 1.0))


def _rms(rows: Tensor) -> Tensor:
    return rows.square().mean(1).sqrt()
