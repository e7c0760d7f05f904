"""A package outside of vleak that adds a defense and a metric by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import vleak
from vleak.federated import Message
from vleak.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class Rounding(vleak.Defense):
    """Gradient with a short mantissa. It states no channel, so the attacker simulates it on public clips."""

    name = "rounding"
    bits: int = 8

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Keep `bits` bits of the mantissa."""
        sent = {}
        for name, tensor in gradient.items():
            mantissa, exponent = torch.frexp(tensor)
            sent[name] = torch.ldexp(torch.round(mantissa * 2**self.bits) / 2**self.bits, exponent)
        return Message(sent, wire_bytes=sum(t.numel() * (self.bits + 8) // 8 for t in sent.values()))


class WorstFrame(Metric):
    """PSNR of the frame that came back worst."""

    name = "worst_frame"

    def score(self, reconstruction: Tensor, truth: Tensor) -> float:
        """Lowest PSNR over the frames of (C, T, H, W), in dB."""
        errors = (reconstruction - truth).square().mean((0, 2, 3))
        return float(-10 * torch.log10(errors.max().clamp(min=1e-10)))
