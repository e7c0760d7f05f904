"""Setup of gradient matching: what all descents of one attack share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from vleak.attacks.base import Knowledge, Observation
from vleak.attacks.expectation import prior_answer
from vleak.attacks.matching.adaptive import AdaptiveWeights
from vleak.attacks.matching.cut import CutModel, cut_off, total
from vleak.attacks.matching.projection import in_bases
from vleak.attacks.matching.rounds import loss_of
from vleak.attacks.matching.summed import in_sum
from vleak.federated import Channel, LocalTraining, Loss, fill_masks, with_masks

__all__ = ["MaskRound", "Setup", "as_measured", "unrolled", "with_unknown_masks"]

_UNROLLED = 8
"""Local steps up to which they are unrolled by default; each costs as much as an iteration on a gradient."""


@dataclass(frozen=True)
class Setup:
    """What all descents of one attack share.

    Attributes:
        observation: as `Attack.prepare` has it, a delta as the gradient that it stands for.
        channel: what is known of the defense, or None.
        weights: what the channel asks of the regularisers.
        unit: what they are measured in.
        local: local training that is unrolled, or None.
        rounds: how many rounds are matched together.
        expected: (B, C, T, H, W), what clips start from and are drawn towards; None for what knowledge tells.
    """

    observation: Observation
    channel: Channel | None
    weights: AdaptiveWeights
    unit: float
    local: LocalTraining | None = None
    rounds: int = 1
    expected: Tensor | None = None

    @property
    def knowledge(self) -> Knowledge:
        return self.observation.knowledge

    @property
    def weight(self) -> Tensor:
        """A parameter of the model, of the type and on the device of all tensors."""
        return next(self.observation.model.parameters())

    @property
    def loss(self) -> Loss:
        """What the gradient that is matched is of."""
        if isinstance(self.observation.model, CutModel):
            return total
        return loss_of(self.observation.update.facts.loss, self.rounds)


@dataclass(frozen=True)
class MaskRound:
    """What the second round needs, in which still regions are held to the background.

    Attributes:
        setup: of the attack.
        still: (B, C, 1, H, W), the background.
        iterations: of the round.
    """

    setup: Setup
    still: Tensor
    iterations: int


def as_measured(observation: Observation, channel: Channel) -> tuple[Observation, Channel]:
    """Return an observation of a gradient by the model whose gradient its channel makes it."""
    if channel.senders:
        return in_sum(observation, channel)
    if channel.bases:
        return in_bases(observation, channel)
    return cut_off(observation, channel) if channel.random_behind else (observation, channel)


def with_unknown_masks(setup: Setup) -> Setup:
    """Return the setup with a model whose dropout takes masks, those that are expected to begin with."""
    observation = setup.observation
    if observation.update.facts.mode == "eval":
        return setup
    model = with_masks(observation.model)
    if model is not observation.model:
        fill_masks(model, prior_answer(observation.knowledge).to(setup.weight))
    return replace(setup, observation=replace(observation, model=model))


def unrolled(observation: Observation, path: Literal["auto", "unroll", "midpoint"]) -> LocalTraining | None:
    """Return the local training to unroll; None where a gradient says all, or at the midpoint."""
    local = observation.update.facts.local
    if local is None or path == "midpoint" or (local.steps == 1 and local.optimizer == "sgd"):
        return None
    return local if path == "unroll" or local.optimizer == "adam" or local.steps <= _UNROLLED else None
