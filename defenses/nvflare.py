"""What NVFlare ships as privacy filters, by its published rules: percentile and sparse vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from vleak.defenses.ranges import check_number
from vleak.defenses.rounding import sign_noise
from vleak.errors import CapabilityError
from vleak.federated import (
    Changes,
    Channel,
    Claim,
    Defense,
    LimitsEntries,
    Message,
    Update,
    surviving_entries,
)

_PASSES = 10_000
"""Most passes over the entries; published code goes on for ever where none reaches the threshold."""


@dataclass(frozen=True, kw_only=True)
class NvflarePercentile(Defense):
    """Drop the smallest entries over the whole update and cut the others off at a magnitude.

    NVFlare's PercentilePrivacy, after Shokri and Shmatikov (CCS 2015); no noise, so nothing is proven. The
    cutoff is the percentile of all magnitudes; a tensor without axes is sent as it is. NVFlare divides by the
    local steps before and multiplies after it: give ``gamma`` times the steps where there are several.

    Attributes:
        percentile: in [0, 100]; entries below it become 0.
        gamma: largest magnitude that is sent, above 0.
    """

    name: ClassVar[str] = "nvflare_percentile"
    percentile: float = 10.0
    gamma: float = 0.01

    def __post_init__(self) -> None:
        """Check every setting."""
        check_number(self.name, "percentile", self.percentile, 0.0, 100.0)
        check_number(self.name, "gamma", self.gamma, 1e-30, 1e30)

    @property
    def label(self) -> str:
        """Percentile, and gamma where it is not 0.01."""
        gamma = "" if self.gamma == 0.01 else f" γ={self.gamma:g}"
        return f"pctile {self.percentile:g}{gamma}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the shipped percentile 10, and 90."""
        return [cls(), cls(percentile=90.0)]

    def channel(self, update: Update) -> Channel:
        """Return that the entries which were neither dropped nor cut off are exact.

        Where most were cut off, all that were not dropped are taken, as little more than signs.
        """
        kept = surviving_entries(update)
        exact = {
            name: kept[name] & ((t.abs() < self.gamma * (1 - 1e-6)) | (t.ndim == 0))
            for name, t in update.tensors.items()
        }
        counts = [sum(int(mask.sum()) for mask in masks.values()) for masks in (exact, kept)]
        rough = 2 * counts[0] < counts[1]
        return Channel(
            masks=kept if rough else exact,
            noise_energy=sign_noise(update) if rough else 0.0,
            transform=self._filtered,
            key=(self.name, self.percentile, self.gamma),
        )

    def claims(self) -> Sequence[Claim]:
        """Return the largest magnitude that is sent."""
        return (LimitsEntries(most=self.gamma), Changes())

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send all entries as float32, the dropped ones as 0."""
        tensors = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in gradient.items()}
        sent = self._filtered(tensors)
        return Message(sent, sum(tensor.nbytes for tensor in sent.values()))

    def _filtered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        magnitudes = torch.cat([tensor.flatten().abs() for tensor in tensors.values()]).numpy()
        cutoff = float(np.percentile(magnitudes, self.percentile))
        return {
            name: torch.where(t.abs() < cutoff, 0.0, t).clamp(-self.gamma, self.gamma)
            if t.ndim
            else t.clone()
            for name, t in tensors.items()
        }


@dataclass(frozen=True, kw_only=True)
class NvflareSvt(Defense):
    """Send some entries of large magnitude, found with noise, cut off and with Laplace noise.

    NVFlare's SVTPrivacy after its rule of April 2026 (the sparse vector technique, Lyu et al., VLDB 2017,
    arXiv 1603.01699); before, entries that were accepted and not drawn stayed as they were. Passes over the
    entries accept those whose magnitude with noise reaches a noisy threshold, until ``fraction`` of all is
    reached; so many are drawn of those accepted, with replacement. Tensors without axes are sent as they are.

    No certificate of Gaussian form exists; `epsilon_of` says what is spent.

    Attributes:
        epsilon: asked for, of choosing the entries, above 0.
        fraction: part of the entries that is drawn, in (0, 1].
        noise_var: epsilon of each entry's release as NVFlare counts it, above 0.
        gamma: magnitude at which entries are cut off, above 0.
        tau: threshold, 0 or more.
    """

    name: ClassVar[str] = "nvflare_svt"
    epsilon: float = 0.1
    fraction: float = 0.1
    noise_var: float = 0.1
    gamma: float = 1e-5
    tau: float = 1e-6

    def __post_init__(self) -> None:
        """Check every setting."""
        check_number(self.name, "epsilon", self.epsilon, 1e-12, 1e12)
        check_number(self.name, "fraction", self.fraction, 1e-12, 1.0)
        check_number(self.name, "noise_var", self.noise_var, 1e-12, 1e12)
        check_number(self.name, "gamma", self.gamma, 1e-30, 1e30)
        check_number(self.name, "tau", self.tau, 0.0, 1e30)

    @property
    def label(self) -> str:
        """Epsilon as it is asked for."""
        return f"svt asked ε={self.epsilon:g}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the shipped settings, before them a thousandth of their noise over a wider gamma."""
        return [cls(gamma=0.01, noise_var=100.0), cls()]

    def epsilon_of(self, entries: int) -> tuple[float, float]:
        """Return what one message of so many entries spends, in nats: by NVFlare's count, and proven.

        NVFlare counts epsilon for the choice and noise_var for each entry that is drawn. Its passes accept
        more entries than it draws, up to all of them, each at the same cost; and replaced by zero is an
        update whose entries move by gamma, not by twice that. Both are for delta = 0.
        """
        drawn, threshold, query = self._budget(entries)
        asked = self.epsilon + drawn * self.noise_var
        return asked, threshold + query * entries / drawn + drawn * self.noise_var / 2

    def channel(self, update: Update) -> Channel:
        """Return which entries were drawn, and the energy of the noise in them.

        Where the noise leaves most of them clearly below gamma, those that may be cut off are left out.
        """
        drawn, scale = surviving_entries(update), 2 * self.gamma / self.noise_var
        below = {
            name: drawn[name] & ((t.abs() < self.gamma - 4 * scale) | (t.ndim == 0))
            for name, t in update.tensors.items()
        }
        counts = [sum(int(mask.sum()) for mask in masks.values()) for masks in (below, drawn)]
        masks = below if 2 * counts[0] > counts[1] else drawn
        noisy = sum(int(mask.sum()) for mask in masks.values() if mask.ndim)
        return Channel(
            masks=masks,
            noise_energy=2 * scale**2 * noisy,
            transform=self._cut,
            key=(self.name, self.epsilon, self.fraction, self.noise_var, self.gamma, self.tau),
        )

    def claims(self) -> Sequence[Claim]:
        """Return that the message is not the gradient."""
        return (Changes(),)

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send all entries as float32, those that were not drawn as 0.

        Raises:
            CapabilityError: no entry reaches the threshold.
        """
        tensors = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in gradient.items()}
        flat = torch.cat([tensor.flatten() for tensor in self._cut(tensors).values()]).double()
        if not flat.isfinite().all():
            raise CapabilityError("nvflare_svt: the update holds NaN or infinity; nothing was sent")
        drawn, threshold, query = self._budget(len(flat))
        accepted = self._accepted(flat, drawn, (threshold, query), generator)
        chosen = torch.unique(accepted[torch.randint(len(accepted), (drawn,), generator=generator)])
        sent = torch.zeros_like(flat)
        sent[chosen] = flat[chosen] + laplace(len(chosen), 2 * self.gamma / self.noise_var, generator)
        parts = torch.split(sent.float(), [tensor.numel() for tensor in tensors.values()])
        arrived = {
            name: part.view_as(t) if t.ndim else t.clone()
            for (name, t), part in zip(tensors.items(), parts, strict=True)
        }
        return Message(arrived, sum(tensor.nbytes for tensor in arrived.values()))

    def _accepted(
        self, flat: Tensor, drawn: int, budget: tuple[float, float], generator: torch.Generator
    ) -> Tensor:
        """Return the positions of at least as many entries (P,) as are drawn."""
        threshold = self.tau + float(laplace(1, self.gamma / budget[0], generator))
        scale, accepted = 2 * self.gamma * drawn / budget[1], torch.zeros(len(flat), dtype=torch.bool)
        for _ in range(_PASSES):
            reached = flat.abs() + laplace(len(flat), scale, generator) >= threshold
            accepted |= reached
            if int(accepted.sum()) >= drawn:
                return accepted.nonzero().flatten()
        raise CapabilityError(
            f"nvflare_svt: in {_PASSES} passes fewer than {drawn} entries reached the threshold; lower tau "
            "or epsilon; nothing was sent"
        )

    def _budget(self, entries: int) -> tuple[int, float, float]:
        """Return how many of so many entries are drawn, and the epsilons of threshold and queries."""
        drawn = min(math.ceil(entries * self.fraction), entries)
        threshold = self.epsilon / (1 + (2 * drawn) ** (2 / 3))
        return drawn, threshold, self.epsilon - threshold

    def _cut(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: t.clamp(-self.gamma, self.gamma) if t.ndim else t for n, t in tensors.items()}


def laplace(count: int, scale: float, generator: torch.Generator) -> Tensor:
    """Return draws (count,) of a Laplace distribution with mean 0, float64."""
    draws = torch.empty(2, count, dtype=torch.float64).exponential_(generator=generator)
    return scale * (draws[0] - draws[1])
