"""What an attacker may use, what he returns, and the checks around every attack."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vleak.errors import InputError
from vleak.federated import Update

#: What an attacker who is told of a defense has to know of it.
_NEEDED = {"dp": ("noise_multiplier", "max_grad_norm"), "compress": ("codec",)}


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What the threat model grants beside the model and the update.

    What is private is a clip (C, T, H, W) in the raw pipeline and a feature matrix (S, F), S segments of F
    features, or a pair of them (2, S, F), in the feature pipeline; it is called clip in both.

    Attributes:
        clip_shape: (C, T, H, W), (S, F) or (2, S, F) of every clip in the batch.
        batch_size: B, number of clips behind the update.
        classes: number of classes; labels are in [0, classes).
        labels: (B,) int64 when granted, else None: the attack infers them.
        public_clips: (M, *clip_shape) of the same kind of scene, M may be 0; never a private clip. Frames
            are in [0, 1].
        references: (B, C, K, H, W) in [0, 1], for every clip K frames of its scene that are not in it, those
            nearest to it first; None for none.
        nonnegative: whether features are known to be at least 0, as behind a ReLU.
        unit_norm: whether every segment's features are known to have Euclidean norm 1.
        defense: name of the client's defense, or None when the attacker is not told.
        defense_settings: its public settings, by name; of "dp" and "compress" an attack needs the strength.
        simulate: (clips, labels, generator) -> Update, the client's own public code on the server's model,
            defense included, for an attacker who is told of it and rehearses on clips of his own; else None.
    """

    clip_shape: tuple[int, ...]
    batch_size: int
    classes: int
    labels: Tensor | None = None
    public_clips: Tensor | None = None
    references: Tensor | None = None
    nonnegative: bool = False
    unit_norm: bool = False
    defense: str | None = None
    defense_settings: dict[str, Any] = field(default_factory=dict)
    simulate: Callable[[Tensor, Tensor, torch.Generator], Update] | None = None

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """(B, *clip_shape)."""
        return (self.batch_size, *self.clip_shape)

    @property
    def of_features(self) -> bool:
        """Whether the private clips are feature matrices."""
        return len(self.clip_shape) < 4

    def public_mean(self) -> Tensor | None:
        """Return the mean public clip, of ``clip_shape``, or None where there is none."""
        if self.public_clips is None or len(self.public_clips) == 0:
            return None
        return self.public_clips.mean(0)

    def public_variance(self) -> float:
        """Return how much a pixel varies among public clips; of fewer than two, as if uniform, 1/12."""
        if self.public_clips is None or len(self.public_clips) < 2:
            return 1 / 12
        return max(float(self.public_clips.var(0).mean()), 1e-6)


@dataclass(frozen=True)
class Observation:
    """Everything the curious server has. The truth is not in it."""

    model: nn.Module
    update: Update
    knowledge: Knowledge


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """An attacker's answer.

    Attributes:
        clips: (B, C, T, H, W) in [0, 1], or (B, S, F) or (B, 2, S, F) features.
        labels: (B,) int64, as granted or inferred.
        found: for features, (B, S) or (B, 2, S) bool, the segments that the attack claims to have; None for
            all.
        ordered: whether the attack claims the order of frames or segments; an exact method that solves for
            a set of segments does not.
        adaptive: whether the attack took the client's defense into account.
        engine: "native", "reference", or "none" for attackers that do not iterate.
        iterations: iterations run, of all restarts together.
        restarts: restarts run.
        objective: the attack's own objective of this answer; NaN for attackers without one.
        history: objective per iteration of the chosen restart.
        nan_at: iteration at which the chosen restart's objective became NaN and ended it; else None.
        flags: health flags that the attack raises about itself.
        seconds: wall time.
    """

    clips: Tensor
    labels: Tensor
    found: Tensor | None = None
    ordered: bool = True
    adaptive: bool = False
    engine: str = "none"
    iterations: int = 0
    restarts: int = 0
    objective: float = math.nan
    history: tuple[float, ...] = ()
    nan_at: int | None = None
    flags: tuple[str, ...] = ()
    seconds: float = 0.0


class Attack(ABC):
    """Base of all attacks; subclasses write ``_reconstruct`` and keyword-only hyper-parameters.

    Attributes:
        name: as on the command line.
        takes: what it can rebuild, of "frames" and "features".
    """

    name: ClassVar[str]
    takes: ClassVar[frozenset[str]] = frozenset({"frames"})

    def reconstruct(
        self,
        observation: Observation,
        generator: torch.Generator,
        *,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Reconstruction:
        """Rebuild the private clips from an observation.

        Args:
            observation: all that the attacker may use.
            generator: the only source of randomness, a CPU generator.
            progress: called now and then with the number of iterations done.
            stop: asked between iterations; True makes the attack return what it has.

        Raises:
            InputError: the update does not belong to the model, is not finite or tells of an unknown loss,
                or the knowledge does not fit together.
        """
        _check(observation)
        kind = "features" if observation.knowledge.of_features else "frames"
        if kind not in self.takes:
            raise InputError(
                f"attack {self.name!r} takes {' or '.join(sorted(self.takes))}, not {kind}; choose another"
            )
        started = time.perf_counter()
        answer = self._reconstruct(observation, generator, progress, stop)
        expected = observation.knowledge.batch_shape
        if tuple(answer.clips.shape) != expected:
            raise InputError(
                f"attack {self.name!r} returned shape {tuple(answer.clips.shape)}, expected {expected}"
            )
        clips = _within(answer.clips.detach(), observation.knowledge)
        return replace(answer, clips=clips, seconds=time.perf_counter() - started)

    @abstractmethod
    def _reconstruct(
        self,
        observation: Observation,
        generator: torch.Generator,
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> Reconstruction: ...

    def __repr__(self) -> str:
        """Show the class with its hyper-parameters."""
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


def _within(clips: Tensor, knowledge: Knowledge) -> Tensor:
    """Return clips without NaN, inside the box that every attacker knows."""
    if not knowledge.of_features:
        return torch.nan_to_num(clips, nan=0.5).clamp(0, 1)
    clips = torch.nan_to_num(clips, nan=0.0, posinf=0.0, neginf=0.0)
    return clips.clamp(min=0) if knowledge.nonnegative else clips


def _check(observation: Observation) -> None:
    observation.update.check(observation.model)
    knowledge = observation.knowledge
    if min(knowledge.batch_shape) < 1:
        raise InputError(f"knowledge: expected positive sizes, got a batch of shape {knowledge.batch_shape}")
    if knowledge.labels is not None and tuple(knowledge.labels.shape) != (knowledge.batch_size,):
        raise InputError(
            f"knowledge: expected {knowledge.batch_size} labels, got shape {tuple(knowledge.labels.shape)}"
        )
    if (
        knowledge.labels is not None
        and not ((knowledge.labels >= 0) & (knowledge.labels < knowledge.classes)).all()
    ):
        raise InputError(
            f"knowledge: expected labels from 0 to {knowledge.classes - 1}, got {knowledge.labels.tolist()}"
        )
    _check_told(observation)
    public = knowledge.public_clips
    if public is not None and tuple(public.shape[1:]) != tuple(knowledge.clip_shape):
        raise InputError(
            f"knowledge: expected public clips of shape (clip, *{tuple(knowledge.clip_shape)}), got "
            f"{tuple(public.shape)}"
        )
    _check_references(knowledge)
    for name, tensor in observation.update.tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"update tensor {name!r} holds NaN or infinity; it cannot be attacked")


def _check_references(knowledge: Knowledge) -> None:
    """Refuse reference frames that are not those of the batch's scenes."""
    references = knowledge.references
    if references is None:
        return
    batch, channels, _, *size = knowledge.batch_shape if not knowledge.of_features else (0, 0, 0)
    if knowledge.of_features or references.ndim != 5:
        raise InputError(
            "knowledge: expected reference frames of shape (clip, channel, frame, height, width) for clips "
            f"of frames, got {tuple(references.shape)} for clips of shape {knowledge.clip_shape}"
        )
    if (*references.shape[:2], *references.shape[3:]) != (batch, channels, *size) or not references.shape[2]:
        raise InputError(
            f"knowledge: expected reference frames of shape ({batch}, {channels}, frames, "
            f"{', '.join(map(str, size))}), got {tuple(references.shape)}"
        )
    if not bool(torch.isfinite(references).all()):
        raise InputError("knowledge: the reference frames hold NaN or infinity; give pixel values in [0, 1]")


def _check_told(observation: Observation) -> None:
    """Refuse a batch size that is not the update's, and a defense without the settings that attacks read."""
    knowledge = observation.knowledge
    sent = observation.update.facts.batch_size
    if sent != knowledge.batch_size:
        raise InputError(
            f"knowledge: batch_size is {knowledge.batch_size}, but the update tells of {sent}; give that one"
        )
    settings = knowledge.defense_settings
    needed = _NEEDED.get(knowledge.defense or "", ())
    if knowledge.defense == "compress" and settings.get("codec") == "qsgd":
        needed = (*needed, "bits", "bucket")
    missing = [name for name in needed if name not in settings]
    if missing:
        raise InputError(
            f"knowledge: defense {knowledge.defense!r} needs defense_settings with {', '.join(missing)}; "
            "give defense.settings(), or defense=None for an attacker who is not told"
        )
