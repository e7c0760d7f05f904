"""Encodings of an update into real bytes and back; both sides know the names and shapes.

A message is a 16-byte header (magic, codec, setting, number of elements), a CRC-32 of everything else and a
payload, all little-endian. The tensors are coded as one vector, in the order of the dict.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vleak.errors import InputError

_HEADER = struct.Struct("<4sBBxxQ")
_CRC = struct.Struct("<I")
_MAGIC = b"VLU1"
_SPARSE, _INT8, _QSGD = 1, 2, 3
_BITMASK = 0

Floats = npt.NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]


def encode_sparse(tensors: Mapping[str, Tensor], keep: int) -> bytes:
    """Encode the ``keep`` entries of largest magnitude over all tensors, as float32 values and positions.

    Positions are a bitmask, or the gaps between them in as few bits as the largest needs, whichever is
    shorter. Of equal magnitudes the earlier entry is kept, so that the message is deterministic.

    Args:
        tensors: finite float32 tensors by name.
        keep: how many entries, 1 to their number.

    Raises:
        InputError: ``keep`` is out of range, or a tensor is not finite.
    """
    flat = _flatten(tensors)
    if not 1 <= keep <= flat.size:
        raise InputError(f"sparse codec: keep is {keep}, expected 1 to {flat.size}, the number of entries")
    kept = _largest(flat, keep)
    gaps = np.diff(kept, prepend=-1) - 1
    width = max(1, int(gaps.max()).bit_length())
    if keep * width < flat.size:
        setting, places = width, _pack(gaps.astype(np.uint64), width)
    else:
        mask = np.zeros(flat.size, dtype=np.uint8)
        mask[kept] = 1
        setting, places = _BITMASK, np.packbits(mask, bitorder="little").tobytes()
    payload = struct.pack("<Q", keep) + places + flat[kept].astype("<f4").tobytes()
    return _message(_SPARSE, setting, flat.size, payload)


def encode_int8(tensors: Mapping[str, Tensor]) -> bytes:
    """Encode each tensor in 255 steps of its largest magnitude / 127, rounded to the nearest step.

    Args:
        tensors: finite float32 tensors by name.

    Raises:
        InputError: a tensor is not finite.
    """
    flat = _flatten(tensors)
    sizes = [tensor.numel() for tensor in tensors.values()]
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    scales = np.array([np.abs(part).max(initial=0.0) / 127 for part in parts], dtype="<f4")
    codes = np.zeros(flat.size, dtype=np.int8)
    steps = np.repeat(scales.astype(np.float64), sizes)
    # A scale that underflows to 0 leaves its tensor at 0.
    live = steps > 0
    codes[live] = np.clip(np.rint(flat[live] / steps[live]), -127, 127)
    return _message(_INT8, 8, flat.size, scales.tobytes() + codes.tobytes())


def encode_qsgd(tensors: Mapping[str, Tensor], bits: int, bucket: int, generator: torch.Generator) -> bytes:
    """Encode by QSGD (Alistarh et al., NeurIPS 2017, arXiv 1610.02132), unbiased stochastic rounding.

    Each bucket of consecutive entries is sent as its Euclidean norm and, for each entry, one of
    ``2 s + 1`` signed levels, s = 2^(bits-1) - 1, in ``bits`` bits: norm * level / s.

    Args:
        tensors: finite float32 tensors by name.
        bits: bits an entry, 2 to 8.
        bucket: entries that share a norm, at least 1.
        generator: CPU generator for the rounding.

    Raises:
        InputError: ``bits`` or ``bucket`` is out of range, or a tensor or its norm is not finite.
    """
    if not 2 <= bits <= 8 or not 1 <= bucket < 2**32:
        raise InputError(
            f"qsgd codec: got bits={bits}, bucket={bucket}; expected 2 to 8 bits and bucket >= 1"
        )
    flat, levels = _flatten(tensors), 2 ** (bits - 1) - 1
    padded = np.zeros(-(-flat.size // bucket) * bucket, dtype=np.float64)
    padded[: flat.size] = flat
    exact = np.linalg.norm(padded.reshape(-1, bucket), axis=1)
    if exact.max(initial=0.0) > np.finfo(np.float32).max:
        raise InputError("qsgd codec: the norm of a bucket exceeds float32; scale the update down")
    norms = exact.astype("<f4")
    entry_norms = np.repeat(norms.astype(np.float64), bucket)[: flat.size]
    ratio = np.divide(np.abs(flat), entry_norms, out=np.zeros(flat.size), where=entry_norms > 0)
    draws = torch.rand(flat.size, generator=generator, dtype=torch.float64).numpy()
    # Rounding the norm to float32 can leave a ratio a hair above 1.
    level = np.minimum(np.floor(ratio * levels + draws), levels)
    codes = (np.sign(flat) * level + levels).astype(np.uint8)
    return _message(_QSGD, bits, flat.size, struct.pack("<I", bucket) + norms.tobytes() + _pack(codes, bits))


def decode(content: bytes, shapes: Shapes) -> dict[str, Tensor]:
    """Decode a message of any codec here into float32 CPU tensors.

    Args:
        content: the bytes that came over the wire.
        shapes: shape of every tensor by name, in the order in which they were encoded.

    Raises:
        InputError: the bytes are short, damaged, of another format, or for tensors of other shapes.
    """
    start = _HEADER.size + _CRC.size
    if len(content) < start:
        raise InputError(f"message of {len(content)} bytes is shorter than its header; ask for it again")
    magic, codec, setting, elements = _HEADER.unpack_from(content)
    payload = content[start:]
    if magic != _MAGIC or codec not in _DECODERS:
        raise InputError("message is not an encoded vleak update; check what was sent")
    if content[_HEADER.size : start] != _checksum(content[: _HEADER.size], payload):
        raise InputError("message is damaged or cut short (its checksum differs); ask for it again")
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()]
    if elements != sum(sizes):
        raise InputError(
            f"message holds {elements} entries, the shapes ask for {sum(sizes)}; check the model"
        )
    flat = torch.from_numpy(_DECODERS[codec](payload, setting, sizes))
    parts = torch.split(flat, sizes)
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _decode_sparse(payload: bytes, setting: int, sizes: list[int]) -> Floats:
    size = sum(sizes)
    keep = struct.unpack_from("<Q", payload)[0] if len(payload) >= 8 else 0
    length = -(-(size if setting == _BITMASK else keep * setting) // 8)
    _expect_length(payload, 8 + length + 4 * keep)
    places, values = payload[8 : 8 + length], payload[8 + length :]
    if setting == _BITMASK:
        mask = np.unpackbits(np.frombuffer(places, np.uint8), count=size, bitorder="little")
        kept = np.flatnonzero(mask)
    else:
        kept = np.cumsum(_unpack(places, keep, setting).astype(np.int64) + 1) - 1
    if len(kept) != keep or (keep and not 0 <= kept[-1] < size):
        raise InputError("message has positions outside the update; ask for it again")
    flat = np.zeros(size, dtype=np.float32)
    flat[kept] = np.frombuffer(values, "<f4")
    return flat


def _decode_int8(payload: bytes, setting: int, sizes: list[int]) -> Floats:
    _expect_length(payload, 4 * len(sizes) + sum(sizes))
    scales = np.frombuffer(payload, "<f4", count=len(sizes))
    codes = np.frombuffer(payload, np.int8, offset=4 * len(sizes))
    flat: Floats = np.repeat(scales, sizes) * codes.astype(np.float32)
    return flat


def _decode_qsgd(payload: bytes, setting: int, sizes: list[int]) -> Floats:
    size = sum(sizes)
    bucket = struct.unpack_from("<I", payload)[0] if len(payload) >= 4 else 0
    buckets = -(-size // max(bucket, 1))
    _expect_length(payload, 4 + 4 * buckets + -(-size * setting // 8))
    norms = np.frombuffer(payload, "<f4", count=buckets, offset=4)
    levels = 2 ** (setting - 1) - 1
    codes = _unpack(payload[4 + 4 * buckets :], size, setting).astype(np.float64) - levels
    flat = np.repeat(norms.astype(np.float64), bucket)[:size] * codes / levels
    return np.asarray(flat, dtype=np.float32)


_DECODERS: dict[int, Callable[[bytes, int, list[int]], Floats]] = {
    _SPARSE: _decode_sparse,
    _INT8: _decode_int8,
    _QSGD: _decode_qsgd,
}


def _flatten(tensors: Mapping[str, Tensor]) -> Floats:
    """Return all entries as one float32 vector; refuses what is not finite, naming the tensor."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"codec: tensor {name!r} holds NaN or infinity; it cannot be encoded")
    parts = [tensor.detach().to("cpu", torch.float32).reshape(-1) for tensor in tensors.values()]
    if not sum(part.numel() for part in parts):
        raise InputError("codec: there is nothing to encode; expected at least one entry")
    flat: Floats = torch.cat(parts).numpy()
    return flat


def _largest(flat: Floats, keep: int) -> npt.NDArray[np.int64]:
    """Return the ascending positions of the ``keep`` largest magnitudes, the earliest of equal ones."""
    magnitude = np.abs(flat)
    threshold = np.partition(magnitude, flat.size - keep)[flat.size - keep]
    above = np.flatnonzero(magnitude > threshold)
    ties = np.flatnonzero(magnitude == threshold)[: keep - above.size]
    return np.sort(np.concatenate([above, ties]))


def _pack(codes: npt.NDArray[np.unsignedinteger], width: int) -> bytes:
    """Pack unsigned numbers into ``width`` bits each, lowest bit first."""
    shifts = np.arange(width, dtype=codes.dtype)
    bits = ((codes[:, None] >> shifts) & codes.dtype.type(1)).astype(np.uint8)
    return np.packbits(bits, bitorder="little").tobytes()


def _unpack(content: bytes, count: int, width: int) -> npt.NDArray[np.uint64]:
    """Undo ``_pack``."""
    bits = np.unpackbits(np.frombuffer(content, np.uint8), count=count * width, bitorder="little")
    places = np.uint64(1) << np.arange(width, dtype=np.uint64)
    codes: npt.NDArray[np.uint64] = (bits.reshape(count, width) * places).sum(axis=1, dtype=np.uint64)
    return codes


def _message(codec: int, setting: int, elements: int, payload: bytes) -> bytes:
    header = _HEADER.pack(_MAGIC, codec, setting, elements)
    return header + _checksum(header, payload) + payload


def _checksum(header: bytes, payload: bytes) -> bytes:
    return _CRC.pack(zlib.crc32(payload, zlib.crc32(header)))


def _expect_length(payload: bytes, length: int) -> None:
    if len(payload) != length:
        raise InputError(f"message has {len(payload)} payload bytes, expected {length}; ask for it again")
