"""Pictures of a run: .npy files read with suspicion, and film strips that fit into a page."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from vleak.errors import InputError

SHOWN_SIDE = 96
"""Frames are shown at about 128 pixels; what is larger is embedded at this size."""
SHOWN_FRAMES = 16
"""Most frames of a strip; of a longer clip every k-th is shown."""

Frames = npt.NDArray[np.uint8]


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


def read_array(folder: Path, name: str) -> Frames:
    """Map a uint8 array of a run folder into memory, without trusting it.

    Args:
        folder: the run folder.
        name: the file's path inside it, such as ``"clips.npy"``.

    Returns:
        The array, read-only.

    Raises:
        InputError: the path leaves the folder, or the file is missing, no .npy file of bytes, or not as long
            as its header says.
    """
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{name!r} lies outside the run folder")
        with path.open("rb") as stream:
            shape, fortran, dtype = _read_header(stream)
            left = path.stat().st_size - stream.tell()
            offset = stream.tell()
    except FileNotFoundError as error:
        raise InputError(f"{name!r} is missing") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{name!r} is not a readable .npy file: {error}") from error
    if dtype != np.uint8 or fortran or min(shape, default=0) < 1:
        raise InputError(f"{name!r} holds {dtype} of shape {shape}; expected bytes in C order")
    if math.prod(shape) != left:
        raise InputError(f"{name!r} claims {math.prod(shape)} bytes of data and has {left}")
    return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=shape)


def film_strip(clip: Frames) -> Strip:
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


def _read_header(stream: io.BufferedReader) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Parse the header alone: numpy would allocate what a forged one claims."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"format version {version}")


def _image(frame: Frames) -> Image.Image:
    """Return one frame (C, H, W) as a picture, shrunk when larger than it will be shown."""
    pixels = frame.transpose(1, 2, 0) if frame.shape[0] == 3 else frame.mean(0).round().astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = SHOWN_SIDE / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX)
