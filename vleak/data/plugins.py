"""Data sources by name: the synthetic clips, and functions of plug-ins that return clips."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import torch
from torch import Tensor

from vleak.data.clipset import ClipSet
from vleak.data.request import ClipRequest, Progress
from vleak.data.synthetic import load_synthetic
from vleak.errors import InputError, VleakError, argument
from vleak.registry import Reference, Registry, split_reference


def _synthetic(
    *,
    clips: int,
    frames: int,
    size: int,
    seed: int,
    public: int,
    references: int,
    fine: bool,
    progress: Progress | None = None,
) -> ClipSet:
    """Textured objects moving over photographs, labelled by motion; nothing to download."""
    return load_synthetic(
        ClipRequest(
            clips=clips, frames=frames, size=size, seed=seed, public=public, references=references, fine=fine,
            progress=progress,
        )
    )  # fmt: skip


SOURCES: Registry[ClipSet] = Registry("source", {"synthetic": _synthetic})
"""Registry of sources of clips; every path is a source as well."""

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def find_source(source: str) -> Reference[ClipSet] | None:
    """Return the registered source that a text names, or None for a path.

    Raises:
        InputError: a setting is unknown or does not fit, or a plug-in cannot be used.
    """
    name, _ = split_reference(source)
    if name in SOURCES or (_REFERENCE.fullmatch(name) and not Path(source).exists()):
        return SOURCES.parse(source)
    return None


def load_source(reference: Reference[ClipSet], request: ClipRequest) -> ClipSet:
    """Load clips from a registered source; its function is called with the request's fields that it accepts.

    Raises:
        InputError: a plug-in's function raised, or returned anything but the requested clips; the message
            names the plug-in.
    """
    entry = reference.entry
    accepted = inspect.signature(entry.factory).parameters
    arguments = {
        name: value
        for name, value in (vars(request) | {"clips": request.attacked}).items()
        if name in accepted
    }
    if request.public_from == "same-file" and "public_from" not in accepted:
        raise InputError(
            f"{argument('public_from', 'same-file')}: source {entry.name!r} has no files of which one part "
            "could be attacked and another public; leave it out"
        )
    data = reference.build(**{name: v for name, v in arguments.items() if name not in reference.settings})
    if not entry.built_in:
        try:
            _check(data, request)
        except VleakError as error:
            raise InputError(f"source {entry.name!r} ({entry.origin}): {error}") from error
    return data


def _check(data: object, request: ClipRequest) -> None:
    """Raise InputError for anything but a `ClipSet` of the requested clips."""
    if not isinstance(data, ClipSet):
        raise InputError(f"returned {type(data).__name__}, expected vleak.data.ClipSet")
    check_clip_set(data, (request.frames, request.size, request.size), verb="returned")
    if request.references and data.references is None:
        raise InputError("returned no reference frames, which were asked for")
    if request.fine and data.fine is None:
        raise InputError("returned no clips at twice the size; give them, or enhance nothing")


def check_clip_set(data: ClipSet, shape: tuple[int, int, int], *, verb: str = "holds") -> None:
    """Refuse a data set whose parts do not fit together.

    Args:
        data: of the caller, or of a plug-in.
        shape: (T, H, W) of every clip.
        verb: of the messages, whose subject the caller puts in front.

    Raises:
        InputError: clips of another shape, type or range, no clips, labels that are no classes, or names
            that are not one a clip, unique and safe as file names.
    """
    for name, clips, labels in (
        ("clips", data.clips, data.labels), ("public_clips", data.public_clips, data.public_labels)
    ):  # fmt: skip
        _check_clips(f"{verb} {name}", clips, shape)
        prefix = "public_" if name.startswith("public") else ""
        if labels.dtype != torch.int64 or labels.shape != clips.shape[:1]:
            given = f"{tuple(labels.shape)}, {labels.dtype}"
            raise InputError(f"{verb} {prefix}labels {given}, expected one int64 a clip")
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(data.classes)):
            last = len(data.classes) - 1
            raise InputError(f"{verb} {prefix}labels outside 0 to {last}, the number of classes")
    if not len(data.clips):
        raise InputError(f"{verb} no clips to attack")
    if len(set(data.names)) != len(data.clips) or not all(re.fullmatch(r"[\w.@+-]+", n) for n in data.names):
        raise InputError(f"{verb} names that are not one a clip, unique and safe as file names")


def _check_clips(subject: str, clips: Tensor, shape: tuple[int, int, int]) -> None:
    if clips.ndim != 5 or clips.shape[1:] != (3, *shape) or clips.dtype != torch.float32:
        raise InputError(
            f"{subject} of shape {tuple(clips.shape)}, {clips.dtype}, expected (clip, 3, "
            f"{', '.join(map(str, shape))}), float32"
        )
    if len(clips) and not (clips.min() >= 0 and clips.max() <= 1):
        raise InputError(f"{subject} with values outside [0, 1] or NaN")
