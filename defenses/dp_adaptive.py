"""Adaptive clipping: the norm follows a quantile of the norms that are clipped, by counts with noise.

Andrew et al., NeurIPS 2021, arXiv 1905.03871. With every message goes the number of units that were not
clipped, with Gaussian noise; between rounds the norm is multiplied by exp(-rate (share - quantile)). A unit
without a gradient, such as the neighbor's, counts half, so that the count moves by a half at most. Beside a
count of noise s, (z^-2 - (2 s)^-2)^(-1/2) is left to the gradients of noise z for the whole (Theorem 1): the
two together prove what z does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from vleak.defenses.dp import DpSgd
from vleak.defenses.dp_client import DpClient
from vleak.defenses.ranges import check_number
from vleak.errors import InputError
from vleak.federated import Channel, Claim, Loss, Message, NoisyMetric, Update

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

__all__ = ["DpAdaptive", "DpClientAdaptive"]

COUNT, NORM = "unclipped", "clipping_norm"
"""Numbers that travel along: the noisy count, and the norm that it was counted at, which the server knows."""
_COUNT_BYTES = 4
_LEAST, _MOST = 1e-12, 1e12


def _check(name: str, multiplier: float, quantile: float, learning_rate: float, count_noise: float) -> None:
    """Check the settings that adaptive clipping adds.

    Raises:
        InputError: one is out of its range, or the count alone reveals more than the noise multiplier allows.
    """
    check_number(name, "quantile", quantile, 0.0, 1.0)
    check_number(name, "learning_rate", learning_rate, 1e-12, 100.0)
    check_number(name, "count_noise", count_noise, 1e-12, 1e12)
    if multiplier >= 2 * count_noise:
        raise InputError(
            f"{name}: count_noise is {count_noise}, by which the count alone reveals what noise_multiplier "
            f"{multiplier} allows for all; expected more than {multiplier / 2:g}"
        )


def gradient_noise(multiplier: float, count_noise: float) -> float:
    """Return the noise multiplier of the gradients, where that of them and the count together is given."""
    return float((multiplier**-2 - (2 * count_noise) ** -2) ** -0.5) if multiplier else 0.0


def _norm_of(defense: str, memory: dict[str, Tensor], first: float) -> float:
    return float(memory.get(f"{defense}/{NORM}", first))


@dataclass(frozen=True, kw_only=True)
class DpAdaptive(DpSgd):
    """DP-SGD with adaptive clipping (arXiv 1905.03871), by Opacus (``AdaClipDPOptimizer``, from 1.6).

    `noise_multiplier`, and so epsilon, is that of gradients and count together. With local training the norm
    moves in every step, and of several steps no channel is stated.

    Attributes:
        max_grad_norm: of the first round.
        quantile: share of clips that is not to be clipped, in [0, 1].
        learning_rate: of the norm, above 0.
        count_noise: standard deviation of the noise on the number of clips that were not clipped, above half
            of ``noise_multiplier``.
    """

    name: ClassVar[str] = "dp_adaptive"
    short: ClassVar[str] = "adaptive"
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float = 1.0

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        _check(self.name, self.noise_multiplier, self.quantile, self.learning_rate, self.count_noise)

    def channel(self, update: Update) -> Channel | None:
        """Return what `DpSgd` states of the norm of this round; None of several local steps."""
        local = update.facts.local
        if local is not None and local.steps > 1:
            return None
        norm = update.metrics.get(NORM, self.max_grad_norm)
        channel = self._fixed(norm).channel(update)
        return None if channel is None else replace(channel, key=(self.name, channel.key))

    def claims(self) -> Sequence[Claim]:
        """Return clipping and noise of one clip in the first round, and the noise of the count."""
        count = NoisyMetric(metric=COUNT, limit=0.5, deviation=self.count_noise)
        return (*self._fixed(self.max_grad_norm).claims(), count)

    def optimizer(
        self, parameters: Sequence[nn.Parameter], clips: int, generator: torch.Generator
    ) -> DPOptimizer:
        """Return Opacus' optimizer with adaptive clipping, in which a clip without a gradient counts half."""
        from opacus.optimizers import AdaClipDPOptimizer

        class Halved(AdaClipDPOptimizer):  # type: ignore[misc]  # Opacus has no types
            unclipped_num: Tensor

            def clip_and_accumulate(self) -> None:
                flat = torch.cat([sample.flatten(1) for sample in self.grad_samples], 1)
                super().clip_and_accumulate()
                self.unclipped_num = self.unclipped_num - 0.5 * (~flat.any(1)).sum()

        return Halved(
            torch.optim.SGD(parameters, lr=0.0),
            noise_multiplier=self.noise_multiplier,
            target_unclipped_quantile=self.quantile,
            clipbound_learning_rate=self.learning_rate,
            max_clipbound=_MOST,
            min_clipbound=_LEAST,
            unclipped_num_std=self.count_noise,
            max_grad_norm=self.max_grad_norm,
            expected_batch_size=clips,
            loss_reduction="mean",
            generator=generator,
        )

    def aggregate_in_round(
        self,
        model: nn.Module,
        loss: Loss,
        clips: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        memory: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return the noisy mean of the gradients, clipped at the norm of this round, and move the norm."""
        norm = _norm_of(self.name, memory, self.max_grad_norm)
        samples = self.checked(model, loss, clips, labels)
        gradient, optimizer = replace(self, max_grad_norm=norm).release(samples, generator)
        facts = {NORM: optimizer.max_grad_norm, COUNT: optimizer.unclipped_num, f"last {NORM}": norm}  # type: ignore[attr-defined]
        memory.update(
            {f"{self.name}/{k}": torch.as_tensor(v).double().detach().cpu() for k, v in facts.items()}
        )
        return gradient

    def transmit_in_round(
        self, gradient: dict[str, Tensor], generator: torch.Generator, memory: dict[str, Tensor]
    ) -> Message:
        """Send gradient and count."""
        message = super().transmit_in_round(gradient, generator, memory)
        kept = {COUNT: f"{self.name}/{COUNT}", NORM: f"{self.name}/last {NORM}"}
        metrics = {name: float(memory[key]) for name, key in kept.items() if key in memory}
        return Message(message.tensors, message.wire_bytes + _COUNT_BYTES, metrics)

    def _fixed(self, norm: float) -> DpSgd:
        """Return DP-SGD of the gradients alone, at one norm."""
        return DpSgd(
            noise_multiplier=gradient_noise(self.noise_multiplier, self.count_noise), max_grad_norm=norm
        )


@dataclass(frozen=True, kw_only=True)
class DpClientAdaptive(DpClient):
    """DP-FedAvg with adaptive clipping (arXiv 1905.03871), noise of update and bit added by the client.

    `noise_multiplier`, and so epsilon, is that of both together. The server would take the mean bit of all
    clients; here the norm moves by that of this client alone.

    Attributes:
        max_norm: of the first round.
        quantile: share of clients that is not to be clipped, in [0, 1].
        learning_rate: of the norm, above 0.
        count_noise: standard deviation of the noise on the bit, above half of ``noise_multiplier``.
    """

    name: ClassVar[str] = "dp_client_adaptive"
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float = 1.0

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        _check(self.name, self.noise_multiplier, self.quantile, self.learning_rate, self.count_noise)

    @property
    def label(self) -> str:
        """Noise multiplier, and the first clipping norm where it is not 1."""
        return super().label.replace("client", "adapt cl")

    def channel(self, update: Update) -> Channel:
        """Return what `DpClient` states of the norm of this round."""
        channel = self._fixed(update.metrics.get(NORM, self.max_norm)).channel(update)
        return replace(channel, key=(self.name, channel.key))

    def claims(self) -> Sequence[Claim]:
        """Return clipping and noise of the update in the first round, and the noise of the bit."""
        bit = NoisyMetric(metric=COUNT, limit=0.5, deviation=self.count_noise)
        return (*self._fixed(self.max_norm).claims(), bit)

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send the clipped update with noise and the bit, in one round."""
        return self.transmit_in_round(gradient, generator, {})

    def transmit_in_round(
        self, gradient: dict[str, Tensor], generator: torch.Generator, memory: dict[str, Tensor]
    ) -> Message:
        """Send the update, clipped at the norm of this round, and the bit, and move the norm."""
        limit = _norm_of(self.name, memory, self.max_norm)
        message = self._fixed(limit).transmit(gradient, generator)
        norm = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in gradient.values()))
        bit = float(norm <= limit) if norm else 0.5
        bit += self.count_noise * float(torch.randn((), generator=generator, dtype=torch.float64))
        moved = limit * math.exp(min(max(-self.learning_rate * (bit - self.quantile), -700.0), 700.0))
        memory[f"{self.name}/{NORM}"] = torch.tensor(min(max(moved, _LEAST), _MOST), dtype=torch.float64)
        return Message(message.tensors, message.wire_bytes + _COUNT_BYTES, {COUNT: bit, NORM: limit})

    def _fixed(self, norm: float) -> DpClient:
        """Return DP-FedAvg of the update alone, at one norm."""
        return DpClient(
            noise_multiplier=gradient_noise(self.noise_multiplier, self.count_noise), max_norm=norm
        )
