"""Clips that cannot be told apart, or nearly so, and clips in which nothing moves: they cap recognition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from vleak.data.clipset import ClipSet, FeatureSet
from vleak.data.request import Progress
from vleak.data.tree import first
from vleak.data.windows import is_still

Data = TypeVar("Data", bound=ClipSet | FeatureSet)
NEAR_DB = 40.0
"""PSNR of two whole clips above which they are near twins."""
COMPARED = 1_000
"""Clips, and pairs of clips, that are compared for near twins; of more, the first."""
_POOLED = (2, 8, 8)
_SLACK = 2.0  # of the error of means, which is no larger than that of pixels where the parts do not overlap


def equal_to(samples: Tensor) -> list[list[int]]:
    """Return for every sample the positions of the others that are equal to it, value by value.

    Args:
        samples: (N, *shape), on the CPU.
    """
    groups: dict[bytes, list[int]] = {}
    contents = [sample.contiguous().numpy().tobytes() for sample in samples]
    for index, content in enumerate(contents):
        groups.setdefault(content, []).append(index)
    return [[other for other in groups[content] if other != index] for index, content in enumerate(contents)]


def noted(data: Data, progress: Progress | None = None) -> Data:
    """Return a data set with the notes of ``data_notes`` behind its own, each once."""
    return replace(data, notes=tuple(dict.fromkeys((*data.notes, *data_notes(data, progress)))))


def data_notes(data: ClipSet | FeatureSet, progress: Progress | None = None) -> list[str]:
    """Return notes on the attacked clips: equal ones, near twins, and those in which nothing moves."""
    if isinstance(data, FeatureSet):
        return _equal(data.features, data.names, "matrices")
    still = []
    for index, (name, clip) in enumerate(zip(data.names, data.clips, strict=True)):
        if progress is not None:
            progress("comparing clips", index, len(data.names))
        still += [name] if is_still(clip) else []
    notes = _equal(data.clips, data.names, "clips") + _near(data.clips, data.names)
    if still:
        notes.append(
            f"in {len(still)} of {len(data.names)} attacked clips next to nothing moves: {first(still)}"
        )
    return notes


def _equal(samples: Tensor, names: Sequence[str], what: str) -> list[str]:
    others = equal_to(samples)
    groups = [
        " = ".join(names[at] for at in [index, *equal][:3]) + (" = ..." if len(equal) > 2 else "")
        for index, equal in enumerate(others) if equal and index < min(equal)
    ]  # fmt: skip
    if not groups:
        return []
    return [
        f"{sum(map(bool, others))} of {len(names)} attacked {what} are equal to others, from which nothing "
        f"could tell them; they are not candidates of each other: {first(groups)}"
    ]


def _near(clips: Tensor, names: Sequence[str]) -> list[str]:
    """Return a note on the pairs of clips that are nearly alike, without those that are equal."""
    errors = {
        (one, other): float((clips[one] - clips[other]).double().square().mean())
        for one, other in _alike_in_the_large(clips)
    }
    near = {pair: error for pair, error in errors.items() if 0 < error < 10 ** (-NEAR_DB / 10)}
    if not near:
        return []
    levels = sorted(-10 * math.log10(error) for error in near.values())
    pairs = [f"{names[one]} and {names[other]}" for one, other in near]
    span = f"{levels[0]:.0f} dB" if len(near) == 1 else f"{levels[0]:.0f} to {levels[-1]:.0f} dB"
    return [
        f"{len(near)} pairs of attacked clips are nearly alike ({span} PSNR), which caps recognition: "
        f"{first(pairs)}"
    ]


def _alike_in_the_large(clips: Tensor) -> list[list[int]]:
    """Return the pairs of clips whose means over parts are alike, which those of near twins are."""
    means = functional.adaptive_avg_pool3d(clips[:COMPARED], _POOLED).flatten(1).double()
    # By products, ten times faster; what float64 rounds there is far below what counts as alike.
    error = torch.cdist(means, means, compute_mode="use_mm_for_euclid_dist").square() / means.shape[1]
    alike = torch.triu(error < _SLACK * 10 ** (-NEAR_DB / 10), diagonal=1)
    pairs: list[list[int]] = torch.nonzero(alike)[:COMPARED].tolist()
    return pairs
