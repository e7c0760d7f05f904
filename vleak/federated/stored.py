"""Files of updates that other programs wrote: safetensors, torch files of tensors alone, ``.npz``.

Nothing in them is executed or unpickled, and what they claim is checked before memory is taken for it.
"""

from __future__ import annotations

import math
import re
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vleak.errors import InputError, first_line
from vleak.federated.captured import Arrays

__all__ = ["Stored", "limit_of", "read_array", "read_stored", "read_tensors"]

_LIMIT = 4 * 2**30
"""Bytes that a file may hold where no model says how many there should be."""

_PROGRAM = 2 * 2**20
"""Bytes of the description in a torch file, about 250 a tensor; it is run opcode by opcode, in Python."""

_FORMATS = "safetensors, a torch file of tensors, or .npz"
_LISTED = re.compile(r"arr_(\d+)")


@dataclass(frozen=True)
class Stored:
    """Contents of a file.

    Attributes:
        arrays: by name, or in order.
        metadata: texts by key that a safetensors file carries.
    """

    arrays: Arrays
    metadata: dict[str, str]


def read_stored(path: str | Path, limit: int = _LIMIT) -> Stored:
    """Read a file of tensors; what it is, is told by its content.

    Args:
        path: safetensors, a torch file, read with ``weights_only=True``, or ``.npz`` without pickles.
        limit: bytes that it may hold, unpacked.

    Raises:
        InputError: no file of one of these, damaged, larger than that, or with more than tensors in it.
    """
    path = Path(path)
    _check_size(path, limit)
    start = _first_bytes(path)
    if start[8:9] == b"{":
        tensors, metadata = read_tensors(path)
        return Stored(tensors, metadata)
    if start[:4] == b"PK\x03\x04":
        return Stored(_from_zip(path, limit), {})
    if start[:1] == b"\x80":
        raise InputError(
            f"{path} is a pickle, which could run anything and is not opened; save it again as {_FORMATS}"
        )
    raise InputError(f"{path} is not a whole file of tensors; expected {_FORMATS}")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        InputError: no file, or not whole.
    """
    if not path.is_file():  # a pipe or a device is none
        raise InputError(f"{path} is not a file; expected an update written as .safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); save it again") from error


def limit_of(model: nn.Module | None) -> int:
    """Return how many bytes a file of an update may hold: 16 times the model and 64 MiB, or 4 GiB."""
    if model is None:
        return _LIMIT
    held = [*model.parameters(), *model.buffers()]
    return 64 * 2**20 + 16 * sum(tensor.numel() * tensor.element_size() for tensor in held)


def _check_size(path: Path, limit: int) -> None:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a file that can be read; expected {_FORMATS}") from error
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise InputError(f"{path} is not a file; expected {_FORMATS}")
    if status.st_size > limit:
        raise InputError(_too_large(path, status.st_size, limit))


def _too_large(path: Path, size: int, limit: int) -> str:
    return (
        f"{path} holds {size / 2**20:.0f} MiB, expected at most {limit / 2**20:.0f} MiB of an update of this "
        "model; give its file"
    )


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(16)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a file that can") from error


def _from_zip(path: Path, limit: int) -> Arrays:
    """Return the arrays of a torch file or of an ``.npz``."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if (size := sum(entry.file_size for entry in entries)) > limit:
                raise InputError(_too_large(path, size, limit))
            if entries and all(entry.filename.endswith(".npy") for entry in entries):
                return _from_npz(path, archive, entries)
    except InputError:
        raise
    except Exception as error:  # what a hostile archive raises is not to be listed
        raise InputError(f"{path} is damaged ({first_line(error)}); save it again") from error
    if any(entry.filename.endswith("/data.pkl") for entry in entries):
        _check_torch(path, entries)
        return _from_torch(path)
    raise InputError(f"{path} is an archive of something else; expected {_FORMATS}")


def _from_npz(path: Path, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> Arrays:
    """Return the arrays by name; as a list where numpy numbered them."""
    arrays: dict[str, object] = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if name in arrays:
            raise InputError(f"{path} holds {name!r} twice; save it again")
        with archive.open(entry) as stream:
            arrays[name] = read_array(f"{name!r} in {path}", stream, entry.file_size)
    numbered = {int(m[1]): value for name, value in arrays.items() if (m := _LISTED.fullmatch(name))}
    if len(numbered) < len(arrays):
        return arrays
    return [numbered[index] for index in sorted(numbered)]


def read_array(what: str, stream: IO[bytes], size: int) -> np.ndarray:
    """Return one array of a .npy file without pickles, once its header is seen to claim what is there.

    Args:
        what: it is, for messages.
        stream: at its start.
        size: bytes of the whole file.

    Raises:
        InputError: it is pickled, of another version, or claims another size than it has.
        ValueError: it is no .npy file.
    """
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):  # later ones are for headers that no array of floats has
        raise InputError(f"{what} is of .npy version {version}, expected 1.0; save it again as floats")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise InputError(f"{what} is pickled, which could run anything and is not opened; save it as floats")
    length = math.prod(shape) * dtype.itemsize
    if length != size - stream.tell():
        raise InputError(f"{what} claims another size than it has; save it again")
    array = np.frombuffer(stream.read(length), dtype=dtype) if length else np.empty(shape, dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _check_torch(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that torch.save did not write, or that would take long to read."""
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise InputError(f"{path} is a TorchScript program, which is not run; save its state_dict()")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError(f"{path} is compressed, which no torch file is; save it with torch.save")
    length = max(entry.file_size for entry in entries if entry.filename.endswith("/data.pkl"))
    if length > _PROGRAM:
        raise InputError(
            f"{path} describes its content in {length} bytes, more than any list of tensors takes; save "
            "tensors by name"
        )


def _from_torch(path: Path) -> Arrays:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a hostile stream of opcodes raises is not to be listed
        why = first_line(error).partition(". ")[0][:160]
        raise InputError(
            f"{path} is damaged or holds more than tensors, which is not opened ({why}); save tensors by name"
        ) from error
    if isinstance(loaded, dict | list | tuple):
        return loaded
    raise InputError(f"{path} holds {type(loaded).__name__}, expected tensors by name or a list of them")
