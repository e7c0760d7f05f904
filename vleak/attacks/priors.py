"""What attacks share whose variable is not the clip but what a decoder makes the clip from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks.adaptive import Channel
from vleak.attacks.base import Observation, Reconstruction
from vleak.attacks.matching import health
from vleak.descent.loop import Descent, Problem, State
from vleak.federated import LOSSES
from vleak.federated.gradients import mean_gradient


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How much the decoded clip's own properties count beside the distance of gradients.

    Attributes:
        spatial, temporal: of anisotropic total variation, per pixel.
        prior: of half the mean squared distance to the mean public clip.
    """

    spatial: float
    temporal: float
    prior: float


class Decoded(nn.Module):
    """A model behind a decoder, so that its variable is what the decoder takes: rows (B, ...).

    What is matched is a gradient, and the decoded clip is to be smooth as well. The module therefore has one
    parameter more, "price", at 0, whose gradient is the root of what the clip's roughness costs, and whose
    target is 0: a distance then grows by just that cost (exactly so "l2", and "cosine" while it is small).
    """

    def __init__(
        self, model: nn.Module, decoder: nn.Module, weights: Weights, unit: float, prior: Tensor | None
    ) -> None:
        """Put a decoder before a model.

        Args:
            model: takes clips (B, C, T, H, W).
            decoder: rows to clips in [0, 1]; without parameters, what it has are buffers.
            weights: of the clip's own properties.
            unit: norm of gradients like those that are matched.
            prior: (C, T, H, W), or None.
        """
        super().__init__()
        self.model, self.decoder = model, decoder
        self.price = nn.Parameter(torch.zeros(()))
        self.weights = (weights.spatial, weights.temporal, weights.prior)
        self.register_buffer("unit", torch.tensor(unit))
        self.register_buffer("prior", prior)

    def forward(self, rows: Tensor) -> Tensor:
        """Return (B, classes + 1): what the model says, and the clip's price in the last column."""
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


def decoded_problem(
    observation: Observation,
    labels: Tensor,
    channel: Channel,
    decoder: nn.Module,
    weights: Weights,
) -> Problem:
    """Return the problem whose variable is what a decoder takes.

    Args:
        observation: what was seen; its model in the client's mode.
        labels: (B,).
        channel: what the attacker makes of the defense.
        decoder: rows (B, ...) to clips (B, C, T, H, W) in [0, 1], without parameters.
        weights: of the decoded clip's properties, those of an undefended update.
    """
    model, knowledge = observation.model, observation.knowledge
    weight = next(model.parameters())
    name = observation.update.facts.loss
    labels, prior = labels.to(weight.device), knowledge.public_mean()
    pull = weights.prior + channel.prior_weight / knowledge.public_variance()
    scaled = Weights(
        spatial=weights.spatial * channel.smoothness,
        temporal=weights.temporal * channel.smoothness,
        prior=pull,
    )
    masks = channel.masks or {}
    centre = prior if prior is not None else torch.full(knowledge.clip_shape, 0.5)
    likely = mean_gradient(model, LOSSES[name], centre.expand(knowledge.batch_shape).to(weight), labels)
    unit = math.sqrt(sum(float((g.cpu() * masks.get(n, 1)).square().sum()) for n, g in likely.items()))
    wrapped = Decoded(model, decoder, scaled, unit, prior).to(weight.device)
    target = {f"model.{name}": tensor.to(weight) for name, tensor in observation.update.tensors.items()}
    return Problem(
        model=wrapped,
        loss=_priced(name),
        labels=labels,
        target={**target, "price": torch.zeros_like(wrapped.price)},
        masks=None if channel.masks is None else _masks(channel.masks, weight.device),
    )


def _masks(masks: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
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


def answer_of(
    loops: Sequence[Descent], states: Sequence[State], decoder: nn.Module, labels: Tensor, channel: Channel
) -> Reconstruction:
    """Return the restart of the smallest objective, decoded.

    Args:
        loops: one a restart, all on rows of one kind.
        states: where each of them stands.
        decoder: of the restart that is chosen, or of all.
        labels: (B,).
        channel: what the attacker made of the defense.
    """
    chosen = min(states, key=lambda state: state.best_objective)
    with torch.no_grad():
        clips = decoder(chosen.best).cpu()
    return Reconstruction(
        clips=clips,
        labels=labels,
        adaptive=channel.adaptive,
        engine=loops[0].engine,
        iterations=sum(len(state.history) for state in states),
        restarts=sum(bool(state.history) for state in states),
        objective=chosen.best_objective if math.isfinite(chosen.best_objective) else math.nan,
        history=tuple(chosen.history),
        nan_at=chosen.nan_at,
        flags=health(chosen),
    )


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
