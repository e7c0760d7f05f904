"""Client settings, case, answer and judgement: what one cell is before, within and after its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from vleak.attacks import Attack, Reconstruction
from vleak.defenses import Defense
from vleak.federated import LocalTraining
from vleak.results.records import (
    CeilingRecord,
    ClientRecord,
    EnhancementRecord,
    LocalRecord,
    Scores,
    Setting,
    UpdateRecord,
)

__all__ = ["Answer", "Case", "ClientSettings", "Judgement"]


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Settings of the clients of some cells.

    Attributes:
        batch_size: private clips of a client.
        mode: mode of the model while it computes, "eval" or "train".
        local: local training before a delta is sent; None for the gradient of one batch.
        rounds: rounds of training, between which the server moves the weights.
        participation: chance of the client to take part in a round; it always does in the last.
        new_clips: whether it has other clips in every round but the last; else always the same.
        server_rate: learning rate with which the server takes in gradients.
    """

    batch_size: int = 1
    mode: Literal["eval", "train"] = "eval"
    local: LocalTraining | None = None
    rounds: int = 1
    participation: float = 1.0
    new_clips: bool = False
    server_rate: float = 0.0

    @property
    def text(self) -> str:
        """What differs from one gradient of one clip in eval mode, such as "batch=4,steps=5"; else empty."""
        return ",".join(f"{name}={value}" for name, value in self._changes().items())

    def record(self, drops: bool = False) -> ClientRecord:
        """Record of the settings, for a model that may have dropout."""
        local = None if self.local is None else LocalRecord(**self.local.to_dict())  # type: ignore[arg-type]
        return ClientRecord(
            batch_size=self.batch_size, mode=self.mode, local=local, rounds=self.rounds,
            participation=self.participation, new_clips=self.new_clips,
            masks_unknown=drops and self.mode == "train",
        )  # fmt: skip

    def _changes(self) -> dict[str, object]:
        changes: dict[str, object] = {} if self.batch_size == 1 else {"batch": self.batch_size}
        if self.mode != "eval":
            changes["mode"] = self.mode
        if self.local is not None:
            default = LocalTraining()
            own = {
                name: value
                for name, value in self.local.to_dict().items()
                if name != "steps" and value != getattr(default, name)
            }
            changes |= {"steps": self.local.steps, **{f"local_{k}": v for k, v in own.items()}}
        if self.rounds > 1:
            changes["rounds"] = self.rounds
            changes |= {} if self.participation == 1 else {"participation": f"{self.participation:g}"}
            changes |= {"clips": "new"} if self.new_clips else {}
            changes |= {} if self.local is not None else {"rate": f"{self.server_rate:g}"}
        return changes


@dataclass(frozen=True, kw_only=True)
class Case:
    """One cell before it runs.

    Attributes:
        id: unique in the run.
        clip: position of the clip in the data.
        batch: positions of all clips of its client, the clip's own among them.
        client: settings of its client.
        defense: what the client does.
        attack: what the server does; one object may serve many cells.
        attack_name: name of the attack in records.
        attack_settings: settings that were chosen for the attack itself.
        counterpart: name of the adaptive attack that this is the non-adaptive form of.
        reference_frames: frames of the scene that the server holds.
        non_adaptive: whether the attack also runs without knowledge of the defense, beside itself.
    """

    id: str
    clip: int
    defense: Defense
    attack: Attack
    attack_name: str
    attack_settings: Mapping[str, Setting] = field(default_factory=dict)
    counterpart: str | None = None
    reference_frames: int = 0
    client: ClientSettings = ClientSettings()
    batch: tuple[int, ...] = ()
    non_adaptive: bool = False

    def __post_init__(self) -> None:
        """Take the clip alone where no batch is given."""
        object.__setattr__(self, "batch", self.batch or (self.clip,))

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
        ceilings: what bits and noise of the message leave; None of a baseline.
    """

    scores: Scores
    update: UpdateRecord
    enhancement: EnhancementRecord | None = None
    picture: Tensor | None = None
    enhanced: Tensor | None = None
    ceilings: CeilingRecord | None = None
