"""Setup of gradient matching: what all descents of one attack share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vleak.attacks.base import Knowledge, Observation
from vleak.attacks.matching.adaptive import AdaptiveWeights
from vleak.federated import Channel, LocalTraining

__all__ = ["MaskRound", "Setup"]


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
    """

    observation: Observation
    channel: Channel | None
    weights: AdaptiveWeights
    unit: float
    local: LocalTraining | None = None
    rounds: int = 1

    @property
    def knowledge(self) -> Knowledge:
        return self.observation.knowledge

    @property
    def weight(self) -> Tensor:
        """A parameter of the model, of the type and on the device of all tensors."""
        return next(self.observation.model.parameters())


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
