"""Data sets that every loader returns: clips of frames (`ClipSet`) and feature matrices (`FeatureSet`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

DEFAULT_CLIPS = 12  # number of attacked clips where the caller gives none

PublicFrom = Literal["other-files", "same-file"]
"""Where public clips are from: files without an attacked clip, or also parts of files that have one."""
PUBLIC_FROM: tuple[PublicFrom, ...] = get_args(PublicFrom)


@dataclass(frozen=True)
class ClipSet:
    """Clips under attack, and public clips that an attacker may hold, all float32 in [0, 1].

    Attributes:
        name: ``"synthetic"``, or the base name of the file or folder (never a full path).
        clips: (N, C, T, H, W), the clips under attack; also the candidates of identification.
        labels: (N,) int64, indices into ``classes``.
        names: an id per clip, unique and safe as a file name, such as ``"again@0"``.
        public_clips: (M, C, T, H, W), M may be 0. No frame of them is in ``clips``, and they are the
            same whichever of the clips is under attack.
        public_labels: (M,) int64.
        classes: the names of the classes.
        public_source: origin of the public clips, one phrase.
        public_from: whether a public clip may share its file with an attacked one; None where nobody says so,
            or there are no public clips.
        public_groups: (M,) int64, public clips of one file have one number; None where nothing says so.
        notes: sentences for the user: what the source holds and what was assumed.
        references: (N, C, K, H, W), the reference frames: for every attacked clip K frames of its scene that
            are in no attacked clip, the nearest first; None where none were requested.
        fine: (N, C, T, 2H, 2W), the attacked clips at twice the resolution, the ground truth of
            super-resolution; None where they were not requested.
        public_fine: (M, C, T, 2H, 2W), the same for the public clips.
        labels_drawn: whether labels were drawn at random, so that no accuracy of them says anything.
    """

    name: str
    clips: Tensor
    labels: Tensor
    names: tuple[str, ...]
    public_clips: Tensor
    public_labels: Tensor
    classes: tuple[str, ...]
    public_source: str
    notes: tuple[str, ...]
    references: Tensor | None = None
    fine: Tensor | None = None
    public_fine: Tensor | None = None
    labels_drawn: bool = False
    public_from: PublicFrom | None = None
    public_groups: Tensor | None = None


@dataclass(frozen=True)
class FeatureSet:
    """Feature matrices under attack, and public ones that an attacker may hold, all float32 and finite.

    Attributes:
        name: the base name of the file or folder (never a full path).
        features: (N, S, F), S segments of each video under attack.
        labels: (N,) int64, 0 normal, 1 anomaly.
        names: an id per video, unique and safe as a file name.
        public_features: (M, S, F), M may be 0; other videos, the same whichever video is under attack.
        public_labels: (M,) int64.
        classes: ``("normal", "anomaly")``.
        public_source: origin of the public features, one phrase.
        public_from: as of `ClipSet`.
        notes: sentences for the user: what the source holds and what was assumed.
        nonnegative: whether no value of the public features is negative, as behind a ReLU; False without any.
        unit_norm: whether every public row has Euclidean norm 1, to a thousandth; False without any.
        labels_drawn: whether labels were drawn at random, so that no accuracy of them says anything.
    """

    name: str
    features: Tensor
    labels: Tensor
    names: tuple[str, ...]
    public_features: Tensor
    public_labels: Tensor
    classes: tuple[str, ...]
    public_source: str
    notes: tuple[str, ...]
    nonnegative: bool
    unit_norm: bool
    labels_drawn: bool = False
    public_from: PublicFrom | None = None
