"""Sign of an update, told by the last layer: a negated gradient, or a delta taken for one, is not attacked.

With cross-entropy the gradient of the last bias is db_k = mean p_k - share of class k in the batch. It sums
to 0, and is negative for classes of the batch alone, so for no more classes than the batch has clips. A
negated gradient, or a delta of SGD, has it the other way round. Without a bias the row sums of the last
weight say the same where the layer reads nonnegative numbers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vleak.attacks.flags import NEGATED, REVERSED
from vleak.attacks.last_layer import LastLayer, last_layer
from vleak.attacks.observation import Observation
from vleak.descent.problem import lock_of
from vleak.federated import LOSSES, mean_gradient
from vleak.seeds import generator

__all__ = ["Sign", "sign_flags", "update_sign"]

Sign = Literal["gradient", "negated gradient", "undecided"]

ROUNDING = 1e-4
"""Largest sum of the entries, as a part of the sum of their magnitudes, that rounding explains. Noise on
entries whose sum is 0 leaves one that is larger in all but one update of some ten thousand."""

_PROBES = 3
"""Gradients of the attacker's own that the rule is tried on."""


def update_sign(observation: Observation) -> Sign:
    """Return what an update looks like by its last layer; the truth is not asked.

    "negated gradient" is also what a delta of SGD looks like, weights after less those before. "undecided" is
    said of noisy updates, of losses other than cross-entropy, where the rule fails on a gradient of random
    clips that the attacker computes, and of many batches of at least half as many clips as there are classes:
    there the shares of the classes decide, as long as the model says much the same of all public clips.

    Args:
        observation: whose model is in the mode that the client used.
    """
    last = last_layer(observation)
    sign = _reading(observation, last)
    return sign if sign == "undecided" or _rule_holds(observation, last) else "undecided"


def sign_flags(observation: Observation) -> tuple[str, ...]:
    """Return the flag of an update whose sign is not that of its kind; none where it is, or is undecided."""
    kind = observation.update.facts.kind
    wrong, flag = ("negated gradient", NEGATED) if kind == "fedsgd" else ("gradient", REVERSED)
    last = last_layer(observation)
    # The rule is tried only where it would accuse.
    return (flag,) if _reading(observation, last) == wrong and _rule_holds(observation, last) else ()


def _reading(observation: Observation, last: LastLayer) -> Sign:
    """Return what the rule says, whether it holds for the model or not."""
    update, clips = observation.update, observation.update.facts.batch_size
    entries = _entries(update.tensors, last) if update.facts.loss == "cross_entropy" else None
    if entries is None or not _sums_to_zero(entries):
        return "undecided"
    sign = _sign(entries, clips)
    if sign == "undecided" and last.bias in update.tensors:
        return _sign_by_shares(entries, clips, _softmax(observation))
    return sign


def _entries(tensors: dict[str, Tensor], last: LastLayer) -> Tensor | None:
    """Return a number a class: the gradient of the bias, or the row sums of that of the weight."""
    for name in (last.bias, last.weight):
        if name in tensors:
            return tensors[name].detach().cpu().double().reshape(last.outputs, -1).sum(1)
    return None


def _sums_to_zero(entries: Tensor) -> bool:
    """Return whether entries sum to 0, up to rounding, and are not all 0."""
    size = float(entries.abs().sum())
    return size > 0 and float(entries.sum().abs()) <= ROUNDING * size


def _sign(entries: Tensor, clips: int) -> Sign:
    """Return what entries (classes,) look like by how many of them are negative, of so many clips."""
    negative, positive = int((entries < 0).sum()), int((entries > 0).sum())
    if positive > clips >= negative:
        return "gradient"
    return "negated gradient" if negative > clips >= positive else "undecided"


def _sign_by_shares(entries: Tensor, clips: int, softmax: Tensor) -> Sign:
    """Return what entries (classes,) look like by the shares of the classes that they ask for.

    The mean softmax less the gradient is the share of each class, a multiple of 1 / clips from 0. That has
    to hold of one sign, within what the softmax varies among public clips, and clearly fail of the other.

    Args:
        entries: (classes,), the gradient of the bias.
        clips: in the batch.
        softmax: (public clips, classes).
    """
    slack = softmax.amax(0) - softmax.amin(0) + 0.005
    gaps = []
    for sign in (1, -1):
        counts = clips * (softmax.mean(0) - sign * entries)
        gaps.append((counts - counts.round().clamp(min=0)).abs() / clips)
    fits = [bool((gap <= slack).all()) for gap in gaps]
    fails = [bool((gap > 3 * slack).any()) for gap in gaps]
    if fits[0] and fails[1]:
        return "gradient"
    return "negated gradient" if fits[1] and fails[0] else "undecided"


def _softmax(observation: Observation) -> Tensor:
    """Return the softmax (clips, classes) of up to 32 public clips, or of grey and random ones, float64."""
    knowledge, weight = observation.knowledge, next(observation.model.parameters())
    clips = knowledge.public_clips
    if clips is None or len(clips) < 2:
        noise = torch.rand(4, *knowledge.clip_shape, generator=generator("sign", "softmax"))
        levels = torch.tensor([0.0, 0.5, 1.0]).view(3, *[1] * len(knowledge.clip_shape))
        clips = torch.cat([noise, levels.expand(3, *knowledge.clip_shape)])
    with lock_of(observation.model), torch.no_grad():
        logits: Tensor = observation.model(clips[:32].to(weight))
    return logits.double().softmax(1).cpu()


def _rule_holds(observation: Observation, last: LastLayer) -> bool:
    """Tell whether the rule finds gradients of random clips to be gradients, on this model.

    It fails where a layer without bias reads negative numbers, or the model turns the last layer's output
    round, such as to distances.
    """
    model, shape = observation.model, observation.knowledge.batch_shape
    weight = next(model.parameters())
    loss, numbers = LOSSES[observation.update.facts.loss], generator("sign")
    signs = set()
    for index in range(_PROBES):
        clips = torch.rand(shape, generator=numbers).to(weight)
        label = index * (last.outputs - 1) // (_PROBES - 1)
        labels = torch.full(shape[:1], label, device=weight.device)
        gradient = mean_gradient(model, loss, clips, labels)
        entries = _entries({name: gradient[name] for name in observation.update.tensors}, last)
        signs.add("undecided" if entries is None or not _sums_to_zero(entries) else _sign(entries, 1))
    return "negated gradient" not in signs and "gradient" in signs
