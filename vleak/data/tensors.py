"""Data sets from the caller's own tensors, and their first clips."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vleak.data.clipset import ClipSet, FeatureSet
from vleak.errors import InputError
from vleak.seeds import generator

__all__ = ["clip_set", "first_of", "redrawn"]

_CLASSES = 6  # number of classes of drawn labels, as for videos without classes


def clip_set(
    clips: Tensor,
    labels: Tensor | None = None,
    *,
    public: Tensor | None = None,
    public_labels: Tensor | None = None,
    classes: tuple[str, ...] | None = None,
    name: str = "tensors",
) -> ClipSet:
    """Return a data set of the caller's tensors.

    Args:
        clips: (N, 3, T, H, H) in [0, 1], the clips under attack.
        labels: (N,) integers from 0; None draws them over six classes.
        public: (M, 3, T, H, H), clips that the attacker holds, none of them under attack.
        public_labels: (M,); None draws them.
        classes: names of the classes; None numbers them.
        name: name of the data in records.

    Raises:
        InputError: other shapes, values outside [0, 1], or labels that are no classes.
    """
    clips = _checked("clips", clips)
    public_clips = clips.new_empty(0, *clips.shape[1:]) if public is None else _checked("public", public)
    if public_clips.shape[1:] != clips.shape[1:]:
        raise InputError(
            f"public: expected clips of shape {tuple(clips.shape[1:])}, got {tuple(public_clips.shape)}"
        )
    own, others = (
        _labels("labels", labels, len(clips)),
        _labels("public_labels", public_labels, len(public_clips)),
    )
    count = _CLASSES if labels is None else int(torch.cat([own, others]).max()) + 1
    names = classes or tuple(f"class{index}" for index in range(max(2, count)))
    if count > len(names):
        raise InputError(f"labels: {count - 1} is no index into the {len(names)} classes")
    return ClipSet(
        name=name,
        clips=clips,
        labels=own,
        names=tuple(f"{name}{index}" for index in range(len(clips))),
        public_clips=public_clips,
        public_labels=others,
        classes=names,
        public_source="tensors" if len(public_clips) else "",
        notes=("labels are drawn at random",) if labels is None else (),
        labels_drawn=labels is None,
    )


def redrawn(data: ClipSet, classes: int, seed: int) -> ClipSet:
    """Return a data set whose labels are drawn anew, over another number of pseudo-classes.

    Args:
        data: whose labels were drawn.
        classes: number of pseudo-classes, such as the logits of a model.
        seed: of the draw. The label of a clip depends on it and on the clip's position alone, counting public
            clips behind the attacked ones.
    """
    count = len(data.clips) + len(data.public_clips)
    drawn = [
        int(torch.randint(classes, (), generator=generator("label", seed, classes, place)))
        for place in range(count)
    ]
    labels = torch.tensor(drawn, dtype=torch.int64)
    return replace(
        data,
        labels=labels[: len(data.clips)],
        public_labels=labels[len(data.clips) :],
        classes=tuple(f"class{index}" for index in range(classes)),
        notes=(*data.notes, f"labels drawn over {classes} pseudo-classes, the logits of the model"),
    )


def first_of(data: ClipSet | FeatureSet, count: int | None) -> ClipSet | FeatureSet:
    """Return a data set with only the first ``count`` clips under attack; None keeps all of them.

    Raises:
        InputError: there are fewer clips.
    """
    total = len(data.names)
    if count is None or count == total:
        return data
    if not 1 <= count <= total:
        raise InputError(f"clips={count}: the data holds {total} clips; ask for at most {total}")
    if isinstance(data, FeatureSet):
        return replace(
            data, features=data.features[:count], labels=data.labels[:count], names=data.names[:count]
        )
    return replace(
        data,
        clips=data.clips[:count],
        labels=data.labels[:count],
        names=data.names[:count],
        references=None if data.references is None else data.references[:count],
        fine=None if data.fine is None else data.fine[:count],
    )


def _checked(argument: str, clips: Tensor) -> Tensor:
    shape = tuple(clips.shape)
    if clips.ndim != 5 or shape[1] != 3 or shape[3] != shape[4] or not clips.is_floating_point():
        raise InputError(
            f"{argument}: expected floats of shape (clip, 3, frame, height, width), square frames, got "
            f"{clips.dtype} of {shape}"
        )
    clips = clips.detach().to("cpu", torch.float32).contiguous()
    if len(clips) and not bool(((clips >= 0) & (clips <= 1)).all()):
        raise InputError(
            f"{argument}: expected values in [0, 1], got some outside or NaN; scale them by 1/255"
        )
    return clips


def _labels(argument: str, labels: Tensor | None, count: int) -> Tensor:
    if labels is None:
        return torch.randint(_CLASSES, (count,), generator=generator("label", argument))
    if labels.shape != (count,) or labels.is_floating_point() or (count and int(labels.min()) < 0):
        raise InputError(
            f"{argument}: expected {count} integers from 0, got {labels.dtype} {tuple(labels.shape)}"
        )
    return labels.detach().to("cpu", torch.int64)
