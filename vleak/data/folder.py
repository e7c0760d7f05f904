"""Clips from videos: the windows of the files that are attacked, the public ones, and their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vleak.data.clipset import DEFAULT_CLIPS, ClipSet
from vleak.data.images import read_images
from vleak.data.lists import Entry, list_labels
from vleak.data.naming import canonical, class_in_name
from vleak.data.request import FINE, ClipRequest
from vleak.data.sources import SourceFiles
from vleak.data.tree import first, ids, printable
from vleak.data.video import Squares, count_frames, read_frames
from vleak.errors import InputError
from vleak.seeds import generator

PSEUDO_CLASSES = tuple(f"class{index}" for index in range(6))


@dataclass(frozen=True)
class VideoFile:
    """A video: its path, its name below the source (for errors and notes), its id, and its folder's class."""

    path: Path
    shown: str
    name: str
    parent: str
    root: Path
    images: tuple[str, ...] = field(
        default=(), compare=False
    )  # its frames, relative to root, if it is stored as images

    def count(self, most: int) -> int:
        """Return the number of frames, counting no further than ``most``."""
        return min(most, len(self.images)) if self.images else count_frames(self.path, self.shown, most)

    def read(self, wanted: Set[int], sizes: Sequence[int]) -> Squares:
        """Return the frames of the wanted numbers, decoded and scaled to each of ``sizes``."""
        if self.images:
            return read_images(self.root, self.images, wanted, sizes)
        return read_frames(self.path, self.shown, wanted, sizes)


@dataclass(frozen=True)
class Window:
    """Position of a clip: a file and the number of the clip's first frame."""

    file: VideoFile
    start: int


Cut = tuple[VideoFile, Sequence[int]]  # a file, and numbers of its frames in order


def load_videos(source: SourceFiles, request: ClipRequest) -> ClipSet:
    """Return the ClipSet of videos or image sequences; ``load_clips`` documents the rules and errors."""
    size, stride = request.size, request.stride
    files = _video_files(source)
    windows, short = _windows(files, request, source.name)
    attacked = _split(len(windows), request, source.name)
    class_of, classes, class_note = _classes(files, source)
    reference_frames = _reference_frames(windows[:attacked], request, source.name)
    cuts: list[Cut] = [(w.file, range(w.start, w.start + request.span, stride)) for w in windows]
    attacked_files = [window.file for window in windows[:attacked]] if request.references else []
    reference_cuts: list[Cut] = [(file, reference_frames[file]) for file in attacked_files]
    frames = _read([*cuts, *reference_cuts], (size, FINE * size) if request.fine else (size,))
    clips = _stacked(cuts, frames, size)
    fine = _stacked(cuts, frames, FINE * size) if request.fine else None
    labels = torch.tensor([_label(w, class_of, classes, request.seed) for w in windows], dtype=torch.int64)
    notes = _notes(class_note, short, attacked, len(windows), (request.frames - 1) * stride + 1)
    return ClipSet(
        name=source.name,
        clips=clips[:attacked],
        labels=labels[:attacked],
        names=tuple(f"{window.file.name}@{window.start}" for window in windows[:attacked]),
        public_clips=clips[attacked:].clone(),  # a view would share storage with the private clips
        public_labels=labels[attacked:],
        classes=classes or PSEUDO_CLASSES,
        public_source=_public_source(windows, attacked),
        notes=(*source.notes, *notes, *(_enlarged(frames, FINE * size) if request.fine else ())),
        references=_stacked(reference_cuts, frames, size) if request.references else None,
        fine=None if fine is None else fine[:attacked],
        public_fine=None if fine is None else fine[attacked:].clone(),
    )


def _video_files(source: SourceFiles) -> list[VideoFile]:
    """Return the videos of a source, sorted by name."""
    if source.kind == "frames":
        paths = [source.root / video.video for video in source.images]
        shown = [video.video or source.root.name for video in source.images]
        stems = [path.name for path in paths]
        images = [video.names for video in source.images]
    else:
        paths = [source.root / name for name in source.names]
        shown = list(source.names)
        stems = [path.stem for path in paths]
        images = [()] * len(paths)
    folders = [path.parent.name for path in paths]
    return [
        VideoFile(path, printable(name), file_id, printable(canonical(folder)), source.root, frames)
        for path, name, file_id, folder, frames in zip(
            paths, shown, ids(stems, folders), folders, images, strict=True
        )
    ]


def _windows(files: Sequence[VideoFile], request: ClipRequest, source: str) -> tuple[list[Window], list[str]]:
    """Return the windows to cut, in order, and the names of the files that are too short.

    No more files are opened than are needed.
    """
    wanted, stride = request.attacked + request.public, request.stride
    order = torch.randperm(len(files), generator=generator("files", request.seed)).tolist()
    needed = (request.frames - 1) * stride + 1
    most = (wanted - 1) * request.span + needed
    counts: list[tuple[VideoFile, int]] = []
    short: list[tuple[int, str]] = []
    for file in (files[index] for index in order):
        if len(counts) == wanted:
            break
        length = file.count(most)
        if length >= needed:
            counts.append((file, (length - needed) // request.span + 1))
        else:
            short.append((length, file.shown))
    if not counts:
        length, longest = max(short)
        raise InputError(
            f"data {source!r}: too short: {longest} has {length} frames, {request.frames} frames at stride "
            f"{stride} need {needed}; lower `frames` or `stride`"
        )
    deepest = max(count for _, count in counts)
    windows = [Window(file, k * request.span) for k in range(deepest) for file, count in counts if k < count]
    return windows[:wanted], sorted(name for _, name in short)


def _split(available: int, request: ClipRequest, source: str) -> int:
    """Return the number of windows that are attacked."""
    if request.clips is None:
        return min(DEFAULT_CLIPS, max((available + 1) // 2, available - request.public))
    if request.clips > available:
        raise InputError(
            f"data {source!r}: clips={request.clips} asked, but it gives {available}; ask for at most "
            f"{available}, or lower `frames` or `stride`"
        )
    return request.clips


def _classes(
    files: Sequence[VideoFile], source: SourceFiles
) -> tuple[dict[VideoFile, str], tuple[str, ...], str]:
    """Return the class of each file, all classes, and a note on their origin; none where no origin has any.

    Origins in order of precedence: a column of the list, folders, names as in UCF-Crime, labels of the list.
    """
    listed, in_column = _listed_classes(files, source)
    in_labels, assumption = _label_column(listed, source)
    for origin, class_of in (
        ("the list", in_column),
        ("the folders", {file: file.parent for file in files}),
        ("the names", {file: name for file in files if (name := class_in_name(file.path.name))}),
        ("the labels of the list", in_labels),
    ):
        classes = tuple(sorted(set(class_of.values())))
        if len(class_of) == len(files) and len(classes) > 1:
            more = f" ({assumption})" if class_of is in_labels else ""
            return class_of, classes, f"{len(classes)} classes from {origin}: {first(classes)}{more}"
    count = len(PSEUDO_CLASSES)
    return {}, (), f"no sub-folders by class: labels are drawn at random over {count} pseudo-classes"


def _listed_classes(
    files: Sequence[VideoFile], source: SourceFiles
) -> tuple[dict[VideoFile, Entry], dict[VideoFile, str]]:
    """Return the list's entry for each file, and the classes that a column of the list names."""
    if not source.entries:
        return {}, {}
    names = [video.video for video in source.images] if source.kind == "frames" else list(source.names)
    listed = dict(zip(files, (source.entries[name] for name in names), strict=True))
    return listed, {file: canonical(entry.kind) for file, entry in listed.items() if entry.kind is not None}


def _label_column(listed: Mapping[VideoFile, Entry], source: SourceFiles) -> tuple[dict[VideoFile, str], str]:
    """Return the classes of a 0/1 column of the list, and a note on the meaning assumed for it."""
    if not listed or not all(entry.numbers in ((0,), (1,)) for entry in listed.values()):
        return {}, ""
    by_video, notes = list_labels(list(listed.values()), source.name)
    return {f: ("normal", "anomaly")[by_video[entry.video]] for f, entry in listed.items()}, notes[0]


def _label(window: Window, class_of: Mapping[VideoFile, str], classes: tuple[str, ...], seed: int) -> int:
    if classes:
        return classes.index(class_of[window.file])
    draws = generator("label", seed, window.file.name, window.start)
    return int(torch.randint(len(PSEUDO_CLASSES), (), generator=draws))


def _reference_frames(
    attacked: Sequence[Window], request: ClipRequest, source: str
) -> dict[VideoFile, list[int]]:
    """Return for each attacked file the numbers of the reference frames, which all its clips share.

    The attacked windows of a file are its first ones, without gaps. The reference frames follow them: the
    frame after the last attacked window and every ``stride``-th from there, as in a clip. The public clips
    are the same without them; a frame may be in both, since the attacker holds both.
    """
    count, stride = request.references, request.stride
    ends: dict[VideoFile, int] = {}
    for window in attacked if count else ():
        ends[window.file] = max(ends.get(window.file, 0), window.start + request.span)
    frames = {}
    for file, end in ends.items():
        numbers = range(end, end + count * stride, stride)
        available = len(range(end, file.count(numbers[-1] + 1), stride))
        if available < count:
            raise InputError(
                f"data {source!r}: {file.shown} has {available} frames at stride {stride} outside its "
                f"attacked clips, reference_frames={count} asked; lower `reference_frames`, `clips` or "
                "`stride`"
            )
        frames[file] = list(numbers)
    return frames


def _read(cuts: Sequence[Cut], sizes: Sequence[int]) -> dict[VideoFile, Squares]:
    """Return the wanted frames of each file, decoded in one pass over it."""
    wanted: dict[VideoFile, set[int]] = {}
    for file, numbers in cuts:
        wanted.setdefault(file, set()).update(numbers)
    return {file: file.read(numbers, sizes) for file, numbers in wanted.items()}


def _stacked(cuts: Sequence[Cut], frames: Mapping[VideoFile, Squares], size: int) -> Tensor:
    """Return frames as clips, (len(cuts), 3, T, size, size)."""
    return torch.stack([frames[file].clip(numbers, size) for file, numbers in cuts])


def _enlarged(frames: Mapping[VideoFile, Squares], size: int) -> list[str]:
    """Return a note on videos whose frames are smaller than their fine clips."""
    small = sorted(file.shown for file, squares in frames.items() if squares.smallest < size)
    if not small:
        return []
    return [
        f"{len(small)} videos have fewer than {size} pixels across, their fine clips show no more detail: "
        f"{first(small)}"
    ]


def _public_source(windows: Sequence[Window], attacked: int) -> str:
    files = {window.file for window in windows[:attacked]}
    shared = [window.file in files for window in windows[attacked:]]
    if not shared:
        return "none"
    if not any(shared):
        return "other files"
    same = "the same files, outside the attacked frames"
    return same if all(shared) else f"other files, and {same}"


def _notes(class_note: str, short: list[str], attacked: int, available: int, needed: int) -> list[str]:
    notes = [class_note]
    if short:
        notes.append(f"{len(short)} videos shorter than {needed} frames were skipped: {first(short)}")
    if attacked == available:
        notes.append("no public clips: all windows are attacked")
    return notes
