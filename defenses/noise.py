"""Noise without a certificate: on the whole update, where Outpost puts it, and where it hides a clip best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from vleak.defenses.dp_client import DpClient
from vleak.defenses.ranges import check_number, check_whole
from vleak.errors import InputError
from vleak.federated import (
    Changes,
    Channel,
    Claim,
    ClipsNorm,
    Defense,
    GaussianNoise,
    Loss,
    Message,
    Unbiased,
    Update,
    mean_gradient,
)

_MOST = 1e6


@dataclass(frozen=True, kw_only=True)
class Noise(Defense):
    """Clip of the client's whole update with Gaussian noise of a chosen deviation; states no epsilon.

    What publications call noise, or local differential privacy without accounting. Where an epsilon of it is
    wanted, `DpClient` with noise_multiplier = deviation / max_norm sends the same and states it.

    Attributes:
        deviation: standard deviation of the noise in every entry of the update, above 0.
        max_norm: largest norm of the update over all tensors before the noise, above 0.
    """

    name: ClassVar[str] = "noise"
    deviation: float = 0.01
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        """Check every setting."""
        check_number(self.name, "deviation", self.deviation, 1e-12, _MOST)
        check_number(self.name, "max_norm", self.max_norm, 1e-6, 1e12)

    @property
    def label(self) -> str:
        """Deviation, and the clipping norm where it is not 1."""
        clip = "" if self.max_norm == 1 else f" C={self.max_norm:g}"
        return f"noise {self.deviation:g}{clip}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the deviations 0.0001, 0.001, 0.01 and 0.1."""
        return [cls(deviation=deviation) for deviation in (1e-4, 1e-3, 1e-2, 1e-1)]

    def channel(self, update: Update) -> Channel:
        """Return what `DpClient` of the same noise states."""
        return self._client().channel(update)

    def claims(self) -> Sequence[Claim]:
        """Return the clip and the noise of the whole update."""
        clips = ClipsNorm(limit=self.max_norm, unit="client")
        return (clips, GaussianNoise(deviation=self.deviation, unit="client"))

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send the clipped update with noise, float32."""
        return self._client().transmit(gradient, generator)

    def _client(self) -> DpClient:
        return DpClient(noise_multiplier=self.deviation / self.max_norm, max_norm=self.max_norm)


@dataclass(frozen=True, kw_only=True)
class Outpost(Defense):
    """Prune every tensor and add noise to its risky entries, in every step that the client takes.

    Outpost (Wang et al., "More than Enough is Too Much", INFOCOM 2023). The risk of a tensor is the variance
    of its weights, at most 1; the noise has the risk times ``noise`` as its deviation and goes to the entries
    of largest empirical Fisher information, that is of largest square, over the whole gradient. That Outpost
    acts ever more rarely as training goes on is left out: here it always acts.

    Attributes:
        noise: deviation of the noise at risk 1, above 0.
        perturbed: part of the entries that get noise, in (0, 1].
        pruned: part of each tensor's entries that is dropped before, the smallest ones, in [0, 1).
    """

    name: ClassVar[str] = "outpost"
    noise: float = 0.8
    perturbed: float = 0.4
    pruned: float = 0.8

    def __post_init__(self) -> None:
        """Check every setting."""
        check_number(self.name, "noise", self.noise, 1e-12, _MOST)
        check_number(self.name, "perturbed", self.perturbed, 1e-12, 1.0)
        if not 0 <= self.pruned < 1:
            raise InputError(f"outpost: pruned is {self.pruned}, expected a number in [0, 1)")

    @property
    def label(self) -> str:
        """Name and noise."""
        return f"outpost {self.noise:g}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the noises 0.1, 0.8 (the published one) and 5."""
        return [cls(noise=noise) for noise in (0.1, 0.8, 5.0)]

    def claims(self) -> Sequence[Claim]:
        """Return that the message is not the gradient."""
        return (Changes(),)

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the pruned gradient of the batch with noise, on the CPU."""
        gradient = {n: g.cpu() for n, g in mean_gradient(model, loss, clips, labels).items()}
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        squares = np.concatenate([g.flatten().numpy() ** 2 for g in gradient.values()])
        risky = float(np.quantile(squares, 1 - self.perturbed))
        sent = {}
        for name, tensor in gradient.items():
            risk = float(weights[name].var(correction=0).clamp(max=1.0))
            least = float(np.quantile(tensor.abs().flatten().numpy(), self.pruned))
            draws = torch.randn(tensor.shape, generator=generator) * risk * self.noise
            sent[name] = torch.where(tensor.abs() >= least, tensor, 0.0)
            sent[name] += torch.where(tensor.square() >= risky, draws, 0.0)
        return sent


@dataclass(frozen=True, kw_only=True)
class OptimalNoise(Defense):
    """Gaussian noise that is stronger in entries that move more with the clip, without bias and clipping.

    Of all diagonal covariances with the same energy, that which makes the lower bound on the error of
    reconstruction largest (Chen et al., arXiv 2411.03746): of the Jacobian J of the gradient by the clips
    the bound knows the trace of J' S^-1 J, which is least where the variance of an entry is in proportion to
    the norm of its row of J. From the paper is the bound; that energy is what is held equal, so that every
    entry costs alike, and the norms' estimate from differences along random directions are choices here.

    Attributes:
        deviation: root of the mean variance over all entries, above 0.
        probes: random directions, at least 1; each costs two gradients.
    """

    name: ClassVar[str] = "optimal_noise"
    deviation: float = 0.01
    probes: int = 4

    def __post_init__(self) -> None:
        """Check every setting."""
        check_number(self.name, "deviation", self.deviation, 1e-12, _MOST)
        check_whole(self.name, "probes", self.probes, 1, 10**6)

    @property
    def label(self) -> str:
        """Name and deviation."""
        return f"optimal {self.deviation:g}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the deviations 0.0001, 0.001, 0.01 and 0.1."""
        return [cls(deviation=deviation) for deviation in (1e-4, 1e-3, 1e-2, 1e-1)]

    def channel(self, update: Update) -> Channel | None:
        """Return the energy of the noise, which is the same however it is spread; None of unknown steps.

        In a delta of K steps of SGD it is K times that of the learning rate times the noise.
        """
        local = update.facts.local
        if local is not None and (local.optimizer != "sgd" or local.momentum):
            return None
        variance = self.deviation**2 * (1.0 if local is None else local.learning_rate**2 * local.steps)
        entries = sum(tensor.numel() for tensor in update.tensors.values())
        return Channel(noise_energy=variance * entries, key=(self.name, self.deviation, self.probes, local))

    def claims(self) -> Sequence[Claim]:
        """Return that the noise has no bias."""
        return (Unbiased(), Changes())

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the gradient of the batch with noise, on the CPU."""
        rows = self._row_norms(model, loss, clips, labels, generator)
        mean = sum(float(row.sum()) for row in rows.values()) / sum(row.numel() for row in rows.values())
        sent = {}
        for name, tensor in mean_gradient(model, loss, clips, labels).items():
            share = rows[name] / mean if mean else torch.ones_like(rows[name])
            noise = torch.randn(tensor.shape, generator=generator) * share.sqrt().float()
            sent[name] = tensor.cpu() + self.deviation * noise
        return sent

    def _row_norms(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return an estimate of the norm of every entry's derivative by the clips, float64 on the CPU."""
        length = 0.01 * float(clips.square().mean().sqrt()) or 0.01
        squares: dict[str, Tensor] = {}
        for _ in range(self.probes):
            direction = length * torch.randn(clips.shape, generator=generator).to(clips)
            ahead = mean_gradient(model, loss, clips + direction, labels)
            behind = mean_gradient(model, loss, clips - direction, labels)
            for name, tensor in ahead.items():
                step = (tensor - behind[name]).double().cpu() / (2 * length)
                squares[name] = squares.get(name, torch.zeros_like(step)) + step.square() / self.probes
        return {name: square.sqrt() for name, square in squares.items()}
