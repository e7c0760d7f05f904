"""Gradient matching behind a decoder: the variable is not the clip but what a decoder makes it from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks.base import Knowledge, Observation
from vleak.attacks.expectation import expected_clip
from vleak.attacks.matching.adaptive import AdaptiveWeights, adaptive_weights
from vleak.attacks.simulation import known_channel
from vleak.attacks.target import masked_target
from vleak.descent.loop import Problem
from vleak.federated import LOSSES, Channel
from vleak.federated.gradients import mean_gradient

__all__ = ["Decoded", "DecodedSetup", "Interpolate", "Regularisers", "decoded_problem"]


@dataclass(frozen=True, kw_only=True)
class Regularisers:
    """Weights of the decoded clip's own properties beside the distance of gradients.

    Attributes:
        spatial, temporal: of anisotropic total variation, per pixel.
        prior: of half the mean squared distance to the mean public clip.
    """

    spatial: float = 0.0
    temporal: float = 0.0
    prior: float = 0.0

    def scaled(self, weights: AdaptiveWeights, knowledge: Knowledge) -> Regularisers:
        """Return what the noise in the update asks for."""
        return Regularisers(
            spatial=self.spatial * weights.smoothness,
            temporal=self.temporal * weights.smoothness,
            prior=self.prior + weights.prior_weight / knowledge.public_variance(),
        )


@dataclass(frozen=True)
class DecodedSetup:
    """What all descents of one attack behind a decoder share.

    Attributes:
        observation: as `Attack.prepare` has it.
        channel: what is known of the defense, or None.
        weights: what the channel asks of the regularisers.
    """

    observation: Observation
    channel: Channel | None
    weights: AdaptiveWeights

    @classmethod
    def of(cls, observation: Observation) -> DecodedSetup:
        """Return the setup of an observation."""
        channel = known_channel(observation)
        weights = adaptive_weights(channel, observation.update, observation.knowledge)
        return cls(observation, channel, weights)

    @property
    def knowledge(self) -> Knowledge:
        """The observation's."""
        return self.observation.knowledge

    @property
    def weight(self) -> Tensor:
        """A parameter of the model, of the type and on the device of all tensors."""
        return next(self.observation.model.parameters())


class Decoded(nn.Module):
    """A model behind a decoder, so that its variable is what the decoder takes: rows (B, ...).

    What is matched is a gradient, and the decoded clip is to be smooth as well. The module therefore has one
    parameter more, "price", at 0, whose gradient is the root of what the clip's roughness costs, and whose
    target is 0: a distance then grows by just that cost (exactly so "l2", and "cosine" while it is small).
    """

    def __init__(
        self,
        model: nn.Module,
        decoder: nn.Module,
        regularisers: Regularisers,
        unit: float,
        prior: Tensor | None,
    ) -> None:
        """Put a decoder before a model.

        Args:
            model: takes clips (B, C, T, H, W).
            decoder: rows to clips in [0, 1]; without parameters, what it has are buffers.
            regularisers: of the decoded clip.
            unit: norm of gradients like those that are matched.
            prior: (C, T, H, W), or None.
        """
        super().__init__()
        self.model, self.decoder = model, decoder
        self.price = nn.Parameter(torch.zeros(()))
        self.weights = (regularisers.spatial, regularisers.temporal, regularisers.prior)
        self.register_buffer("unit", torch.tensor(unit))
        self.register_buffer("prior", prior)

    def forward(self, rows: Tensor) -> Tensor:
        """Return (B, classes + 1): the model's output, and the clip's price in the last column."""
        clips = self.decoder(rows)
        cost = self.price * self.get_buffer("unit") * (2 * self._roughness(clips) + 1e-12).sqrt()
        return torch.cat([self.model(clips), cost.expand(len(clips), 1) / len(clips)], 1)

    def _roughness(self, clips: Tensor) -> Tensor:
        spatial, temporal, pull = self.weights
        rough = [clips.diff(dim=axis).abs().sum() * spatial for axis in (3, 4)]
        rough.append(clips.diff(dim=2).abs().sum() * temporal)
        cost = torch.stack(rough).sum() / clips.numel()
        if self.prior is None:
            return cost
        return cost + pull / 2 * (clips - self.get_buffer("prior")).square().mean()


def decoded_problem(setup: DecodedSetup, decoder: nn.Module, regularisers: Regularisers) -> Problem:
    """Return the problem whose variable is what a decoder takes.

    Args:
        setup: of the attack.
        decoder: rows (B, ...) to clips (B, C, T, H, W) in [0, 1], without parameters.
        regularisers: of the decoded clip, those of an undefended update.
    """
    observation, weight = setup.observation, setup.weight
    loss = observation.update.facts.loss
    scaled = regularisers.scaled(setup.weights, setup.knowledge)
    matched, masks = masked_target(observation, setup.channel, weight)
    unit = _expected_norm(setup, masks or {})
    wrapped = Decoded(observation.model, decoder, scaled, unit, setup.knowledge.public_mean())
    wrapped = wrapped.to(weight.device)
    target = {f"model.{name}": tensor for name, tensor in matched.items()}
    return Problem(
        model=wrapped,
        loss=_priced(loss),
        labels=observation.labels.to(weight.device),
        target={**target, "price": torch.zeros_like(wrapped.price)},
        masks=None if masks is None else _priced_masks(masks, weight.device),
    )


def _expected_norm(setup: DecodedSetup, masks: dict[str, Tensor]) -> float:
    """Return the norm that the gradient of the expected clip has in the entries that carry a measurement."""
    observation, weight = setup.observation, setup.weight
    loss = LOSSES[observation.update.facts.loss]
    clips = expected_clip(setup.knowledge).expand(setup.knowledge.batch_shape).to(weight)
    gradient = mean_gradient(observation.model, loss, clips, observation.labels.to(weight.device))
    return math.sqrt(sum(float((g * masks.get(n, 1)).square().sum()) for n, g in gradient.items()))


def _priced_masks(masks: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    price = torch.ones((), dtype=torch.bool)
    return {
        name: mask.to(device)
        for name, mask in {"price": price, **{f"model.{n}": m for n, m in masks.items()}}.items()
    }


@cache
def _priced(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss that also takes a column of prices; the same object each time, so programs are shared."""
    loss = LOSSES[name]

    def priced(logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits[:, :-1], labels) + logits[:, -1].sum()

    return priced


class Interpolate(nn.Module):
    """Linear interpolation in frames, rows and columns, as products; their derivatives are products too."""

    def __init__(self, size: tuple[int, ...], larger: tuple[int, ...]) -> None:
        """Take (..., T, H, W) of one size to a larger one."""
        super().__init__()
        for name, old, new in zip(("frames", "rows", "columns"), size, larger, strict=True):
            self.register_buffer(name, F.interpolate(torch.eye(old)[None], size=new, mode="linear")[0])

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, T, H, W) at the larger size."""
        frames, rows, columns = (self.get_buffer(name) for name in ("frames", "rows", "columns"))
        within = rows.T @ (x @ columns)
        return (frames.T @ within.flatten(3)).view(*x.shape[:2], -1, *within.shape[3:])
