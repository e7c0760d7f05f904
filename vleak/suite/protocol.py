"""Protocols of the suite: frozen descriptions of what every entry measures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vleak.data import synthetic_clip
from vleak.errors import InputError
from vleak.evaluation import Settings
from vleak.evaluation.objects import AttackLike, DefenseLike
from vleak.results.base import Finite, Record

__all__ = ["Protocol", "Situation"]

_MOST_APART = 1e-3
"""Difference of a mean of pixels that another machine's rounding never makes."""
_PARTS = 2
"""Parts of a clip along each axis, of which the protocol keeps the means."""


class Situation(Record):
    """Model and client that a defense is attacked at.

    Attributes:
        name: of the situation, unique in its protocol.
        model: classifier of frames, by name. training_state: how far it is trained on public clips.
        mode: of the model while the client computes. batch: clips of a client.
        local_steps: of training before a delta is sent; 0 for a gradient. local_rate: their learning rate.
        utility_rounds: of federated training under the defense; 0 where utility is measured elsewhere.
        audited: whether a claimed epsilon is bounded from below here.
    """

    name: str
    model: str = "c3d_tiny"
    training_state: Literal["untrained", "early", "late"] = "untrained"
    mode: Literal["eval", "train"] = "eval"
    batch: int = Field(default=1, ge=1)
    local_steps: int = Field(default=0, ge=0)
    local_rate: Finite | None = None
    utility_rounds: int = Field(default=0, ge=0)
    audited: bool = False


class Protocol(Record):
    """Everything that the figures of an entry depend on, but for the defense and an attack from outside.

    Attributes:
        name: with its version. about: what it is for, a sentence.
        situations: models and clients.
        clips: private ones, synthetic, each a sample and a candidate of all others. frames, size: of a clip.
        seed: of clips, weights and randomness. draw: of clients and attacks.
        clip_means: of every private clip the means over its eighths (halves in time, height and width), by
            which a generator that draws other clips is found out on any machine; empty to leave it unchecked.
        attack: as on the command line. iterations, restarts, budget: of it.
        non_adaptive: clips, spread over all, that it also rebuilds without knowing the defense.
        labels: "inferred" by the attacker, or "granted". public_from: where the attacker's public clips are
            from.
        audit_draws: messages of an audit; None for as many as take some seconds.
        full_gain_db: gain over the best baseline from which on a clip counts as rebuilt.
        device: on which the figures are computed.
    """

    name: str
    about: str
    situations: tuple[Situation, ...] = Field(min_length=1)
    clips: int = Field(ge=2)
    frames: int = Field(default=8, ge=2)
    size: int = Field(default=32, ge=8)
    seed: int = 0
    draw: int = 0
    clip_means: tuple[tuple[Finite, ...], ...] = ()
    attack: str = "strongest"
    iterations: int = Field(default=150, ge=1)
    restarts: int = Field(default=1, ge=1)
    budget: int = Field(default=800, ge=1)
    non_adaptive: int = Field(default=8, ge=0)
    labels: Literal["inferred", "granted"] = "inferred"
    public_from: Literal["other-files"] = "other-files"
    audit_draws: int | None = None
    full_gain_db: Finite = Field(default=10.0, gt=0)
    device: Literal["cpu"] = "cpu"

    @property
    def sha256(self) -> str:
        """Digest of the whole description; entries of another one are not compared."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def settings(
        self, situation: Situation, defenses: Sequence[DefenseLike], attack: AttackLike | None = None
    ) -> Settings:
        """Settings of the run of one situation.

        Args:
            situation: of this protocol.
            defenses: as `Settings` takes them; the undefended update is always attacked beside them.
            attack: in place of that of the protocol; None for that.

        Raises:
            InputError: a defense or the attack is unknown, or a setting of it.
        """
        return Settings(
            data="synthetic", clips=self.clips, frames=self.frames, size=self.size, seed=self.seed,
            draw=self.draw, model=situation.model, training_state=situation.training_state,
            mode=situation.mode, batch=(situation.batch,), local_steps=(situation.local_steps,),
            local_rate=situation.local_rate, defenses=tuple(defenses),
            attacks=(self.attack if attack is None else attack,), iterations=self.iterations,
            restarts=self.restarts, budget=self.budget, non_adaptive=self.non_adaptive, labels=self.labels,
            public_from=self.public_from, utility=situation.utility_rounds, enhance="none",
            audit_draws=self.audit_draws if situation.audited else 0, device=self.device,
        )  # fmt: skip

    def check_clips(self) -> None:
        """Refuse to compare where the clips are others than those that the protocol was frozen with.

        Raises:
            InputError: the generator of synthetic clips has changed; says since when entries differ.
        """
        if not self.clip_means:
            return
        drawn = torch.tensor(self.drawn_means(), dtype=torch.float64)
        kept = torch.tensor(self.clip_means, dtype=torch.float64)
        if drawn.shape != kept.shape or float((drawn - kept).abs().max()) > _MOST_APART:
            raise InputError(
                f"the clips of {self.name} are not those that it was frozen with: the generator of synthetic "
                "clips, or a library below it, has changed; take the vleak that the other entries were made "
                "with, or a newer protocol"
            )

    def drawn_means(self) -> tuple[tuple[float, ...], ...]:
        """Means over the eighths of the clips as this machine draws them, to six digits."""
        return tuple(tuple(round(float(part), 6) for part in _eighths(clip)) for clip in self._clips())

    def _clips(self) -> Tensor:
        drawn = [
            synthetic_clip(index, frames=self.frames, size=self.size, seed=self.seed)[0]
            for index in range(self.clips)
        ]
        return torch.stack(drawn)


def _eighths(clip: Tensor) -> Tensor:
    """Means over the parts of a clip (C, T, H, W) in [0, 1], its channels together."""
    return torch.nn.functional.adaptive_avg_pool3d(clip.double().mean(0)[None], _PARTS).flatten()
