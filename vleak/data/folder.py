"""Clips from videos: the windows of the files that are attacked, the public ones, and their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vleak.data.classes import classes_of
from vleak.data.clipset import ClipSet, PublicFrom
from vleak.data.request import FINE, ClipRequest
from vleak.data.sources import SourceFiles
from vleak.data.tree import first
from vleak.data.videos import VideoFile, video_files
from vleak.data.windows import Reel, Window, choose_windows
from vleak.errors import InputError, argument


def load_videos(source: SourceFiles, request: ClipRequest) -> ClipSet:
    """Return the ClipSet of videos or image sequences; ``load_clips`` documents the rules and errors."""
    files = video_files(source)
    if len(files) == 1:
        request = replace(request, strict=True)  # nothing else could be used instead
    found, size = choose_windows(files, request, source.name), request.size
    windows = found.windows
    attacked = found.attacked
    classes = classes_of(files, source)
    clips = found.clips(size)
    fine = found.clips(FINE * size) if request.fine else None
    labels = torch.tensor([classes.label(w.file, w.start, request.seed) for w in windows], dtype=torch.int64)
    notes = [classes.note, *found.notes(request.needed, len(files))]
    notes += _on_public(windows, attacked, request)
    notes += _enlarged(found.reels, FINE * size) if request.fine else []
    return ClipSet(
        name=source.name,
        clips=clips[:attacked],
        labels=labels[:attacked],
        names=tuple(f"{window.file.name}@{window.start}" for window in windows[:attacked]),
        public_clips=clips[attacked:].clone(),  # a view would share storage with the private clips
        public_labels=labels[attacked:],
        classes=classes.names,
        public_source=_public_source(windows, attacked),
        public_from=_public_from(windows, attacked),
        public_groups=_groups(windows[attacked:]),
        notes=(*source.notes, *notes),
        references=_references(windows[:attacked], request, source.name) if request.references else None,
        fine=None if fine is None else fine[:attacked],
        public_fine=None if fine is None else fine[attacked:].clone(),
        labels_drawn=not classes.labels,
    )


def _reference_frames(
    attacked: Sequence[Window], request: ClipRequest, source: str
) -> dict[VideoFile, list[int]]:
    """Return for each attacked file the numbers of the reference frames, which all its clips share.

    The reference frames follow the last attacked window of a file: the frame after that window and every
    ``stride``-th from there, as in a clip. The public clips are the same without them; a frame may be in
    both, since the attacker holds both.
    """
    count, stride = request.references, request.stride
    ends: dict[VideoFile, int] = {}
    for window in attacked:
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


def _references(attacked: Sequence[Window], request: ClipRequest, source: str) -> Tensor:
    """Return the reference frames of every attacked window, (N, 3, K, size, size)."""
    numbers, size = _reference_frames(attacked, request, source), request.size
    frames = {file: file.read(set(wanted), (size,)) for file, wanted in numbers.items()}
    for squares in frames.values():
        if squares.damage is not None:
            raise squares.damage
    return torch.stack([frames[window.file].clip(numbers[window.file], size) for window in attacked])


def _enlarged(reels: Mapping[VideoFile, Reel], size: int) -> list[str]:
    """Return a note on videos whose frames are smaller than their fine clips."""
    small = sorted(file.shown for file, reel in reels.items() if reel.squares.smallest < size)
    if not small:
        return []
    return [
        f"{len(small)} videos have fewer than {size} pixels across, their fine clips show no more detail: "
        f"{first(small)}"
    ]


def _public_source(windows: Sequence[Window], attacked: int) -> str:
    shared = _shared(windows, attacked)
    if not shared:
        return "none"
    if not any(shared):
        return "other files"
    same = "the same files, outside the attacked frames"
    return same if all(shared) else f"other files, and {same}"


def _public_from(windows: Sequence[Window], attacked: int) -> PublicFrom | None:
    shared = _shared(windows, attacked)
    if not shared:
        return None
    return "same-file" if any(shared) else "other-files"


def _shared(windows: Sequence[Window], attacked: int) -> list[bool]:
    """Return for every public window whether its file has an attacked one."""
    files = {window.file for window in windows[:attacked]}
    return [window.file in files for window in windows[attacked:]]


def _groups(public: Sequence[Window]) -> Tensor:
    """Return the number of the file of every public window, (M,) int64."""
    numbers = {file: number for number, file in enumerate(dict.fromkeys(window.file for window in public))}
    return torch.tensor([numbers[window.file] for window in public], dtype=torch.int64)


def _on_public(windows: Sequence[Window], attacked: int, request: ClipRequest) -> list[str]:
    """Return a note on public clips that are fewer than asked, or of attacked files."""
    files, count = len({window.file for window in windows[attacked:]}), len(windows) - attacked
    if any(_shared(windows, attacked)):
        return [
            f"{count} public clips, of which some are other parts of the attacked videos, as asked by "
            f"{argument('public_from', 'same-file')}: an attacker who holds those is far stronger than most"
        ]
    if count == request.public:
        return []
    if request.public_from == "same-file":
        return [] if count else ["no public clips: all windows are attacked"]
    more = f"{argument('public_from', 'same-file')} would add other parts of the attacked videos"
    if not count:
        return [f"no public clips: no file is left that is not attacked; give more files, or {more}"]
    return [
        f"{count} of {request.public} public clips: they are the windows of {files} files, of which none is "
        f"attacked; {more}"
    ]
