"""What an attacker makes of knowing the defense: which entries to match, and how far to trust them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vleak.attacks.base import Knowledge
from vleak.federated import Update


@dataclass(frozen=True, kw_only=True)
class Channel:
    """The defended update as a noisy, partial measurement of the gradient.

    Attributes:
        adaptive: whether the attacker knows the defense and uses it.
        masks: by parameter name, True where an entry carries a measurement; None for all.
        noise_ratio: rho, root of noise energy over signal energy in the update, at least 0.
        pixels: n, how many numbers are to be rebuilt.
        entries: P, how many numbers of the update carry a measurement.
    """

    adaptive: bool = False
    masks: dict[str, Tensor] | None = None
    noise_ratio: float = 0.0
    pixels: int = 1
    entries: int = 1

    @property
    def smoothness(self) -> float:
        """Factor on total variation: with noise the prior must carry more of the answer.

        1 + min(rho n / (8 sqrt(P)), 15): the noise pulls at a pixel in proportion to rho / sqrt(P), total
        variation, being a mean, to 1 / n. The constants here and in `prior_weight` were set on synthetic
        clips of a seed that no default run draws; docs/method.md has the table.
        """
        return 1 + min(self.noise_ratio * self.pixels / math.sqrt(self.entries) / 8, 15.0)

    @property
    def prior_weight(self) -> float:
        """Weight of the pull towards the mean public clip, times the variance of public clips about it.

        0.008 rho^2 n / P: of the noise in P numbers, n unknowns take in the part n / P.
        """
        return 0.008 * self.noise_ratio**2 * self.pixels / self.entries

    @property
    def scene_smoothness(self) -> float:
        """Factor on total variation of the difference from a background that the attacker holds.

        `smoothness`, and at least sqrt(n / P): what fewer entries than pixels leave open is the prior's, and
        a background is a far better one than the public mean.
        """
        return max(self.smoothness, math.sqrt(self.pixels / self.entries))

    @property
    def scene_weight(self) -> float:
        """Weight of the pull towards that background, times the variance about it.

        `prior_weight` + 0.0004 max(n / P - 1, 0), set as the other constants were.
        """
        return self.prior_weight + 0.0004 * max(self.pixels / self.entries - 1, 0.0)


def observe_channel(update: Update, knowledge: Knowledge) -> Channel:
    """Return what knowing the defense says about the update; a plain channel without knowledge."""
    handler = _HANDLERS.get(knowledge.defense or "")
    return Channel() if handler is None else handler(update, knowledge)


def _dp(update: Update, knowledge: Knowledge) -> Channel:
    settings = knowledge.defense_settings
    deviation = settings["noise_multiplier"] * settings["max_grad_norm"] / knowledge.batch_size
    return _noisy(update, knowledge, deviation**2 * _count(update))


def _prune(update: Update, knowledge: Knowledge) -> Channel:
    masks = {name: tensor != 0 for name, tensor in update.tensors.items()}
    kept = sum(int(mask.sum()) for mask in masks.values())
    return Channel(adaptive=True, masks=masks, pixels=math.prod(knowledge.batch_shape), entries=max(kept, 1))


def _compress(update: Update, knowledge: Knowledge) -> Channel:
    settings = knowledge.defense_settings
    noise = _int8_noise(update) if settings["codec"] == "int8" else _qsgd_noise(update, settings)
    return _noisy(update, knowledge, noise)


def _int8_noise(update: Update) -> float:
    """Return the expected energy of rounding to the nearest of 255 steps: step^2 / 12 an entry."""
    return sum(
        t.numel() * (float(t.abs().max()) / 127) ** 2 / 12 for t in update.tensors.values() if t.numel()
    )


def _qsgd_noise(update: Update, settings: dict[str, Any]) -> float:
    """Return the energy that stochastic rounding added: what arrived less the bucket norms that QSGD sends.

    Rounding is unbiased, so energies add; a bucket's norm is its step times the number of levels. The
    smallest value in it that is not zero is one step, or several where no entry was rounded so low.
    """
    levels, bucket = 2 ** (settings["bits"] - 1) - 1, settings["bucket"]
    flat = torch.cat([tensor.flatten().double().abs() for tensor in update.tensors.values()])
    buckets = F.pad(flat, (0, -len(flat) % bucket)).view(-1, bucket)
    steps = torch.where(buckets > 0, buckets, torch.inf).amin(1)
    norms = levels * torch.where(steps.isfinite(), steps, 0.0)
    several = (norms / buckets.norm(dim=1).clamp(min=1e-30)).round().clamp(min=1)
    signal = (norms / several).square().sum()
    return max(float(flat.square().sum() - signal), 0.0)


def _noisy(update: Update, knowledge: Knowledge, noise: float) -> Channel:
    """Return the channel for an expected noise energy; the signal is what the noise does not explain.

    The energy of the noise itself varies by a factor of about sqrt(2 / P), below which no signal can be told.
    """
    entries = _count(update)
    energy = sum(float(tensor.double().square().sum()) for tensor in update.tensors.values())
    floor = max(noise * math.sqrt(2 / entries), 1e-30)
    ratio = math.sqrt(noise / max(energy - noise, floor))
    return Channel(adaptive=True, noise_ratio=ratio, pixels=math.prod(knowledge.batch_shape), entries=entries)


def _count(update: Update) -> int:
    return sum(tensor.numel() for tensor in update.tensors.values())


_HANDLERS: dict[str, Callable[[Update, Knowledge], Channel]] = {
    "none": lambda update, knowledge: Channel(adaptive=True),
    "dp": _dp,
    "prune": _prune,
    "compress": _compress,
}
