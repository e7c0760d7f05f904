"""Lists of videos as published with UCF-Crime and its ports, with their classes, labels and intervals.

Lists hold absolute paths of other machines, so only base names are matched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vleak.data.naming import anomalies, video_of
from vleak.data.suffixes import OF_NAMES
from vleak.data.tree import first, printable
from vleak.errors import InputError

LIST_SUFFIXES = frozenset({".txt", ".csv", ".list", ".lst"})
MAX_LIST_BYTES = 2**26
MAX_CLASSES = 10_000  # larger numbers are no labels
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf|infinity)", re.I)
# A path may hold blanks; its suffix must be followed by a separator or the end of the line.
_PATH = re.compile(rf"\s*[\"']?(.+?\.(?:{OF_NAMES}))[\"']?(?=[\s,;|]|$)", re.I)
_HEADER = re.compile(r"(path|file|name|video|filename|file_?path|video_?name)\s*([,;|\t]|$)", re.I)
# Training lists whose loaders (RTFM, MGFN) derive classes from the line number: number of videos in the list,
# and number of anomalous ones, which come first.
_BY_LINE = {1610: 810, 238: 63}


@dataclass(frozen=True)
class Entry:
    """Line of a list, which describes one video.

    Attributes:
        line: line number, from 1.
        path: the path as written, with forward slashes.
        kind: the class that a column names, None without one.
        numbers: the whole numbers after the path, without the -1 that mean "none".
        framed: whether the numbers can only be frames: a -1 or a bracket is among them.
    """

    line: int
    path: str
    kind: str | None
    numbers: tuple[int, ...]
    framed: bool = False

    @property
    def video(self) -> str:
        """Key of the video, see ``naming.video_of``."""
        return video_of(self.path)

    @property
    def folder(self) -> str:
        """Name of the folder in the path, "" without one."""
        return PurePosixPath(self.path).parent.name


def is_number(text: str) -> bool:
    """Return whether a text is a number; float() also parses ``01_0014``, a video of ShanghaiTech."""
    return _NUMBER.fullmatch(text) is not None


def read_list(path: Path, shown: str) -> list[Entry]:
    """Return the videos of a list, each once, in the order of the list.

    A line is a path, then, all optional, a class and whole numbers: a label, a count of frames and a label,
    the first and last frames of anomalies. Separators are blanks, commas, semicolons, bars and brackets.

    Raises:
        InputError: the list cannot be read, is empty, is no text, or a line has another format.
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
    match = _PATH.match(line)
    path = match[1] if match else re.split(r"[\s,;|]", line.strip(), maxsplit=1)[0]
    rest = line[match.end() :] if match else line.strip()[len(path) :]
    words = [word for word in re.split(r"[\s,;|\[\]\"']+", rest) if word]
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
    framed = -1 in numbers or "[" in rest
    pairs = intervals[
        len(intervals) % 2 :
    ]  # an odd number of values starts with a count of frames or a label
    if kind is None and not framed and len(pairs) == len(intervals) == 2:
        pairs = []  # frames and a label, perhaps
    if any(end < start for start, end in zip(pairs[::2], pairs[1::2], strict=True)):
        raise InputError(
            f"{shown}: line {number}: {' '.join(map(str, pairs))} are no intervals; expected first and last "
            f"frames in pairs, the first not after the last"
        )
    return Entry(number, path.replace("\\", "/"), kind, tuple(intervals), framed)


@dataclass(frozen=True)
class LabelColumn:
    """Column of a list that may hold labels.

    Attributes:
        values: one whole number for each entry.
        certain: whether they cannot be counts of frames or last frames.
        reading: how the column was told from others, one phrase; "" where it is the only one.
    """

    values: tuple[int, ...]
    certain: bool
    reading: str = ""


def label_column(entries: Sequence[Entry]) -> LabelColumn | None:
    """Return the column of a list that may hold labels, or None.

    It is the only number of every line, or the last of two (frames and a label). Of two it is the first
    where that is 0 or 1 in all lines and the last is not. A count of frames is never 0, and no last frame is
    below the first one.
    """
    widths = {len(entry.numbers) for entry in entries}
    named = any(entry.kind is not None for entry in entries)
    if any(entry.framed for entry in entries) or not (widths == {1} or (widths == {2} and not named)):
        return None
    first, last = ([entry.numbers[place] for entry in entries] for place in (0, -1))
    if widths == {1} or not max(first) <= 1 < max(last):
        turned = widths == {2} and any(label < frames for frames, label in zip(first, last, strict=True))
        reading = (
            "" if widths == {1} else "the last number of each line is the label, the one before it frames"
        )
        if widths == {2} and not turned:
            reading += ", not first and last frames"
        column = LabelColumn(tuple(last), turned or min(last) == 0 or max(last) <= 1, reading)
    else:
        reading = "the first number of each line is the label, the last frames"
        column = LabelColumn(tuple(first), min(first) == 0, reading)
    return column if max(column.values) < MAX_CLASSES else None


def match_list(
    entries: Sequence[Entry], names: Sequence[str], shown: str, where: str
) -> tuple[dict[str, Entry], list[str]]:
    """Return the entries of a list by the names of their files, and notes on the videos without a file.

    Of several files of one video, the one whose folders agree most with the path in the list is used.

    Args:
        entries: lines of the list.
        names: names of the existing files, relative to the searched folder.
        shown: name of the list in messages.
        where: description of the searched folder in messages.

    Raises:
        InputError: none of the videos is there.
    """
    by_video: dict[str, list[str]] = {}
    for name in names:
        by_video.setdefault(video_of(name), []).append(name)
    matches: dict[str, Entry] = {}
    missing = []
    for entry in entries:
        candidates = by_video.get(entry.video, [])
        if candidates:
            matches[max(candidates, key=lambda name: _agreement(name, entry.path))] = entry
        else:
            missing.append(PurePosixPath(entry.path).name)
    message = f"{len(missing)} of the {len(entries)} videos in {shown} are not {where}: {first(missing)}"
    if not matches:
        raise InputError(f"{message}; put the list into the folder of the files, or above it")
    return matches, [message] if missing else []


def _agreement(name: str, path: str) -> int:
    """Return the number of folders that two paths share, counted from the file upwards."""
    count = 0
    for one, other in zip(reversed(name.split("/")[:-1]), reversed(path.split("/")[:-1]), strict=False):
        if one.lower() != other.lower():
            break
        count += 1
    return count


def list_labels(
    entries: Sequence[Entry], shown: str, matches: Mapping[str, Entry] | None = None
) -> tuple[dict[str, int], list[str]]:
    """Return labels by ``Entry.video``, 1 for anomalous and 0 for normal, and notes on assumptions.

    Lists contradict each other: in Sultani's code an anomaly is 0, in its ports 1, and RTFM and MGFN count
    lines. Names that identify a class decide; a column of labels that contradicts them is inverted.

    Args:
        entries: all lines of the list.
        shown: name of the list in messages.
        matches: entries by file name, as from ``match_list``; the files' folders may name a class where the
            list does not.

    Raises:
        InputError: labels contradict names in one part of the list only, or a video has no label at all.
    """
    folders = {entry.video: PurePosixPath(name).parent.name for name, entry in (matches or {}).items()}
    flags = anomalies(
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
        for entry, value in zip(entries, flags, strict=True)
    }
    column = label_column(entries)
    if column is not None and set(column.values) <= {0, 1}:
        return _from_column(entries, column.values, named, shown)
    known = {video: int(value) for video, value in named.items() if value is not None}
    if len(known) == len(entries):
        return known, []
    if not known and len(entries) in _BY_LINE:
        count = _BY_LINE[len(entries)]
        labels = {entry.video: int(index < count) for index, entry in enumerate(entries)}
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
    entries: Sequence[Entry], values: Sequence[int], named: Mapping[str, bool | None], shown: str
) -> tuple[dict[str, int], list[str]]:
    column = {entry.video: value for entry, value in zip(entries, values, strict=True)}
    known = [(entry, int(value)) for entry in entries if (value := named[entry.video]) is not None]
    wrong = [PurePosixPath(entry.path).name for entry, value in known if column[entry.video] != value]
    if not known:
        return column, [f"the labels of {shown} are taken as 1 for an anomaly; its names do not tell"]
    if not wrong:
        return column, [f"the labels of {shown} call an anomaly 1, as its names confirm"]
    if len(wrong) == len(known):
        return {video: 1 - value for video, value in column.items()}, [
            f"the labels of {shown} call an anomaly 0, as Sultani's code does: turned round, 1 is an anomaly"
        ]
    raise InputError(
        f"{shown}: labels contradict the names of {len(wrong)} of {len(known)} videos: {first(wrong)}; "
        f"correct the list or remove its labels"
    )
