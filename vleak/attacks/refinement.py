"""Refinement: gradient matching from the inverter's answer on."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from vleak.attacks.base import Hooks, Observation, suited
from vleak.attacks.cost import slowness
from vleak.attacks.learned import Inverter
from vleak.attacks.matching import Matching
from vleak.seeds import generator as seeded

__all__ = ["Refinement"]


class Refinement(Matching):
    """Gradient matching that starts from the inverter's answer, and is drawn towards it.

    Where most of an update is lost, as behind strong pruning, what is left is exact but too little for a
    descent from the public mean, and more than a linear map makes use of. With reference frames, or with
    another regulariser than total variation, it is `matching`.
    """

    name: ClassVar[str] = "refinement"
    takes: ClassVar[frozenset[str]] = frozenset({"frames"})

    def expected(self, observation: Observation, hooks: Hooks) -> Tensor | None:
        """Return the inverter's answer (B, C, T, H, W).

        Raises:
            InputError: there are fewer than two public clips, or a part of the update is missing.
        """
        inverter = Inverter.afforded(slowness(observation))
        return inverter.prepare(suited(inverter, observation), seeded("refinement"), hooks).clips
