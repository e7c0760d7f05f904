"""Base of the attacks that learn from public clips."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vleak.attacks.base import Attack, Knowledge, Observation, Reconstruction
from vleak.errors import InputError

__all__ = ["PublicClipsAttack", "check_public"]


class PublicClipsAttack(Attack):
    """Base of an attack that learns from public clips and answers an empty update with their mean."""

    def answer_to_empty(self, observation: Observation) -> Reconstruction | None:
        """Return the mean public clip, also where there are reference frames."""
        check_public(observation.knowledge, self.name)
        mean = observation.knowledge.public_mean()
        answer = super().answer_to_empty(observation)
        if mean is None or answer is None:
            return answer
        return replace(answer, clips=mean.expand(observation.knowledge.batch_shape).clone())


def check_public(knowledge: Knowledge, name: str) -> Tensor:
    """Return the public clips of an attack that learns from them.

    Raises:
        InputError: there are fewer than two.
    """
    if knowledge.public_clips is None or len(knowledge.public_clips) < 2:
        raise InputError(
            f"attack {name!r} learns from public clips and has fewer than two; give more, or another attack"
        )
    return knowledge.public_clips
