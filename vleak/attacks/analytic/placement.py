"""Placement of segments: how often each occurred, and in which bag of a pair, where the loss tells."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from vleak.attacks.analytic.first_layer import FirstLayer
from vleak.attacks.observation import Observation

__all__ = ["slots_of"]


def slots_of(
    observation: Observation, layer: FirstLayer, segments: Tensor, columns: Tensor
) -> dict[int, int]:
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
