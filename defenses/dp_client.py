"""DP-FedAvg: clip the client's whole update, add Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from vleak.defenses.accounting import LEAST_NOISE, check_accounting, check_least, gaussian_privacy
from vleak.errors import InputError
from vleak.federated import Channel, Claim, ClipsNorm, Defense, GaussianNoise, Message, Privacy, Update


@dataclass(frozen=True, kw_only=True)
class DpClient(Defense):
    """Clip of the client's whole gradient or delta, with Gaussian noise that the client adds itself.

    DP-FedAvg (McMahan et al., ICLR 2018, arXiv 1710.06963), for one client alone.

    The unit is the client with all its clips: a neighbour is a client whose whole update is replaced by zero.
    Local steps cost nothing more, as one update leaves the client. Of a single clip among several less is
    proven: without it the update is another one of at most the same norm, up to twice the norm away.

    Attributes:
        noise_multiplier: noise standard deviation over ``max_norm``, 0 or more; 0 clips only and proves
            nothing.
        max_norm: largest norm of the update over all tensors, above 0; a delta is of the order of the
            learning rate, a gradient of the order 1.
        delta: failure probability of the guarantee, in (0, 1).
        rounds: releases of the training run, for its epsilon.
        sample_rate: chance of the client to take part in a round, in (0, 1], for the same.
    """

    name: ClassVar[str] = "dp_client"
    noise_multiplier: float = 1.0
    max_norm: float = 1.0
    delta: float = 1e-5
    rounds: int = 1
    sample_rate: float = 1.0

    def __post_init__(self) -> None:
        """Check every setting."""
        for name, low, high in (("noise_multiplier", 0.0, 1e6), ("max_norm", 1e-12, 1e12)):
            if not low <= getattr(self, name) <= high:
                value = getattr(self, name)
                raise InputError(
                    f"{self.name}: {name} is {value}, expected a number from {low:g} to {high:g}"
                )
        check_accounting(self.name, delta=self.delta, rounds=self.rounds, sample_rate=self.sample_rate)
        check_least(self.name, "noise_multiplier", self.noise_multiplier, LEAST_NOISE, zero=True)

    @property
    def label(self) -> str:
        """Noise multiplier, and the clipping norm where it is not 1."""
        clip = "" if self.max_norm == 1 else f" C={self.max_norm:g}"
        return f"client σ={self.noise_multiplier:g}{clip}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the noise multipliers 0.001, 0.01, 0.1 and 1."""
        return [cls(noise_multiplier=noise) for noise in (0.001, 0.01, 0.1, 1.0)]

    def channel(self, update: Update) -> Channel:
        """Return the noise, in every entry ``noise_multiplier * max_norm``.

        The clipping norm is that of the whole update, which for one clip in one step is that of the clip.
        """
        deviation, clips = self.noise_multiplier * self.max_norm, update.facts.batch_size
        entries = sum(tensor.numel() for tensor in update.tensors.values())
        return Channel(
            noise_energy=deviation**2 * entries,
            noise_deviation=deviation * clips,
            clip_norm=self.max_norm if clips == 1 else math.inf,
            key=(self.noise_multiplier, self.max_norm),
        )

    def claims(self) -> Sequence[Claim]:
        """Return clipping and noise of the whole update; without noise clipping alone."""
        clips = ClipsNorm(limit=self.max_norm, unit="client")
        deviation = self.noise_multiplier * self.max_norm
        return (clips, GaussianNoise(deviation=deviation, unit="client")) if deviation else (clips,)

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send the clipped update with noise, float32."""
        tensors = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in gradient.items()}
        norm = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))
        factor = min(1.0, self.max_norm / norm) if norm else 1.0
        deviation = self.noise_multiplier * self.max_norm
        sent = {
            name: tensor * factor + deviation * torch.randn(tensor.shape, generator=generator)
            for name, tensor in tensors.items()
        }
        return Message(sent, sum(tensor.nbytes for tensor in sent.values()))

    def privacy(self) -> Privacy | None:
        """Return epsilon of one release (analytic Gaussian) and of the run; None without noise."""
        return gaussian_privacy(
            self.noise_multiplier, unit="one client", delta=self.delta, rounds=self.rounds,
            sample_rate=self.sample_rate,
        )  # fmt: skip

    def privacy_of(self, uses: int, updates: int = 1) -> Privacy | None:
        """Return the certificate of some updates: the same after any number of local steps."""
        return replace(self, noise_multiplier=self.noise_multiplier / math.sqrt(updates)).privacy()
