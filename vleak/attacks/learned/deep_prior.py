"""Deep prior: the clip is the output of an untrained network on noise, and its weights descend."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vleak.attacks.base import Attack, Hooks, Knowledge, Observation, Work
from vleak.attacks.expectation import prior_answer
from vleak.attacks.learned.decoded import DecodedSetup, Interpolate, Regularisers, decoded_problem
from vleak.descent.loop import Descent, DescentSettings
from vleak.errors import InputError

__all__ = ["DeepDecoder", "DeepPrior"]


class DeepPrior(Attack):
    """Gradient matching over the weights of an untrained network (Deep Image Prior, arXiv 1711.10925).

    The network maps fixed noise to the clip. It is a deep decoder (Heckel and Hand, ICLR 2019, arXiv
    1810.03982), in space and time: products over channels, each followed by interpolation to twice the size,
    with fewer weights than the clip has pixels, so that it takes up pictures before noise. It needs no public
    clips; where there are some it starts from their mean.
    """

    name: ClassVar[str] = "deep_prior"

    def __init__(
        self,
        *,
        iterations: int = 150,
        restarts: int = 1,
        engine: Literal["native", "reference"] = "native",
        learning_rate: float = 0.02,
        channels: int = 32,
        levels: int = 2,
        spatial: float = 0.03,
        temporal: float = 0.09,
        prior: float = 0.02,
    ) -> None:
        """Set the hyper-parameters.

        Args:
            iterations: of each restart, at least 1.
            restarts: independent networks and noises, at least 1; the smallest objective is the answer.
            engine: which loop runs, see `vleak.descent.loop`.
            learning_rate: of Adam, on the network's weights.
            channels: width of the network, at least 1.
            levels: times that it doubles the resolution, at least 1.
            spatial, temporal, prior: as of `Matching`, of the decoded clip.

        Raises:
            InputError: a number below 1.
        """
        if min(iterations, restarts, channels, levels) < 1:
            raise InputError(
                "deep_prior: expected at least 1 iteration, 1 restart, 1 channel and 1 level, got "
                f"{iterations}, {restarts}, {channels} and {levels}"
            )
        self.iterations, self.restarts, self.engine = iterations, restarts, engine
        self.learning_rate, self.channels, self.levels = learning_rate, channels, levels
        self.spatial, self.temporal, self.prior = spatial, temporal, prior

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Work:
        """Return a descent a restart, on the weights of its network."""
        setup = DecodedSetup.of(observation)
        # One noise for all restarts: their answers are decoded alike. They differ in the first weights.
        decoder = DeepDecoder(setup.knowledge, self.channels, self.levels, generator).to(setup.weight.device)
        regularisers = Regularisers(spatial=self.spatial, temporal=self.temporal, prior=self.prior)
        problem = decoded_problem(setup, decoder, regularisers)
        settings = DescentSettings(
            iterations=self.iterations,
            learning_rate=self.learning_rate,
            schedule="trapezoid",
            warmup=5,
            low=-math.inf,
            high=math.inf,
        )
        batch = setup.knowledge.batch_size
        starts = [decoder.start(batch, generator).to(setup.weight) for _ in range(self.restarts)]
        return Work(
            descents=[Descent(problem, settings, start, engine=self.engine) for start in starts],
            iterations=self.iterations,
            labels=observation.labels,
            decode=[decoder] * len(starts),
            channel=setup.channel,
        )


class DeepDecoder(nn.Module):
    """From rows of weights to clips: a network of its own for every clip, on the same fixed noise.

    From noise of 1 / 2^levels of the clip's size, a level is a product over channels, interpolation to twice
    the size, ReLU, and standardised channels with a scale and a shift; then a product to the colours. The
    first weights give the clip that an attacker without an update would expect, but for a little.
    """

    def __init__(self, knowledge: Knowledge, channels: int, levels: int, generator: torch.Generator) -> None:
        """Draw the noise.

        Args:
            knowledge: tells the clip's shape, and its mean where there are public clips.
            channels: width.
            levels: times that the resolution doubles; what is 1 stays 1.
            generator: CPU generator.
        """
        super().__init__()
        colours, *size = knowledge.clip_shape
        sizes = [tuple(math.ceil(length / 2**level) for length in size) for level in range(levels, -1, -1)]
        self.enlarge = nn.ModuleList(Interpolate(small, large) for small, large in pairwise(sizes))
        self.shapes = (
            *(shape for _ in range(levels) for shape in ((channels, channels), (channels, 2))),
            (colours, channels),
        )
        noise = torch.rand(1, channels, *sizes[0], generator=generator) - 0.5
        self.register_buffer("noise", noise)
        self.register_buffer("base", prior_answer(knowledge).clamp(0.02, 0.98).logit())

    def start(self, batch: int, generator: torch.Generator) -> Tensor:
        """Draw first weights, (batch, weights)."""
        parts = []
        for rows, columns in self.shapes:
            draws = torch.randn(batch, rows, columns, generator=generator) / math.sqrt(columns)
            if columns == 2:  # scales and shifts
                draws = 0.01 * draws + torch.tensor([1.0, 0.0])
            parts.append(draws.flatten(1))
        parts[-1] = 0.1 * parts[-1]
        return torch.cat(parts, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """Return clips (B, C, T, H, W) in [0, 1] of weights (B, weights)."""
        sizes = [math.prod(shape) for shape in self.shapes]
        *inner, last = (
            part.view(-1, *shape)
            for part, shape in zip(torch.split(rows, sizes, 1), self.shapes, strict=True)
        )
        x = self.get_buffer("noise").expand(len(rows), -1, -1, -1, -1)
        for mixing, affine, enlarge in zip(inner[::2], inner[1::2], self.enlarge, strict=True):
            x = enlarge((mixing @ x.flatten(2)).view(*x.shape))
            x = _standardised(x.relu().flatten(2)).mul(affine[:, :, :1]).add(affine[:, :, 1:]).view(x.shape)
        decoded = (last @ x.flatten(2)).view(len(rows), -1, *x.shape[2:])
        clips: Tensor = (self.get_buffer("base") + decoded).sigmoid()
        return clips


def _standardised(x: Tensor) -> Tensor:
    """Return channels (B, K, positions) of mean 0 and deviation 1."""
    x = x - x.mean(2, keepdim=True)
    return x * (x.square().mean(2, keepdim=True) + 1e-5).rsqrt()
