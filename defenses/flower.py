"""What Flower ships for its clients, by its published rules: clipping, fixed or adaptive, and local noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from vleak.certificates.gaussian import gaussian_epsilon
from vleak.defenses.accounting import check_accounting, gaussian_privacy
from vleak.defenses.dp_client import DpClient
from vleak.defenses.ranges import check_number
from vleak.errors import InputError
from vleak.federated import Channel, Claim, ClipsNorm, Defense, GaussianNoise, Message, Privacy, Update
from vleak.registry import Setting

_MEMORY = "flower/clipping_norm"
"""Name in a client's memory of the norm at which it clips in this round."""

_MOST_NOISE = 1e6
"""Largest noise over the clipping norm, beside which float32 keeps next to nothing of an update."""


@dataclass(frozen=True, kw_only=True)
class FlowerClipping(Defense):
    """Clip of the client's whole update, as Flower's clients do under central DP; they add no noise.

    The noise is added by the server, here the attacker, so nothing is proven against it. Fixed clipping:
    McMahan et al., ICLR 2018, arXiv 1710.06963. Adaptive clipping (Andrew et al., NeurIPS 2021, arXiv
    1905.03871) sends one bit more, whether the update was clipped, and between rounds the server multiplies
    the norm by exp(-learning_rate (clipped - quantile)), with the share of clients that clipped. The paper
    takes the share of those that did not, so that the norm finds the quantile; Flower's moves away from it.

    Attributes:
        clipping_norm: largest norm of the update, in the first round if it is adaptive, above 0.
        adaptive: whether the norm moves between rounds, by the bit of this client alone.
        quantile: share of clients that is to be clipped, in [0, 1]; adaptive only.
        learning_rate: of the norm, above 0; adaptive only.
    """

    name: ClassVar[str] = "flower_clipping"
    clipping_norm: float = 1.0
    adaptive: bool = False
    quantile: float = 0.5
    learning_rate: float = 0.2

    def __post_init__(self) -> None:
        """Check every setting."""
        check_number(self.name, "clipping_norm", self.clipping_norm, 1e-12, 1e12)
        check_number(self.name, "quantile", self.quantile, 0.0, 1.0)
        check_number(self.name, "learning_rate", self.learning_rate, 1e-12, 100.0)

    @property
    def label(self) -> str:
        """Kind of clipping, and its norm."""
        return f"{'adaptive' if self.adaptive else 'clip'} C={self.clipping_norm:g}"

    def settings(self) -> dict[str, Setting]:
        """Return what is in use."""
        own = super().settings()
        return own if self.adaptive else {"clipping_norm": own["clipping_norm"]}

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return fixed clipping at 1, and adaptive clipping from 0.1."""
        return [cls(), cls(clipping_norm=0.1, adaptive=True)]

    def channel(self, update: Update) -> Channel:
        """Return the clipping norm; an adaptive one is the norm of the update, which was clipped at it."""
        norm = math.sqrt(sum(float(t.double().square().sum()) for t in update.tensors.values()))
        limit = norm if self.adaptive and norm else self.clipping_norm
        key = (self.name, self.adaptive, None if self.adaptive else limit)
        return Channel(
            noise_deviation=0.0, clip_norm=limit if update.facts.batch_size == 1 else math.inf, key=key
        )

    def claims(self) -> Sequence[Claim]:
        """Return the clip of the whole update, that of the first round."""
        return (ClipsNorm(limit=self.clipping_norm, unit="client"),)

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send the clipped update, float32."""
        return self.transmit_in_round(gradient, generator, {})

    def transmit_in_round(
        self, gradient: dict[str, Tensor], generator: torch.Generator, memory: dict[str, Tensor]
    ) -> Message:
        """Send the update, clipped at the norm that the server made of the bits of earlier rounds."""
        limit = float(memory.get(_MEMORY, self.clipping_norm))
        clip = DpClient(noise_multiplier=0.0, max_norm=limit)
        message = clip.transmit(gradient, generator)
        if not self.adaptive:
            return message
        norm = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in gradient.values()))
        moved = limit * math.exp(-self.learning_rate * ((norm > limit) - self.quantile))
        memory[_MEMORY] = torch.tensor(min(max(moved, 1e-12), 1e12), dtype=torch.float64)
        return Message(message.tensors, message.wire_bytes + 1)


@dataclass(frozen=True, kw_only=True)
class FlowerLocalDp(Defense):
    """Clip and Gaussian noise of the client's update, as Flower's LocalDpMod; the epsilon is computed anew.

    The noise has the deviation sensitivity sqrt(2 ln(1.25 / delta)) / epsilon (Dwork and Roth 2014, Theorem
    A.1, proven for epsilon below 1 alone), whatever the clipping norm is: the sensitivity is a setting of its
    own that nothing checks. The certificate here is what the noise gives over the clipping norm; the label
    has the epsilon that is asked for and that one.

    Attributes:
        epsilon: asked for, above 0.
        clipping_norm: largest norm of the update, above 0.
        sensitivity: as it is declared, 0 or more; 0 adds no noise.
        delta: failure probability, in (0, 1).
    """

    name: ClassVar[str] = "flower_local_dp"
    epsilon: float = 16.0
    clipping_norm: float = 1.0
    sensitivity: float = 1.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        """Check every setting."""
        check_number(self.name, "epsilon", self.epsilon, 1e-6, 1e12)
        check_number(self.name, "clipping_norm", self.clipping_norm, 1e-12, 1e12)
        check_number(self.name, "sensitivity", self.sensitivity, 0.0, 1e6)
        check_accounting(self.name, delta=self.delta, rounds=1, sample_rate=1.0)
        if self.noise_multiplier > _MOST_NOISE:
            raise InputError(
                f"{self.name}: epsilon is {self.epsilon}, out of reach: it takes noise of "
                f"{self.noise_multiplier:.3g} clipping norms, expected at most {_MOST_NOISE:g}; at this "
                f"sensitivity and clipping_norm give an epsilon from "
                f"{self.epsilon * self.noise_multiplier / _MOST_NOISE:.3g}"
            )
        DpClient(noise_multiplier=self.noise_multiplier, max_norm=self.clipping_norm)

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over the clipping norm."""
        classical = math.sqrt(max(2 * math.log(1.25 / self.delta), 0.0))
        return self.sensitivity * classical / self.epsilon / self.clipping_norm

    @property
    def label(self) -> str:
        """Epsilon as asked for, and as it is."""
        proven = gaussian_epsilon(self.noise_multiplier, self.delta)
        return f"local ε {self.epsilon:g}→{proven:.3g}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the epsilons 64, 16 and 4."""
        return [cls(epsilon=epsilon) for epsilon in (64.0, 16.0, 4.0)]

    def channel(self, update: Update) -> Channel:
        """Return what `DpClient` of the same noise states."""
        return self._client().channel(update)

    def claims(self) -> Sequence[Claim]:
        """Return the clip and the noise of the whole update."""
        clips = ClipsNorm(limit=self.clipping_norm, unit="client")
        deviation = self.noise_multiplier * self.clipping_norm
        return (clips, GaussianNoise(deviation=deviation, unit="client")) if deviation else (clips,)

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send the clipped update with noise, float32."""
        return self._client().transmit(gradient, generator)

    def privacy(self) -> Privacy | None:
        """Return the analytic epsilon of the noise over the clipping norm; None without noise."""
        return self.privacy_of(1)

    def privacy_of(self, uses: int, updates: int = 1) -> Privacy | None:
        """Return the certificate of some updates: the same after any number of local steps."""
        multiplier = self.noise_multiplier / math.sqrt(updates)
        return gaussian_privacy(multiplier, unit="one client", delta=self.delta, rounds=1, sample_rate=1.0)

    def _client(self) -> DpClient:
        return DpClient(noise_multiplier=self.noise_multiplier, max_norm=self.clipping_norm)
