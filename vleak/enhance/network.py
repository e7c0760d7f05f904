"""Enhancement by a small network, trained on public clips on the user's machine.

It refines what `classical` returns: four convolutions would learn fusion and denoising worse in half a
minute. A network fills in what clips like those it saw usually look like: what it adds may be false, which is
why scores are always given before and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from vleak.cache import Recipe, cached_tensors
from vleak.enhance.base import Enhanced, checked, pooled
from vleak.enhance.classical import classical
from vleak.errors import InputError
from vleak.seeds import generator as derived

SCALE = 2
STEPS = 320
EXAMPLES = 144
BATCH = 24  # crops a step
CROP = (3, 16, 16)  # frames, and height and width in pixels of the coarse clip
WIDTH = 32
LEARNING_RATE = 2e-3
CONTRAST = 8.0  # what details are multiplied by, so that a network sees numbers of about 1
_LAYOUT = 1  # of the network and of its training: weights of another one are not loaded from the cache


class Refiner(nn.Module):
    """Residual convolutions over a frame and its two neighbours, with pixel shuffle (arXiv 1609.05158)."""

    def __init__(self, channels: int) -> None:
        """Size it for clips of this many channels; the weights are those of `fresh_weights` or loaded."""
        super().__init__()
        shuffled = channels * SCALE**2
        self.entry = nn.Conv2d(3 * shuffled + channels + 1, WIDTH, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.exit = nn.Conv2d(WIDTH, shuffled, 3, padding=1)

    def forward(self, fine: Tensor, coarse: Tensor, noise: Tensor) -> Tensor:
        """Return fine clips (N, C, T, 2H, 2W), refined and not clamped.

        Args:
            fine: (N, C, T, 2H, 2W) in [0, 1], what `classical` made of ``coarse``.
            coarse: (N, C, T, H, W) in [0, 1], as rebuilt.
            noise: (N,) the estimate of each.
        """
        count, _, frames = coarse.shape[:3]
        given = coarse.transpose(1, 2)
        # Brightness tells nothing of detail; without it the first steps already learn of edges.
        base = functional.avg_pool2d(
            functional.pad(given.flatten(0, 1), (2, 2, 2, 2), mode="replicate"), 5, 1
        )
        base = base.view(given.shape)
        small = functional.pixel_unshuffle(fine.transpose(1, 2), SCALE)  # (N, T, 4C, H, W)
        small = CONTRAST * (small - base.repeat_interleave(SCALE**2, 2))
        before = torch.cat((small[:, :1], small[:, :-1]), 1)
        after = torch.cat((small[:, 1:], small[:, -1:]), 1)
        level = noise.view(-1, 1, 1, 1, 1).expand(-1, frames, 1, *coarse.shape[3:])
        known = torch.cat((small, before, after, CONTRAST * (given - base), CONTRAST * level), 2).flatten(
            0, 1
        )
        hidden = self.entry(known).relu()
        for layer in self.middle:
            hidden = hidden + layer(hidden).relu()
        added = functional.pixel_shuffle(self.exit(hidden), SCALE) / CONTRAST
        refined: Tensor = fine + added.view(count, frames, *added.shape[1:]).transpose(1, 2)
        return refined


def train_network(
    fine: Tensor,
    generator: torch.Generator,
    *,
    steps: int = STEPS,
    examples: int = EXAMPLES,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Tensor]:
    """Train the network on public clips and return its weights; half a minute on one core.

    Args:
        fine: (M, C, T, 2H, 2W) in [0, 1], public clips at twice the resolution, at least one.
        generator: the only source of randomness, a CPU generator.
        steps: of Adam.
        examples: degraded clips that are made of the public ones before the first step.
        progress: called now and then with the number of steps done.
        stop: asked between steps; True ends the training with what there is.

    Raises:
        InputError: no clips, odd sides, frames too small, or values that are not finite.
    """
    _check_fine(fine, min(steps, examples))
    clips = fine.detach().to("cpu", torch.float32).clamp(0, 1)
    truth, small, begun, noise = _examples(clips, examples, generator)
    network = _network(fine.shape[1], fresh_weights(fine.shape[1], generator)).train()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    for step in range(steps):
        if stop is not None and stop():
            break
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 10) * _cosine(step / steps)
        chosen = torch.randint(len(truth), (BATCH,), generator=generator)
        target, start, coarse = _crops((truth, begun, small), chosen, generator)
        # In units of what is wrong already: else the noisiest clips, where least can be won, outweigh all.
        wrong = (start - target).abs().mean((1, 2, 3, 4)) + 1e-3
        loss = ((network(start, coarse, noise[chosen]) - target).abs().mean((1, 2, 3, 4)) / wrong).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if progress is not None and (step + 1) % 20 == 0:
            progress(step + 1)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def cached_network(
    recipe: Recipe,
    clips: Callable[[], Tensor],
    *,
    steps: int = STEPS,
    examples: int = EXAMPLES,
    again: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Return the weights of a recipe from the cache, or train and keep them.

    Args:
        recipe: everything that the clips depend on, such as the source, its size and the seed.
        clips: gives the public clips (M, C, T, 2H, 2W); called only when there is something to train.
        steps, examples: as of `train_network`.
        again: train even if the cache has the weights.
        progress: as of `train_network`.

    Raises:
        InputError: as `train_network`.
    """
    whole: Recipe = {**recipe, "layout": _LAYOUT, "steps": steps, "examples": examples}
    seed = sorted(whole.items(), key=lambda item: item[0])
    return cached_tensors(
        "enhance",
        whole,
        lambda: train_network(
            clips(), derived("enhance", seed), steps=steps, examples=examples, progress=progress
        ),
        again=again,
    )


def build_network(weights: Mapping[str, Tensor]) -> Callable[[Tensor], Enhanced]:
    """Return the enhancer of trained weights.

    Raises:
        InputError: the weights are not those of this network.
    """
    last = weights.get("exit.bias")
    network = _network(0 if last is None else len(last) // SCALE**2, weights)
    for parameter in network.parameters():
        parameter.requires_grad_(False)

    def run(clip: Tensor) -> Enhanced:
        coarse = checked(clip, SCALE)
        channels = network.exit.out_channels // SCALE**2
        if len(coarse) != channels:
            raise InputError(
                f"enhance: the network was trained on clips of {channels} channels, got {len(coarse)}"
            )
        begun = classical(coarse, SCALE)
        with torch.no_grad():
            fine = network(begun.clip[None], coarse[None], torch.tensor([begun.noise]))[0]
        return Enhanced(fine.clamp(0, 1), begun.noise, (*begun.steps, "network"))

    return run


def fresh_weights(channels: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw weights of which the network adds nothing yet."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Refiner(channels).state_dict().items()}
    weights = {}
    for name, shape in shapes.items():
        weights[name] = torch.zeros(shape)
        if name.endswith("weight") and not name.startswith("exit"):
            weights[name] = torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
    return weights


def _network(channels: int, weights: Mapping[str, Tensor]) -> Refiner:
    with torch.device("meta"):
        network = Refiner(max(channels, 1))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in weights.items()}:
        raise InputError(
            "enhance: these are not the weights of vleak's network; train it with cached_network"
        )
    network = network.to_empty(device="cpu")
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return network.eval()


def _check_fine(fine: Tensor, least: int) -> None:
    if fine.dim() != 5 or fine.numel() == 0 or any(side % SCALE or side < 16 for side in fine.shape[3:]):
        raise InputError(
            "train_network: expected clips of shape (clip, channel, frame, height, width) with even sides of "
            f"at least 16 pixels, got {tuple(fine.shape)}"
        )
    if not bool(torch.isfinite(fine).all()):
        raise InputError("train_network: the clips hold NaN or infinity; give pixel values in [0, 1]")
    if least < 1:
        raise InputError(f"train_network: expected at least 1 step and 1 example, got {least}")


def _examples(
    fine: Tensor, examples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return fine clips, degraded coarse ones, what `classical` makes of those, and the estimates."""
    rows = torch.arange(examples) % len(fine)
    truth = torch.stack([_turned(fine[row], generator) for row in rows])
    coarse = torch.stack([degrade(pooled(clip, SCALE), generator) for clip in truth])
    begun = [classical(clip, SCALE) for clip in coarse]
    return (
        truth,
        coarse,
        torch.stack([each.clip for each in begun]),
        torch.tensor([each.noise for each in begun]),
    )


def degrade(clip: Tensor, generator: torch.Generator) -> Tensor:
    """Spoil a clip (C, T, H, W) as attacks do: blur, smooth errors, white noise, each by a random amount."""
    blur, smooth, white, width = torch.rand(4, generator=generator).tolist()
    clip = _blurred(clip, max(0.0, 2 * blur - 1))  # half of the clips are not blurred
    errors = _blurred(torch.randn(clip.shape, generator=generator), 0.5 + width)
    errors = errors / errors.std().clamp(min=1e-6)
    clip = clip + max(0.0, 0.2 * smooth - 0.1) * errors
    clip = clip + max(0.0, 0.15 * white - 0.05) * torch.randn(clip.shape, generator=generator)
    return clip.clamp(0, 1)


def _blurred(clip: Tensor, sigma: float) -> Tensor:
    """Blur the frames of (C, T, H, W) with a Gaussian of this many pixels."""
    if sigma < 0.1:
        return clip
    reach = torch.arange(-3.0, 4.0)
    kernel = (-reach.square() / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    frames = functional.pad(clip.flatten(0, 1)[:, None], (3, 3, 3, 3), mode="replicate")
    frames = functional.conv2d(functional.conv2d(frames, kernel.view(1, 1, 1, 7)), kernel.view(1, 1, 7, 1))
    return frames.view(clip.shape)


def _turned(clip: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror a clip (C, T, H, W) in space and time at random."""
    flips = torch.randint(2, (3,), generator=generator)
    return clip.flip([axis + 1 for axis in range(3) if flips[axis]])


def _crops(
    examples: tuple[Tensor, Tensor, Tensor], chosen: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a block out of each chosen example (truth, start, coarse), for each at a place of its own."""
    sides = [min(side, whole) for side, whole in zip(CROP, examples[-1].shape[2:], strict=True)]
    cuts = []
    for row in chosen.tolist():
        places = [
            int(torch.randint(whole - side + 1, (), generator=generator))
            for side, whole in zip(sides, examples[-1].shape[2:], strict=True)
        ]
        coarse = [slice(place, place + side) for place, side in zip(places, sides, strict=True)]
        fine = [coarse[0], *(slice(SCALE * cut.start, SCALE * cut.stop) for cut in coarse[1:])]
        cuts.append(
            tuple(
                each[row][(slice(None), *cut)]
                for each, cut in zip(examples, (fine, fine, coarse), strict=True)
            )
        )
    truth, start, small = (torch.stack(each) for each in zip(*cuts, strict=True))
    return truth, start, small


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2
