"""Defenses that change the data: mixed clips, held frames, blurred motion.

What arrives is the exact gradient of the changed clips, and their channels say so: an attack rebuilds the
changed clips as well as it would any others, and is judged by how near they are to the private ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from scipy.special import betaincinv
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.defenses.ranges import check_number, check_whole
from vleak.errors import CapabilityError, InputError
from vleak.federated import Changes, Channel, Claim, Defense, Loss, Update, mean_gradient


@dataclass(frozen=True, kw_only=True)
class Mixup(Defense):
    """Mixup (Zhang et al., ICLR 2018, arXiv 1710.09412): every clip is laid over another one of its step.

    Of a step's clips x with labels y the gradient of ``s L(m, y) + (1 - s) L(m, y')`` is sent, for the
    mixture ``m = s x + (1 - s) x'``, partners x' with labels y', and one share s a step from Beta(alpha,
    alpha). The partners form one random cycle, so that no clip meets itself. Labels stay whole numbers, as
    the gradient of a mixed label is the mixture of two gradients.

    Attributes:
        alpha: of the Beta distribution, from 0.01 to 1000; the larger it is, the nearer the share to a half.
    """

    name: ClassVar[str] = "mixup"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameter."""
        check_number(self.name, "alpha", self.alpha, 0.01, 1000)

    @property
    def label(self) -> str:
        """Name and parameter, such as "mixup α=1"."""
        return f"mixup α={self.alpha:g}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the parameters 0.2, 1 and 10."""
        return [cls(alpha=alpha) for alpha in (0.2, 1.0, 10.0)]

    def channel(self, update: Update) -> Channel:
        """Return that every entry is exact, of the mixtures."""
        return Channel(key=(self.name, self.alpha))

    def claims(self) -> Sequence[Claim]:
        """Return that the message is not the undefended one."""
        return (Changes(),)

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the gradient of the mixtures.

        Raises:
            CapabilityError: a step of one clip.
        """
        if len(clips) < 2:
            raise CapabilityError(
                "mixup: a step of 1 clip has no other clip to mix it with; give the client at least 2 clips "
                "a step, such as --batch 2"
            )
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
        share = float(betaincinv(self.alpha, self.alpha, uniform))
        order = torch.randperm(len(clips), generator=generator)
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        partner = partner.to(clips.device)
        mixed = share * clips + (1 - share) * clips[partner]
        own = mean_gradient(model, loss, mixed, labels)
        others = mean_gradient(model, loss, mixed, labels[partner])
        return {name: share * own[name] + (1 - share) * others[name] for name in own}


@dataclass(frozen=True, kw_only=True)
class HeldFrames(Defense):
    """Frame subsampling: of every few frames the first is kept, and held in place of the others.

    The shape of the clip stays, as models ask for a number of frames. Of features segments are held.

    Attributes:
        every: frames of which one is kept, at least 2.
    """

    name: ClassVar[str] = "frames"
    every: int = 2

    def __post_init__(self) -> None:
        """Check the number."""
        check_whole(self.name, "every", self.every, 2)

    @property
    def label(self) -> str:
        """Name and part that is kept, such as "frames 1/2"."""
        return f"frames 1/{self.every}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return one frame in 2, in 4 and in 8."""
        return [cls(every=every) for every in (2, 4, 8)]

    def channel(self, update: Update) -> Channel:
        """Return that every entry is exact, of clips whose frames are held."""
        return Channel(key=(self.name, self.every))

    def claims(self) -> Sequence[Claim]:
        """Return that the message is not the undefended one."""
        return (Changes(),)

    def prepare_clips(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return clips of the same shape, frames (or segments) held."""
        axis = 1 if clips.dim() == 3 else 2
        frames = torch.arange(clips.shape[axis], device=clips.device)
        return clips.index_select(axis, frames // self.every * self.every), labels


@dataclass(frozen=True, kw_only=True)
class MotionBlur(Defense):
    """Gaussian blur of what moves; what stands still stays sharp.

    A pixel moves where it differs from the frame before or after, and so does all that is within two
    standard deviations of it, lest a sharp edge stay. Where nothing moves, nothing is blurred.

    Attributes:
        sigma: standard deviation in pixels, from 0.3 to 100.
        threshold: change of a channel above which a pixel moves, in [0, 1).
    """

    name: ClassVar[str] = "blur"
    sigma: float = 2.0
    threshold: float = 0.05

    def __post_init__(self) -> None:
        """Check deviation and threshold."""
        check_number(self.name, "sigma", self.sigma, 0.3, 100)
        if not 0 <= self.threshold < 1:
            raise InputError(f"blur: threshold is {self.threshold}, expected a number in [0, 1)")

    @property
    def label(self) -> str:
        """Name and deviation, such as "blur σ=2"."""
        return f"blur σ={self.sigma:g}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the deviations of 1, 2 and 4 pixels."""
        return [cls(sigma=sigma) for sigma in (1.0, 2.0, 4.0)]

    def channel(self, update: Update) -> Channel:
        """Return that every entry is exact, of the blurred clips."""
        return Channel(key=(self.name, self.sigma, self.threshold))

    def claims(self) -> Sequence[Claim]:
        """Return that the message is not the undefended one."""
        return (Changes(),)

    def prepare_clips(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return clips whose moving regions are blurred.

        Raises:
            CapabilityError: features, which have no pixels.
        """
        if clips.dim() != 5:
            raise CapabilityError("blur: features have no pixels to blur; use it in the raw pipeline")
        changes = (clips.diff(dim=2).abs().amax(1) > self.threshold).float()
        moving = torch.maximum(F.pad(changes, (0, 0, 0, 0, 1, 0)), F.pad(changes, (0, 0, 0, 0, 0, 1)))
        reach = math.ceil(2 * self.sigma)
        near = F.max_pool2d(moving, 2 * reach + 1, stride=1, padding=reach)[:, None] > 0
        return torch.where(near, _blurred(clips, self.sigma), clips), labels


def _blurred(clips: Tensor, sigma: float) -> Tensor:
    """Return clips (N, C, T, H, W) of which every frame is blurred; edges are continued outwards."""
    radius = math.ceil(3 * sigma)
    places = torch.arange(-radius, radius + 1, dtype=clips.dtype, device=clips.device)
    kernel = (-(places**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    frames = F.pad(clips.flatten(0, 2)[:, None], [radius] * 4, mode="replicate")
    frames = F.conv2d(F.conv2d(frames, kernel[..., None]), kernel[:, :, None])
    return frames.view_as(clips).clamp(0, 1)
