"""Pictures of a run as 8-bit .npy files, written whole and read with suspicion."""

from __future__ import annotations

import io
import math
import os
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.files import open_regular, write_atomic

__all__ = ["CLIPS", "Bytes", "as_bytes", "as_clip", "picture_names", "read_array", "write_array"]

Bytes = npt.NDArray[np.uint8]
CLIPS = "clips.npy"
"""File of the private clips in the folder of a run."""


def picture_names(cell: str) -> tuple[str, str]:
    """Files of a cell's reconstruction and of its enhancement, relative to the folder of the run."""
    name = sha256(cell.encode()).hexdigest()[:16]
    return f"reconstructions/{name}.npy", f"reconstructions/{name}-enhanced.npy"


def as_bytes(clips: Tensor) -> Bytes:
    """Clips in [0, 1], any leading axes, as bytes: rounded, and clamped first."""
    array: Bytes = (clips.detach().cpu().clamp(0, 1) * 255).round().byte().numpy()
    return array


def as_clip(array: Bytes) -> Tensor:
    """Clips of bytes as float32 in [0, 1]."""
    return torch.from_numpy(np.array(array)).float() / 255


def write_array(path: Path, array: Bytes) -> None:
    """Write an array as .npy, whole or not at all.

    Raises:
        VleakError: the file cannot be written.
    """
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    write_atomic(path, stream.getvalue())


def read_array(folder: Path, name: str) -> Bytes:
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
        with open_regular(path) as stream:
            shape, fortran, dtype = _read_header(stream)
            left = os.fstat(stream.fileno()).st_size - stream.tell()
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


def _read_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Parse the header alone: numpy would allocate what a forged one claims."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"format version {version}")
