"""Feature files: features that extractors computed from videos, such as C3D as text, I3D and CLIP as .npy.

The files are not trusted. Nothing is unpickled: the header of an .npy is parsed here, and the size that it
claims is compared with the length of the file before a byte is allocated.
"""

from __future__ import annotations

import ast
import math
import re
import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vleak.data.clipset import DEFAULT_CLIPS, FeatureSet
from vleak.data.lists import is_number, list_labels, read_text
from vleak.data.naming import anomalies, crop_of, video_of
from vleak.data.sources import SourceFiles, search_source
from vleak.data.tree import first, ids, printable, suffix
from vleak.errors import InputError
from vleak.seeds import generator

FEATURE_CLASSES = ("normal", "anomaly")
MAX_FEATURES = 2**17  # columns
MAX_MATRIX_BYTES = 2**31  # one file, as float32
MAX_TEXT_BYTES = 2**28
MAX_SET_BYTES = 2**32  # all matrices together
MAX_HEADER_BYTES = 2**16
CROPS = (5, 10)
_MAGIC = b"\x93NUMPY"
_UNIT = 1e-3  # tolerance of a row's norm around 1: C3D's text has six digits, CLIP is often float16


def load_features(
    source: str, *, clips: int | None = None, segments: int = 32, seed: int = 0, public: int = 48
) -> FeatureSet:
    """Load feature matrices (segments, F), one a video: those under attack and the public ones.

    The order of the videos is drawn by ``seed``; in it anomalies and normal videos alternate for as long as
    there are both. The first ``clips`` videos are attacked, up to ``public`` further ones are public, so no
    video is both. Only these files are read.

    A file holds rows of text, or an .npy array (T, F), (T, crops, F) or (crops, T, F), with 5 or 10 crops; or
    each crop has a file, ``NAME__0.npy`` to ``NAME__9.npy``. Only the first crop is used. T rows are
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

    Raises:
        InputError: a number is out of range; the source holds no feature files; a file that is needed is
            empty, damaged, of another size than its header claims, or has another number of columns than
            the others; or labels contradict names.
    """
    return features_of(
        search_source(source, ("features",)), clips=clips, segments=segments, seed=seed, public=public
    )


def features_of(
    source: SourceFiles, *, clips: int | None, segments: int, seed: int, public: int
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
    labels, label_notes = _labels(files, source, seed)
    order = _order(labels, seed)[: (DEFAULT_CLIPS if clips is None else clips) + public]
    attacked = _attacked(len(order), clips, public, source.name)
    loaded, notes = _load(source.root, [files[index] for index in order], segments)
    names = ids([_stem(name) for name in files], [PurePosixPath(name).parent.name for name in files])
    chosen = torch.tensor([labels[index] for index in order], dtype=torch.int64)
    return FeatureSet(
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
    )


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


def _labels(files: Sequence[str], source: SourceFiles, seed: int) -> tuple[list[int], list[str]]:
    if source.entries:
        by_video, notes = list_labels(source.listed, source.name, source.entries)
        return [by_video[video_of(name)] for name in files], notes
    below = any("/" in name for name in files)  # then a file outside all sub-folders has no class
    folders = [PurePosixPath(name).parent.name if below else source.root.name for name in files]
    flags = anomalies(
        [(_stem(name), (folder,) if folder else ()) for name, folder in zip(files, folders, strict=True)]
    )
    unknown = [name for name, value in zip(files, flags, strict=True) if value is None]
    if not unknown:
        return [int(bool(value)) for value in flags], ["0 normal, 1 anomaly, told by names and folders"]
    if len(unknown) == len(files):
        drawn = [int(torch.randint(2, (), generator=generator("label", seed, name))) for name in files]
        return drawn, ["no name tells normal from anomaly: labels are drawn at random; a list may tell them"]
    raise InputError(
        f"data {source.name!r}: {len(unknown)} of {len(files)} files do not tell normal from anomaly: "
        f"{first(unknown)}; expected class folders, names such as Abuse001_x264, or a list with labels"
    )


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


def _load(root: Path, files: Sequence[str], segments: int) -> tuple[Tensor, list[str]]:
    """Return the matrices, (file, segments, F), and notes on their layouts and lengths."""
    loaded: Tensor | None = None
    stored: dict[str, int] = {}
    lengths: set[int] = set()
    for index, name in enumerate(files):
        matrix, layout = read_features(root / name, printable(name))
        stored[layout] = stored.get(layout, 0) + 1
        lengths.add(len(matrix))
        if loaded is None:
            loaded = _room(len(files), segments, matrix.shape[1])
        elif matrix.shape[1] != loaded.shape[2]:
            raise InputError(
                f"{printable(name)}: {matrix.shape[1]} columns, {printable(files[0])} has {loaded.shape[2]}; "
                f"give files of one extractor"
            )
        loaded[index] = torch.from_numpy(resampled(matrix, segments))
    assert loaded is not None
    return loaded, [_layouts(stored), *_lengths(lengths, segments)]


def _room(count: int, segments: int, columns: int) -> Tensor:
    total = 4 * count * segments * columns
    if total > MAX_SET_BYTES:
        raise InputError(
            f"{count} videos of {segments} segments of {columns} features take {total / 2**30:.1f} GiB, the "
            f"limit is {MAX_SET_BYTES / 2**30:.0f} GiB; lower `clips` or `segments`"
        )
    return torch.empty(count, segments, columns)


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


def read_features(path: Path, shown: str) -> tuple[NDArray[np.float32], str]:
    """Return the matrix (T, F) of one file, float32 and finite, and its layout in the file in words.

    Raises:
        InputError: the file is empty, damaged, no matrix of numbers, of another size than its header
            claims, or exceeds a limit.
    """
    if suffix(path.name) == ".npy":
        stored, layout = _crop(_array(path, shown), shown)
    else:
        stored, layout = _text(path, shown), "text rows"
    if stored.shape[1] > MAX_FEATURES or 4 * stored.size > MAX_MATRIX_BYTES:
        raise InputError(
            f"{shown}: {stored.shape[0]} rows of {stored.shape[1]} columns, the limits are {MAX_FEATURES} "
            f"columns and {MAX_MATRIX_BYTES / 2**30:.0f} GiB"
        )
    with np.errstate(over="ignore"):
        matrix = np.array(stored, dtype=np.float32)
    wrong = np.argwhere(~np.isfinite(matrix))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise InputError(
            f"{shown}: row {row + 1}, column {column + 1}: {stored[row, column]} is no finite number; "
            f"remove or extract it again"
        )
    return matrix, layout


def _crop(array: NDArray[np.floating], shown: str) -> tuple[NDArray[np.floating], str]:
    """Return the first crop of an array, (T, F), and the layout of the array in words."""
    if array.ndim == 2:
        return array, "rows (T, F)"
    if array.ndim == 3 and array.shape[0] == 1:
        return array[0], "(1, T, F)"
    if array.ndim == 3 and array.shape[1] == 1:
        return array[:, 0], "(T, 1, F)"
    if array.ndim == 3 and array.shape[1] in CROPS:
        return array[:, 0], f"(T, {array.shape[1]} crops, F), the first crop used"
    if array.ndim == 3 and array.shape[0] in CROPS:
        return array[0], f"({array.shape[0]} crops, T, F), the first crop used"
    raise InputError(
        f"{shown}: shape {array.shape}; expected (T, F), or with 1, 5 or 10 crops (T, crops, F) or "
        f"(crops, T, F)"
    )


def _array(path: Path, shown: str) -> NDArray[np.floating]:
    """Return an .npy file as a memory map, after checking that its header and its length agree."""
    try:
        length = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(12)
            size, at = _header_size(start, length, shown)
            stream.seek(at)
            header = stream.read(size)
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror})") from error
    kind, fortran, shape = _header(header, shown)
    expected = at + size + kind.itemsize * math.prod(shape)
    if expected != length:
        raise InputError(
            f"{shown}: its header claims {'x'.join(map(str, shape))} of {kind.name}, {expected} bytes, the "
            f"file has {length}; it is damaged or cut off: fetch it again"
        )
    return np.memmap(path, kind, "r", at + size, shape, "F" if fortran else "C")


def _header_size(start: bytes, length: int, shown: str) -> tuple[int, int]:
    """Return length and offset of the header of an .npy, in bytes."""
    if not length:
        raise InputError(f"{shown}: an empty file; expected an .npy array")
    if len(start) < 12 or not start.startswith(_MAGIC) or start[6] not in (1, 2, 3):
        raise InputError(f"{shown}: is no .npy array, or damaged at its start")
    size, at = (
        (struct.unpack("<H", start[8:10])[0], 10)
        if start[6] == 1
        else (struct.unpack("<I", start[8:])[0], 12)
    )
    if size > MAX_HEADER_BYTES or at + size > length:
        raise InputError(f"{shown}: its header claims {size} bytes; it is damaged: fetch it again")
    return size, at


def _header(header: bytes, shown: str) -> tuple[np.dtype[np.floating], bool, tuple[int, ...]]:
    """Return dtype, Fortran order and shape from the header of an .npy, which is a Python literal."""
    try:
        fields = ast.literal_eval(header.decode("latin-1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(f"{shown}: its header cannot be read; it is damaged: fetch it again") from error
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise InputError(f"{shown}: its header is not that of an .npy array; it is damaged: fetch it again")
    kind, shape = fields["descr"], fields["shape"]
    if not isinstance(kind, str) or not re.fullmatch(r"[<>=]f[248]", kind):
        what = "Python objects" if kind in ("|O", "O") else f"type {printable(str(kind)[:40])}"
        raise InputError(
            f"{shown}: holds {what}; expected float16, float32 or float64: save the array itself"
        )
    if (
        not isinstance(shape, tuple)
        or not shape
        or any(type(length) is not int or length < 1 for length in shape)
    ):
        raise InputError(
            f"{shown}: its header claims shape {printable(str(shape)[:40])}; expected rows of numbers"
        )
    return np.dtype(kind), fields["fortran_order"] is True, shape


def _text(path: Path, shown: str) -> NDArray[np.float64]:
    """Return the rows of numbers of a text file, separated by blanks or commas."""
    rows: list[NDArray[np.float64]] = []
    for number, line in enumerate(read_text(path, shown, MAX_TEXT_BYTES).splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        if rows and len(words) != len(rows[0]):
            raise InputError(
                f"{shown}: line {number} has {len(words)} columns, expected {len(rows[0])} as in the first; "
                f"the file is damaged or cut off"
            )
        rows.append(np.array(_numbers(words, number, shown)))
    if not rows:
        raise InputError(f"{shown}: an empty file; expected rows of numbers")
    return np.stack(rows)


def _numbers(words: Sequence[str], line: int, shown: str) -> list[float]:
    try:
        if not any("_" in word for word in words):  # float() parses 01_0014 as a number
            return [float(word) for word in words]
    except ValueError:
        pass  # reported below, with line and column
    wrong = next(index for index, word in enumerate(words) if not is_number(word))
    raise InputError(
        f"{shown}: line {line}, column {wrong + 1}: {words[wrong][:40]!r} is no number; expected rows "
        f"of numbers"
    )
