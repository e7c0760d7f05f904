"""An enhancer by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from vleak.enhance.base import MAX_SCALE, Enhanced, Enhancer
from vleak.enhance.checkpoint import build_checkpoint
from vleak.enhance.classical import classical
from vleak.enhance.network import SCALE, build_network
from vleak.errors import InputError, unknown_name

ENHANCERS: dict[str, str] = {
    "classical": "estimates the noise, averages along time, denoises, enlarges; sharpens only what is clean",
    "network": "refines that by a small network, trained on the public clips on this machine",
}
"""Name -> what it does; beside them ``spandrel:PATH`` takes a checkpoint file."""

_PREFIX = "spandrel:"


def build_enhancer(name: str, *, scale: int = 2, network: Mapping[str, Tensor] | None = None) -> Enhancer:
    """Return an enhancer, made once and called on every clip, from any thread.

    Args:
        name: a key of ``ENHANCERS``, or ``spandrel:PATH``.
        scale: how many times as wide and high clips become; the network knows only 2.
        network: the weights of "network", as `train_network` or `cached_network` returns them.

    Raises:
        InputError: the name, the scale, the weights or the checkpoint is not usable.
        CapabilityError: what a checkpoint needs is not installed.
    """
    if not 1 <= scale <= MAX_SCALE:
        raise InputError(f"enhance: scale {scale}; expected a whole number from 1 to {MAX_SCALE}")
    if name == "classical":
        return partial(classical, scale=scale)
    if name.startswith(_PREFIX):
        return build_checkpoint(name.removeprefix(_PREFIX), scale)
    if name != "network":
        raise unknown_name("enhancer", name, ENHANCERS, also="spandrel:PATH")
    if scale != SCALE:
        raise InputError(f"enhance: the network enlarges by {SCALE}, not by {scale}; use classical")
    if network is None:
        raise InputError(
            "enhance: 'network' needs trained weights; give those of vleak.enhance.cached_network"
        )
    return build_network(network)


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
