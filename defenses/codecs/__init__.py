"""Encodings of an update into real bytes and back; both sides know the names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from vleak.defenses.codecs import floats, lowrank, quantised, sparse
from vleak.defenses.codecs.floats import encode_float
from vleak.defenses.codecs.lowrank import encode_low_rank
from vleak.defenses.codecs.quantised import encode_int8, encode_qsgd, encode_sign, encode_ternary
from vleak.defenses.codecs.sparse import encode_entries, encode_sparse
from vleak.defenses.codecs.wire import Floats, parse
from vleak.errors import InputError

__all__ = [
    "decode",
    "encode_entries",
    "encode_float",
    "encode_int8",
    "encode_low_rank",
    "encode_qsgd",
    "encode_sign",
    "encode_sparse",
    "encode_ternary",
]

_DECODERS: dict[int, Callable[[bytes, int, list[int]], Floats]] = {
    sparse.SPARSE: sparse.decode_sparse,
    quantised.INT8: quantised.decode_int8,
    quantised.QSGD: quantised.decode_qsgd,
    quantised.TERNARY: quantised.decode_ternary,
    quantised.SIGN: quantised.decode_sign,
    floats.FLOAT: floats.decode_float,
    lowrank.LOW_RANK: lowrank.decode_low_rank,
}


def decode(content: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Decode a message of any codec here into float32 CPU tensors.

    Args:
        content: the bytes that came over the wire.
        shapes: shape of every tensor by name, in the order in which they were encoded.

    Raises:
        InputError: the bytes are short, damaged, of another format, or for tensors of other shapes.
    """
    codec, setting, elements, payload = parse(content)
    if codec not in _DECODERS:
        raise InputError("message is not an encoded vleak update; check what was sent")
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()]
    if elements != sum(sizes):
        raise InputError(
            f"message holds {elements} entries, the shapes ask for {sum(sizes)}; check the model"
        )
    flat = torch.from_numpy(_DECODERS[codec](payload, setting, sizes))
    parts = torch.split(flat, sizes)
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
