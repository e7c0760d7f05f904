"""Compressed updates: fewer bits an entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from vleak.defenses import codecs, rounding
from vleak.errors import InputError, unknown_name
from vleak.federated import (
    CarriesError,
    Changes,
    Channel,
    Claim,
    Defense,
    LimitsLevels,
    Message,
    RelativeError,
    Scales,
    Unbiased,
    Update,
)
from vleak.registry import Setting

_CODECS = ("int8", "qsgd", "fp16", "bf16", "fp8", "terngrad", "sign")


@dataclass(frozen=True, kw_only=True)
class Compress(Defense):
    """Send the update in few bits an entry, rounded to the nearest value, or at random without bias.

    Attributes:
        codec: "fp16", "bf16" (a refusal of what their range cannot hold), "fp8" (E4M3 with a scale a tensor,
            arXiv 2209.05433), "int8" (a scale a tensor); "qsgd" (at random, a norm a bucket; Alistarh et al.,
            NeurIPS 2017, arXiv 1610.02132), "terngrad" (-1, 0 or 1 at random, a scale a tensor; Wen et al.,
            NeurIPS 2017, arXiv 1705.07878), "sign" (signs and their mean magnitude a tensor; Bernstein et
            al., ICML 2018, arXiv 1802.04434).
        bits: bits an entry of "qsgd", sign included, 2 to 8; others have their own.
        bucket: entries that share a norm; "qsgd" only.
        error_feedback: whether what one round rounds off is added to the next one; where rounding is at
            random only if it is a contraction, that is with "qsgd" where the root of the bucket is below
            the levels (Karimireddy et al., ICML 2019, arXiv 1901.09847).
    """

    name: ClassVar[str] = "compress"
    codec: str = "int8"
    bits: int = 8
    bucket: int = 512
    error_feedback: bool = False

    def __post_init__(self) -> None:
        """Check the codec and its settings."""
        if self.codec not in _CODECS:
            raise unknown_name("codec", self.codec, _CODECS)
        if self.bits not in range(2, 9):
            raise InputError(f"compress: bits is {self.bits}, expected a whole number from 2 to 8")
        if self.codec != "qsgd" and self.bits != 8:
            raise InputError(
                f'compress: {self.codec} takes no bits, got {self.bits}; use codec="qsgd" for a choice'
            )
        if not isinstance(self.bucket, int) or not 1 <= self.bucket < 2**32:
            raise InputError(
                f"compress: bucket is {self.bucket}, expected a whole number from 1, such as 512"
            )
        self._check_feedback()

    def _check_feedback(self) -> None:
        """Refuse error feedback where rounding may add more energy than the update has: its error grows."""
        levels = 2 ** (self.bits - 1) - 1
        if self.error_feedback and self.codec == "qsgd" and self.bucket**0.5 >= levels:
            smaller = f"buckets below {levels**2}, " if levels > 1 else ""
            raise InputError(
                f"compress: error feedback with qsgd of {self.bits} bits and buckets of {self.bucket} grows "
                f"without bound; use {smaller}more bits, int8, or error_feedback=false"
            )
        if self.error_feedback and self.codec == "terngrad":
            raise InputError(
                "compress: error feedback with terngrad grows without bound; use sign, int8, or "
                "error_feedback=false"
            )

    @property
    def label(self) -> str:
        """Codec and strength, such as "qsgd 4 bit"."""
        return f"qsgd {self.bits} bit" if self.codec == "qsgd" else self.codec

    def settings(self) -> dict[str, Setting]:
        """Return the codec and what it uses."""
        own = super().settings()
        unused = () if self.codec == "qsgd" else ("bits", "bucket")
        return {
            name: value
            for name, value in own.items()
            if name not in unused and (name != "error_feedback" or value)
        }

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return fp16, int8, fp8, QSGD with 8, 4 and 2 bits, TernGrad and signs."""
        few = [cls(codec="qsgd", bits=bits) for bits in (8, 4, 2)]
        return [*map(cls._of, ("fp16", "int8", "fp8")), *few, cls._of("terngrad"), cls._of("sign")]

    @classmethod
    def _of(cls, codec: str) -> Self:
        return cls(codec=codec)

    def channel(self, update: Update) -> Channel:
        """Return the energy of the rounding, from what was transmitted; of signs, that they are signs.

        Rounding at random has scales that are not rounded, by which a gradient can be told.
        """
        noises: dict[str, Callable[[], float]] = {
            "int8": lambda: rounding.int8_noise(update),
            "qsgd": lambda: rounding.qsgd_noise(update, self.bits, self.bucket),
            "terngrad": lambda: rounding.ternary_noise(update),
            "sign": lambda: rounding.sign_noise(update),
        }
        noise = noises[self.codec]() if self.codec in noises else rounding.float_noise(update, self.codec)
        scales: dict[str, Callable[[], Scales]] = {
            "qsgd": lambda: rounding.qsgd_scales(update, self.bits, self.bucket),
            "terngrad": lambda: rounding.ternary_scales(update),
        }
        return Channel(
            noise_energy=noise,
            transform=rounding.signs if self.codec == "sign" else None,
            scales=scales[self.codec]() if self.codec in scales else None,
            key=(self.name, self.codec, self.bits, self.bucket),
        )

    def claims(self) -> Sequence[Claim]:
        """Return the levels that share a scale, or the largest error, and which rounding has no bias."""
        carried = (CarriesError(),) if self.error_feedback else ()
        claims: dict[str, tuple[Claim, ...]] = {
            "int8": (LimitsLevels(most=255),),
            "qsgd": (LimitsLevels(most=2**self.bits - 1, bucket=self.bucket), Unbiased()),
            "fp16": (RelativeError(most=2**-11, floor=2**-25),),
            "bf16": (RelativeError(most=2**-8),),
            "fp8": (LimitsLevels(most=253), RelativeError(most=2**-4, of_largest=2**-10 / 448)),
            "terngrad": (LimitsLevels(most=3), Unbiased()),
            "sign": (LimitsLevels(most=2),),
        }
        return (*claims[self.codec], Changes(), *carried)

    def keeps_error(self) -> bool:
        """Return whether rounding errors are carried on."""
        return self.error_feedback

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send the rounded entries; what arrives lies on the codec's grid."""
        content = self._encode(gradient, generator)
        shapes = {name: tuple(tensor.shape) for name, tensor in gradient.items()}
        return Message(codecs.decode(content, shapes), len(content))

    def _encode(self, gradient: dict[str, Tensor], generator: torch.Generator) -> bytes:
        if self.codec == "qsgd":
            return codecs.encode_qsgd(gradient, self.bits, self.bucket, generator)
        if self.codec == "terngrad":
            return codecs.encode_ternary(gradient, generator)
        if self.codec in ("fp16", "bf16", "fp8"):
            return codecs.encode_float(gradient, self.codec)
        return codecs.encode_int8(gradient) if self.codec == "int8" else codecs.encode_sign(gradient)
