"""Few levels an entry: int8, QSGD, ternary entries, and signs."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vleak.defenses.codecs.wire import Floats, expect_length, flatten, message, pack, unpack
from vleak.errors import InputError

__all__ = [
    "INT8",
    "QSGD",
    "SIGN",
    "TERNARY",
    "decode_int8",
    "decode_qsgd",
    "decode_sign",
    "decode_ternary",
    "encode_int8",
    "encode_qsgd",
    "encode_sign",
    "encode_ternary",
]

INT8, QSGD, TERNARY, SIGN = 2, 3, 4, 5
"""Numbers of the codecs in a message."""
_TRITS = 5
"""Ternary digits in a byte: 3^5 = 243."""


def encode_int8(tensors: Mapping[str, Tensor]) -> bytes:
    """Encode each tensor in 255 steps of its largest magnitude / 127, rounded to the nearest step.

    Args:
        tensors: finite float32 tensors by name.

    Raises:
        InputError: a tensor is not finite.
    """
    flat, sizes = flatten(tensors), _sizes(tensors)
    scales = np.array([np.abs(part).max(initial=0.0) / 127 for part in _parts(flat, sizes)], dtype="<f4")
    codes = np.zeros(flat.size, dtype=np.int8)
    steps = np.repeat(scales.astype(np.float64), sizes)
    # A scale that underflows to 0 leaves its tensor at 0.
    live = steps > 0
    codes[live] = np.clip(np.rint(flat[live] / steps[live]), -127, 127)
    return message(INT8, 8, flat.size, scales.tobytes() + codes.tobytes())


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
    flat, levels = flatten(tensors), 2 ** (bits - 1) - 1
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
    return message(QSGD, bits, flat.size, struct.pack("<I", bucket) + norms.tobytes() + pack(codes, bits))


def encode_ternary(tensors: Mapping[str, Tensor], generator: torch.Generator) -> bytes:
    """Encode by TernGrad (Wen et al., NeurIPS 2017, arXiv 1705.07878) without its clipping: unbiased.

    Each tensor is sent as its largest magnitude s and, for each entry, -1, 0 or 1, five to a byte: the sign
    with probability magnitude / s, else 0.

    Args:
        tensors: finite float32 tensors by name.
        generator: CPU generator for the rounding.

    Raises:
        InputError: a tensor is not finite.
    """
    flat, sizes = flatten(tensors), _sizes(tensors)
    scales = np.array([np.abs(part).max(initial=0.0) for part in _parts(flat, sizes)], dtype="<f4")
    steps = np.repeat(scales.astype(np.float64), sizes)
    chance = np.divide(np.abs(flat), steps, out=np.zeros(flat.size), where=steps > 0)
    draws = torch.rand(flat.size, generator=generator, dtype=torch.float64).numpy()
    trits = (np.sign(flat) * (draws < chance) + 1).astype(np.uint8)
    digits = np.ones((-(-flat.size // _TRITS), _TRITS), dtype=np.uint8)
    digits.reshape(-1)[: flat.size] = trits
    packed = (digits * _places()).sum(1).astype(np.uint8)
    return message(TERNARY, _TRITS, flat.size, scales.tobytes() + packed.tobytes())


def encode_sign(tensors: Mapping[str, Tensor]) -> bytes:
    """Encode each tensor as its mean magnitude and a sign an entry; zero counts as positive.

    Signs: Bernstein et al., ICML 2018, arXiv 1802.04434; their scale: Karimireddy et al., ICML 2019,
    arXiv 1901.09847.

    Args:
        tensors: finite float32 tensors by name.

    Raises:
        InputError: a tensor is not finite.
    """
    flat, sizes = flatten(tensors), _sizes(tensors)
    parts = [part.astype(np.float64) for part in _parts(flat, sizes)]
    scales = np.array([np.abs(part).mean() if part.size else 0.0 for part in parts], dtype="<f4")
    signs = np.packbits(flat >= 0, bitorder="little")
    return message(SIGN, 1, flat.size, scales.tobytes() + signs.tobytes())


def decode_int8(payload: bytes, setting: int, sizes: list[int]) -> Floats:
    """Return the vector of all entries.

    Raises:
        InputError: the payload is not one of this codec for so many entries.
    """
    expect_length(payload, 4 * len(sizes) + sum(sizes))
    codes = np.frombuffer(payload, np.int8, offset=4 * len(sizes))
    return _scaled(payload, sizes, codes)


def decode_qsgd(payload: bytes, setting: int, sizes: list[int]) -> Floats:
    """Return the vector of all entries.

    Raises:
        InputError: the payload is not one of this codec for so many entries.
    """
    size = sum(sizes)
    bucket = struct.unpack_from("<I", payload)[0] if len(payload) >= 4 else 0
    buckets = -(-size // max(bucket, 1))
    expect_length(payload, 4 + 4 * buckets + -(-size * setting // 8))
    norms = np.frombuffer(payload, "<f4", count=buckets, offset=4)
    levels = 2 ** (setting - 1) - 1
    codes = unpack(payload[4 + 4 * buckets :], size, setting).astype(np.float64) - levels
    flat = np.repeat(norms.astype(np.float64), bucket)[:size] * codes / levels
    return np.asarray(flat, dtype=np.float32)


def decode_ternary(payload: bytes, setting: int, sizes: list[int]) -> Floats:
    """Return the vector of all entries.

    Raises:
        InputError: the payload is not one of this codec for so many entries.
    """
    size = sum(sizes)
    expect_length(payload, 4 * len(sizes) + -(-size // _TRITS))
    packed = np.frombuffer(payload, np.uint8, offset=4 * len(sizes))
    trits = (packed[:, None] // _places() % 3).reshape(-1)[:size]
    return _scaled(payload, sizes, trits.astype(np.int8) - 1)


def decode_sign(payload: bytes, setting: int, sizes: list[int]) -> Floats:
    """Return the vector of all entries.

    Raises:
        InputError: the payload is not one of this codec for so many entries.
    """
    size = sum(sizes)
    expect_length(payload, 4 * len(sizes) + -(-size // 8))
    packed = np.frombuffer(payload, np.uint8, offset=4 * len(sizes))
    signs = np.unpackbits(packed, count=size, bitorder="little").astype(np.int8) * 2 - 1
    return _scaled(payload, sizes, signs)


def _scaled(payload: bytes, sizes: list[int], codes: npt.NDArray[np.int8]) -> Floats:
    scales = np.frombuffer(payload, "<f4", count=len(sizes))
    flat: Floats = np.repeat(scales, sizes) * codes.astype(np.float32)
    return flat


def _sizes(tensors: Mapping[str, Tensor]) -> list[int]:
    return [tensor.numel() for tensor in tensors.values()]


def _parts(flat: Floats, sizes: list[int]) -> list[Floats]:
    return np.split(flat, np.cumsum(sizes)[:-1])


def _places() -> npt.NDArray[np.uint8]:
    return np.array([3**place for place in range(_TRITS)], dtype=np.uint8)
