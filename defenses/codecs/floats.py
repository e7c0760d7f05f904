"""Shorter floating-point numbers: fp16, bf16, and fp8 with a scale a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vleak.defenses.codecs.wire import Floats, expect_length, flatten, message
from vleak.errors import InputError

__all__ = ["FLOAT", "FORMATS", "FloatFormat", "decode_float", "encode_float"]

FLOAT = 6
"""Number of the codec in a message."""


@dataclass(frozen=True)
class FloatFormat:
    """A floating-point format.

    Attributes:
        dtype: as PyTorch has it.
        mantissa: bits of the mantissa that are stored.
        least_exponent: of the smallest normal number, as a power of 2.
        largest: largest finite number.
        scaled: whether each tensor is scaled so that its largest magnitude is the format's.
    """

    dtype: torch.dtype
    mantissa: int
    least_exponent: int
    largest: float
    scaled: bool = False

    @property
    def width(self) -> int:
        """Bytes an entry."""
        return self.dtype.itemsize


FORMATS: dict[str, FloatFormat] = {
    "fp16": FloatFormat(torch.float16, 10, -14, 65504.0),
    "bf16": FloatFormat(torch.bfloat16, 7, -126, torch.finfo(torch.bfloat16).max),
    "fp8": FloatFormat(torch.float8_e4m3fn, 3, -6, 448.0, scaled=True),
}
"""Formats by name; the fp8 one is E4M3 (Micikevicius et al., arXiv 2209.05433)."""


def encode_float(tensors: Mapping[str, Tensor], name: str) -> bytes:
    """Encode every entry in a floating-point format, rounded to the nearest number, ties to even.

    Args:
        tensors: finite float32 tensors by name.
        name: one of `FORMATS`.

    Raises:
        InputError: a tensor is not finite, or an entry is beyond the format's range.
    """
    kind, flat = FORMATS[name], torch.from_numpy(flatten(tensors))
    sizes = [tensor.numel() for tensor in tensors.values()]
    scales = torch.ones(len(sizes))
    if kind.scaled:
        largest = [float(part.abs().max()) if part.numel() else 0.0 for part in torch.split(flat, sizes)]
        scales = torch.tensor(largest) / kind.largest
        steps = scales.repeat_interleave(torch.tensor(sizes))
        flat = torch.where(steps > 0, flat.double() / steps.clamp(min=1e-45), 0.0).float()
        # The scale's own rounding can leave the largest entry a hair beyond the range.
        flat = flat.clamp(-kind.largest, kind.largest)
    short = flat.to(kind.dtype)
    if not torch.isfinite(short.float()).all():
        raise InputError(
            f"{name} codec: an entry of {float(flat.abs().max()):.3g} exceeds {kind.largest:g}, the largest "
            f"number of {name}; scale the update down, or choose bf16"
        )
    header = scales.numpy().astype("<f4").tobytes() if kind.scaled else b""
    words = short.view(torch.uint8).numpy().tobytes()
    return message(FLOAT, list(FORMATS).index(name), flat.numel(), header + words)


def decode_float(payload: bytes, setting: int, sizes: list[int]) -> Floats:
    """Return the vector of all entries.

    Raises:
        InputError: the payload is not one of this codec for so many entries.
    """
    if not 0 <= setting < len(FORMATS):
        raise InputError(f"message has floating-point format {setting}, which is unknown; ask for it again")
    kind = list(FORMATS.values())[setting]
    start = 4 * len(sizes) if kind.scaled else 0
    expect_length(payload, start + kind.width * sum(sizes))
    words = torch.frombuffer(bytearray(payload[start:]), dtype=torch.uint8)
    flat: Floats = words.view(kind.dtype).float().numpy()
    if not kind.scaled:
        return flat
    return np.repeat(np.frombuffer(payload, "<f4", count=len(sizes)), sizes) * flat
