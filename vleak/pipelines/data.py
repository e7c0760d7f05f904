"""Data of a run: what its record says, and the objects that pipelines make of it."""

from __future__ import annotations

import hashlib

from torch import Tensor

from vleak.data import ClipSet, FeatureSet, noted
from vleak.pipelines.bags import anomalous_classes
from vleak.pipelines.conditions import Progress
from vleak.results.records import DataRecord

__all__ = ["Data", "data_record", "private_clips", "tensors"]

Data = ClipSet | FeatureSet


def tensors(data: Data) -> tuple[Tensor, Tensor]:
    """Private and public samples: clips (N, C, T, H, W) and (M, ...), or features (N, S, F) and (M, ...)."""
    if isinstance(data, ClipSet):
        return data.clips, data.public_clips
    return data.features, data.public_features


def private_clips(data: Data) -> Tensor | None:
    """Private frames (N, C, T, H, W) in [0, 1]; None where there are none."""
    return data.clips if isinstance(data, ClipSet) else None


def data_record(data: Data, *, binary: bool, progress: Progress | None = None) -> DataRecord:
    """Record of the data.

    Args:
        data: private and public clips or features.
        binary: whether a loss of the run knows only normal and anomalous clips.
        progress: told what is being done, as `vleak.data.load_clips` does.
    """
    private, public = tensors(data)
    notes = list(noted(data, progress).notes)
    digest = hashlib.sha256(private.numpy().tobytes())
    digest.update(public.numpy().tobytes())
    if binary and isinstance(data, ClipSet):
        kinds = zip(data.classes, anomalous_classes(data.classes), strict=True)
        named = [name for name, anomalous in kinds if anomalous]
        notes.append(f"feature pipeline: {', '.join(named)} count as anomalous")
    return DataRecord(
        name=data.name,
        clips=len(private),
        public_clips=len(public),
        public_source=data.public_source,
        classes=tuple(data.classes),
        labels=tuple(data.labels.tolist()),
        names=tuple(data.names),
        notes=tuple(notes),
        sha256=digest.hexdigest(),
    )
