"""Energy of the error of each codec, read off what arrived: the channels of compressed updates."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from vleak.defenses.codecs.floats import FORMATS
from vleak.federated import Scales, Update

__all__ = [
    "float_noise",
    "int8_noise",
    "qsgd_noise",
    "qsgd_scales",
    "sign_noise",
    "signs",
    "ternary_noise",
    "ternary_scales",
]

_PEAKED = 3.0
"""Mean square of a gradient's entries over their squared mean magnitude: 3 on untrained `c3d_tiny` and `lrcn`
with synthetic clips; 2 for a Laplace, pi / 2 for a normal distribution."""


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
    buckets = _buckets(update.tensors, bucket)
    signal = _sent_norms(buckets, bits).square().sum()
    # Rounding is never exact: a channel without any noise is that of an update that nothing altered.
    return max(float(buckets.square().sum() - signal), sys.float_info.min)


def qsgd_scales(update: Update, bits: int, bucket: int) -> Scales:
    """Return the norms of the buckets, which QSGD sends unrounded, as far as what arrived tells them."""
    norms = _sent_norms(_buckets(update.tensors, bucket), bits)
    return Scales(
        torch.where(norms > 0, norms, torch.nan), lambda gradient: _buckets(gradient, bucket).norm(dim=1)
    )


def ternary_scales(update: Update) -> Scales:
    """Return the largest magnitude of every tensor, which TernGrad sends unrounded."""
    sent = _largest(update.tensors)
    return Scales(torch.where(sent > 0, sent, torch.nan), _largest)


def _largest(tensors: dict[str, Tensor]) -> Tensor:
    filled = [t for t in tensors.values() if t.numel()]
    return torch.stack([t.detach().cpu().abs().max().double() for t in filled])


def _buckets(tensors: dict[str, Tensor], bucket: int) -> Tensor:
    """Return the magnitudes of all entries by bucket, (buckets, bucket) float64, the last one padded."""
    flat = torch.cat([t.detach().cpu().flatten().double().abs() for t in tensors.values()])
    padded: Tensor = F.pad(flat, (0, -len(flat) % bucket)).view(-1, bucket)
    return padded


def _sent_norms(buckets: Tensor, bits: int) -> Tensor:
    """Return the norm of every bucket before rounding, (buckets,); 0 where all arrived as 0."""
    levels = 2 ** (bits - 1) - 1
    steps = torch.where(buckets > 0, buckets, torch.inf).amin(1)
    norms = levels * torch.where(steps.isfinite(), steps, 0.0)
    several = (norms / buckets.norm(dim=1).clamp(min=1e-30)).round().clamp(min=1)
    true: Tensor = norms / several
    return true


def ternary_noise(update: Update) -> float:
    """Return the expected energy of rounding to -1, 0 or 1 times a scale, which is unbiased.

    The energy before is not in the message, but for the mean magnitude: that of peaked entries is assumed.
    """
    noise = 0.0
    for tensor in update.tensors.values():
        magnitudes = tensor.double().abs()
        signal = _PEAKED * magnitudes.sum() ** 2 / max(tensor.numel(), 1)
        noise += float((magnitudes.square().sum() - signal).clamp(min=0))
    return max(noise, sys.float_info.min)


def sign_noise(update: Update) -> float:
    """Return the expected energy of signs times their mean magnitude that is not along the gradient.

    The square of the cosine between peaked entries and their signs is the inverse of what `ternary_noise`
    assumes.
    """
    energy = sum(float(tensor.double().square().sum()) for tensor in update.tensors.values())
    return max(energy * (1 - 1 / _PEAKED), sys.float_info.min)


def float_noise(update: Update, name: str) -> float:
    """Return the expected energy of rounding to a floating-point format: step^2 / 12 an entry.

    The step is 2^(exponent - mantissa bits), and that of the smallest normal number below it.
    """
    kind, noise = FORMATS[name], 0.0
    for tensor in update.tensors.values():
        if not tensor.numel():
            continue
        entries = tensor.double().abs()
        scale = float(entries.max()) / kind.largest if kind.scaled else 1.0
        exponents = torch.frexp(entries / (scale or 1.0)).exponent - 1
        steps = torch.exp2(exponents.clamp(min=kind.least_exponent).double() - kind.mantissa) * scale
        noise += float((steps.square() / 12)[entries > 0].sum())
    return max(noise, sys.float_info.min)


def signs(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the sign of every entry, zero as positive, times the mean magnitude of its tensor."""
    sent = {}
    for name, tensor in gradient.items():
        scale = float(tensor.abs().double().mean()) if tensor.numel() else math.nan
        sent[name] = torch.where(tensor >= 0, scale, -scale).to(tensor.dtype)
    return sent
