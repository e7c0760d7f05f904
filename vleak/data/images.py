"""Videos that come as images, a file a frame, such as UCF-Crime in 64x64 PNG."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from vleak.data.tree import printable
from vleak.data.video import Squares, check_limits
from vleak.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_FRAME = re.compile(r"(.*?)[-_. ]?(\d+)$")
# Of what a frame is called where the folder, not the file, names the video: 0001.png, img_00001.jpg
_PLAIN = frozenset({"", "img", "image", "frame", "frames", "f", "im", "thumb"})

_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


@dataclass(frozen=True)
class ImageVideo:
    """The frames of one video.

    Attributes:
        video: the video's name with its folders, relative to the source.
        names: the image files in the order of their numbers, relative to the source.
        step: the distance of most neighbours' numbers.
        gaps: how many images are missing between the first and the last.
    """

    video: str
    names: tuple[str, ...]
    step: int
    gaps: int


def group_images(names: Sequence[str]) -> list[ImageVideo]:
    """Group image files by video and sort each by frame number, not by name: 100 comes after 20.

    ``Abuse/Abuse001_x264_100.png`` is frame 100 of ``Abuse/Abuse001_x264``; ``Abuse/Abuse001/0100.png``,
    also as ``img_0100``, is one of ``Abuse/Abuse001``. Images without a number are left out.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        found = _FRAME.fullmatch(base.rpartition(".")[0])
        if found is None:
            continue
        plain = found[1].lower() in _PLAIN
        video = folder if plain else f"{folder}/{found[1]}" if folder else found[1]
        groups.setdefault(video, []).append((int(found[2]), name))
    return [_sorted(video, groups[video]) for video in sorted(groups)]


def _sorted(video: str, numbered: list[tuple[int, str]]) -> ImageVideo:
    numbered.sort()
    numbers = [number for number, _ in numbered]
    steps = Counter(later - now for now, later in pairwise(numbers))
    step = max(1, min(steps, key=lambda one: (-steps[one], one))) if steps else 1
    return ImageVideo(
        video=video,
        names=tuple(name for _, name in numbered),
        step=step,
        gaps=max(0, (numbers[-1] - numbers[0]) // step + 1 - len(numbers)),
    )


def read_images(root: Path, names: Sequence[str], wanted: Set[int], sizes: Sequence[int]) -> Squares:
    """Read frames by their places in ``names``, each at every one of ``sizes``.

    Raises:
        InputError: an image cannot be read, is damaged, or exceeds a limit.
    """
    squares = Squares({size: {} for size in sizes})
    for place in sorted(wanted):
        squares.add(place, _image(root / names[place], printable(names[place])))
    return squares


def _image(path: Path, shown: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return an image, RGB (H, W, 3)."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns of what may be a bomb; the limit of frames is below that.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                check_limits(shown, *image.size)
                if image.mode not in _MODES:
                    raise InputError(f"{shown}: pixels of kind {image.mode!r}; expected 8 bits a channel")
                return np.array(image.convert("RGB"), dtype=np.uint8)
    except (UnidentifiedImageError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{shown}: is no PNG or JPEG image within the limits of a frame") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damage
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown}: damaged or unreadable ({error}); replace or remove it") from error
