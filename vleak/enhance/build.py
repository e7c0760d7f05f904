"""An enhancer by name."""

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
from vleak.errors import InputError
from vleak.registry import Registry


def _classical(scale: int) -> Enhancer:
    """Estimates the noise, averages along time, denoises, enlarges; sharpens only what is clean."""
    return partial(classical, scale=scale)


def _network(scale: int, weights: Mapping[str, Tensor] | None = None) -> Enhancer:
    """Refines that by a small network, trained on the public clips on this machine."""
    if scale != SCALE:
        raise InputError(f"enhance: the network enlarges by {SCALE}, not by {scale}; use classical")
    if weights is None:
        raise InputError(
            "enhance: 'network' needs trained weights; give those of vleak.enhance.cached_network"
        )
    return build_network(weights)


ENHANCERS: Registry[Enhancer] = Registry("enhancer", {"classical": _classical, "network": _network})
"""Functions (scale, settings) -> enhancer by name; beside them ``spandrel:PATH`` takes a checkpoint file."""

_PREFIX = "spandrel:"


def build_enhancer(name: str, *, scale: int = 2, network: Mapping[str, Tensor] | None = None) -> Enhancer:
    """Return an enhancer, made once and called on every clip, from any thread.

    Args:
        name: a name of ``ENHANCERS``, with settings or without, or ``spandrel:PATH``.
        scale: how many times as wide and high clips become; the network knows only 2.
        network: the weights of "network", as `train_network` or `cached_network` returns them.

    Raises:
        InputError: the name, the scale, the weights or the checkpoint is not usable.
        CapabilityError: what a checkpoint needs is not installed.
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
    """Run an enhancer from outside on a copy, and check what it returns."""
    channels, frames, height, width = clip.shape
    try:
        result = enhancer(clip.clone())
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
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
    """Enhance one clip (C, T, H, W) in [0, 1]; for many, call `build_enhancer` once.

    Args:
        clip: as rebuilt.
        method: as ``name`` of `build_enhancer`.
        scale: how many times as wide and high it becomes.
        network: as of `build_enhancer`.

    Raises:
        InputError: as `build_enhancer`, or no clip of finite frames.
        CapabilityError: as `build_enhancer`.
    """
    return build_enhancer(method, scale=scale, network=network)(clip)
