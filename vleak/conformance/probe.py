"""Probe: a small model, its clips, and the messages that a defense sends of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.federated import Defense, Loss, Message, mean_gradient, steps
from vleak.seeds import generator

__all__ = ["ABSENT", "CLASSES", "Probe", "distance", "flat"]

CLASSES = 8
ABSENT = CLASSES
"""Label of a clip that takes part in the batch, and contributes zero to its gradient."""
_SHAPE = (3, 4, 8, 8)
_PUBLIC = 16
"""Public clips, from which a defense may learn."""


@dataclass(frozen=True)
class Probe:
    """Batch of clips and a model, on which a defense is watched.

    Attributes:
        clips: how many, at least 1.
        scale: factor of the loss, and so of every gradient, above 0.
        seed: of clips, labels and weights.
        inverted: whether every clip is its negative; labels and weights are the same.
    """

    clips: int = 4
    scale: float = 1.0
    seed: int = 0
    inverted: bool = False

    @cached_property
    def model(self) -> nn.Module:
        """Convolution, smooth activation, pooling and a linear layer: 5,000 parameters, eval mode."""
        model = nn.Sequential(
            nn.Conv3d(3, 8, 3, padding=1, device="meta"), nn.Tanh(), nn.AvgPool3d((1, 2, 2)), nn.Flatten(),
            nn.Linear(512, CLASSES, device="meta"),
        ).to_empty(device="cpu")  # fmt: skip
        draws = generator("conformance", "weights", self.seed)
        for parameter in model.parameters():
            fan_in = max(1, parameter[0].numel())
            parameter.data = torch.randn(parameter.shape, generator=draws) / fan_in**0.5
        return model.eval()

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
        """Clips (N, 3, 4, 8, 8) in [0, 1] and labels (N,)."""
        draws = generator("conformance", "clips", self.seed)
        clips = torch.rand((self.clips, *_SHAPE), generator=draws)
        clips = 1 - clips if self.inverted else clips
        return clips, torch.randint(CLASSES, (self.clips,), generator=draws)

    @property
    def loss(self) -> Loss:
        """Mean cross-entropy over the clips times the scale; a clip labelled `ABSENT` adds zero."""

        def scaled(logits: Tensor, labels: Tensor) -> Tensor:
            each = F.cross_entropy(logits, labels.clamp(max=CLASSES - 1), reduction="none")
            return self.scale * (each * (labels != ABSENT)).mean()

        return scaled

    def gradient(self, absent: tuple[int, ...] = (), defense: Defense | None = None) -> dict[str, Tensor]:
        """Return the gradient of the batch, without what some clips contribute.

        Args:
            absent: clips that contribute zero.
            defense: whose model it is of; None for the probe's own.
        """
        model = self.model if defense is None else steps.extend_model(defense, self.model)
        return mean_gradient(model, self.loss, self.batch[0], self._labels(absent))

    def send(
        self,
        defense: Defense,
        seed: int,
        absent: tuple[int, ...] = (),
        memory: dict[str, Tensor] | None = None,
        draws: torch.Generator | None = None,
        only: slice | None = None,
    ) -> Message:
        """Return a message of the batch, as a client sends it.

        Args:
            defense: of the client.
            seed: of the client's randomness.
            absent: clips that contribute zero.
            memory: of error feedback, changed in place.
            draws: the client's randomness, to go on with it; None for that of the seed.
            only: which clips are the batch; None for all.

        Raises:
            CapabilityError: the defense refused, raised, or broke its contract.
        """
        draws = self.draws(seed) if draws is None else draws
        defense = steps.with_public(defense, *Probe(_PUBLIC, seed=self.seed + 1).batch)
        model, labels = steps.extend_model(defense, self.model), self._labels(absent)
        clips, labels = (each if only is None else each[only] for each in (self.batch[0], labels))
        memory, messages = {} if memory is None else memory, []
        for part in steps.parts_of(defense, len(clips)):
            own = steps.prepare_clips(defense, clips[part], labels[part], draws)
            gradient = steps.aggregate(defense, model, self.loss, *own, draws, memory)
            messages.append(steps.transmit(defense, gradient, draws, memory))
        return steps.summed(messages)

    def draws(self, seed: int) -> torch.Generator:
        """Return the randomness of a client with a seed."""
        return generator("conformance", "message", self.seed, seed)

    def _labels(self, absent: tuple[int, ...]) -> Tensor:
        labels = self.batch[1].clone()
        labels[list(absent)] = ABSENT
        return labels


def flat(tensors: dict[str, Tensor]) -> Tensor:
    """Return all entries as one float64 vector."""
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).double()


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the Euclidean norm of the difference over all tensors."""
    return float((flat(one) - flat(other)).norm())
