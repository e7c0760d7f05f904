"""Classes of videos: from a list, from folders, from names, or drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from vleak.data.lists import Entry, LabelColumn, label_column, list_labels
from vleak.data.naming import canonical, class_in_name
from vleak.data.sources import SourceFiles
from vleak.data.tree import first
from vleak.data.videos import VideoFile
from vleak.errors import InputError
from vleak.seeds import generator

PSEUDO_CLASSES = tuple(f"class{index}" for index in range(6))
_COMPARED = 3  # videos whose length is compared with the number in a list
_BINARY = ("normal", "anomaly")


@dataclass(frozen=True)
class Classes:
    """Classes of the videos of a source.

    Attributes:
        names: of all classes.
        labels: for each video the index of its class; empty where nothing tells and labels are drawn.
        note: where the classes are from.
    """

    names: tuple[str, ...]
    labels: Mapping[VideoFile, int]
    note: str

    def label(self, file: VideoFile, start: int, seed: int) -> int:
        """Return the label of the window of a video that begins at frame ``start``."""
        if self.labels:
            return self.labels[file]
        draws = generator("label", seed, file.name, start)
        return int(torch.randint(len(self.names), (), generator=draws))


def classes_of(files: Sequence[VideoFile], source: SourceFiles) -> Classes:
    """Return the classes of videos.

    A column of names in the list comes first, then its labels, whose whole numbers are the indices of the
    classes, then folders, then names as in UCF-Crime. Where folders or names tell the same classes as the
    labels, the labels only give the order.

    Raises:
        InputError: 0/1 labels contradict names in one part of the list only.
    """
    listed = _listed(files, source)
    origin, told = _told(files, listed)
    column = label_column(source.listed) if listed else None
    note = ""
    if column is not None:
        values = {entry.video: value for entry, value in zip(source.listed, column.values, strict=True)}
        by_file = {file: values[entry.video] for file, entry in listed.items()}
        if _are_labels(column, by_file, told, origin):
            return _by_labels(column, by_file, told, source)
        note = "; the numbers of the list are taken as frames, since they are other than these classes"
    if told:
        names = tuple(sorted(set(told.values())))
        labels = {file: names.index(name) for file, name in told.items()}
        return Classes(names, labels, f"{len(names)} classes from {origin}: {first(names)}{note}")
    count = len(PSEUDO_CLASSES)
    return Classes(
        PSEUDO_CLASSES, {}, f"no sub-folders by class: labels are drawn at random over {count} pseudo-classes"
    )


def _listed(files: Sequence[VideoFile], source: SourceFiles) -> dict[VideoFile, Entry]:
    """Return the list's entry for each video; none where the source is no list."""
    if not source.entries:
        return {}
    names = [video.video for video in source.images] if source.kind == "frames" else list(source.names)
    return dict(zip(files, (source.entries[name] for name in names), strict=True))


def _told(files: Sequence[VideoFile], listed: Mapping[VideoFile, Entry]) -> tuple[str, dict[VideoFile, str]]:
    """Return the first origin that names two or more classes, and the class of each video."""
    kinds = {file: canonical(entry.kind) for file, entry in listed.items() if entry.kind is not None}
    for origin, told in (
        ("the list", kinds),
        ("the folders", {file: file.parent for file in files}),
        ("the names", {file: name for file in files if (name := class_in_name(file.path.name))}),
    ):
        if len(told) == len(files) and len(set(told.values())) > 1:
            return origin, told
    return "", {}


def _are_labels(
    column: LabelColumn, by_file: Mapping[VideoFile, int], told: Mapping[VideoFile, str], origin: str
) -> bool:
    """Return whether a column of a list holds labels, and not frames.

    Equal classes count only where videos share them: any two lengths differ as two classes do.
    """
    if _same_partition(by_file, told) and (column.certain or len(set(told.values())) < len(by_file)):
        return True
    if told and (origin == "the list" or not column.certain):
        return False
    return column.certain or not _are_lengths(by_file)


def _same_partition(by_file: Mapping[VideoFile, int], told: Mapping[VideoFile, str]) -> bool:
    pairs = {(told[file], value) for file, value in by_file.items()} if told else set()
    return bool(pairs) and len(pairs) == len(set(told.values())) == len(set(by_file.values()))


def _are_lengths(by_file: Mapping[VideoFile, int]) -> bool:
    """Return whether the numbers are the lengths of the first videos, give or take a frame."""
    try:
        return all(
            abs(file.count(value + 2) - value) <= 1 for file, value in list(by_file.items())[:_COMPARED]
        )
    except InputError:  # a damaged file, which is reported where it is read
        return False


def _by_labels(
    column: LabelColumn, by_file: Mapping[VideoFile, int], told: Mapping[VideoFile, str], source: SourceFiles
) -> Classes:
    """Return classes whose indices are the labels of a list."""
    names: dict[int, str] = {}
    how = [column.reading] if column.reading else []
    if _same_partition(by_file, told):
        names = {value: told[file] for file, value in by_file.items()}
    elif set(column.values) <= {0, 1}:
        anomalous, notes = list_labels(source.listed, source.name)
        if not notes[0].endswith("do not tell"):
            pairs = zip(source.listed, column.values, strict=True)
            turned = any(anomalous[entry.video] != value for entry, value in pairs)
            names = dict(enumerate(reversed(_BINARY) if turned else _BINARY))
            how.append(f"an anomaly is {int(not turned)}, as names confirm")
    unnamed = "class{}" if names else "{}"
    indices = range(max(1, *column.values) + 1)
    all_names = tuple(names.get(index, unnamed.format(index)) for index in indices)
    more = f" ({'; '.join(how)})" if how else ""
    return Classes(
        all_names,
        by_file,
        f"{len(set(by_file.values()))} classes from the labels of the list, which are the indices 0 to "
        f"{len(all_names) - 1}: {first(all_names)}{more}",
    )
