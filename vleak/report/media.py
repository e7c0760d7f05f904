"""Pictures of a run as film strips that fit into a page."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vleak.errors import InputError
from vleak.results.pictures import Bytes, read_array

__all__ = ["SHOWN_FRAMES", "SHOWN_SIDE", "Strip", "film_strip", "read_array"]

SHOWN_SIDE = 96
"""Frames are shown at about 128 pixels; what is larger is embedded at this size."""
SHOWN_FRAMES = 16
"""Most frames of a strip; of a longer clip every k-th is shown."""


@dataclass(frozen=True)
class Strip:
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


def film_strip(clip: Bytes) -> Strip:
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
    for place, frame in enumerate(frames):
        strip.paste(frame, (place * width, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Strip(uri, len(frames), width, height)


def _image(frame: Bytes) -> Image.Image:
    """Return one frame (C, H, W) as a picture, shrunk when larger than it will be shown."""
    pixels = frame.transpose(1, 2, 0) if frame.shape[0] == 3 else frame.mean(0).round().astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = SHOWN_SIDE / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX)
