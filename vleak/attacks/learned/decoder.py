"""Decoder prior: the clip is the output of a small network, trained on public clips, on a latent."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks.base import Hooks, Observation, Reconstruction, Work
from vleak.attacks.cache import Cache
from vleak.attacks.learned.augment import augment
from vleak.attacks.learned.decoded import DecodedSetup, Interpolate, Regularisers, decoded_problem
from vleak.attacks.learned.public import PublicClipsAttack, check_public
from vleak.descent.loop import Descent, DescentSettings, Problem
from vleak.errors import InputError
from vleak.seeds import generator as seeded
from vleak.seeds import tensor_digest

__all__ = ["Decoder", "PublicDecoder", "train_decoder"]

_BATCH = 8


@dataclass(frozen=True)
class _PixelRound:
    """What the second round needs, which leaves the latents.

    Attributes:
        setup: of the attack.
        iterations: of the round.
    """

    setup: DecodedSetup
    iterations: int


class Decoder(PublicClipsAttack):
    """Gradient matching in the latents of a decoder of public clips, then in pixels (arXiv 2110.14962).

    Gradient Inversion with Generative Image Prior (GIAS, Jeon et al., NeurIPS 2021) leaves the latent space
    after it has been searched, as a generator never holds the private clip exactly; so does this, from its
    answer and drawn towards it. The generator is the decoder of a variational auto-encoder, trained in
    seconds on the public clips and altered versions of them, and kept in the process. Its latents have
    places, so that it learns what pieces of such clips look like, of which few clips show many.
    """

    name: ClassVar[str] = "decoder"

    def __init__(
        self,
        *,
        iterations: int = 150,
        restarts: int = 1,
        engine: Literal["native", "reference"] = "native",
        learning_rate: float = 0.1,
        share: float = 0.5,
        pixel_rate: float = 0.03,
        spatial: float = 0.03,
        temporal: float = 0.09,
        prior: float = 0.02,
        latent: float = 0.002,
        steps: int = 200,
        copies: int = 8,
    ) -> None:
        """Set the hyper-parameters.

        Args:
            iterations: of each restart, in latents and pixels together, at least 1.
            restarts: independent latents, at least 1; the smallest objective is the answer.
            engine: which loop runs, see `vleak.descent.loop`.
            learning_rate: of Adam on the latents.
            share: part of the iterations spent on latents, in (0, 1]; 1 never leaves them.
            pixel_rate: of Adam on the pixels.
            spatial, temporal: as of `Matching`, for decoded clips and pixels.
            prior: weight of half the mean squared distance to the mean public clip, while in latents, and
                to the clip that they gave, while in pixels.
            latent: weight of half the mean square of the latents, which are about standard normal.
            steps: of training, at least 1.
            copies: versions of every public clip to train on, at least 1.

        Raises:
            InputError: a number out of range.
        """
        if min(iterations, restarts, steps, copies) < 1 or not 0 < share <= 1:
            raise InputError(
                "decoder: expected at least 1 iteration, restart, step and copy and a share in (0, 1], got "
                f"{iterations}, {restarts}, {steps}, {copies} and {share}"
            )
        self.iterations, self.restarts, self.engine = iterations, restarts, engine
        self.learning_rate, self.share, self.pixel_rate = learning_rate, share, pixel_rate
        self.spatial, self.temporal, self.prior, self.latent = spatial, temporal, prior, latent
        self.steps, self.copies = steps, copies

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Work:
        """Return a descent a restart, on latents of the decoder of public clips."""
        public = check_public(observation.knowledge, self.name)
        setup = DecodedSetup.of(observation)
        key = tensor_digest(public), self.steps, self.copies
        decoder = _decoders.get(key, lambda: train_decoder(public, self.steps, self.copies))
        # A module of one's own: others may be running what is kept.
        decoder = copy.deepcopy(decoder).to(setup.weight.device)
        latents = max(1, round(self.share * self.iterations))
        regularisers = Regularisers(spatial=self.spatial, temporal=self.temporal, prior=self.prior)
        problem = decoded_problem(setup, decoder, regularisers)
        settings = DescentSettings(
            iterations=latents,
            learning_rate=self.learning_rate,
            schedule="trapezoid",
            warmup=5,
            low=-math.inf,
            high=math.inf,
            prior=torch.zeros(decoder.latent, device=setup.weight.device),
            prior_weight=self.latent * setup.weights.smoothness,
        )
        shape = (setup.knowledge.batch_size, *decoder.latent)
        starts = [0.1 * torch.randn(shape, generator=generator) for _ in range(self.restarts)]
        left = self.iterations - latents
        return Work(
            descents=[self._descent(problem, settings, start.to(setup.weight)) for start in starts],
            iterations=latents,
            labels=observation.labels,
            decode=[decoder] * len(starts),
            channel=setup.channel,
            state=_PixelRound(setup, left) if left else None,
        )

    def finish(self, work: Work, hooks: Hooks) -> Work | Reconstruction:
        """Return the round on pixels, from what the latents gave and drawn towards it, or the answer."""
        following = work.state
        if not isinstance(following, _PixelRound):
            return work.answer()
        setup, states = following.setup, work.states()
        problem = decoded_problem(setup, Pixels(), Regularisers())
        weights, variance = setup.weights, setup.knowledge.public_variance()
        descents = []
        for state in states:
            start = state.best.contiguous()
            settings = DescentSettings(
                iterations=following.iterations,
                learning_rate=self.pixel_rate,
                schedule="trapezoid",
                warmup=5,
                spatial=self.spatial * weights.smoothness,
                temporal=self.temporal * weights.smoothness,
                prior=start,
                prior_weight=self.prior + weights.prior_weight / variance,
            )
            descents.append(self._descent(problem, settings, start))
        return Work(
            descents=descents,
            iterations=following.iterations,
            labels=work.labels,
            channel=work.channel,
            earlier=states,
        )

    def _descent(self, problem: Problem, settings: DescentSettings, start: Tensor) -> Descent:
        return Descent(problem, settings, start, engine=self.engine)


class Pixels(nn.Module):
    """The decoder of clips that are not encoded."""

    def forward(self, clips: Tensor) -> Tensor:
        """Return the clips."""
        return clips


# ---------------------------------------------------------------------------------------------------------
# The decoder, and its training


class PublicDecoder(nn.Module):
    """From latents (B, 24, T/4, H/8, W/8) to clips in [0, 1]; all that it has learned are buffers."""

    def __init__(self, clip_shape: tuple[int, ...], mean: Tensor, weights: dict[str, Tensor]) -> None:
        """Take over learned weights.

        Args:
            clip_shape: (C, T, H, W).
            mean: of the public clips, of that shape.
            weights: "0.weight" (out, in, 3, 3, 3), "0.bias" (out,), and so on.
        """
        super().__init__()
        sizes = _sizes(clip_shape)
        self.latent = (_WIDTHS[-1], *sizes[-1])
        self.layers = len(weights) // 2
        self.enlarge = nn.ModuleList(Interpolate(small, large) for small, large in pairwise(sizes[::-1]))
        self.register_buffer("base", mean.clamp(0.02, 0.98).logit())
        for name, tensor in weights.items():
            self.register_buffer(name.replace(".", "_"), tensor)

    def forward(self, latents: Tensor) -> Tensor:
        """Return clips (B, C, T, H, W)."""
        x = latents
        for index in range(self.layers):
            x = F.conv3d(x, self.get_buffer(f"{index}_weight"), self.get_buffer(f"{index}_bias"), padding=1)
            if index < self.layers - 1:
                x = self.enlarge[index](F.leaky_relu(x, 0.1))
        clips: Tensor = (self.get_buffer("base") + x).sigmoid()
        return clips


_WIDTHS = (8, 16, 32, 24)
"""Channels at the sizes of `_sizes`; the last are the latents'."""


def _sizes(clip_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the four sizes (frames, height, width) from the clip's to the latents'."""
    sizes = [tuple(clip_shape[1:])]
    for factors in _STRIDES:
        sizes.append(tuple(math.ceil(n / by) for n, by in zip(sizes[-1], factors, strict=True)))
    return sizes


_STRIDES = ((2, 2, 2), (2, 2, 2), (1, 2, 2))


def train_decoder(public: Tensor, steps: int, copies: int) -> PublicDecoder:
    """Train a variational auto-encoder (arXiv 1312.6114) on public clips and return its decoder.

    Args:
        public: (M, C, T, H, W) in [0, 1].
        steps: of Adam, on 8 clips each.
        copies: versions of each clip.
    """
    source = seeded("decoder", steps, copies)
    clips, mean = augment(public.float().cpu(), copies, source), public.float().cpu().mean(0)
    colours = public.shape[1]
    down = [_drawn(o, i, source) for i, o in pairwise((colours, _WIDTHS[1], _WIDTHS[2], 2 * _WIDTHS[3]))]
    up = [_drawn(o, i, source) for i, o in pairwise((*_WIDTHS[::-1], colours))]
    parameters = [tensor for pair in (*down, *up) for tensor in pair]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps + 1)
    decoder = PublicDecoder(tuple(public.shape[1:]), mean, _named(up))
    with torch.enable_grad():
        for _ in range(steps):
            chosen = clips[torch.randint(len(clips), (_BATCH,), generator=source)]
            x = chosen - mean
            for index, (weight, bias) in enumerate(down):
                x = F.conv3d(x if not index else F.leaky_relu(x, 0.1), weight, bias, _STRIDES[index], 1)
            centre, spread = x.chunk(2, 1)
            spread = spread.clamp(-6, 2)
            noise = torch.randn(centre.shape, generator=source)
            gap = (decoder(centre + (spread / 2).exp() * noise) - chosen).square().mean()
            excess = (centre.square() + spread.exp() - spread - 1).mean() / 2
            optimizer.zero_grad()
            torch.autograd.backward(gap + _EXCESS * excess)
            optimizer.step()
            schedule.step()
    return PublicDecoder(tuple(public.shape[1:]), mean, {n: t.detach() for n, t in _named(up).items()})


#: Weight of the latents' divergence from a standard normal.
_EXCESS = 3e-4


def _drawn(outputs: int, inputs: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    weight = torch.randn(outputs, inputs, 3, 3, 3, generator=source) * math.sqrt(2 / (27 * inputs))
    return weight.requires_grad_(), torch.zeros(outputs, requires_grad=True)


def _named(layers: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{index}.{kind}": tensor
        for index, layer in enumerate(layers)
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }


_decoders: Cache[PublicDecoder] = Cache(4)
