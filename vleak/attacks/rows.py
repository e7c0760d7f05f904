"""What attacks on a linear layer's rows share: rank of a gradient, its mean row, the form of an answer."""

from __future__ import annotations

import torch
from torch import Tensor

from vleak.attacks.base import Knowledge, Observation
from vleak.attacks.labels import infer_labels

NEAR_ZERO = "target gradient near zero"


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


def centre(knowledge: Knowledge) -> Tensor:
    """Return what is to be expected without the update, of ``clip_shape``.

    The public mean; without one grey frames, equal features of norm 1 where both facts are known, or zeros.
    """
    mean = knowledge.public_mean()
    if mean is not None:
        return mean
    if not knowledge.of_features:
        return torch.full(knowledge.clip_shape, 0.5)
    level = knowledge.clip_shape[-1] ** -0.5 if knowledge.nonnegative and knowledge.unit_norm else 0.0
    return torch.full(knowledge.clip_shape, level)


def labels_of(observation: Observation) -> Tensor:
    """Return the labels (B,) as granted or inferred; zeros for a loss that has none."""
    knowledge = observation.knowledge
    if knowledge.labels is not None:
        return knowledge.labels
    if observation.update.facts.loss == "ranking":
        return torch.zeros(knowledge.batch_size, dtype=torch.long)
    return infer_labels(observation)


def placed(knowledge: Knowledge, rows: Tensor, claimed: Tensor) -> tuple[Tensor, Tensor | None]:
    """Give rows the shape of an answer.

    Args:
        knowledge: names the shape.
        rows: (rows, width), the segments of all clips or pairs one after the other, or whole clips.
        claimed: (rows,) bool.

    Returns:
        the clips, float32, and which of their segments are claimed; None for clips of frames.
    """
    clips = rows.float().view(knowledge.batch_shape)
    if not knowledge.of_features:
        return clips, None
    segments = knowledge.batch_shape[:-1]
    return clips, claimed[:, None].expand(-1, clips[..., 0].numel() // len(rows)).reshape(segments)
