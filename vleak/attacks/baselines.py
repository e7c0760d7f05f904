"""Baselines: attackers with the same knowledge who never look at the update. What they score is no leak."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from vleak.attacks.base import Attack, Hooks, Knowledge, Observation, Reconstruction
from vleak.attacks.expectation import background
from vleak.errors import InputError

__all__ = [
    "SHARED_GUESSES",
    "Baseline",
    "Grey",
    "LabelMean",
    "PublicMean",
    "ReferenceMean",
    "ReferenceNearest",
    "ReferenceStill",
    "answerable",
]


class Baseline(Attack):
    """Base of the baselines: subclasses say what they guess."""

    adaptive: ClassVar[bool] = False
    baseline: ClassVar[bool] = True

    @abstractmethod
    def guess(self, knowledge: Knowledge) -> Tensor:
        """Return what expands to the clips (B, *clip_shape).

        Raises:
            InputError: the knowledge lacks what the guess is made of.
        """

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Reconstruction:
        """Return the guess, under class 0 where labels are not granted: nothing tells them."""
        knowledge = observation.knowledge
        labels = knowledge.labels
        if labels is None:
            labels = torch.zeros(knowledge.batch_size, dtype=torch.long)
        clips = self.guess(knowledge).expand(knowledge.batch_shape)
        return Reconstruction(clips=clips.clone(), labels=labels)


class Grey(Baseline):
    """A grey clip: what can be said without any knowledge."""

    name: ClassVar[str] = "grey"
    takes: ClassVar[frozenset[str]] = frozenset({"frames", "features"})

    def guess(self, knowledge: Knowledge) -> Tensor:
        """Return 0.5 everywhere."""
        return torch.full(knowledge.clip_shape, 0.5)


class PublicMean(Baseline):
    """The mean of the public clips: what the kind of scene tells without the update."""

    name: ClassVar[str] = "public_mean"
    takes: ClassVar[frozenset[str]] = frozenset({"frames", "features"})

    def guess(self, knowledge: Knowledge) -> Tensor:
        """Return the mean public clip."""
        mean = knowledge.public_mean()
        if mean is None:
            raise InputError("the attacker holds no public clips, so there is no mean of them")
        return mean


class ReferenceStill(Baseline):
    """The reference frame nearest to the clip, held still: what the scene tells without the update."""

    name: ClassVar[str] = "reference_still"

    def guess(self, knowledge: Knowledge) -> Tensor:
        """Return the nearest frame."""
        return _references(knowledge)[:, :, :1]


class ReferenceMean(Baseline):
    """The mean of the reference frames, held still: the best still answer to an unknown time."""

    name: ClassVar[str] = "reference_mean"

    def guess(self, knowledge: Knowledge) -> Tensor:
        """Return the mean frame."""
        return _references(knowledge).mean(2, keepdim=True)


class LabelMean(Baseline):
    """The mean of the public clips of the granted label: what the class tells without the update."""

    name: ClassVar[str] = "label_mean"

    def guess(self, knowledge: Knowledge) -> Tensor:
        """Return the mean of a label's public clips, the mean of all where the label has none."""
        public, known = knowledge.public_clips, knowledge.public_labels
        if public is None or known is None or knowledge.labels is None:
            raise InputError("the attacker holds no labels, or no public clips with labels, to go by")
        chosen = [public[known == label] for label in knowledge.labels]
        return torch.stack([clips.mean(0) if len(clips) else public.mean(0) for clips in chosen])


class ReferenceNearest(Baseline):
    """The public clip that is nearest to the scene in the reference frames."""

    name: ClassVar[str] = "reference_nearest"

    def guess(self, knowledge: Knowledge) -> Tensor:
        """Return the public clip with the smallest squared error to the background held still."""
        public = knowledge.public_clips
        if public is None or not len(public):
            raise InputError("the attacker holds no public clips, so none is nearest")
        stills = background(_references(knowledge))
        return torch.stack([public[int((public - s).square().flatten(1).mean(1).argmin())] for s in stills])


SHARED_GUESSES = (Grey.name, PublicMean.name)
"""Baselines that guess the same for every clip; the others go by what is known of it."""


def answerable(knowledge: Knowledge) -> tuple[str, ...]:
    """Return the names of the baselines that can answer with such knowledge, no two alike."""
    public = knowledge.public_clips is not None and len(knowledge.public_clips) > 0
    frames = 0 if knowledge.references is None else knowledge.references.shape[2]
    labelled = public and knowledge.labels is not None and knowledge.public_labels is not None
    still = (ReferenceStill.name, ReferenceMean.name)[: min(frames, 2)]  # of one frame, it is the mean
    return (
        Grey.name,
        *((PublicMean.name,) if public else ()),
        *((LabelMean.name,) if labelled else ()),
        *still,
        *((ReferenceNearest.name,) if public and frames else ()),
    )


def _references(knowledge: Knowledge) -> Tensor:
    if knowledge.references is None:
        raise InputError("the attacker holds no reference frames, so there is none to hold still")
    return knowledge.references
