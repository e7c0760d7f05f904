"""Labels of the private clips, read from the last layer's gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vleak.attacks.apart import taken_apart
from vleak.attacks.expectation import prior_answer
from vleak.attacks.last_layer import last_layer
from vleak.attacks.observation import Observation
from vleak.federated import LOSSES, Channel
from vleak.federated.gradients import mean_gradient

__all__ = ["infer_labels"]

_SURE = 6.0
"""Standard deviations of a defense's noise beyond which an entry of the last layer is taken for negative."""
_LABELS = 16
"""Labels of which the whole update is asked at most, those first for which the last layer speaks most."""


def infer_labels(observation: Observation) -> Tensor:
    """Infer the labels (B,) of the batch from the gradient of the last layer.

    With cross-entropy the gradient of the last bias is the mean softmax minus the share of each class in the
    batch. One clip: its class is the smallest entry, exactly (iDLG, arXiv 2001.02610). Several: the mean
    softmax is estimated on what the attacker holds and the counts follow (after LLG, arXiv 2105.09369).

    Behind a known defense the entry of one clip's class may be lost in noise, or not be sent. Unless it is
    negative beyond doubt, the label is the one under which the clip to be expected sends what agrees best
    with the whole update: a label steers every layer's gradient.

    The last layer is the linear one that the model called last with an output a class; where there is none,
    the last tensor of the update with a row a class. Falls back to the row sums of its weight where it has
    no bias, and to class 0 where no tensor of the update has a row for every class.

    Of a sum over clients of whom the server sees who sent what, the labels are those of the batch, dealt out
    by what each client alone sent.

    With "bce" that gradient is the mean score minus the share of anomalous bags: of one bag its sign tells
    the label, exactly; without a bias that of the row sum does, where the layer reads rectified features.
    With "ranking" there is nothing to infer, the place in the pair is the label: zeros.
    """
    knowledge = observation.knowledge
    loss = observation.update.facts.loss
    if loss == "ranking":
        return torch.zeros(knowledge.batch_size, dtype=torch.long)
    clients = taken_apart(observation)
    if len(clients) > 1:
        return _of_clients(observation, clients)
    if loss == "bce":
        return _anomalous(observation)
    scores = _class_gradient(observation)
    if scores is None:
        return torch.zeros(knowledge.batch_size, dtype=torch.long)
    scores = scores[: knowledge.classes]
    if knowledge.batch_size == 1:
        return scores.argmin().reshape(1) if _tells(observation, scores) else _likeliest(observation, scores)
    shares = (_mean_softmax(observation)[: knowledge.classes] - scores).clamp(min=0)
    counts = knowledge.batch_size * shares / shares.sum().clamp(min=1e-12)
    return _largest_remainder(counts, knowledge.batch_size)


def _tells(observation: Observation, scores: Tensor) -> bool:
    """Return whether the last layer's gradient tells the class of one clip: it alone is negative there.

    Behind a defense that may be lost in noise, or not be sent.
    """
    channel = observation.channel
    if channel is None:
        return observation.knowledge.simulate is None  # nothing is known of a defense
    entries = sum(tensor.numel() for tensor in observation.update.tensors.values())
    return channel.exact or bool(scores.min() < -_SURE * math.sqrt(channel.noise_energy / entries))


def _likeliest(observation: Observation, scores: Tensor) -> Tensor:
    """Return the label (1,) under which the expected clip's gradient agrees best with the whole update.

    The label steers the gradient of every layer, by far more than the clip does. The agreement is the cosine
    over the entries that carry a measurement.
    """
    tried = scores.argsort(stable=True)[:_LABELS].sort().values
    return tried[_agreement(observation, tried).argmax()].reshape(1)


def _of_clients(observation: Observation, clients: Sequence[Observation]) -> Tensor:
    """Return the labels of a batch in the order of the clients, by which they agree best with all of them."""
    assert observation.channel is not None
    labels = infer_labels(replace(observation, channel=replace(observation.channel, senders=())))
    kinds = torch.tensor(sorted(set(labels.tolist())))
    places = torch.searchsorted(kinds, labels)
    agreement = torch.stack([_agreement(own, kinds) for own in clients])
    slots = agreement.repeat_interleave(len(labels) // len(clients), 0)[:, places]
    return labels[torch.from_numpy(linear_sum_assignment(slots.numpy(), maximize=True)[1])]


def _agreement(observation: Observation, tried: Tensor) -> Tensor:
    """Return the cosines (labels,) of the update with the expected clip's gradient under some labels."""
    tensors, channel = observation.update.tensors, observation.channel or Channel()
    weight, loss = next(observation.model.parameters()), LOSSES[observation.update.facts.loss]
    clip = prior_answer(observation.knowledge)[:1].to(weight)
    sent, cosines = torch.cat([tensor.flatten() for tensor in tensors.values()]).to(weight), []
    for label in tried.to(weight.device):
        gradient = mean_gradient(observation.model, loss, clip, label[None])
        if channel.masks is not None:
            gradient = {name: gradient[name] * channel.masks[name].to(weight.device) for name in tensors}
        guess = torch.cat([gradient[name].flatten() for name in tensors])
        cosines.append(float(sent @ guess / (sent.norm() * guess.norm()).clamp(min=1e-30)))
    return torch.tensor(cosines)


def _anomalous(observation: Observation) -> Tensor:
    """Return the labels of a batch trained with "bce", the normal bags first."""
    batch, last = observation.knowledge.batch_size, _last_layer(observation)
    labels = torch.zeros(batch, dtype=torch.long)
    if last is None:
        return labels
    slope = float(last.sum())
    if batch == 1:
        return labels + int(slope < 0)
    share = float(_on_public(observation, lambda scores: scores.flatten(1).mean(1, keepdim=True))) - slope
    count = min(batch, max(0, round(batch * share)))
    return torch.arange(batch).ge(batch - count).long()


def _class_gradient(observation: Observation) -> Tensor | None:
    """Return one number a class from the last layer's gradient."""
    knowledge = observation.knowledge
    last = _last_layer(observation)
    if last is None:
        return None
    sums = last.detach().cpu().reshape(len(last), -1).sum(1)
    if len(sums) == 1:  # one logit z that stands for (0, z): what its class gains the other one loses
        sums = torch.cat([-sums, sums])
    logits = len(sums)
    if last.ndim == 1 or (knowledge.batch_size == 1 and logits == 2):
        return sums
    # The rows are what the bias would be, times features whose sum is unknown. Of a single clip its own class
    # has the longest row and is negative in the bias; in a batch some class is missing and so has no share.
    if knowledge.batch_size == 1:
        return -sums * sums[sums.abs().argmax()].sign()
    return sums / (sums / _mean_softmax(observation)).max().clamp(min=1e-12)


def _last_layer(observation: Observation) -> Tensor | None:
    """Return the gradient of the last layer's bias, or of its weight where it has no bias."""
    tensors, last = observation.update.tensors, last_layer(observation)
    for part in (last.bias, last.weight):
        if part in tensors:
            return tensors[part]
    if last.weight is not None:
        return None  # of a partial update
    for width in (2, 1) if last.outputs == 2 else (last.outputs,):  # one logit may stand for two classes
        rows = [tensor for tensor in tensors.values() if tensor.ndim and tensor.shape[0] == width]
        if rows:
            return rows[-1]
    return None


def _mean_softmax(observation: Observation) -> Tensor:
    return _on_public(observation, lambda logits: logits.softmax(1))


def _on_public(observation: Observation, read: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean of what is read from the model's outputs for public clips, or for grey without any."""
    knowledge = observation.knowledge
    clips = knowledge.public_clips
    if clips is None or len(clips) == 0:
        clips = torch.full((1, *knowledge.clip_shape), 0.5)
    with torch.no_grad():
        device = next(observation.model.parameters()).device
        return (
            torch.cat([read(observation.model(part.to(device))) for part in torch.split(clips, 16)])
            .mean(0)
            .cpu()
        )


def _largest_remainder(expected: Tensor, total: int) -> Tensor:
    """Round expected counts to whole ones that add up, and list the classes, each as often as counted."""
    counts = expected.floor().long()
    order = (expected - counts).argsort(descending=True)
    counts[order[: total - int(counts.sum())]] += 1
    return torch.repeat_interleave(torch.arange(len(counts)), counts)
