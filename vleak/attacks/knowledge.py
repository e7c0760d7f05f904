"""Knowledge that a threat model grants an attacker beside the model and the update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.federated import Update

Simulate = Callable[[Tensor, Tensor, torch.Generator], Update]
"""(clips, labels, generator) -> the update that the client would send."""


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What the threat model grants beside the model and the update.

    What is private is a clip (C, T, H, W) in the raw pipeline and a feature matrix (S, F), S segments of F
    features, or a pair of them (2, S, F), in the feature pipeline; it is called clip in both.

    Attributes:
        clip_shape: (C, T, H, W), (S, F) or (2, S, F) of every clip in the batch.
        batch_size: B, number of clips behind the update.
        classes: number of classes; labels are in [0, classes).
        labels: (B,) int64 when granted, else None. In `Attack.prepare` they are always there: granted, or
            inferred from the update. labels_inferred: whether they are such a guess.
        public_clips: (M, *clip_shape) of the same kind of scene, M may be 0; never a private clip. Frames
            are in [0, 1].
        public_groups: (M,) int64, equal for public clips of one video, which resemble each other as no
            private clip resembles them; None where nothing says so, or private clips may be of these videos.
        public_labels: (M,) int64, labels of the public clips, of the same classes as ``labels``; None where
            they are not known.
        references: (B, C, K, H, W) in [0, 1], for every clip K frames of its scene that are not in it, those
            nearest to it first; None for none.
        nonnegative: whether features are known to be at least 0, as behind a ReLU.
        unit_norm: whether every segment's features are known to have Euclidean norm 1.
        simulate: the client's own public code on the server's model, defense included, for an attacker who
            knows the defense and rehearses on clips of his own; None for one who does not.
    """

    clip_shape: tuple[int, ...]
    batch_size: int
    classes: int
    labels: Tensor | None = None
    labels_inferred: bool = False
    public_clips: Tensor | None = None
    public_groups: Tensor | None = None
    public_labels: Tensor | None = None
    references: Tensor | None = None
    nonnegative: bool = False
    unit_norm: bool = False
    simulate: Simulate | None = None

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """(B, *clip_shape)."""
        return (self.batch_size, *self.clip_shape)

    @property
    def of_features(self) -> bool:
        """Whether the private clips are feature matrices."""
        return len(self.clip_shape) < 4

    @property
    def threat_model(self) -> str:
        """Name of the threat model: a curious server, and what it holds beside the model and the update."""
        frames = 0 if self.references is None else self.references.shape[2]
        held = {
            "labels": self.labels is not None,
            "public clips": self.public_clips is not None and len(self.public_clips) > 0,
            f"{frames} reference frame{'s' if frames > 1 else ''}": frames > 0,
            "the client's code": self.simulate is not None,
        }
        names = ", ".join(name for name, granted in held.items() if granted)
        return f"curious server with {names}" if names else "curious server"

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

    def check(self) -> None:
        """Check that the parts belong together.

        Raises:
            InputError: a size below 1, or labels, public clips or reference frames of another batch.
        """
        if min(self.batch_shape) < 1:
            raise InputError(f"knowledge: expected positive sizes, got a batch of shape {self.batch_shape}")
        self._check_labels()
        public = self.public_clips
        if public is not None and tuple(public.shape[1:]) != tuple(self.clip_shape):
            raise InputError(
                f"knowledge: expected public clips of shape (clip, *{tuple(self.clip_shape)}), got "
                f"{tuple(public.shape)}"
            )
        for name, facts in (("public_groups", self.public_groups), ("public_labels", self.public_labels)):
            if facts is not None and facts.shape != (0 if public is None else len(public),):
                raise InputError(
                    f"knowledge: expected {name} of one number a public clip, got shape {tuple(facts.shape)}"
                )
        if self.references is not None:
            self._check_references(self.references)

    def _check_labels(self) -> None:
        labels = self.labels
        if labels is None:
            return
        if tuple(labels.shape) != (self.batch_size,):
            raise InputError(f"knowledge: expected {self.batch_size} labels, got shape {tuple(labels.shape)}")
        if not ((labels >= 0) & (labels < self.classes)).all():
            raise InputError(
                f"knowledge: expected labels from 0 to {self.classes - 1}, got {labels.tolist()}"
            )

    def _check_references(self, references: Tensor) -> None:
        if self.of_features or references.ndim != 5:
            raise InputError(
                "knowledge: expected reference frames of shape (clip, channel, frame, height, width) for "
                f"clips of frames, got {tuple(references.shape)} for clips of shape {self.clip_shape}"
            )
        batch, channels, _, *size = self.batch_shape
        frames = references.shape[2]
        if tuple(references.shape) != (batch, channels, frames, *size) or not frames:
            raise InputError(
                f"knowledge: expected reference frames of shape ({batch}, {channels}, frames, "
                f"{', '.join(map(str, size))}), got {tuple(references.shape)}"
            )
        if not bool(torch.isfinite(references).all()):
            raise InputError("knowledge: the reference frames hold NaN or infinity; give values in [0, 1]")
