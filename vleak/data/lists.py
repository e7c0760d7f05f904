"""Lists of videos as they come with UCF-Crime and its ports, with their classes, labels and intervals.

Lists carry the absolute paths of strangers, so only base names are matched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vleak.data.naming import anomalies, video_of
from vleak.data.tree import first, printable
from vleak.errors import InputError

LIST_SUFFIXES = frozenset({".txt", ".csv", ".list", ".lst"})
MAX_LIST_BYTES = 2**26
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf|infinity)", re.I)
# A path may hold blanks; what it ends with may not be followed by more of a name.
_PATH = re.compile(
    r"\s*[\"']?(.+?\.(?:mp4|m4v|mov|3gp|3g2|mj2|avi|mkv|webm|gif|npy|txt|png|jpe?g))[\"']?(?=[\s,;|]|$)", re.I
)
_HEADER = re.compile(r"(path|file|name|video|filename|file_?path|video_?name)\s*([,;|\t]|$)", re.I)
# The training lists whose loaders (RTFM, MGFN) tell classes by the number of the line: videos in the list,
# how many of them, from the first, are anomalous.
_BY_LINE = {1610: 810, 238: 63}


@dataclass(frozen=True)
class Entry:
    """One video of a list.

    Attributes:
        line: its number, from 1.
        path: the path as written, with forward slashes.
        kind: the class that a column names, None without one.
        numbers: the whole numbers behind, without the -1 that stand for nothing.
    """

    line: int
    path: str
    kind: str | None
    numbers: tuple[int, ...]

    @property
    def video(self) -> str:
        """What names the video, see ``naming.video_of``."""
        return video_of(self.path)

    @property
    def folder(self) -> str:
        """The folder that the path names, "" without one."""
        return PurePosixPath(self.path).parent.name


def is_number(text: str) -> bool:
    """Tell whether a text is a number; float() also takes ``01_0014``, which is a video of ShanghaiTech."""
    return _NUMBER.fullmatch(text) is not None


def read_list(path: Path, shown: str) -> list[Entry]:
    """Return the videos of a list, each once, in the order of the list.

    A line is a path, then, each optional, a class and whole numbers: a 0/1 label, a count of frames, the
    first and last frames of anomalies. Blanks, commas, semicolons, bars and brackets part them.

    Raises:
        InputError: the list cannot be read, is empty, is no text, or a line is none of these.
    """
    lines = read_text(path, shown).splitlines()
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#") or (not entries and _HEADER.match(line.strip())):
            continue
        entry = _entry(line, number, shown)
        entries.setdefault(entry.video, entry)  # ten crops of a video are ten lines
    if not entries:
        raise InputError(f"{shown}: an empty list; expected a path a line")
    return list(entries.values())


def read_text(path: Path, shown: str, most: int = MAX_LIST_BYTES) -> str:
    """Return the text of a file.

    Raises:
        InputError: it cannot be read, is larger than ``most`` bytes, or is no UTF-8.
    """
    try:
        length = path.stat().st_size
        if length > most:
            raise InputError(f"{shown}: {length} bytes of text, the limit is {most}; give a smaller file")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{shown}: is no text (byte {error.start}); expected UTF-8") from error


def _entry(line: str, number: int, shown: str) -> Entry:
    found = _PATH.match(line)
    path = found[1] if found else re.split(r"[\s,;|]", line.strip(), maxsplit=1)[0]
    behind = line[found.end() :] if found else line.strip()[len(path) :]
    words = [word for word in re.split(r"[\s,;|\[\]\"']+", behind) if word]
    kind = words.pop(0) if words and not is_number(words[0]) else None
    for word in words:
        if not re.fullmatch(r"[-+]?\d{1,12}", word):
            raise InputError(
                f"{shown}: line {number}: {printable(word[:40])!r} is no whole number; expected a path, then "
                f"a class, a label, frames or first and last frames"
            )
    numbers = tuple(int(word) for word in words)
    if min(numbers, default=0) < -1:
        raise InputError(
            f"{shown}: line {number}: {min(numbers)} is negative; expected frames, or -1 for none"
        )
    intervals = [value for value in numbers if value >= 0]
    if kind is None and len(intervals) == 2 and min(intervals) <= 1:  # frames and a label, in either order
        intervals = [min(intervals)]
    pairs = intervals[len(intervals) % 2 :]  # in front of an odd number stands a count of frames or a label
    if any(end < start for start, end in zip(pairs[::2], pairs[1::2], strict=True)):
        raise InputError(
            f"{shown}: line {number}: {' '.join(map(str, pairs))} are no intervals; expected first and last "
            f"frames in pairs, the first not after the last"
        )
    return Entry(number, path.replace("\\", "/"), kind, tuple(intervals))


def match_list(
    entries: Sequence[Entry], names: Sequence[str], shown: str, where: str
) -> tuple[dict[str, Entry], list[str]]:
    """Find the files of a list: entries by the names of files, and what to tell of those that are missing.

    Of several files of one video that one is taken whose folders agree most with the path in the list.

    Args:
        entries: the list.
        names: the files there are, relative to ``where``.
        shown: the list's name.
        where: what to call the place that was searched.

    Raises:
        InputError: none of the videos is there.
    """
    by_video: dict[str, list[str]] = {}
    for name in names:
        by_video.setdefault(video_of(name), []).append(name)
    found: dict[str, Entry] = {}
    missing = []
    for entry in entries:
        candidates = by_video.get(entry.video, [])
        if candidates:
            found[max(candidates, key=lambda name: _agreement(name, entry.path))] = entry
        else:
            missing.append(PurePosixPath(entry.path).name)
    told = f"{len(missing)} of the {len(entries)} videos in {shown} are not {where}: {first(missing)}"
    if not found:
        raise InputError(f"{told}; put the list into the folder of the files, or above it")
    return found, [told] if missing else []


def _agreement(name: str, path: str) -> int:
    """Return how many folders two paths share, counted from the file."""
    count = 0
    for one, other in zip(reversed(name.split("/")[:-1]), reversed(path.split("/")[:-1]), strict=False):
        if one.lower() != other.lower():
            break
        count += 1
    return count


def list_labels(
    entries: Sequence[Entry], shown: str, found: Mapping[str, Entry] | None = None
) -> tuple[dict[str, int], list[str]]:
    """Return 1 for an anomalous and 0 for a normal video, by ``Entry.video``, and what was assumed.

    Lists contradict each other: Sultani's code calls an anomaly 0, its ports call it 1, RTFM and MGFN count
    lines. Names decide where they tell; a column of labels is turned round where it contradicts them.

    Args:
        entries: the whole list.
        shown: its name.
        found: the files of entries by their names, whose folders may tell what the list does not.

    Raises:
        InputError: labels and names contradict each other in one part of the list only, or nothing tells.
    """
    folders = {entry.video: PurePosixPath(name).parent.name for name, entry in (found or {}).items()}
    told = anomalies(
        [
            (
                PurePosixPath(entry.path).stem,
                tuple(kind for kind in (entry.kind, entry.folder, folders.get(entry.video)) if kind),
            )
            for entry in entries
        ]
    )
    named = {
        entry.video: True if value is None and entry.kind is not None else value
        for entry, value in zip(entries, told, strict=True)
    }
    if all(entry.numbers[:1] in ((0,), (1,)) and len(entry.numbers) == 1 for entry in entries):
        return _from_column(entries, named, shown)
    known = {video: int(value) for video, value in named.items() if value is not None}
    if len(known) == len(entries):
        return known, []
    if not known and len(entries) in _BY_LINE:
        count = _BY_LINE[len(entries)]
        labels = {entry.video: int(place < count) for place, entry in enumerate(entries)}
        return labels, [
            f"{shown} tells no labels: taken by line number as RTFM and MGFN do, the first {count} of "
            f"{len(entries)} videos are anomalies"
        ]
    unknown = [PurePosixPath(entry.path).name for entry in entries if named[entry.video] is None]
    raise InputError(
        f"{shown}: {len(unknown)} of {len(entries)} videos have no label: {first(unknown)}; expected class "
        f"folders, names such as Abuse001_x264 and Normal_Videos_003_x264, or a 0/1 column (1: anomaly)"
    )


def _from_column(
    entries: Sequence[Entry], named: Mapping[str, bool | None], shown: str
) -> tuple[dict[str, int], list[str]]:
    column = {entry.video: entry.numbers[0] for entry in entries}
    told = [(entry, int(value)) for entry in entries if (value := named[entry.video]) is not None]
    opposed = [PurePosixPath(entry.path).name for entry, value in told if column[entry.video] != value]
    if not told:
        return column, [f"the labels of {shown} are taken as 1 for an anomaly; its names do not tell"]
    if not opposed:
        return column, [f"the labels of {shown} call an anomaly 1, as its names confirm"]
    if len(opposed) == len(told):
        return {video: 1 - value for video, value in column.items()}, [
            f"the labels of {shown} call an anomaly 0, as Sultani's code does: turned round, 1 is an anomaly"
        ]
    raise InputError(
        f"{shown}: labels contradict the names of {len(opposed)} of {len(told)} videos: {first(opposed)}; "
        f"correct the list or remove its labels"
    )
