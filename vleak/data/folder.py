"""Clips from videos: which windows of which files are attacked, which are public, and their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vleak.data.clipset import DEFAULT_CLIPS, ClipSet
from vleak.data.images import read_images
from vleak.data.lists import list_labels
from vleak.data.naming import canonical, class_in_name
from vleak.data.sources import Found
from vleak.data.tree import first, ids, printable
from vleak.data.video import Squares, count_frames, read_frames
from vleak.errors import InputError
from vleak.seeds import generator

PSEUDO_CLASSES = tuple(f"class{index}" for index in range(6))
FINE = 2  # how much larger fine clips are


@dataclass(frozen=True)
class VideoFile:
    """A video: where it is, its name below the source (for errors and notes), its id, its folder's class."""

    path: Path
    shown: str
    name: str
    parent: str
    root: Path
    images: tuple[str, ...] = field(default=(), compare=False)  # its frames below root, if it comes as images

    def count(self, most: int) -> int:
        """Return how many frames it has, counting no further than ``most``."""
        return min(most, len(self.images)) if self.images else count_frames(self.path, self.shown, most)

    def read(self, wanted: Set[int], sizes: Sequence[int]) -> Squares:
        """Decode frames by their numbers."""
        if self.images:
            return read_images(self.root, self.images, wanted, sizes)
        return read_frames(self.path, self.shown, wanted, sizes)


@dataclass(frozen=True)
class Window:
    """A clip to cut: a file and its first frame."""

    file: VideoFile
    start: int


Cut = tuple[VideoFile, Sequence[int]]  # frames of a file by their numbers, in their order


def load_videos(
    found: Found,
    clips: int | None,
    *,
    frames: int,
    size: int,
    stride: int,
    seed: int,
    public: int,
    references: int = 0,
    fine: bool = False,
) -> ClipSet:
    """Return the ClipSet of videos or frames; ``load_clips`` tells the rules and the errors."""
    source = found.name
    files = _video_files(found)
    windows, short = _plan(files, (clips or DEFAULT_CLIPS) + public, frames, stride, seed, source)
    attacked = _split(len(windows), clips, public, source)
    kinds, classes, told = _classes(files, found)
    beside = _reference_frames(windows[:attacked], frames * stride, stride, references, source)
    cut = [(window.file, range(window.start, window.start + frames * stride, stride)) for window in windows]
    held = [(window.file, beside[window.file]) for window in windows[:attacked]] if references else []
    read = _read([*cut, *held], (size, FINE * size) if fine else (size,))
    small, large = _stacked(cut, read, size), _stacked(cut, read, FINE * size) if fine else None
    labels = torch.tensor([_label(window, kinds, classes, seed) for window in windows], dtype=torch.int64)
    notes = _notes(told, short, attacked, len(windows), (frames - 1) * stride + 1)
    return ClipSet(
        name=found.name,
        clips=small[:attacked],
        labels=labels[:attacked],
        names=tuple(f"{window.file.name}@{window.start}" for window in windows[:attacked]),
        public_clips=small[attacked:].clone(),  # a view would carry the private clips in its storage
        public_labels=labels[attacked:],
        classes=classes or PSEUDO_CLASSES,
        public_source=_public_source(windows, attacked),
        notes=(*found.notes, *notes, *(_enlarged(read, FINE * size) if fine else ())),
        references=_stacked(held, read, size) if references else None,
        fine=None if large is None else large[:attacked],
        public_fine=None if large is None else large[attacked:].clone(),
    )


def _video_files(found: Found) -> list[VideoFile]:
    """Return the videos of a source, sorted by name."""
    if found.kind == "frames":
        paths = [found.root / one.video for one in found.images]
        shown = [one.video or found.root.name for one in found.images]
    else:
        paths = [found.root / name for name in found.names]
        shown = list(found.names)
    stems = [path.name if found.kind == "frames" else path.stem for path in paths]
    parents = [path.parent.name for path in paths]
    images = [one.names for one in found.images] if found.kind == "frames" else [()] * len(paths)
    return [
        VideoFile(path, printable(name), one, printable(canonical(folder)), found.root, frames)
        for path, name, one, folder, frames in zip(
            paths, shown, ids(stems, parents), parents, images, strict=True
        )
    ]


def _plan(
    files: Sequence[VideoFile], wanted: int, frames: int, stride: int, seed: int, source: str
) -> tuple[list[Window], list[str]]:
    """Return up to ``wanted`` windows in their order, and the names of the files that are too short.

    Only as many files are opened as are needed.
    """
    order = torch.randperm(len(files), generator=generator("files", seed)).tolist()
    step, needed = frames * stride, (frames - 1) * stride + 1
    most = (wanted - 1) * step + needed
    fitting: list[tuple[VideoFile, int]] = []
    short: list[tuple[int, str]] = []
    for file in (files[index] for index in order):
        if len(fitting) == wanted:
            break
        length = file.count(most)
        if length >= needed:
            fitting.append((file, (length - needed) // step + 1))
        else:
            short.append((length, file.shown))
    if not fitting:
        length, longest = max(short)
        raise InputError(
            f"data {source!r}: too short: {longest} has {length} frames, {frames} frames at stride {stride} "
            f"need {needed}; lower `frames` or `stride`"
        )
    deepest = max(count for _, count in fitting)
    windows = [Window(file, k * step) for k in range(deepest) for file, count in fitting if k < count]
    return windows[:wanted], sorted(name for _, name in short)


def _split(available: int, clips: int | None, public: int, source: str) -> int:
    """Return how many of the windows are attacked."""
    if clips is None:
        return min(DEFAULT_CLIPS, max((available + 1) // 2, available - public))
    if clips > available:
        raise InputError(
            f"data {source!r}: clips={clips} asked, but it gives {available}; ask for at most "
            f"{available}, or lower `frames` or `stride`"
        )
    return clips


def _classes(files: Sequence[VideoFile], found: Found) -> tuple[dict[VideoFile, str], tuple[str, ...], str]:
    """Return the class of each file, all classes, and where they are from; none where nothing tells them.

    A column of the list comes first, then folders, names in the manner of UCF-Crime, labels of the list.
    """
    if found.entries:
        listed = dict(zip(files, (found.entries[name] for name in _found_names(found)), strict=True))
        kinds = {file: canonical(entry.kind) for file, entry in listed.items() if entry.kind is not None}
    else:
        listed, kinds = {}, {}
    labels: dict[VideoFile, str] = {}
    assumed: list[str] = []
    if listed and all(entry.numbers in ((0,), (1,)) for entry in listed.values()):
        by_video, assumed = list_labels(list(listed.values()), found.name)
        labels = {file: ("normal", "anomaly")[by_video[entry.video]] for file, entry in listed.items()}
    for place, known in (
        ("the list", kinds),
        ("the folders", {file: file.parent for file in files}),
        ("the names", {file: kind for file in files if (kind := class_in_name(file.path.name))}),
        ("the labels of the list", labels),
    ):
        classes = tuple(sorted(set(known.values())))
        if len(known) == len(files) and len(classes) > 1:
            more = f" ({assumed[0]})" if known is labels else ""
            return known, classes, f"{len(classes)} classes from {place}: {first(classes)}{more}"
    count = len(PSEUDO_CLASSES)
    return {}, (), f"no sub-folders by class: labels are drawn at random over {count} pseudo-classes"


def _found_names(found: Found) -> list[str]:
    return [one.video for one in found.images] if found.kind == "frames" else list(found.names)


def _label(window: Window, kinds: Mapping[VideoFile, str], classes: tuple[str, ...], seed: int) -> int:
    if classes:
        return classes.index(kinds[window.file])
    source = generator("label", seed, window.file.name, window.start)
    return int(torch.randint(len(PSEUDO_CLASSES), (), generator=source))


def _reference_frames(
    attacked: Sequence[Window], step: int, stride: int, count: int, source: str
) -> dict[VideoFile, list[int]]:
    """Return for each attacked file the numbers of the reference frames that all its clips share.

    The attacked windows of a file are its first ones, without gaps. The references are what comes next:
    the frame after the last attacked window and every ``stride``-th from there, as in a clip. They take
    nothing from the public clips, which are the same without them, and may be frames of these too: the
    attacker holds both.
    """
    ends: dict[VideoFile, int] = {}
    for window in attacked if count else ():
        ends[window.file] = max(ends.get(window.file, 0), window.start + step)
    found = {}
    for file, end in ends.items():
        numbers = range(end, end + count * stride, stride)
        there = len(range(end, file.count(numbers[-1] + 1), stride))
        if there < count:
            raise InputError(
                f"data {source!r}: {file.shown} has {there} frames at stride {stride} outside its attacked "
                f"clips, reference_frames={count} asked; lower `reference_frames`, `clips` or `stride`"
            )
        found[file] = list(numbers)
    return found


def _read(cuts: Sequence[Cut], sizes: Sequence[int]) -> dict[VideoFile, Squares]:
    """Decode what is wanted of each file in one go."""
    wanted: dict[VideoFile, set[int]] = {}
    for file, numbers in cuts:
        wanted.setdefault(file, set()).update(numbers)
    return {file: file.read(numbers, sizes) for file, numbers in wanted.items()}


def _stacked(cuts: Sequence[Cut], read: Mapping[VideoFile, Squares], size: int) -> Tensor:
    """Return frames as clips, (len(cuts), 3, T, size, size)."""
    return torch.stack([read[file].clip(numbers, size) for file, numbers in cuts])


def _enlarged(read: Mapping[VideoFile, Squares], size: int) -> list[str]:
    """Tell of videos that have fewer pixels than their fine clips."""
    small = sorted(file.shown for file, squares in read.items() if squares.smallest < size)
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


def _notes(told: str, short: list[str], attacked: int, available: int, needed: int) -> list[str]:
    notes = [told]
    if short:
        notes.append(f"{len(short)} videos shorter than {needed} frames were skipped: {first(short)}")
    if attacked == available:
        notes.append("no public clips: all windows are attacked")
    return notes
