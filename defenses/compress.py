"""Quantised updates: fewer bits an entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vleak.defenses.codecs import decode, encode_int8, encode_qsgd
from vleak.errors import InputError, unknown_name
from vleak.federated.defense import Defense, Message


@dataclass(frozen=True, kw_only=True)
class Compress(Defense):
    """Send the update in few bits an entry: "int8" rounds to the nearest step, "qsgd" at random, unbiased.

    QSGD: Alistarh et al., NeurIPS 2017, arXiv 1610.02132.

    Attributes:
        codec: "int8" (a scale a tensor) or "qsgd" (a norm a bucket).
        bits: bits an entry, sign included, 2 to 8; "int8" takes 8 only.
        bucket: entries that share a norm; "qsgd" only.
    """

    name: ClassVar[str] = "compress"
    codec: str = "int8"
    bits: int = 8
    bucket: int = 512

    def __post_init__(self) -> None:
        """Check the codec and its settings."""
        if self.codec not in ("int8", "qsgd"):
            raise unknown_name("codec", self.codec, ("int8", "qsgd"))
        if self.bits not in range(2, 9):
            raise InputError(f"compress: bits is {self.bits}, expected a whole number from 2 to 8")
        if self.codec == "int8" and self.bits != 8:
            raise InputError(f'compress: int8 has 8 bits, got {self.bits}; use codec="qsgd" for fewer')
        if not isinstance(self.bucket, int) or not 1 <= self.bucket < 2**32:
            raise InputError(
                f"compress: bucket is {self.bucket}, expected a whole number from 1, such as 512"
            )

    @property
    def label(self) -> str:
        """Codec and strength, such as "qsgd 4 bit"."""
        return "int8" if self.codec == "int8" else f"qsgd {self.bits} bit"

    def settings(self) -> dict[str, float | int | str]:
        """Return the codec and what it uses."""
        return {"codec": "int8"} if self.codec == "int8" else super().settings()

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send the quantised entries; what arrives lies on the codec's grid."""
        if self.codec == "int8":
            content = encode_int8(gradient)
        else:
            content = encode_qsgd(gradient, self.bits, self.bucket, generator)
        shapes = {name: tuple(tensor.shape) for name, tensor in gradient.items()}
        return Message(decode(content, shapes), len(content))
