"""Adaptive weights of the regularisers: the noisier the update, the stronger they must be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vleak.attacks.knowledge import Knowledge
from vleak.federated import Channel, Update

__all__ = ["AdaptiveWeights", "adaptive_weights", "energy_of"]


@dataclass(frozen=True, kw_only=True)
class AdaptiveWeights:
    """Weights of the regularisers against the noise in an update; those of an exact one ask for nothing.

    Attributes:
        noise_ratio: rho, root of noise energy over signal energy in the update, at least 0.
        pixels: n, how many numbers are to be rebuilt.
        entries: P, how many numbers of the update carry a measurement.
    """

    noise_ratio: float = 0.0
    pixels: int = 1
    entries: int = 1

    @property
    def smoothness(self) -> float:
        """Factor on total variation: the noisier the update, the stronger it must be.

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
    def background_smoothness(self) -> float:
        """Factor on total variation of the difference from a background that the attacker holds.

        `smoothness`, and at least sqrt(n / P): what fewer entries than pixels leave open is left to total
        variation, and a background is a far better start than the public mean.
        """
        return max(self.smoothness, math.sqrt(self.pixels / self.entries))

    @property
    def background_weight(self) -> float:
        """Weight of the pull towards that background, times the variance about it.

        `prior_weight` + 0.0004 max(n / P - 1, 0), set as the other constants were.
        """
        return self.prior_weight + 0.0004 * max(self.pixels / self.entries - 1, 0.0)


def adaptive_weights(channel: Channel | None, update: Update, knowledge: Knowledge) -> AdaptiveWeights:
    """Return the weights that a channel asks for; those of an exact update where none is known.

    The signal is what the noise does not explain. The energy of the noise itself varies by a factor of about
    sqrt(2 / P), below which no signal can be told.

    Args:
        channel: of the update, or None.
        update: what arrived.
        knowledge: tells how many numbers are to be rebuilt.
    """
    if channel is None or channel.exact:
        return AdaptiveWeights()
    entries = _entries(channel, update)
    noise = channel.noise_energy
    floor = max(noise * math.sqrt(2 / entries), 1e-30)
    ratio = math.sqrt(noise / max(energy_of(update) - noise, floor))
    return AdaptiveWeights(noise_ratio=ratio, pixels=math.prod(knowledge.batch_shape), entries=entries)


def energy_of(update: Update) -> float:
    """Return the squared norm of an update, the unit in which an L2 distance and its priors are weighed."""
    return sum(float(tensor.double().square().sum()) for tensor in update.tensors.values())


def _entries(channel: Channel, update: Update) -> int:
    """Return how many entries of an update carry a measurement, at least 1."""
    if channel.masks is None:
        return sum(tensor.numel() for tensor in update.tensors.values())
    return max(sum(int(mask.sum()) for mask in channel.masks.values()), 1)
