"""Case, answer and judgement: what one cell is before, within and after its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from vleak.attacks import Attack, Reconstruction
from vleak.defenses import Defense
from vleak.results.records import EnhancementRecord, Scores, Setting, UpdateRecord

__all__ = ["Answer", "Case", "Judgement"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One cell before it runs.

    Attributes:
        id: unique in the run.
        clip: position of the clip in the data.
        defense: what the client does.
        attack: what the server does; one object may serve many cells.
        attack_name: name of the attack in records.
        attack_settings: settings that were chosen for the attack itself.
        counterpart: name of the adaptive attack that this is the non-adaptive form of.
        reference_frames: frames of the scene that the server holds.
    """

    id: str
    clip: int
    defense: Defense
    attack: Attack
    attack_name: str
    attack_settings: Mapping[str, Setting] = field(default_factory=dict)
    counterpart: str | None = None
    reference_frames: int = 0

    @property
    def baseline(self) -> bool:
        """Whether the attack is a baseline, which never looks at the update."""
        return self.attack.baseline


@dataclass(frozen=True)
class Answer:
    """Answer of an attack in the terms of the data.

    Attributes:
        reconstruction: what the attack returned.
        clip: (C, T, H, W) in [0, 1], the rebuilt frames; None where no way leads to frames.
        features: (S, F), the rebuilt features of the clip; None in the raw pipeline.
        inversion: how features were led back to frames; None where nothing was.
    """

    reconstruction: Reconstruction
    clip: Tensor | None = None
    features: Tensor | None = None
    inversion: Reconstruction | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """Health flags of the attack and of the inversion of features."""
        inverted = () if self.inversion is None else self.inversion.flags
        return (*self.reconstruction.flags, *(f"inversion: {flag}" for flag in inverted))

    @property
    def seconds(self) -> float:
        """Wall time of the attack and of the inversion of features."""
        return self.reconstruction.seconds + (0.0 if self.inversion is None else self.inversion.seconds)


@dataclass(frozen=True)
class Judgement:
    """What the truth says of an answer.

    Attributes:
        scores: beside those of the baselines.
        update: the update that was sent, beside the undefended one.
        enhancement: scores before and after enhancement; None without enhancement.
        picture: (C, T, H, W) in [0, 1], the rebuilt clip; None where there are no frames.
        enhanced: (C, T, 2H, 2W) in [0, 1]; None without enhancement.
    """

    scores: Scores
    update: UpdateRecord
    enhancement: EnhancementRecord | None = None
    picture: Tensor | None = None
    enhanced: Tensor | None = None
