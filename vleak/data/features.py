"""Feature files: features that extractors computed from videos, such as C3D as text, I3D and CLIP as .npy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vleak.data.alike import noted
from vleak.data.arrays import Layout, array_shape, read_features, shared_layout
from vleak.data.clipset import DEFAULT_CLIPS, FeatureSet
from vleak.data.lists import list_labels
from vleak.data.naming import anomalies, crop_of, video_of
from vleak.data.sources import SourceFiles, search_source
from vleak.data.tree import first, ids, printable, suffix
from vleak.errors import InputError
from vleak.seeds import generator

FEATURE_CLASSES = ("normal", "anomaly")
MAX_SET_BYTES = 2**32  # all matrices together
_HEADERS = 2_000  # arrays whose headers say what layout all have
_UNIT = 1e-3  # tolerance of a row's norm around 1: C3D's text has six digits, CLIP is often float16


def load_features(
    source: str,
    *,
    clips: int | None = None,
    segments: int = 32,
    seed: int = 0,
    public: int = 48,
    strict: bool = False,
) -> FeatureSet:
    """Load feature matrices (segments, F), one a video: those under attack and the public ones.

    The order of the videos is drawn by ``seed``; in it anomalies and normal videos alternate for as long as
    there are both. The first ``clips`` videos are attacked, up to ``public`` further ones are public, so no
    video is both. Only these files are read; of arrays also the headers of others, for their layout.

    A file holds rows of text, or an .npy array (T, F), (T, crops, F) or (crops, T, F), with 5 or 10 crops; or
    each crop has a file, ``NAME__0.npy`` to ``NAME__9.npy``. Only the first crop is used. All arrays of three
    axes have one layout, the one that most of them can have; of several, (T, crops, F). T rows are
    resampled to ``segments`` as in Sultani's and RTFM's code: the T rows are cut into equal parts, and
    a segment is the mean of a part; rows repeat where T is smaller, and nothing changes where it is equal.

    Args:
        source: a folder, which is searched with its sub-folders; a list, whose files are looked for in its
            folder and below; or one file.
        clips: number of videos to attack. None: 12, or half of the videos where there are fewer than
            ``12 + public`` and that leaves too few public ones, as in ``load_clips``.
        segments: S.
        seed: draws the order of the videos. Video i does not depend on the number of videos requested.
        public: largest number of public matrices to return.
        strict: whether a file that cannot be read is an error. Otherwise the next one is read instead, and a
            note counts them.

    Raises:
        InputError: a number is out of range; the source holds no feature files; labels contradict names; a
            file has another number of columns than the others, with ``strict`` or where as many have it; or a
            file is empty, damaged, of another size
            than its header claims or of another layout, with ``strict`` or where no file can be read.
    """
    return features_of(
        search_source(source, ("features",)), clips=clips, segments=segments, seed=seed, public=public,
        strict=strict,
    )  # fmt: skip


def features_of(
    source: SourceFiles, *, clips: int | None, segments: int, seed: int, public: int, strict: bool = False
) -> FeatureSet:
    """Return the FeatureSet of a searched source; ``load_features`` documents the rules and the errors."""
    for option, value, low, high in (
        ("clips", DEFAULT_CLIPS if clips is None else clips, 1, 10_000),
        ("segments", segments, 1, 4096),
        ("public", public, 0, 10_000),
        ("seed", seed, 0, 2**63 - 1),
    ):
        if not low <= value <= high:
            raise InputError(f"{option}={value}: expected a whole number from {low} to {high}")
    files, crops = _one_a_video(source.names)
    labels, label_notes, drawn = _labels(files, source, seed)
    wanted = (DEFAULT_CLIPS if clips is None else clips) + public
    if clips is not None:
        _attacked(len(files), clips, public, source.name)
    order, loaded, notes = _load(source.root, files, _order(labels, seed), wanted, segments, strict=strict)
    attacked = _attacked(len(order), clips, public, source.name)
    names = ids([_stem(name) for name in files], [PurePosixPath(name).parent.name for name in files])
    chosen = torch.tensor([labels[index] for index in order], dtype=torch.int64)
    data = FeatureSet(
        name=source.name,
        features=loaded[:attacked],
        labels=chosen[:attacked],
        names=tuple(names[index] for index in order[:attacked]),
        public_features=loaded[attacked:].clone(),  # a view would share storage with the private matrices
        public_labels=chosen[attacked:],
        classes=FEATURE_CLASSES,
        public_source="other videos" if attacked < len(order) else "none",
        notes=(*source.notes, *crops, *label_notes, *notes, *_lacking(labels, attacked, len(order))),
        nonnegative=bool((loaded[attacked:] >= 0).all()) and attacked < len(order),
        unit_norm=bool(((loaded[attacked:].norm(dim=2) - 1).abs() < _UNIT).all()) and attacked < len(order),
        labels_drawn=drawn,
        public_from="other-files" if attacked < len(order) else None,
    )
    return noted(data)


def _stem(name: str) -> str:
    """Return the base name without suffix and crop number, its case unchanged."""
    return re.sub(r"__\d$", "", PurePosixPath(name).stem)


def _one_a_video(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return one file for each video, that of its first crop, and notes on the files left out."""
    by_video: dict[str, list[str]] = {}
    for name in names:
        by_video.setdefault(video_of(name), []).append(name)
    files = [
        min(several, key=lambda name: (crop_of(PurePosixPath(name).stem), name))
        for several in by_video.values()
    ]
    others = sorted(set(names) - set(files))
    notes = []
    cropped = [name for name in others if crop_of(PurePosixPath(name).stem)]
    if cropped:
        notes.append(f"a file a crop: the first crop of each video is used, {len(cropped)} files are not")
    if len(others) > len(cropped):
        rest = sorted(set(others) - set(cropped))
        notes.append(f"{len(rest)} further files of the same videos are not used: {first(rest)}")
    return sorted(files), notes


def _labels(files: Sequence[str], source: SourceFiles, seed: int) -> tuple[list[int], list[str], bool]:
    """Return the labels of the files, notes on them, and whether they are drawn."""
    if source.entries:
        by_video, notes = list_labels(source.listed, source.name, source.entries)
        listed = [by_video[video_of(name)] for name in files]
        return listed, [*notes, f"labels by the list: {_counted(listed)}"], False
    below = any("/" in name for name in files)  # then a file outside all sub-folders has no class
    folders = [PurePosixPath(name).parent.name if below else source.root.name for name in files]
    flags = anomalies(
        [(_stem(name), (folder,) if folder else ()) for name, folder in zip(files, folders, strict=True)]
    )
    unknown = [name for name, value in zip(files, flags, strict=True) if value is None]
    if not unknown:
        told = [int(bool(value)) for value in flags]
        return told, [f"labels by names and folders: {_counted(told)}"], False
    if len(unknown) == len(files):
        drawn = [int(torch.randint(2, (), generator=generator("label", seed, name))) for name in files]
        note = "no name tells normal from anomaly: labels are drawn at random; a list may tell them"
        return drawn, [note], True
    raise InputError(
        f"data {source.name!r}: {len(unknown)} of {len(files)} files do not tell normal from anomaly: "
        f"{first(unknown)}; expected class folders, names such as Abuse001_x264, or a list with labels"
    )


def _counted(labels: Sequence[int]) -> str:
    counts = (f"{labels.count(label)} {name} ({label})" for label, name in enumerate(FEATURE_CLASSES))
    return ", ".join(counts)


def _order(labels: Sequence[int], seed: int) -> list[int]:
    """Return the indices in a drawn order, anomalies and normal videos alternating while there are both."""
    drawn = torch.randperm(len(labels), generator=generator("features", seed)).tolist()
    anomalous = [index for index in drawn if labels[index] == 1]
    normal = [index for index in drawn if labels[index] == 0]
    both = min(len(anomalous), len(normal))
    paired = [index for pair in zip(anomalous, normal, strict=False) for index in pair]
    return [*paired, *anomalous[both:], *normal[both:]]


def _attacked(available: int, clips: int | None, public: int, name: str) -> int:
    if clips is None:
        return min(DEFAULT_CLIPS, max((available + 1) // 2, available - public))
    if clips > available:
        raise InputError(
            f"data {name!r}: clips={clips} asked, but it has {available} videos; ask for at most {available}"
        )
    return clips


def _lacking(labels: Sequence[int], attacked: int, available: int) -> list[str]:
    notes = []
    if len(set(labels)) == 1:
        notes.append(f"all videos are of one class, {FEATURE_CLASSES[labels[0]]}")
    if attacked == available:
        notes.append("no public features: all videos are attacked")
    return notes


def _load(
    root: Path, files: Sequence[str], order: Sequence[int], wanted: int, segments: int, *, strict: bool
) -> tuple[list[int], Tensor, list[str]]:
    """Return the files read, their matrices (file, segments, F), and notes on layouts, lengths and damage."""
    layout, notes = _layout(root, files)
    kept = _Loaded(files, min(wanted, len(order)), segments)
    broken: list[tuple[str, InputError]] = []
    for index in order:
        if kept.most() == wanted:
            break
        name = printable(files[index])
        try:
            kept.add(index, *read_features(root / files[index], name, layout), strict=strict)
        except InputError as error:
            if strict:
                raise
            broken.append((name, error))
    if not kept.by_columns:
        raise broken[0][1]
    chosen, odd = kept.chosen()
    stored = Counter(kept.words[index] for index in chosen)
    lengths = {kept.lengths[index] for index in chosen}
    notes = [_layouts(stored), *notes, *_lengths(lengths, segments), *_broken([*broken, *odd])]
    return list(chosen), torch.stack(list(chosen.values())), notes


class _Loaded:
    """Matrices read so far, by their number of columns: files of one extractor have the same."""

    def __init__(self, files: Sequence[str], wanted: int, segments: int) -> None:
        self.files, self.wanted, self.segments = files, wanted, segments
        self.by_columns: dict[int, dict[int, Tensor]] = {}
        self.words: dict[int, str] = {}
        self.lengths: dict[int, int] = {}

    def most(self) -> int:
        """Return how many files have the number of columns that most have."""
        return max(map(len, self.by_columns.values()), default=0)

    def add(self, index: int, matrix: NDArray[np.float32], words: str, *, strict: bool) -> None:
        """Keep a matrix (T, F); with ``strict`` refuse another number of columns than before."""
        columns = matrix.shape[1]
        if columns not in self.by_columns:
            if strict and self.by_columns:
                raise self._odd(index, columns, next(iter(self.by_columns)))
            _check_room(self.wanted, self.segments, columns)
        self.by_columns.setdefault(columns, {})[index] = torch.from_numpy(resampled(matrix, self.segments))
        self.words[index], self.lengths[index] = words, len(matrix)

    def chosen(self) -> tuple[dict[int, Tensor], list[tuple[str, InputError]]]:
        """Return the matrices of the columns that most files have, and what is wrong with the others.

        Raises:
            InputError: as many files have another number.
        """
        usual, *others = sorted(self.by_columns, key=lambda columns: -len(self.by_columns[columns]))
        odd = {
            index: self._odd(index, columns, usual)
            for columns in others
            for index in self.by_columns[columns]
        }
        if others and len(self.by_columns[others[0]]) == self.most():
            raise odd[next(iter(self.by_columns[others[0]]))]
        return self.by_columns[usual], [(printable(self.files[index]), error) for index, error in odd.items()]

    def _odd(self, index: int, columns: int, usual: int) -> InputError:
        like = printable(self.files[next(iter(self.by_columns[usual]))])
        return InputError(
            f"{printable(self.files[index])}: {columns} columns, {like} has {usual}; give files of one "
            "extractor"
        )


def _layout(root: Path, files: Sequence[str]) -> tuple[Layout | None, list[str]]:
    """Return the layout of the arrays of a source, and a note where others fit as well."""
    arrays = [name for name in files if suffix(name) == ".npy"][:_HEADERS]
    layout, others = shared_layout(array_shape(root / name, printable(name)) for name in arrays)
    if not others:
        return layout, []
    return layout, [f"arrays read as {layout}; {' and '.join(map(str, others))} would fit as well"]


def _broken(broken: Sequence[tuple[str, InputError]]) -> list[str]:
    if not broken:
        return []
    return [
        f"{len(broken)} feature files cannot be read and were skipped: "
        f"{first(sorted(name for name, _ in broken))}; the first: {broken[0][1]}"
    ]


def _check_room(count: int, segments: int, columns: int) -> None:
    total = 4 * count * segments * columns
    if total > MAX_SET_BYTES:
        raise InputError(
            f"{count} videos of {segments} segments of {columns} features take {total / 2**30:.1f} GiB, the "
            f"limit is {MAX_SET_BYTES / 2**30:.0f} GiB; lower `clips` or `segments`"
        )


def _layouts(stored: Mapping[str, int]) -> str:
    return "read " + ", ".join(f"{count} of {layout}" for layout, count in sorted(stored.items()))


def _lengths(lengths: set[int], segments: int) -> list[str]:
    if lengths == {segments}:
        return []
    short, long = min(lengths), max(lengths)
    span = f"{short}" if short == long else f"{short} to {long}"
    return [f"{span} rows a video made {segments} segments, each the mean of its rows"]


def resampled(matrix: NDArray[np.float32], segments: int) -> NDArray[np.float32]:
    """Return (segments, F) of (T, F): the means of equal parts of the T rows, one row where a part is empty.

    Sultani's and RTFM's code cut at ``linspace(0, T, segments + 1)``, rounded down.
    """
    if len(matrix) == segments:
        return matrix
    cuts = np.linspace(0, len(matrix), segments + 1).astype(int)
    parts = [matrix[start : max(stop, start + 1)].mean(axis=0) for start, stop in pairwise(cuts)]
    return np.stack(parts).astype(np.float32)
