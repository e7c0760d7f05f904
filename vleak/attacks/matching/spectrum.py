"""Gaussian prior of clips in frequency space: how far each frequency strays from the expected clip."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks.expectation import expected_clip
from vleak.attacks.knowledge import Knowledge
from vleak.federated import Channel, Update

__all__ = ["SPECTRUM_RATE", "SpectrumModel", "noise_pull"]

SPECTRUM_RATE = 4.0
"""Learning rate against that of pixels; of 1, 2 and 4 the best one behind DP 0.01 and 0.03 on synthetic clips
of seed 1000, which no default run draws."""

_LEAST_VARIANCE = 1e-3
"""Variance that every frequency has at least, in units of the mean over frequencies."""
_NATURAL_VARIANCE = 0.05
"""Variance of a pixel where no public clip tells it: that of natural images in [0, 1], roughly."""


class SpectrumModel(nn.Module):
    """A model of clips, of which it takes coefficients that are standard normal under the prior.

    The prior is a Gaussian: its mean is the expected clip, its principal axes are products of the colour
    axes of public clips and of cosines in time, height and width (DCT-II), and its variances are those of
    the public clips' coefficients. Half the squared norm of the coefficients is then the negative logarithm
    of the prior, up to a constant.
    """

    mean: Tensor
    colours: Tensor
    frames: Tensor
    rows: Tensor
    columns: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, knowledge: Knowledge) -> None:
        """Take the model, and the prior of the attacker's knowledge.

        Args:
            model: takes clips (B, C, T, H, W).
            knowledge: its public clips tell the variances; fewer than two leave the power law of natural
                images, 1 / frequency^2.
        """
        super().__init__()
        self.model = model
        mean, public = expected_clip(knowledge), knowledge.public_clips
        channels, *sizes = mean.shape
        several = public is not None and len(public) > 1
        deviations = public - mean if public is not None and several else None
        bases = {
            "mean": mean[None],
            "colours": torch.eye(channels) if deviations is None else _colour_axes(deviations),
            **{name: _cosines(size) for name, size in zip(("frames", "rows", "columns"), sizes, strict=True)},
        }
        for name, tensor in bases.items():
            self.register_buffer(name, tensor)
        self.register_buffer("scale", torch.ones(mean.shape))
        variances = (
            _power_law(channels, sizes)
            if deviations is None
            else _variances(self.decompose(deviations + mean))
        )
        self.scale = (variances + _LEAST_VARIANCE * variances.mean()).sqrt()

    def compose(self, coefficients: Tensor) -> Tensor:
        """Return the clips (B, C, T, H, W) of such coefficients."""
        batch, channels, frames, height, width = coefficients.shape
        within = self.rows.T @ (coefficients * self.scale) @ self.columns
        along = self.frames.T @ within.view(batch, channels, frames, -1)
        across = self.colours @ along.view(batch, channels, -1)
        return self.mean + across.view(batch, channels, frames, height, width)

    def decompose(self, clips: Tensor) -> Tensor:
        """Return the coefficients (B, C, T, H, W) of such clips."""
        batch, channels, frames, height, width = clips.shape
        across = self.colours.T @ (clips - self.mean).view(batch, channels, -1)
        along = self.frames @ across.view(batch, channels, frames, -1)
        within = self.rows @ along.view(batch, channels, frames, height, width) @ self.columns.T
        return within / self.scale

    def forward(self, coefficients: Tensor) -> Tensor:
        """Return the model's output for the composed clips."""
        logits: Tensor = self.model(self.compose(coefficients))
        return logits


def noise_pull(
    channel: Channel | None, update: Update, knowledge: Knowledge, *, cosine: bool, assumed: float
) -> float:
    """Return the weight of half the mean square of the coefficients at which the objective is the posterior.

    With Gaussian noise of variance s^2 in each of P entries the negative logarithm of the posterior is
    |g - t|^2 / (2 s^2) + |z|^2 / 2. Of n coefficients z and in units of |t|^2 the prior weighs
    2 s^2 n / |t|^2; where gradients are matched up to their length, whose square is the energy without the
    noise, it weighs s^2 n / (|g| |t|) (Balunović et al., ICLR 2022, arXiv 2111.04706, state the posterior).

    Args:
        channel: of the update, or None for one without noise.
        update: what arrived.
        knowledge: tells how many coefficients there are.
        cosine: whether the distance is 1 - cosine, else the squared one over |t|^2.
        assumed: noise over signal energy that is added to that of the channel, above 0.
    """
    masks = None if channel is None else channel.masks
    tensors = update.tensors if masks is None else {n: t[masks[n]] for n, t in update.tensors.items()}
    entries = max(sum(tensor.numel() for tensor in tensors.values()), 1)
    energy = max(sum(float(tensor.double().square().sum()) for tensor in tensors.values()), 1e-30)
    noise = 0.0 if channel is None else channel.noise_energy
    signal = max(energy - noise, noise * math.sqrt(2 / entries), 1e-30)
    ratio = noise / math.sqrt(signal * energy) if cosine else 2 * noise / energy
    return (ratio + assumed) * math.prod(knowledge.batch_shape) / entries


def _cosines(size: int) -> Tensor:
    """Return the orthonormal DCT-II (size, size), a frequency a row."""
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    place = torch.arange(size, dtype=torch.float64)[None] + 0.5
    basis = torch.cos(math.pi * frequency * place / size) * math.sqrt(2 / size)
    basis[0] *= math.sqrt(0.5)
    return basis.float()


def _colour_axes(deviations: Tensor) -> Tensor:
    """Return the principal axes (C, C), a column each, of the colours of deviations (M, C, T, H, W)."""
    pixels = deviations.transpose(0, 1).flatten(1).double()
    axes: Tensor = torch.linalg.eigh(pixels @ pixels.T / pixels.shape[1]).eigenvectors
    return axes.float()


def _variances(coefficients: Tensor) -> Tensor:
    """Return the variance (C, T, H, W) of each frequency over clips (M, C, T, H, W).

    Half of it is that of the neighbouring frequencies, along axes of three or more: a few clips alone tell a
    variance badly.
    """
    variances = coefficients.square().sum(0) / (len(coefficients) - 1)
    window = [3 if size > 2 else 1 for size in variances.shape[1:]]  # avg_pool3d takes no larger one
    borders = [size // 2 for size in window]
    neighbours = F.avg_pool3d(variances[None], window, 1, borders, count_include_pad=False)[0]
    return (variances + neighbours) / 2


def _power_law(channels: int, sizes: list[int]) -> Tensor:
    """Return variances (C, T, H, W) that fall with the square of the frequency, in cycles a clip."""
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in sizes), indexing="ij")
    falling = 1 / (1 + sum((axis.square() for axis in axes), start=torch.zeros(())))
    return _NATURAL_VARIANCE * (falling / falling.mean()).expand(channels, *sizes)
