"""Conventions of names in UCF-Crime and similar data sets: the video, its class, and whether it is normal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from vleak.data.suffixes import OF_NAMES

NORMAL = "Normal"
_NORMAL_FOLDER = re.compile(r"(training|testing)?[-_ ]?normal([-_ ]?videos?\b.*|[-_ ]?videos?_.*)?", re.I)
_UCF = re.compile(r"(normal[-_ ]?videos?|[a-z]+)[-_]?\d+_x264", re.I)  # Abuse001_x264, Normal_Videos_003_x264
_XD = re.compile(
    r"_label_([A-Z0-9]+)(-[A-Z0-9]+)*"
)  # XD-Violence: A is normal, B1, B2, B4, B5, B6, G are not
_CROP = re.compile(r"__(\d)$")  # one file a crop: Abuse001_x264__0.npy
_KIND = re.compile(r"([-_](i3d|c3d|clip|rgb|flow|c|features?))+$", re.I)  # Abuse001_x264_i3d.npy
_SUFFIXES = re.compile(rf"(\.({OF_NAMES}))+$", re.I)


def canonical(folder: str) -> str:
    """Return the class of a folder: all folders of normal videos are one class."""
    return NORMAL if _NORMAL_FOLDER.fullmatch(folder) else folder


def class_in_name(stem: str) -> str | None:
    """Return the class in the name of a video, as in UCF-Crime; None for other names."""
    match = _UCF.match(stem)
    if match is None:
        return None
    return NORMAL if match[1].lower().startswith("normal") else match[1]


def crop_of(stem: str) -> int:
    """Return the crop number in the name of a feature file, 0 without one."""
    match = _CROP.search(stem)
    return int(match[1]) if match else 0


def video_of(path: str) -> str:
    """Return the key of a video: its base name in lower case, without folders and suffixes.

    ``C:\\\\data\\\\Abuse001_x264.mp4``, ``Abuse/Abuse001_x264__7.npy`` and ``Abuse001_x264_i3d.npy`` are all
    ``abuse001_x264``.
    """
    base = _SUFFIXES.sub("", PurePosixPath(path.replace("\\", "/")).name)
    return _KIND.sub("", _CROP.sub("", base)).lower()


def anomalies(videos: Sequence[tuple[str, tuple[str, ...]]]) -> list[bool | None]:
    """Return for each video whether its names mark an anomaly, None where they mark neither.

    If any folder or class is that of normal videos, all others are anomalies.

    Args:
        videos: for each, the base name without suffix, and the names of its class and folders.
    """
    flags = [_anomalous(stem, kinds) for stem, kinds in videos]
    if not any(canonical(kind) == NORMAL for _, kinds in videos for kind in kinds):
        return flags
    return [
        True if value is None and kinds else value for value, (_, kinds) in zip(flags, videos, strict=True)
    ]


def _anomalous(stem: str, kinds: tuple[str, ...]) -> bool | None:
    in_name = class_in_name(stem)
    if in_name is not None:
        return in_name != NORMAL
    marked = _XD.search(stem)
    if marked is not None:
        return marked[1] != "A"
    for kind in kinds:
        if canonical(kind) == NORMAL:
            return False
        if kind.lower() in ("abnormal", "anomaly", "anomalous", "anomalies"):
            return True
    return None
