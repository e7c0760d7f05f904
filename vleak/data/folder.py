"""Clips from a video file or a folder of them: which files, which windows, which labels."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vleak.data.clipset import DEFAULT_CLIPS, ClipSet
from vleak.data.video import SUFFIXES, Squares, count_frames, read_frames
from vleak.errors import InputError
from vleak.seeds import generator

PSEUDO_CLASSES = tuple(f"class{index}" for index in range(6))
MAX_FILES = 100_000
FINE = 2  # how much larger fine clips are


@dataclass(frozen=True)
class VideoFile:
    """A video: where it is, its name below the source (for errors and notes), its id, its class."""

    path: Path
    shown: str
    name: str
    parent: str


@dataclass(frozen=True)
class Window:
    """A clip to cut: a file and its first frame."""

    file: VideoFile
    start: int


Cut = tuple[VideoFile, Sequence[int]]  # frames of a file by their numbers, in their order


def load_videos(
    source: str,
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
    """Return the ClipSet of a video file or folder; ``load_clips`` tells the rules and the errors."""
    root = _existing(source)
    files, notes = _find_videos(root, source)
    windows, short = _plan(files, (clips or DEFAULT_CLIPS) + public, frames, stride, seed, source)
    attacked = _split(len(windows), clips, public, source)
    classes = _classes(files)
    beside = _reference_frames(windows[:attacked], frames * stride, stride, references, source)
    cut = [(window.file, range(window.start, window.start + frames * stride, stride)) for window in windows]
    held = [(window.file, beside[window.file]) for window in windows[:attacked]] if references else []
    read = _read([*cut, *held], (size, FINE * size) if fine else (size,))
    small, large = _stacked(cut, read, size), _stacked(cut, read, FINE * size) if fine else None
    labels = torch.tensor([_label(window, classes, seed) for window in windows], dtype=torch.int64)
    notes += _notes(classes, short, attacked, len(windows), (frames - 1) * stride + 1)
    return ClipSet(
        name=_printable(root.name),
        clips=small[:attacked],
        labels=labels[:attacked],
        names=tuple(f"{window.file.name}@{window.start}" for window in windows[:attacked]),
        public_clips=small[attacked:].clone(),  # a view would carry the private clips in its storage
        public_labels=labels[attacked:],
        classes=classes or PSEUDO_CLASSES,
        public_source=_public_source(windows, attacked),
        notes=(*notes, *(_enlarged(read, FINE * size) if fine else ())),
        references=_stacked(held, read, size) if references else None,
        fine=None if large is None else large[:attacked],
        public_fine=None if large is None else large[attacked:].clone(),
    )


def _existing(source: str) -> Path:
    path = Path(os.path.abspath(source))
    try:
        if source and (path.is_dir() or path.is_file()):
            return path
        kind = "is neither a file nor a folder" if path.exists() else "does not exist"
    except OSError as error:
        raise InputError(f"data {source!r}: cannot be read ({error})") from error
    raise InputError(f"data {source!r}: {kind}; give a video, a folder of videos, or 'synthetic'")


def _find_videos(root: Path, source: str) -> tuple[list[VideoFile], list[str]]:
    """Return the videos, sorted by name, and what to tell about the folder."""
    if root.is_file():
        return _named([(root, root.name)]), []
    found = _walk(root, source)
    videos = [name for name in found if Path(name).suffix.lower() in SUFFIXES]
    if not videos:
        held = f"{len(found)} other files" if found else "no files"
        raise InputError(
            f"data {source!r}: the folder holds {held} and no videos ({', '.join(sorted(SUFFIXES))})"
        )
    others = sorted(set(found) - set(videos))
    notes = [f"{len(videos)} videos found"]
    notes += [f"{len(others)} files that are no videos were ignored: {_first(others)}"] if others else []
    return _named([(root / name, name) for name in videos]), notes


def _walk(root: Path, source: str) -> list[str]:
    """Return the files below a folder as sorted names relative to it, without hidden and linked folders."""

    def refuse(error: OSError) -> None:
        raise error

    found: list[str] = []
    try:
        for folder, below, names in os.walk(root, onerror=refuse):
            below[:] = [name for name in below if not name.startswith(".")]
            paths = [Path(folder, name) for name in names if not name.startswith(".")]
            found += [path.relative_to(root).as_posix() for path in paths if path.is_file()]
            if len(found) > MAX_FILES:
                raise InputError(f"data {source!r}: more than {MAX_FILES} files; give a smaller folder")
    except OSError as error:
        raise InputError(f"data {source!r}: cannot read {error.filename!r}: {error.strerror}") from error
    return sorted(found)


def _named(paths: Sequence[tuple[Path, str]]) -> list[VideoFile]:
    """Give each file an id: its stem, with the class in front, then a number, where that is not unique."""
    stems = [_safe(path.stem) for path, _ in paths]
    shared = Counter(stem.lower() for stem in stems)  # some file systems do not tell cases apart
    used: set[str] = set()
    files = []
    for (path, shown), stem in zip(paths, stems, strict=True):
        base = stem if shared[stem.lower()] == 1 else f"{_safe(path.parent.name)}-{stem}"
        name, number = base, 2
        while name.lower() in used:
            name, number = f"{base}-{number}", number + 1
        used.add(name.lower())
        files.append(VideoFile(path, _printable(shown), name, _printable(path.parent.name)))
    return files


def _printable(name: str) -> str:
    """Return the name, escaped where it holds line breaks or bytes that are no text."""
    return name if name.isprintable() else ascii(name)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".-")[:80] or "clip"


def _plan(
    files: Sequence[VideoFile], wanted: int, frames: int, stride: int, seed: int, source: str
) -> tuple[list[Window], list[str]]:
    """Return up to ``wanted`` windows in their order, and the names of the files that are too short.

    Only as many files are opened as are needed.
    """
    order = torch.randperm(len(files), generator=generator("files", seed)).tolist()
    step, needed = frames * stride, (frames - 1) * stride + 1
    most = (wanted - 1) * step + needed
    first: list[tuple[VideoFile, int]] = []
    short: list[tuple[int, str]] = []
    for file in (files[index] for index in order):
        if len(first) == wanted:
            break
        length = count_frames(file.path, file.shown, most)
        if length >= needed:
            first.append((file, (length - needed) // step + 1))
        else:
            short.append((length, file.shown))
    if not first:
        length, longest = max(short)
        raise InputError(
            f"data {source!r}: too short: {longest} has {length} frames, {frames} frames at stride {stride} "
            f"need {needed}; lower --frames or --stride"
        )
    deepest = max(count for _, count in first)
    windows = [Window(file, k * step) for k in range(deepest) for file, count in first if k < count]
    return windows[:wanted], sorted(name for _, name in short)


def _split(available: int, clips: int | None, public: int, source: str) -> int:
    """Return how many of the windows are attacked."""
    if clips is None:
        return min(DEFAULT_CLIPS, max((available + 1) // 2, available - public))
    if clips > available:
        raise InputError(
            f"data {source!r}: --clips {clips} asked, but it gives {available}; ask for at most "
            f"{available}, or lower --frames or --stride"
        )
    return clips


def _classes(files: Sequence[VideoFile]) -> tuple[str, ...]:
    """Return the names of the folders that hold the files; nothing where they cannot tell classes apart."""
    parents = tuple(sorted({file.parent for file in files}))
    return parents if len(parents) > 1 else ()


def _label(window: Window, classes: tuple[str, ...], seed: int) -> int:
    if classes:
        return classes.index(window.file.parent)
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
        there = len(range(end, count_frames(file.path, file.shown, numbers[-1] + 1), stride))
        if there < count:
            raise InputError(
                f"data {source!r}: {file.shown} has {there} frames at stride {stride} outside its attacked "
                f"clips, --references {count} asked; lower --references, --clips or --stride"
            )
        found[file] = list(numbers)
    return found


def _read(cuts: Sequence[Cut], sizes: Sequence[int]) -> dict[VideoFile, Squares]:
    """Decode what is wanted of each file in one go."""
    wanted: dict[VideoFile, set[int]] = {}
    for file, numbers in cuts:
        wanted.setdefault(file, set()).update(numbers)
    return {file: read_frames(file.path, file.shown, numbers, sizes) for file, numbers in wanted.items()}


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
        f"{_first(small)}"
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


def _notes(
    classes: tuple[str, ...], short: list[str], attacked: int, available: int, needed: int
) -> list[str]:
    count = len(PSEUDO_CLASSES)
    notes = [
        f"{len(classes)} classes from the folders: {_first(classes)}"
        if classes
        else f"no sub-folders by class: labels are drawn at random over {count} pseudo-classes"
    ]
    if short:
        notes.append(f"{len(short)} videos shorter than {needed} frames were skipped: {_first(short)}")
    if attacked == available:
        notes.append("no public clips: all windows are attacked")
    return notes


def _first(names: Sequence[str]) -> str:
    return ", ".join(_printable(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
