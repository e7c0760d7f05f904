"""Some entries of an update, as float32 values and their positions."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vleak.defenses.codecs.wire import Floats, expect_length, flatten, message, pack, unpack
from vleak.errors import InputError

__all__ = ["SPARSE", "decode_sparse", "encode_entries", "encode_sparse"]

SPARSE = 1
"""Number of the codec in a message."""
_BITMASK = 0


def encode_sparse(tensors: Mapping[str, Tensor], keep: int) -> bytes:
    """Encode the ``keep`` entries of largest magnitude over all tensors.

    Of equal magnitudes the earlier entry is kept, so that the message is deterministic.

    Args:
        tensors: finite float32 tensors by name.
        keep: how many entries, 1 to their number.

    Raises:
        InputError: ``keep`` is out of range, or a tensor is not finite.
    """
    flat = flatten(tensors)
    if not 1 <= keep <= flat.size:
        raise InputError(f"sparse codec: keep is {keep}, expected 1 to {flat.size}, the number of entries")
    return encode_entries(tensors, _largest(flat, keep))


def encode_entries(tensors: Mapping[str, Tensor], kept: npt.NDArray[np.int64]) -> bytes:
    """Encode the entries at some positions.

    Positions are a bitmask, or the gaps between them in as few bits as the largest needs, whichever is
    shorter.

    Args:
        tensors: finite float32 tensors by name.
        kept: (K,) ascending positions in the vector of all entries, K >= 1.

    Raises:
        InputError: a tensor is not finite.
    """
    flat = flatten(tensors)
    gaps = np.diff(kept, prepend=-1) - 1
    width = max(1, int(gaps.max()).bit_length())
    if len(kept) * width < flat.size:
        setting, places = width, pack(gaps.astype(np.uint64), width)
    else:
        mask = np.zeros(flat.size, dtype=np.uint8)
        mask[kept] = 1
        setting, places = _BITMASK, np.packbits(mask, bitorder="little").tobytes()
    payload = struct.pack("<Q", len(kept)) + places + flat[kept].astype("<f4").tobytes()
    return message(SPARSE, setting, flat.size, payload)


def decode_sparse(payload: bytes, setting: int, sizes: list[int]) -> Floats:
    """Return the vector of all entries, zero where none was sent.

    Raises:
        InputError: the payload is not one of this codec for so many entries.
    """
    size = sum(sizes)
    keep = struct.unpack_from("<Q", payload)[0] if len(payload) >= 8 else 0
    length = -(-(size if setting == _BITMASK else keep * setting) // 8)
    expect_length(payload, 8 + length + 4 * keep)
    places, values = payload[8 : 8 + length], payload[8 + length :]
    if setting == _BITMASK:
        mask = np.unpackbits(np.frombuffer(places, np.uint8), count=size, bitorder="little")
        kept = np.flatnonzero(mask)
    else:
        kept = np.cumsum(unpack(places, keep, setting).astype(np.int64) + 1) - 1
    if len(kept) != keep or (keep and not 0 <= kept[-1] < size):
        raise InputError("message has positions outside the update; ask for it again")
    flat = np.zeros(size, dtype=np.float32)
    flat[kept] = np.frombuffer(values, "<f4")
    return flat


def _largest(flat: Floats, keep: int) -> npt.NDArray[np.int64]:
    """Return the ascending positions of the ``keep`` largest magnitudes, the earliest of equal ones."""
    magnitude = np.abs(flat)
    threshold = np.partition(magnitude, flat.size - keep)[flat.size - keep]
    above = np.flatnonzero(magnitude > threshold)
    ties = np.flatnonzero(magnitude == threshold)[: keep - above.size]
    return np.sort(np.concatenate([above, ties]))
