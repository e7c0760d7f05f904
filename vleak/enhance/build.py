"""Building of enhancers by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vleak.enhance.base import MAX_SCALE, Enhanced, Enhancer
from vleak.enhance.checkpoint import build_checkpoint
from vleak.enhance.classical import classical
from vleak.enhance.network import SCALE, build_network
from vleak.errors import InputError, first_line
from vleak.registry import Registry


def _classical(scale: int) -> Enhancer:
    """Noise estimation, averaging along time, denoising and enlargement; sharpens clean clips only."""
    return partial(classical, scale=scale)


def _network(scale: int, weights: Mapping[str, Tensor] | None = None) -> Enhancer:
    """Classical enhancement, refined by a small network trained on the public clips on this machine."""
    if scale != SCALE:
        raise InputError(f"enhance: the network enlarges by {SCALE}, not by {scale}; use classical")
    if weights is None:
        raise InputError(
            "enhance: 'network' needs trained weights; give those of vleak.enhance.cached_network"
        )
    return build_network(weights)


ENHANCERS: Registry[Enhancer] = Registry("enhancer", {"classical": _classical, "network": _network})
"""Functions (scale, settings) -> enhancer by name; ``spandrel:PATH`` names a checkpoint file as well."""

_PREFIX = "spandrel:"


def build_enhancer(name: str, *, scale: int = 2, network: Mapping[str, Tensor] | None = None) -> Enhancer:
    """Return an enhancer, which is built once and called on every clip, from any thread.

    Args:
        name: a name of ``ENHANCERS``, optionally with settings, or ``spandrel:PATH``.
        scale: factor for width and height; "network" supports only 2.
        network: weights of "network", as `train_network` or `cached_network` returns them.

    Raises:
        InputError: the name, the scale, the weights or the checkpoint is not usable.
        CapabilityError: a package that the checkpoint needs is not installed.
    """
    if not 1 <= scale <= MAX_SCALE:
        raise InputError(f"enhance: scale {scale}; expected a whole number from 1 to {MAX_SCALE}")
    if name.startswith(_PREFIX):
        return build_checkpoint(name.removeprefix(_PREFIX), scale)
    reference = ENHANCERS.parse(name)
    if reference.entry.built_in and reference.entry.name == "network":
        return reference.build(scale, network)
    enhancer = reference.build(scale)
    return enhancer if reference.entry.built_in else partial(_enhanced_by, enhancer, name, scale)


def _enhanced_by(enhancer: Enhancer, name: str, scale: int, clip: Tensor) -> Enhanced:
    """Return the result of a plug-in's enhancer, which gets a copy of the clip, after checking it."""
    channels, frames, height, width = clip.shape
    try:
        result = enhancer(clip.clone())
    except Exception as error:
        line = first_line(error)
        raise InputError(f"enhancer {name!r} raised {type(error).__name__}: {line}") from error
    if not isinstance(result, Enhanced) or not isinstance(result.clip, Tensor):
        raise InputError(
            f"enhancer {name!r} returned {type(result).__name__}, expected vleak.enhance.Enhanced"
        )
    wanted = (channels, frames, scale * height, scale * width)
    if tuple(result.clip.shape) != wanted or not bool(torch.isfinite(result.clip).all()):
        raise InputError(
            f"enhancer {name!r} returned a clip of shape {tuple(result.clip.shape)}, expected {wanted} of "
            "finite values"
        )
    return replace(result, clip=result.clip.detach().to("cpu", torch.float32).clamp(0, 1))


def enhance(
    clip: Tensor, method: str = "classical", *, scale: int = 2, network: Mapping[str, Tensor] | None = None
) -> Enhanced:
    """Return one clip (C, T, H, W) in [0, 1] enhanced; for many clips, call `build_enhancer` once.

    Args:
        clip: the rebuilt clip.
        method: ``name`` of `build_enhancer`.
        scale: factor for width and height.
        network: as in `build_enhancer`.

    Raises:
        InputError: as `build_enhancer`, or the clip has another shape or non-finite values.
        CapabilityError: as `build_enhancer`.
    """
    return build_enhancer(method, scale=scale, network=network)(clip)
