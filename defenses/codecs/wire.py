"""Frame of every message: a 16-byte header, a CRC-32 of everything else, and a payload, all little-endian.

The header holds a magic word, the codec, a setting of it and the number of elements. The tensors are coded as
one vector, in the order of the dict.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vleak.errors import InputError

__all__ = [
    "Floats",
    "expect_length",
    "flatten",
    "message",
    "pack",
    "parse",
    "unpack",
]

Floats = npt.NDArray[np.float32]

_HEADER = struct.Struct("<4sBBxxQ")
_CRC = struct.Struct("<I")
_MAGIC = b"VLU1"


def message(codec: int, setting: int, elements: int, payload: bytes) -> bytes:
    """Return header, checksum and payload.

    Args:
        codec: number of the codec, 0 to 255.
        setting: number that the codec needs to decode, 0 to 255.
        elements: how many numbers the payload stands for.
        payload: what the codec wrote.
    """
    header = _HEADER.pack(_MAGIC, codec, setting, elements)
    return header + _checksum(header, payload) + payload


def parse(content: bytes) -> tuple[int, int, int, bytes]:
    """Return codec, setting, elements and payload of a message.

    Raises:
        InputError: the bytes are short, damaged, or no such message.
    """
    start = _HEADER.size + _CRC.size
    if len(content) < start:
        raise InputError(f"message of {len(content)} bytes is shorter than its header; ask for it again")
    magic, codec, setting, elements = _HEADER.unpack_from(content)
    payload = content[start:]
    if magic != _MAGIC:
        raise InputError("message is not an encoded vleak update; check what was sent")
    if content[_HEADER.size : start] != _checksum(content[: _HEADER.size], payload):
        raise InputError("message is damaged or cut short (its checksum differs); ask for it again")
    return codec, setting, elements, payload


def flatten(tensors: Mapping[str, Tensor]) -> Floats:
    """Return all entries of finite tensors as one float32 vector.

    Raises:
        InputError: a tensor is not finite, or there is no entry.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"codec: tensor {name!r} holds NaN or infinity; it cannot be encoded")
    parts = [tensor.detach().to("cpu", torch.float32).reshape(-1) for tensor in tensors.values()]
    if not sum(part.numel() for part in parts):
        raise InputError("codec: there is nothing to encode; expected at least one entry")
    flat: Floats = torch.cat(parts).numpy()
    return flat


def pack(codes: npt.NDArray[np.unsignedinteger], width: int) -> bytes:
    """Pack unsigned numbers into ``width`` bits each, lowest bit first."""
    shifts = np.arange(width, dtype=codes.dtype)
    bits = ((codes[:, None] >> shifts) & codes.dtype.type(1)).astype(np.uint8)
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(content: bytes, count: int, width: int) -> npt.NDArray[np.uint64]:
    """Undo `pack` for ``count`` numbers."""
    bits = np.unpackbits(np.frombuffer(content, np.uint8), count=count * width, bitorder="little")
    places = np.uint64(1) << np.arange(width, dtype=np.uint64)
    codes: npt.NDArray[np.uint64] = (bits.reshape(count, width) * places).sum(axis=1, dtype=np.uint64)
    return codes


def expect_length(payload: bytes, length: int) -> None:
    """Refuse a payload of another length.

    Raises:
        InputError: it has one.
    """
    if len(payload) != length:
        raise InputError(f"message has {len(payload)} payload bytes, expected {length}; ask for it again")


def _checksum(header: bytes, payload: bytes) -> bytes:
    return _CRC.pack(zlib.crc32(payload, zlib.crc32(header)))
