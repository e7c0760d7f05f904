"""Matching of the answers of a batch to its truths, one to one."""

from __future__ import annotations

from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vleak.errors import InputError

__all__ = ["assign"]


def assign(similarity: Tensor) -> list[int]:
    """Return for every truth the answer that is matched to it, so that the sum of similarities is largest.

    Args:
        similarity: (N, N), of truth i (row) and answer j (column); larger is alike; finite.

    Raises:
        InputError: it is not square or not finite.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise InputError(f"assign: expected a square matrix of similarities, got {tuple(similarity.shape)}")
    if not similarity.isfinite().all():
        raise InputError("assign: the similarities hold NaN or infinity; expected finite numbers")
    _, answers = linear_sum_assignment(similarity.double().numpy(), maximize=True)
    return [int(answer) for answer in answers]
