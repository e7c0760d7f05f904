"""Reconstruction: an attacker's answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vleak.attacks.knowledge import Knowledge
from vleak.errors import InputError

DefenseKnowledge = Literal["channel", "simulated", "none"]


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """An attacker's answer.

    Attributes:
        clips: (B, C, T, H, W) in [0, 1], or (B, S, F) or (B, 2, S, F) features.
        labels: (B,) int64, as granted or inferred.
        recovered: for features, (B, S) or (B, 2, S) bool, the segments that the attack claims to have; None
            for all.
        ordered: whether the attack claims the order of frames or segments; an exact method that solves for
            a set of segments does not, nor which clip of a batch a segment is from.
        defense_knowledge: how the attack took the defense into account: by the channel that the defense
            states, by simulating the defense, or not at all.
        engine: "native", "reference", or "none" for attackers that do not iterate.
        iterations: iterations run, of all restarts together.
        restarts: restarts run.
        objective: the attack's own objective of this answer; NaN for attackers without one.
        history: objective per iteration of the chosen restart.
        nan_at: iteration at which the chosen restart's objective became NaN and ended it; else None.
        method: for an attack that chooses among others, the one that gave this answer, as on the command
            line, or several with their weights, such as "0.75 inverter + 0.25 matching"; "baseline" for the
            answer without the update; empty where it chooses none.
        evidence: for such an attack, by method the mean gain in dB that its choice went by.
        flags: flags that the attack raises about itself (`vleak.attacks.flags`).
        seconds: wall time.
    """

    clips: Tensor
    labels: Tensor
    recovered: Tensor | None = None
    ordered: bool = True
    defense_knowledge: DefenseKnowledge = "none"
    engine: str = "none"
    iterations: int = 0
    restarts: int = 0
    objective: float = math.nan
    history: tuple[float, ...] = ()
    nan_at: int | None = None
    method: str = ""
    evidence: tuple[tuple[str, float], ...] = ()
    flags: tuple[str, ...] = ()
    seconds: float = 0.0

    def part(self, index: int) -> Reconstruction:
        """Return the answer to one clip of the batch."""
        rows = slice(index, index + 1)
        recovered = None if self.recovered is None else self.recovered[rows]
        return replace(
            self,
            clips=self.clips[rows],
            labels=self.labels[rows],
            recovered=recovered,
            seconds=self.seconds / len(self.clips),
        )

    @property
    def adaptive(self) -> bool:
        """Whether the attack took the client's defense into account."""
        return self.defense_knowledge != "none"

    def checked(self, attack: str, knowledge: Knowledge) -> Reconstruction:
        """Return the answer with its clips inside the box that every attacker knows.

        Args:
            attack: name of the attack, for messages.
            knowledge: names the shapes.

        Raises:
            InputError: clips or labels have another shape or type, or are not finite.
        """
        expected = knowledge.batch_shape
        if tuple(self.clips.shape) != expected:
            raise InputError(
                f"attack {attack!r} returned shape {tuple(self.clips.shape)}, expected {expected}"
            )
        if not bool(torch.isfinite(self.clips).all()):
            raise InputError(f"attack {attack!r} returned NaN or infinity; expected finite values")
        if tuple(self.labels.shape) != (knowledge.batch_size,) or self.labels.dtype != torch.int64:
            raise InputError(
                f"attack {attack!r} returned labels of shape {tuple(self.labels.shape)} and type "
                f"{self.labels.dtype}, expected ({knowledge.batch_size},) and torch.int64"
            )
        return replace(self, clips=_within_box(self.clips.detach(), knowledge), **self._facts(attack))

    def _facts(self, attack: str) -> dict[str, Any]:
        """Return the fields that go into a record, as plain values.

        Raises:
            InputError: one of them is something else; names the field.
        """
        flags = self.flags if isinstance(self.flags, tuple | list) else ()
        valid = {
            "engine": isinstance(self.engine, str),
            "iterations": _is_count(self.iterations),
            "restarts": _is_count(self.restarts),
            "nan_at": self.nan_at is None or _is_count(self.nan_at),
            "objective": isinstance(self.objective, int | float),
            "defense_knowledge": self.defense_knowledge in get_args(DefenseKnowledge),
            "flags": flags is self.flags and all(isinstance(flag, str) for flag in flags),
        }
        for name, fits in valid.items():
            if not fits:
                value = getattr(self, name)
                raise InputError(
                    f"attack {attack!r} returned {name} of type {type(value).__name__}, expected what "
                    "vleak.Reconstruction documents; give plain numbers and texts"
                )
        return {"flags": tuple(flags), "objective": float(self.objective)}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _within_box(clips: Tensor, knowledge: Knowledge) -> Tensor:
    """Return a copy of the clips inside the values that clips or features may have."""
    if not knowledge.of_features:
        return clips.clamp(0, 1)
    return clips.clamp(min=0) if knowledge.nonnegative else clips.clone()
