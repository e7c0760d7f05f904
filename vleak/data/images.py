"""Videos stored as images, one file a frame, such as UCF-Crime in 64x64 PNG."""

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

_FRAME = re.compile(r"(.*?)[-_. ]?(\d+)$")
# Prefixes of frame files whose folder, not whose name, names the video: 0001.png, img_00001.jpg
_PLAIN = frozenset({"", "img", "image", "frame", "frames", "f", "im", "thumb"})

_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


@dataclass(frozen=True)
class ImageVideo:
    """Image files of one video.

    Attributes:
        video: the video's name with its folders, relative to the source.
        names: the image files in the order of their numbers, relative to the source.
        step: the most frequent difference between the numbers of neighbouring images.
        gaps: number of images missing between the first and the last.
    """

    video: str
    names: tuple[str, ...]
    step: int
    gaps: int


def group_images(names: Sequence[str]) -> list[ImageVideo]:
    """Return image files grouped by video, each group sorted by frame number, not by name: 100 is after 20.

    ``Abuse/Abuse001_x264_100.png`` is frame 100 of ``Abuse/Abuse001_x264``; ``Abuse/Abuse001/0100.png``
    and ``Abuse/Abuse001/img_0100.png`` are frame 100 of ``Abuse/Abuse001``. Images without a number are left
    out.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        match = _FRAME.fullmatch(base.rpartition(".")[0])
        if match is None:
            continue
        plain = match[1].lower() in _PLAIN
        video = folder if plain else f"{folder}/{match[1]}" if folder else match[1]
        groups.setdefault(video, []).append((int(match[2]), name))
    return [_sorted(video, groups[video]) for video in sorted(groups)]


def _sorted(video: str, numbered: list[tuple[int, str]]) -> ImageVideo:
    numbered.sort()
    numbers = [number for number, _ in numbered]
    steps = Counter(later - now for now, later in pairwise(numbers))
    step = max(1, min(steps, key=lambda step_size: (-steps[step_size], step_size))) if steps else 1
    return ImageVideo(
        video=video,
        names=tuple(name for _, name in numbered),
        step=step,
        gaps=max(0, (numbers[-1] - numbers[0]) // step + 1 - len(numbers)),
    )


def read_images(root: Path, names: Sequence[str], wanted: Set[int], sizes: Sequence[int]) -> Squares:
    """Return the frames at the wanted positions of ``names``, each scaled to every size of ``sizes``.

    Reading ends at an image that cannot be read, is damaged, or exceeds a limit: ``damage`` of the result.
    """
    squares = Squares({size: {} for size in sizes})
    for index in sorted(wanted):
        try:
            image = _image(root / names[index], printable(names[index]))
        except InputError as error:
            squares.damage = error
            break
        squares.pixels += image.shape[0] * image.shape[1]
        squares.add(index, image)
    return squares


def _image(path: Path, shown: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return an image, RGB (H, W, 3)."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns of a possible decompression bomb; the limit on frames is below that.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG", "TIFF", "BMP")) as image:
                check_limits(shown, *image.size)
                if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
                    raise InputError(f"{shown}: holds several images; save each as a file of its own")
                if image.mode not in _MODES:
                    raise InputError(f"{shown}: pixels of kind {image.mode!r}; expected 8 bits a channel")
                return np.array(image.convert("RGB"), dtype=np.uint8)
    except (UnidentifiedImageError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(
            f"{shown}: is no PNG, JPEG, TIFF or BMP image within the limits of a frame"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:  # the errors that Pillow raises for damaged files
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown}: damaged or unreadable ({error}); replace or remove it") from error
