"""Rows of a linear layer's input: rank of its gradient, the mean row, the form of an answer."""

from __future__ import annotations

import torch
from torch import Tensor

from vleak.attacks.expectation import expected_clip
from vleak.attacks.knowledge import Knowledge

__all__ = ["mean_row", "numerical_rank", "placed", "prior_rows", "rounding"]


def rounding(values: Tensor) -> float:
    """Return the singular value that float32 leaves where there should be none."""
    return 1e-8 * float(values[0])


def numerical_rank(values: Tensor, rows: int) -> int:
    """Count the singular values that stand above the noise: four times the first that no row explains.

    Args:
        values: singular values of a layer's gradient, falling; at least one.
        rows: how many rows the layer saw, which bounds the rank of a gradient without noise.
    """
    noise = float(values[rows]) if rows < len(values) else 0.0
    return int((values > 4 * max(noise, rounding(values))).sum())


def mean_row(weight: Tensor, bias: Tensor) -> Tensor:
    """Return sum_i db_i dW_i / sum_i db_i^2, the least-squares answer to dW_i = db_i x over all units i.

    Args:
        weight: (units, width) float64, dW.
        bias: (units,) float64, db, not zero.
    """
    return bias @ weight / bias.square().sum()


def prior_rows(knowledge: Knowledge, rows: int, width: int) -> Tensor:
    """Return the expected clips as (rows, width) float64, which may be written to."""
    clips = expected_clip(knowledge).double().expand(knowledge.batch_shape)
    return clips.reshape(rows, width).clone()


def placed(knowledge: Knowledge, rows: Tensor, claimed: Tensor) -> tuple[Tensor, Tensor | None]:
    """Give rows the shape of an answer.

    Args:
        knowledge: names the shape.
        rows: (rows, width), the segments of all clips or pairs one after the other, or whole clips; what is
            not finite counts as 0.
        claimed: (rows,) bool.

    Returns:
        the clips, float32, and which of their segments are claimed; None for clips of frames.
    """
    clips = rows.float().view(knowledge.batch_shape)
    clips = torch.nan_to_num(clips, nan=0.0, posinf=0.0, neginf=0.0)
    if not knowledge.of_features:
        return clips, None
    segments = knowledge.batch_shape[:-1]
    return clips, claimed[:, None].expand(-1, clips[..., 0].numel() // len(rows)).reshape(segments)
