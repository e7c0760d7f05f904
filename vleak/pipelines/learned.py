"""Defenses as the clients of a pipeline run them: with what they learned, and the model that they extend."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vleak.defenses import Defense
from vleak.federated import steps
from vleak.pipelines.conditions import Samples

__all__ = ["LearnedDefense", "LearnedDefenses"]


@dataclass(frozen=True)
class LearnedDefense:
    """A defense as the clients of a pipeline run it.

    Attributes:
        given: the defense as the run has it.
        defense: with what it learned from public clips.
        model: that its clients train: the pipeline's own, or one with what the defense adds. To ask, not to
            compute with: whoever does takes a copy.
    """

    given: Defense
    defense: Defense
    model: nn.Module


class LearnedDefenses:
    """Defenses of one model and its public clips, each made once for all cells."""

    def __init__(self, model: nn.Module, samples: Samples) -> None:
        """Take what they learn from, and the model that they extend."""
        self._model, self._samples = model, samples
        self._kept: dict[int, LearnedDefense] = {}

    def of(self, defense: Defense) -> LearnedDefense:
        """Return a defense as clients run it.

        Raises:
            CapabilityError: it cannot learn from the public clips, or cannot extend the model.
        """
        kept = self._kept.get(id(defense))
        if kept is None or kept.given is not defense:  # the id of one that is gone, or of another process
            own = steps.with_public(defense, self._samples.public, self._samples.public_labels)
            kept = LearnedDefense(defense, own, steps.extend_model(own, self._model))
            self._kept[id(defense)] = kept
        return kept
