"""Denoisers in gradient matching: rounds that pull the clips towards what a denoiser makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from skimage import restoration
from torch import Tensor

from vleak.attacks.matching.setup import Setup
from vleak.attacks.matching.spectrum import noise_pull
from vleak.descent.problem import DescentSettings
from vleak.errors import InputError, VleakError, first_line, interrupts
from vleak.registry import Entry, Reference, Registry

__all__ = ["DENOISERS", "Denoiser", "DenoiserRound", "denoised", "found", "pulled"]

ROUNDS = 5
"""Times that the clips are denoised, in the second half of the iterations."""
_LEAST_VARIANCE = 1e-4
"""Variance about the denoised clips that is taken at least, where a denoiser leaves them as they are."""

Denoiser = Callable[[Tensor], Tensor]
"""Function of clips (N, C, T, H, W) in [0, 1] to less noisy ones of the same shape."""

#: scikit-image ships no signatures, and loads its functions when they are first used.
_restoration: Any = restoration


def _total_variation(clips: Tensor, *, weight: float = 0.05) -> Tensor:
    """Total variation in space and time together (Chambolle, J. Math. Imaging and Vision 20, 2004)."""
    quiet = [_restoration.denoise_tv_chambolle(clip.numpy(), weight=weight, channel_axis=0) for clip in clips]
    return torch.from_numpy(np.stack(quiet)).to(clips)


DENOISERS: Registry[Tensor] = Registry("denoiser", {"total_variation": _total_variation})
"""Functions (clips, settings) -> clips by name; `vleak.enhance.denoisers` has more, by their paths."""


@dataclass(frozen=True)
class DenoiserRound:
    """What the rounds behind a denoiser need.

    Attributes:
        setup: of the attack.
        iterations: left.
        rounds: left.
    """

    setup: Setup
    iterations: int
    rounds: int = ROUNDS

    @property
    def length(self) -> int:
        """Iterations of the round that comes next."""
        return max(self.iterations // self.rounds, 1)

    def following(self) -> DenoiserRound | None:
        """Return the rounds after the next; None after the last."""
        left = self.iterations - self.length
        return None if left < 1 else replace(self, iterations=left, rounds=max(self.rounds - 1, 1))


def found(denoiser: str | Denoiser) -> Reference[Tensor]:
    """Return a denoiser by its name with settings, or the one that is given, under its own name.

    Raises:
        InputError: there is none of that name, or it cannot be called.
    """
    if isinstance(denoiser, str):
        return DENOISERS.parse(denoiser)
    if not callable(denoiser):
        raise InputError(f"denoiser is {type(denoiser).__name__}, expected a name or a function of clips")
    name = getattr(denoiser, "__name__", type(denoiser).__name__)
    return Reference(Entry(name, denoiser, "given in Python", "denoiser"), {})


def denoised(reference: Reference[Tensor], clips: Tensor) -> Tensor:
    """Return clips (N, C, T, H, W) as a denoiser returns them, in [0, 1]; it gets a copy.

    Args:
        reference: a built-in denoiser or one from outside.
        clips: in [0, 1].

    Raises:
        InputError: a denoiser from outside raised, or what came back has another shape or type, or is not
            finite; the message names it.
    """
    entry = reference.entry
    try:
        result: object = entry.factory(clips.detach().cpu().clone(), **reference.settings)
    except VleakError:
        raise
    except BaseException as error:
        if entry.built_in or interrupts(error):
            raise
        raise InputError(
            f"denoiser {entry.name!r} raised {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(result, Tensor) or result.shape != clips.shape or not result.is_floating_point():
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise InputError(
            f"denoiser {entry.name!r} returned {got}, expected a tensor of numbers of shape "
            f"{tuple(clips.shape)}, that of the clips it was given"
        )
    if not bool(torch.isfinite(result).all()):
        raise InputError(f"denoiser {entry.name!r} returned NaN or infinity, expected finite clips")
    return result.detach().to(clips).clamp(0, 1)


def pulled(
    settings: DescentSettings, setup: Setup, clips: Tensor, target: Tensor, assumed: float
) -> DescentSettings:
    """Return settings of a round without total variation that draws clips towards a denoised target.

    Half-quadratic splitting of a plug-and-play prior (Venkatakrishnan et al., GlobalSIP 2013; with the target
    held, the step of RED, Romano et al., arXiv 1611.02862). The clips are taken for Gaussian about the
    target, as far from it as the denoiser moved them; the pull is the weight at which the objective then is
    the posterior under the channel's noise (`noise_pull`).

    Args:
        settings: of the attack.
        setup: of the attack.
        clips, target: (B, C, T, H, W), before and behind the denoiser.
        assumed: noise over signal energy that is assumed beside the channel's.
    """
    variance = max(float((clips - target).square().mean()), _LEAST_VARIANCE)
    update, cosine = setup.observation.update, setup.unit == 1.0
    pull = noise_pull(setup.channel, update, setup.knowledge, cosine=cosine, assumed=assumed)
    return replace(
        settings, spatial=0.0, temporal=0.0, prior=target, prior_weight=setup.unit * pull / variance
    )
