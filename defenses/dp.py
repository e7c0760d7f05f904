"""DP-SGD: clip every clip's gradient, add Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn

from vleak.defenses.accounting import LEAST_NOISE, check_accounting, check_least, gaussian_privacy
from vleak.defenses.dp_checks import check_independence, check_mean, check_one_per_clip, refuse_batch_norm
from vleak.errors import InputError
from vleak.federated import (
    Channel,
    Claim,
    ClipsNorm,
    Defense,
    GaussianNoise,
    Loss,
    Privacy,
    Update,
    mean_gradient,
    per_clip_gradients,
)

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

_MOST = 1e12


@dataclass(frozen=True, kw_only=True)
class DpSgd(Defense):
    """One release of DP-SGD (Abadi et al., CCS 2016, arXiv 1607.00133), clipped and noised by Opacus.

    Sent is ``(sum of clipped gradients + normal(0, (noise_multiplier * max_grad_norm)^2)) / clips``. The
    unit is one clip with all its frames, or whatever else a row of the batch is (`Client.privacy`). Batches
    are neighbours when the contribution of one clip to the sum is replaced by zero ("zero out"); not when a
    clip is added or removed, as the divisor, the size of the batch, is public and stays.

    Attributes:
        noise_multiplier: noise standard deviation over ``max_grad_norm``, 0 or more; 0 clips only and proves
            nothing.
        max_grad_norm: largest norm of one clip's gradient, above 0.
        delta: failure probability of the guarantee, in (0, 1).
        rounds: releases of the training run, for its epsilon.
        sample_rate: chance of a clip to be in a round, in (0, 1], for the same.
    """

    name: ClassVar[str] = "dp"
    short: ClassVar[str] = "dp"
    noise_multiplier: float = 1.0
    max_grad_norm: float = 1.0
    delta: float = 1e-5
    rounds: int = 1
    sample_rate: float = 1.0

    def __post_init__(self) -> None:
        """Check every hyper-parameter."""
        if not 0 <= self.noise_multiplier < math.inf:
            raise InputError(
                f"{self.name}: noise_multiplier is {self.noise_multiplier}, expected a finite number, 0 or "
                "more"
            )
        if not 0 < self.max_grad_norm < math.inf:
            raise InputError(
                f"{self.name}: max_grad_norm is {self.max_grad_norm}, expected a finite number above 0"
            )
        check_accounting(self.name, delta=self.delta, rounds=self.rounds, sample_rate=self.sample_rate)
        self._check_extremes()

    def _check_extremes(self) -> None:
        """Refuse noise and norms that float32 messages cannot hold apart from 0 or infinity."""
        deviation = self.noise_multiplier * self.max_grad_norm
        if deviation > _MOST or self.max_grad_norm > _MOST:
            raise InputError(
                f"{self.name}: noise_multiplier is {self.noise_multiplier} and max_grad_norm "
                f"{self.max_grad_norm}, expected max_grad_norm and their product to be at most {_MOST:g}"
            )
        check_least(self.name, "noise_multiplier", self.noise_multiplier, LEAST_NOISE, zero=True)
        check_least(self.name, "max_grad_norm", self.max_grad_norm, 1e-12)
        object.__setattr__(self, "noise_multiplier", abs(self.noise_multiplier))  # -0.0 is 0

    @property
    def label(self) -> str:
        """Noise multiplier, and the clipping norm where it is not 1."""
        clip = "" if self.max_grad_norm == 1 else f" C={self.max_grad_norm:g}"
        return f"{self.short} σ={self.noise_multiplier:g}{clip}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the noise multipliers 0.001, 0.01, 0.1 and 1."""
        return [cls(noise_multiplier=noise) for noise in (0.001, 0.01, 0.1, 1.0)]

    def channel(self, update: Update) -> Channel | None:
        """Return the clipping norm and the noise, in every entry ``noise_multiplier * max_grad_norm / B``.

        In a delta of K steps of SGD on b clips each the noises add up, to K times the variance of the
        learning rate times ``noise_multiplier * max_grad_norm / b``. With momentum or Adam nothing is stated.
        """
        deviation, norm = self.noise_multiplier * self.max_grad_norm, self.max_grad_norm
        local, clips = update.facts.local, update.facts.batch_size
        if local is not None:
            if local.optimizer != "sgd" or local.momentum:
                return None
            rate = local.learning_rate
            deviation *= rate * math.sqrt(local.steps) * clips / local.step_size(clips)
            norm *= rate * local.steps
        entries = sum(tensor.numel() for tensor in update.tensors.values())
        return Channel(
            noise_energy=(deviation / clips) ** 2 * entries,
            noise_deviation=deviation,
            clip_norm=norm,
            key=(self.name, self.noise_multiplier, self.max_grad_norm, local),
        )

    def claims(self) -> Sequence[Claim]:
        """Return clipping and noise of one clip; without noise clipping alone."""
        clips = ClipsNorm(limit=self.max_grad_norm)
        deviation = self.noise_multiplier * self.max_grad_norm
        return (clips, GaussianNoise(deviation=deviation)) if deviation else (clips,)

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the noisy mean of the clipped gradients, on the CPU, after checking that it protects a clip.

        Raises:
            CapabilityError: batch norm, or a model or loss in which clips are not separate.
        """
        return self.combine(self.checked(model, loss, clips, labels), generator)

    def checked(self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return one gradient a clip, (N, *parameter shape) by name, each of that clip alone.

        Raises:
            CapabilityError: as `aggregate`.
        """
        refuse_batch_norm(model, self.name)
        samples = self.per_clip(model, loss, clips, labels)
        check_one_per_clip(samples, len(clips))
        check_mean(samples, self.plain(model, loss, clips, labels))
        check_independence(lambda altered: self.per_clip(model, loss, altered, labels), samples, clips)
        return samples

    def check_model(self, model: nn.Module) -> None:
        """Refuse batch norm, through which every clip acts on the gradients of the others."""
        refuse_batch_norm(model, self.name)

    def per_clip(self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return one gradient a clip, (N, *parameter shape) by name. Another way to get them goes here."""
        return per_clip_gradients(model, loss, clips, labels)

    def plain(self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return what the mean of `per_clip` has to be, had in another way: a check of it."""
        return mean_gradient(model, loss, clips, labels)

    def optimizer(
        self, parameters: Sequence[nn.Parameter], clips: int, generator: torch.Generator
    ) -> DPOptimizer:
        """Return the optimizer of Opacus that clips and adds noise. Another way to clip goes here.

        Args:
            parameters: with ``grad_sample``, (N, *parameter shape).
            clips: N, the public divisor of their sum.
            generator: of the noise.
        """
        # Imported here because Opacus takes seconds to import.
        from opacus.optimizers import DPOptimizer

        return DPOptimizer(
            torch.optim.SGD(parameters, lr=0.0),
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.max_grad_norm,
            expected_batch_size=clips,
            loss_reduction="mean",
            generator=generator,
        )

    def privacy(self) -> Privacy | None:
        """Return epsilon of one release (analytic Gaussian) and of the run; None without noise."""
        return gaussian_privacy(
            self.noise_multiplier, unit="one clip", delta=self.delta, rounds=self.rounds,
            sample_rate=self.sample_rate,
        )  # fmt: skip

    def privacy_of(self, uses: int, updates: int = 1) -> Privacy | None:
        """Return the certificate of K steps on a clip in all: that of one with 1 / sqrt(K) of the noise."""
        return replace(self, noise_multiplier=self.noise_multiplier / math.sqrt(uses * updates)).privacy()

    def combine(self, samples: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Let Opacus clip and add noise, on stand-ins for the parameters so that the model stays clean."""
        return self.release(samples, generator)[0]

    def release(
        self, samples: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[dict[str, Tensor], DPOptimizer]:
        """Return what `combine` returns, and the optimizer of Opacus after it."""
        # On the CPU, where the generator draws: a GPU run gets the same noise. Of one axis at least, because
        # Opacus has no norm of a single number a clip.
        stand_ins = {name: nn.Parameter(torch.empty(s.shape[1:] or (1,))) for name, s in samples.items()}
        for name, parameter in stand_ins.items():
            parameter.grad_sample = samples[name].cpu().view(-1, *parameter.shape)  # type: ignore[attr-defined]
        clips = len(next(iter(samples.values())))
        with torch.no_grad():  # nothing here is differentiated, and an audit does it thousands of times
            optimizer = self.optimizer(list(stand_ins.values()), clips, generator)
            optimizer.pre_step()
        gradient = {
            name: p.grad.detach().view(samples[name].shape[1:])
            for name, p in stand_ins.items()
            if p.grad is not None
        }
        return gradient, optimizer
