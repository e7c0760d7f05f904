"""Quantised updates: fewer bits an entry."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from vleak.defenses.codecs import decode, encode_int8, encode_qsgd
from vleak.errors import InputError, unknown_name
from vleak.federated import (
    CarriesError,
    Changes,
    Channel,
    Claim,
    Defense,
    LimitsLevels,
    Message,
    Unbiased,
    Update,
)
from vleak.registry import Setting


@dataclass(frozen=True, kw_only=True)
class Compress(Defense):
    """Send the update in few bits an entry: "int8" rounds to the nearest step, "qsgd" at random, unbiased.

    QSGD: Alistarh et al., NeurIPS 2017, arXiv 1610.02132.

    Attributes:
        codec: "int8" (a scale a tensor) or "qsgd" (a norm a bucket).
        bits: bits an entry, sign included, 2 to 8; "int8" takes 8 only.
        bucket: entries that share a norm; "qsgd" only.
        error_feedback: whether what one round rounds off is added to the next one; "qsgd" only where the
            rounding is a contraction, that is where the root of the bucket is below the levels (Karimireddy
            et al., ICML 2019, arXiv 1901.09847).
    """

    name: ClassVar[str] = "compress"
    codec: str = "int8"
    bits: int = 8
    bucket: int = 512
    error_feedback: bool = False

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
        self._check_feedback()

    def _check_feedback(self) -> None:
        """Refuse error feedback where rounding may add more energy than the update has: its error grows."""
        levels = 2 ** (self.bits - 1) - 1
        if self.error_feedback and self.codec == "qsgd" and self.bucket**0.5 >= levels:
            raise InputError(
                f"compress: error feedback with qsgd of {self.bits} bits and buckets of {self.bucket} grows "
                f"without bound; use buckets below {levels**2}, more bits, int8, or error_feedback=false"
            )

    @property
    def label(self) -> str:
        """Codec and strength, such as "qsgd 4 bit"."""
        return "int8" if self.codec == "int8" else f"qsgd {self.bits} bit"

    def settings(self) -> dict[str, Setting]:
        """Return the codec and what it uses."""
        own = super().settings()
        unused = ("bits", "bucket") if self.codec == "int8" else ()
        return {
            name: value
            for name, value in own.items()
            if name not in unused and (name != "error_feedback" or value)
        }

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return int8, and QSGD with 8, 4 and 2 bits."""
        return [cls(codec="int8"), *(cls(codec="qsgd", bits=bits) for bits in (8, 4, 2))]

    def channel(self, update: Update) -> Channel:
        """Return the energy of the rounding, from what was transmitted."""
        noise = int8_noise(update) if self.codec == "int8" else qsgd_noise(update, self.bits, self.bucket)
        return Channel(noise_energy=noise, key=(self.name, self.codec, self.bits, self.bucket))

    def claims(self) -> Sequence[Claim]:
        """Return the levels that share a scale, and that rounding at random has no bias."""
        carried = (CarriesError(),) if self.error_feedback else ()
        if self.codec == "int8":
            return (LimitsLevels(most=255), Changes(), *carried)
        return (LimitsLevels(most=2**self.bits - 1, bucket=self.bucket), Unbiased(), Changes(), *carried)

    def keeps_error(self) -> bool:
        """Return whether rounding errors are carried on."""
        return self.error_feedback

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send the quantised entries; what arrives lies on the codec's grid."""
        if self.codec == "int8":
            content = encode_int8(gradient)
        else:
            content = encode_qsgd(gradient, self.bits, self.bucket, generator)
        shapes = {name: tuple(tensor.shape) for name, tensor in gradient.items()}
        return Message(decode(content, shapes), len(content))


def int8_noise(update: Update) -> float:
    """Return the expected energy of rounding to the nearest of 255 steps: step^2 / 12 an entry."""
    return sum(
        t.numel() * (float(t.abs().max()) / 127) ** 2 / 12 for t in update.tensors.values() if t.numel()
    )


def qsgd_noise(update: Update, bits: int, bucket: int) -> float:
    """Return the energy that stochastic rounding added: what arrived less the bucket norms that QSGD sends.

    Rounding is unbiased, so energies add; a bucket's norm is its step times the number of levels. The
    smallest value in it that is not zero is one step, or several where no entry was rounded so low.
    """
    levels = 2 ** (bits - 1) - 1
    flat = torch.cat([tensor.flatten().double().abs() for tensor in update.tensors.values()])
    buckets = F.pad(flat, (0, -len(flat) % bucket)).view(-1, bucket)
    steps = torch.where(buckets > 0, buckets, torch.inf).amin(1)
    norms = levels * torch.where(steps.isfinite(), steps, 0.0)
    several = (norms / buckets.norm(dim=1).clamp(min=1e-30)).round().clamp(min=1)
    signal = (norms / several).square().sum()
    # Rounding is never exact: a channel without any noise is that of an update that nothing altered.
    return max(float(flat.square().sum() - signal), sys.float_info.min)
