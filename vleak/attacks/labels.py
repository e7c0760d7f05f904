"""Labels of the private clips, read from the last layer's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from vleak.attacks.base import Observation


def infer_labels(observation: Observation) -> Tensor:
    """Infer the labels (B,) of the batch from the gradient of the last layer.

    With cross-entropy the gradient of the last bias is the mean softmax minus the share of each class in the
    batch. One clip: its class is the smallest entry, exactly (iDLG, arXiv 2001.02610). Several: the mean
    softmax is estimated on what the attacker holds and the counts follow (after LLG, arXiv 2105.09369).

    Falls back to the row sums of the last weight where there is no bias, and to class 0 where no tensor
    of the update has a row for every class.
    """
    knowledge = observation.knowledge
    scores = _class_gradient(observation)
    if scores is None:
        return torch.zeros(knowledge.batch_size, dtype=torch.long)
    scores = scores[: knowledge.classes]
    if knowledge.batch_size == 1:
        return scores.argmin().reshape(1)
    shares = (_mean_softmax(observation)[: knowledge.classes] - scores).clamp(min=0)
    wanted = knowledge.batch_size * shares / shares.sum().clamp(min=1e-12)
    return _largest_remainder(wanted, knowledge.batch_size)


def _class_gradient(observation: Observation) -> Tensor | None:
    """Return one number a class from the last tensor of the update that has a row a class."""
    model, knowledge = observation.model, observation.knowledge
    with torch.no_grad():
        device = next(model.parameters()).device
        logits = model(torch.full((1, *knowledge.clip_shape), 0.5, device=device)).shape[1]
    tensors = [t for t in observation.update.tensors.values() if t.ndim and t.shape[0] == logits]
    if not tensors:
        return None
    sums = tensors[-1].detach().cpu().reshape(logits, -1).sum(1)
    if tensors[-1].ndim == 1 or (knowledge.batch_size == 1 and logits == 2):
        return sums
    # The rows are what the bias would be, times features whose sum is unknown. Of a single clip its own class
    # has the longest row and is negative in the bias; in a batch some class is missing and so has no share.
    if knowledge.batch_size == 1:
        return -sums * sums[sums.abs().argmax()].sign()
    return sums / (sums / _mean_softmax(observation)).max().clamp(min=1e-12)


def _mean_softmax(observation: Observation) -> Tensor:
    knowledge = observation.knowledge
    clips = knowledge.public_clips
    if clips is None or len(clips) == 0:
        clips = torch.full((1, *knowledge.clip_shape), 0.5)
    with torch.no_grad():
        device = next(observation.model.parameters()).device
        return (
            torch.cat([observation.model(part.to(device)).softmax(1) for part in torch.split(clips, 16)])
            .mean(0)
            .cpu()
        )


def _largest_remainder(wanted: Tensor, total: int) -> Tensor:
    """Round expected counts to whole ones that add up, and list the classes, each as often as counted."""
    counts = wanted.floor().long()
    order = (wanted - counts).argsort(descending=True)
    counts[order[: total - int(counts.sum())]] += 1
    return torch.repeat_interleave(torch.arange(len(counts)), counts)
