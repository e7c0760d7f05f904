"""Enhancement by a small network, trained on public clips on the user's machine.

It refines the result of `classical`, because in half a minute four convolutions would learn fusion and
denoising less well. A network adds detail that is typical of its training clips and may be wrong for this
one; scores are therefore always reported before and after.
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
CONTRAST = 8.0  # factor on details, so that the inputs of the network are of the order of 1
_LAYOUT = 1  # version of the network and its training: cached weights of other versions are not loaded


class Refiner(nn.Module):
    """Residual convolutions over a frame and its two neighbours, with pixel shuffle (arXiv 1609.05158)."""

    def __init__(self, channels: int) -> None:
        """Build the layers for clips of ``channels`` channels; weights are loaded or from `fresh_weights`."""
        super().__init__()
        shuffled = channels * SCALE**2
        self.entry = nn.Conv2d(3 * shuffled + channels + 1, WIDTH, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.exit = nn.Conv2d(WIDTH, shuffled, 3, padding=1)

    def forward(self, fine: Tensor, coarse: Tensor, noise: Tensor) -> Tensor:
        """Return fine clips (N, C, T, 2H, 2W), refined and not clamped.

        Args:
            fine: (N, C, T, 2H, 2W) in [0, 1], the result of `classical` for ``coarse``.
            coarse: (N, C, T, H, W) in [0, 1], the rebuilt clips.
            noise: (N,), the noise estimates of the clips.
        """
        count, _, frames = coarse.shape[:3]
        frames_first = coarse.transpose(1, 2)
        # The local mean is removed: it carries no detail, and training on edges starts from the first step.
        base = functional.avg_pool2d(
            functional.pad(frames_first.flatten(0, 1), (2, 2, 2, 2), mode="replicate"), 5, 1
        )
        base = base.view(frames_first.shape)
        small = functional.pixel_unshuffle(fine.transpose(1, 2), SCALE)  # (N, T, 4C, H, W)
        small = CONTRAST * (small - base.repeat_interleave(SCALE**2, 2))
        before = torch.cat((small[:, :1], small[:, :-1]), 1)
        after = torch.cat((small[:, 1:], small[:, -1:]), 1)
        level = noise.view(-1, 1, 1, 1, 1).expand(-1, frames, 1, *coarse.shape[3:])
        inputs = torch.cat(
            (small, before, after, CONTRAST * (frames_first - base), CONTRAST * level), 2
        ).flatten(0, 1)
        hidden = self.entry(inputs).relu()
        for layer in self.middle:
            hidden = hidden + layer(hidden).relu()
        detail = functional.pixel_shuffle(self.exit(hidden), SCALE) / CONTRAST
        refined: Tensor = fine + detail.view(count, frames, *detail.shape[1:]).transpose(1, 2)
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
    """Return the weights of the network, trained on public clips; takes half a minute on one core.

    Args:
        fine: (M, C, T, 2H, 2W) in [0, 1], public clips at twice the resolution, at least one.
        generator: the only source of randomness, a CPU generator.
        steps: steps of Adam.
        examples: number of degraded clips that are generated from the public ones before the first step.
        progress: called every 20 steps with the number of steps done.
        stop: called between steps; True ends the training with the weights so far.

    Raises:
        InputError: no clips, odd sides, frames too small, or values that are not finite.
    """
    _check_fine(fine, min(steps, examples))
    clips = fine.detach().to("cpu", torch.float32).clamp(0, 1)
    truth, small, classical_clips, noise = _examples(clips, examples, generator)
    network = _network(fine.shape[1], fresh_weights(fine.shape[1], generator)).train()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    for step in range(steps):
        if stop is not None and stop():
            break
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 10) * _cosine(step / steps)
        chosen = torch.randint(len(truth), (BATCH,), generator=generator)
        target, start, coarse = _crops((truth, classical_clips, small), chosen, generator)
        # Relative to the initial error: otherwise the noisiest clips, with the least to gain, dominate.
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
    """Return the weights of a recipe from the cache, trained and stored there if they are missing.

    Args:
        recipe: everything that the clips depend on, such as the source, its size and the seed.
        clips: returns the public clips (M, C, T, 2H, 2W); called only if the cache has no weights.
        steps, examples: as in `train_network`.
        again: train even if the cache has the weights.
        progress: as in `train_network`.

    Raises:
        InputError: as `train_network`.
    """
    full_recipe: Recipe = {**recipe, "layout": _LAYOUT, "steps": steps, "examples": examples}
    seed = sorted(full_recipe.items(), key=lambda item: item[0])
    return cached_tensors(
        "enhance",
        full_recipe,
        lambda: train_network(
            clips(), derived("enhance", seed), steps=steps, examples=examples, progress=progress
        ),
        again=again,
    )


def build_network(weights: Mapping[str, Tensor]) -> Callable[[Tensor], Enhanced]:
    """Return the enhancer of trained weights.

    Raises:
        InputError: the weights are those of another network.
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
        base = classical(coarse, SCALE)
        with torch.no_grad():
            fine = network(base.clip[None], coarse[None], torch.tensor([base.noise]))[0]
        return Enhanced(fine.clamp(0, 1), base.noise, (*base.steps, "network"))

    return run


def fresh_weights(channels: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return initial weights, with which the network leaves its input unchanged."""
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
    """Return fine clips, degraded coarse ones, the results of `classical` for these, and noise estimates."""
    rows = torch.arange(examples) % len(fine)
    truth = torch.stack([_turned(fine[row], generator) for row in rows])
    coarse = torch.stack([degrade(pooled(clip, SCALE), generator) for clip in truth])
    results = [classical(clip, SCALE) for clip in coarse]
    return (
        truth,
        coarse,
        torch.stack([result.clip for result in results]),
        torch.tensor([result.noise for result in results]),
    )


def degrade(clip: Tensor, generator: torch.Generator) -> Tensor:
    """Return a clip (C, T, H, W) with errors like an attack's: random blur, smooth errors and white noise."""
    blur, smooth, white, width = torch.rand(4, generator=generator).tolist()
    clip = _blurred(clip, max(0.0, 2 * blur - 1))  # half of the clips are not blurred
    errors = _blurred(torch.randn(clip.shape, generator=generator), 0.5 + width)
    errors = errors / errors.std().clamp(min=1e-6)
    clip = clip + max(0.0, 0.2 * smooth - 0.1) * errors
    clip = clip + max(0.0, 0.15 * white - 0.05) * torch.randn(clip.shape, generator=generator)
    return clip.clamp(0, 1)


def _blurred(clip: Tensor, sigma: float) -> Tensor:
    """Return the frames of (C, T, H, W) blurred with a Gaussian of ``sigma`` pixels."""
    if sigma < 0.1:
        return clip
    reach = torch.arange(-3.0, 4.0)
    kernel = (-reach.square() / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    frames = functional.pad(clip.flatten(0, 1)[:, None], (3, 3, 3, 3), mode="replicate")
    frames = functional.conv2d(functional.conv2d(frames, kernel.view(1, 1, 1, 7)), kernel.view(1, 1, 7, 1))
    return frames.view(clip.shape)


def _turned(clip: Tensor, generator: torch.Generator) -> Tensor:
    """Return a clip (C, T, H, W), mirrored in space and time at random."""
    flips = torch.randint(2, (3,), generator=generator)
    return clip.flip([axis + 1 for axis in range(3) if flips[axis]])


def _crops(
    examples: tuple[Tensor, Tensor, Tensor], chosen: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a block of each chosen example (truth, start, coarse), at a random position of its own."""
    sides = [min(side, length) for side, length in zip(CROP, examples[-1].shape[2:], strict=True)]
    cuts = []
    for row in chosen.tolist():
        offsets = [
            int(torch.randint(length - side + 1, (), generator=generator))
            for side, length in zip(sides, examples[-1].shape[2:], strict=True)
        ]
        coarse = [slice(offset, offset + side) for offset, side in zip(offsets, sides, strict=True)]
        fine = [coarse[0], *(slice(SCALE * cut.start, SCALE * cut.stop) for cut in coarse[1:])]
        cuts.append(
            tuple(
                tensor[row][(slice(None), *cut)]
                for tensor, cut in zip(examples, (fine, fine, coarse), strict=True)
            )
        )
    truth, start, small = (torch.stack(blocks) for blocks in zip(*cuts, strict=True))
    return truth, start, small


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2
