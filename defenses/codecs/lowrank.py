"""Matrices as products of two narrow ones, all in float32; other tensors as they are."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vleak.defenses.codecs.wire import Floats, expect_length, flatten, message

__all__ = ["LOW_RANK", "decode_low_rank", "encode_low_rank"]

LOW_RANK = 7
"""Number of the codec in a message."""
_WHOLE = 0


def encode_low_rank(tensors: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]]) -> bytes:
    """Encode some tensors by their factors.

    Each tensor begins with the number of its rows and its rank, 0 for a tensor that is sent whole.

    Args:
        tensors: finite float32 tensors by name.
        factors: by name, P (n, r) and Q (m, r) of a tensor (n, ...) of n m entries that arrives as P Q'.

    Raises:
        InputError: a tensor is not finite.
    """
    flat = flatten(tensors)
    heads, bodies = [], []
    for name, tensor in tensors.items():
        parts = [factor.contiguous().flatten() for factor in factors.get(name, ())]
        rows, rank = factors[name][0].shape if name in factors else (0, _WHOLE)
        heads.append(struct.pack("<II", rows, rank))
        whole = tensor.detach().to("cpu", torch.float32).flatten()
        bodies += [part.numpy().astype("<f4").tobytes() for part in parts or [whole]]
    return message(LOW_RANK, 0, flat.size, b"".join(heads + bodies))


def decode_low_rank(payload: bytes, setting: int, sizes: list[int]) -> Floats:
    """Return the vector of all entries.

    Raises:
        InputError: the payload is not one of this codec for so many entries.
    """
    start = 8 * len(sizes)
    if len(payload) < start:
        expect_length(payload, start)
    heads = [struct.unpack_from("<II", payload, 8 * index) for index in range(len(sizes))]
    lengths = [
        rank * (rows + size // max(rows, 1)) if rank else size
        for (rows, rank), size in zip(heads, sizes, strict=True)
    ]
    expect_length(payload, start + 4 * sum(lengths))
    numbers = np.frombuffer(payload, "<f4", offset=start)
    parts = []
    for (rows, rank), part in zip(heads, np.split(numbers, np.cumsum(lengths)[:-1]), strict=True):
        if rank:
            left, right = part[: rows * rank].reshape(rows, rank), part[rows * rank :].reshape(-1, rank)
            part = (left.astype(np.float32) @ right.astype(np.float32).T).reshape(-1)
        parts.append(part)
    return np.concatenate(parts).astype(np.float32)
