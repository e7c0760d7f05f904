"""Published settings of breaching as an attack of vleak: `vleak.evaluate` runs both on the same work."""

from __future__ import annotations

from typing import ClassVar

import torch
from breaching_loop import BreachingLoop, load
from torch import Tensor

from vleak.attacks import Attack, Observation, Reconstruction
from vleak.attacks.base import Hooks
from vleak.errors import CapabilityError, VleakError

PATTERN = 4
"""Side in pixels of the random pattern that breaching's "modern" settings start from."""


class Breaching(Attack):
    """Attack of breaching with a configuration that it publishes; granted labels, a gradient, eval mode.

    "invertinggradients" has the settings of Inverting Gradients (arXiv 2003.14053), "seethroughgradients"
    those of GradInversion (arXiv 2104.07586), "modern" those of breaching itself. Public clips are not used.
    Noise that a configuration adds while it descends comes from PyTorch's own generator: with it, answers of
    two runs differ a little.
    """

    name: ClassVar[str] = "breaching"
    adaptive: ClassVar[bool] = False

    def __init__(self, *, config: str = "invertinggradients", iterations: int = 24_000) -> None:
        """Take the name of the configuration and the length of its schedule.

        Raises:
            CapabilityError: breaching is not installed.
        """
        if load() is None:
            raise CapabilityError("breaching is not installed; benchmarks/breaching_loop.py says how")
        self.config, self.iterations = config, iterations

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Reconstruction:
        """Run the complete attack of breaching."""
        knowledge, model = observation.knowledge, observation.model
        assert knowledge.labels is not None
        gradient = [observation.update.tensors[name] for name, _ in model.named_parameters()]
        start = self._start(knowledge.batch_shape, generator)
        loop = BreachingLoop(model, knowledge.labels, gradient, start, config=self.config)

        def watch(done: int, _: Tensor) -> None:
            if hooks.stopped():
                raise VleakError("breaching: stopped")
            hooks.report(done)

        clips = loop.reconstruct(self.iterations, watch)
        return Reconstruction(
            clips=clips, labels=knowledge.labels, engine="reference", iterations=self.iterations, restarts=1
        )

    def _start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return breaching's start: normal numbers, or a pattern of them that fills every frame."""
        if self.config != "modern":
            return torch.randn(shape, generator=generator)
        batch, channels, frames, *size = shape
        pattern = torch.randn((batch, channels, 1, PATTERN, PATTERN), generator=generator)
        height, width = (-(-side // PATTERN) for side in size)
        return pattern.tile(1, 1, frames, height, width)[..., : size[0], : size[1]].contiguous()
