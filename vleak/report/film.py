"""Film strips: the frames of a clip side by side, embedded into a page."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vleak.errors import InputError
from vleak.results.pictures import Bytes

SHOWN_SIDE = 96
"""Longer side of an embedded frame in pixels; larger frames are shrunk to it."""
SHOWN_FRAMES = 16
"""Largest number of frames in a strip; of a longer clip every k-th frame is taken."""


@dataclass(frozen=True)
class FilmStrip:
    """All frames of a clip side by side, as a PNG in a data URI.

    Attributes:
        uri: ``data:image/png;base64,...``.
        frames: number of frames in the strip.
        width: pixels of one frame as embedded.
        height: see width.
    """

    uri: str
    frames: int
    width: int
    height: int


def film_strip(clip: Bytes) -> FilmStrip:
    """Return the frames of a clip side by side.

    Args:
        clip: (C, T, H, W) bytes. Three channels are colour, any other number is averaged to grey.

    Raises:
        InputError: not four axes.
    """
    if clip.ndim != 4:
        raise InputError(f"expected a clip of shape (channel, frame, height, width), got {clip.shape}")
    step = math.ceil(clip.shape[1] / SHOWN_FRAMES)
    frames = [_image(clip[:, t]) for t in range(0, clip.shape[1], step)]
    width, height = frames[0].size
    strip = Image.new(frames[0].mode, (width * len(frames), height))
    for position, frame in enumerate(frames):
        strip.paste(frame, (position * width, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG", compress_level=6)  # the search for the smallest file takes ten times as long
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return FilmStrip(uri, len(frames), width, height)


def _image(frame: Bytes) -> Image.Image:
    """Return one frame (C, H, W) as a picture, shrunk when larger than it will be shown."""
    pixels = frame.transpose(1, 2, 0) if frame.shape[0] == 3 else frame.mean(0).round().astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = SHOWN_SIDE / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX)
