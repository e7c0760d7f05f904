"""Null attackers: the same knowledge, no gradient. What they score is not a leak."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from vleak.attacks.base import Attack, Knowledge, Observation, Reconstruction
from vleak.errors import InputError


class Grey(Attack):
    """A grey clip: what can be said without any knowledge."""

    name: ClassVar[str] = "grey"
    takes: ClassVar[frozenset[str]] = frozenset({"frames", "features"})

    def _reconstruct(
        self,
        observation: Observation,
        generator: torch.Generator,
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> Reconstruction:
        return _answer(observation, torch.full(observation.knowledge.clip_shape, 0.5))


class PublicMean(Attack):
    """The mean of the public clips: what the kind of scene tells without the update."""

    name: ClassVar[str] = "public_mean"
    takes: ClassVar[frozenset[str]] = frozenset({"frames", "features"})

    def _reconstruct(
        self,
        observation: Observation,
        generator: torch.Generator,
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> Reconstruction:
        mean = observation.knowledge.public_mean()
        if mean is None:
            raise InputError("the attacker holds no public clips, so there is no mean of them")
        return _answer(observation, mean)


class ReferenceStill(Attack):
    """The reference frame nearest to the clip, held still: what the scene tells without the update."""

    name: ClassVar[str] = "reference_still"

    def _reconstruct(
        self,
        observation: Observation,
        generator: torch.Generator,
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> Reconstruction:
        return _answer(observation, _references(observation)[:, :, :1])


class ReferenceMean(Attack):
    """The mean of the reference frames, held still: the best still answer to an unknown time."""

    name: ClassVar[str] = "reference_mean"

    def _reconstruct(
        self,
        observation: Observation,
        generator: torch.Generator,
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> Reconstruction:
        return _answer(observation, _references(observation).mean(2, keepdim=True))


def answerable(knowledge: Knowledge) -> tuple[str, ...]:
    """Return the names of the null attackers that can answer, each with an answer of its own."""
    public = knowledge.public_clips is not None and len(knowledge.public_clips) > 0
    frames = 0 if knowledge.references is None else knowledge.references.shape[2]
    still = (ReferenceStill.name, ReferenceMean.name)[: min(frames, 2)]  # of one frame, it is the mean
    return (Grey.name, *((PublicMean.name,) if public else ()), *still)


def _references(observation: Observation) -> Tensor:
    references = observation.knowledge.references
    if references is None:
        raise InputError("the attacker holds no reference frames, so there is none to hold still")
    return references


def _answer(observation: Observation, clip: Tensor) -> Reconstruction:
    """Answer every clip of the batch with what expands to (B, *clip_shape)."""
    knowledge = observation.knowledge
    # Without the update there is nothing to infer a label from: class 0 is as good as any.
    labels = (
        torch.zeros(knowledge.batch_size, dtype=torch.long) if knowledge.labels is None else knowledge.labels
    )
    return Reconstruction(clips=clip.expand(knowledge.batch_shape).clone(), labels=labels)
