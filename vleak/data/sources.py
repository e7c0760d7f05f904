"""Sources on disk: a folder, a list or one file, with videos, image sequences or feature files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vleak.data.images import ImageVideo, group_images
from vleak.data.lists import LIST_SUFFIXES, Entry, is_number, match_list, read_list
from vleak.data.naming import video_of
from vleak.data.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from vleak.data.tree import existing, first, printable, suffix, walk
from vleak.errors import InputError

Kind = Literal["videos", "frames", "features"]
KINDS: tuple[Kind, ...] = ("videos", "features", "frames")
_CALLED = {"videos": "videos", "frames": "images of videos", "features": "feature files"}
_EXPECTED = {
    "videos": ", ".join(sorted(VIDEO_SUFFIXES)),
    "frames": "numbered .png, .jpg, .tif or .bmp",
    "features": ".npy, or text of numbers",
}
_GROUND_TRUTH = re.compile(r"gt([-_].*)?\.npy", re.I)  # labels by frame, stored next to features
_SNIFFED = 4096  # bytes of a text that are read to distinguish numbers from names


@dataclass(frozen=True)
class SourceFiles:
    """Files of a source.

    Attributes:
        kind: "videos", "frames" or "features".
        name: the base name of the source.
        root: the folder that all names are relative to.
        names: the video or feature files, sorted; none for frames.
        images: the videos that are stored as images.
        entries: for a source that is a list, its entry for each name (for frames, for each ``video``).
        listed: all entries of that list, also those without a file.
        notes: sentences for the user.
    """

    kind: Kind
    name: str
    root: Path
    names: tuple[str, ...]
    images: tuple[ImageVideo, ...] = ()
    entries: Mapping[str, Entry] = field(default_factory=dict)
    listed: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = ()


def search_source(source: str, kinds: Sequence[Kind] = KINDS) -> SourceFiles:
    """Return the files of a source and their kind.

    A folder is searched with its sub-folders; where it holds several kinds, videos take precedence, and of
    feature files and images the more numerous are used. The files of a list are searched in its folder and
    below.

    Args:
        source: path of a folder, a list or one file.
        kinds: accepted kinds; files of others are ignored.

    Raises:
        InputError: the source does not exist or holds none of these kinds.
    """
    path = existing(source)
    if path.is_dir():
        return _in_folder(path, source, kinds)
    shown = printable(path.name)
    if suffix(path.name) in LIST_SUFFIXES:
        token = _first_token(path)
        if token is None:
            raise InputError(f"{shown}: an empty file; expected a list of videos, or rows of numbers")
        if not is_number(token):
            return _in_list(path, source, kinds)
    if suffix(path.name) in IMAGE_SUFFIXES and "frames" in kinds:
        raise InputError(f"{shown}: one image is no video; give the folder of the images")
    features = "features" in kinds and (
        suffix(path.name) in {".npy", *LIST_SUFFIXES} or "videos" not in kinds
    )
    return _one_file("features" if features else "videos", path)


def _one_file(kind: Kind, path: Path) -> SourceFiles:
    note = "one video file" if kind == "videos" else "one feature file"
    return SourceFiles(kind, printable(path.name), path.parent, (path.name,), notes=(note,))


def _in_folder(root: Path, source: str, kinds: Sequence[Kind]) -> SourceFiles:
    names = walk(root, source)
    files_by_kind = {kind: _of_kind(kind, root, names) for kind in KINDS if kind in kinds}
    if files_by_kind.get("videos", ([], []))[0]:
        kind: Kind = "videos"  # even if more images or features were computed from them
    else:
        kind = max(files_by_kind, key=lambda kind: len(files_by_kind[kind][0]))
    chosen, images = files_by_kind[kind]
    if chosen:
        return SourceFiles(
            kind=kind,
            name=printable(root.name),
            root=root,
            names=() if kind == "frames" else tuple(chosen),
            images=tuple(images),
            notes=(_counted(kind, chosen, images), *_ignored(kind, names, chosen), *_gaps(images)),
        )
    others = f"{len(names)} other files" if names else "no files"
    wanted = " or ".join(f"{_CALLED[kind]} ({_EXPECTED[kind]})" for kind in kinds)
    raise InputError(f"data {source!r}: the folder holds {others} and no {wanted}")


def _in_list(path: Path, source: str, kinds: Sequence[Kind]) -> SourceFiles:
    shown = printable(path.name)
    entries = read_list(path, shown)
    names = [name for name in walk(path.parent, source) if name != path.name]
    order = [kind for kind in KINDS if kind in kinds]
    if suffix(entries[0].path) == ".npy":
        order.sort(key=lambda kind: kind != "features")
    wanted = {entry.video for entry in entries}
    where = f"in {printable(path.parent.name)!r} or its sub-folders"
    for kind in order:
        chosen, images = _of_kind(kind, path.parent, names, wanted)
        if not chosen:
            continue
        candidates = [video.video for video in images] if kind == "frames" else chosen
        matches, missing = match_list(entries, candidates, shown, where)
        images = [video for video in images if video.video in matches]
        return SourceFiles(
            kind=kind,
            name=shown,
            root=path.parent,
            names=() if kind == "frames" else tuple(sorted(matches)),
            images=tuple(images),
            entries=matches,
            listed=tuple(entries),
            notes=(
                f"{len(entries)} videos listed, {len(matches)} found as {_CALLED[kind]}",
                *missing,
                *_gaps(images),
            ),
        )
    match_list(entries, [], shown, where)
    raise AssertionError("a list without one file is an error")


def _of_kind(
    kind: Kind, root: Path, names: Sequence[str], wanted: set[str] | None = None
) -> tuple[list[str], list[ImageVideo]]:
    """Return the files of a kind that belong to the wanted videos, and for frames also these videos."""
    if kind == "videos":
        chosen = [name for name in names if suffix(name) in VIDEO_SUFFIXES]
    elif kind == "features":
        chosen = [name for name in names if _holds_features(root, name)]
    else:
        images = group_images([name for name in names if suffix(name) in IMAGE_SUFFIXES])
        if wanted is not None:
            images = [video for video in images if video_of(video.video) in wanted]
        return [name for video in images for name in video.names], images
    return [name for name in chosen if wanted is None or video_of(name) in wanted], []


def _holds_features(root: Path, name: str) -> bool:
    if suffix(name) == ".npy":
        return _GROUND_TRUTH.fullmatch(name.rpartition("/")[2]) is None
    token = _first_token(root / name) if suffix(name) in LIST_SUFFIXES else None
    return token is not None and is_number(token)


def _first_token(path: Path) -> str | None:
    """Return the first word of a text, up to a blank, comma or semicolon; None for an empty file."""
    try:
        with path.open("rb") as stream:
            start = stream.read(_SNIFFED).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{printable(path.name)}: cannot be read ({error.strerror})") from error
    words = start.replace(",", " ").replace(";", " ").split(maxsplit=1)
    return words[0] if words else None


def _counted(kind: Kind, chosen: Sequence[str], images: Sequence[ImageVideo]) -> str:
    if kind == "frames":
        return f"{len(images)} videos found as {len(chosen)} images"
    return f"{len(chosen)} {_CALLED[kind]} found"


def _ignored(kind: Kind, names: Sequence[str], chosen: Sequence[str]) -> list[str]:
    others = sorted(set(names) - set(chosen))
    if not others:
        return []
    return [f"{len(others)} files that are no {_CALLED[kind]} were ignored: {first(others)}"]


def _gaps(images: Sequence[ImageVideo]) -> list[str]:
    """Return notes on the distance between image numbers and on videos with missing images."""
    notes = []
    steps = sorted({video.step for video in images if len(video.names) > 1})
    if steps and steps != [1]:
        distances = " or ".join(map(str, steps[:3]))
        notes.append(f"the images' numbers are {distances} apart; `stride` counts images, not these numbers")
    holes = [video.video for video in images if video.gaps]
    if holes:
        notes.append(f"{len(holes)} videos lack images, which counts as a jump: {first(holes)}")
    return notes
