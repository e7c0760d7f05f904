"""Enhancers as denoisers of gradient matching: functions of clips (N, C, T, H, W) to clips of that shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from vleak.enhance.base import Enhancer
from vleak.enhance.build import build_enhancer
from vleak.enhance.network import cached_network
from vleak.seeds import tensor_digest

__all__ = ["classical", "network"]


def classical(clips: Tensor) -> Tensor:
    """Return clips behind the classical enhancer at their own resolution: fusion along time, non-local means.

    Args:
        clips: (N, C, T, H, W) in [0, 1].

    Raises:
        InputError: as `vleak.enhance.build_enhancer`.
    """
    return _each(build_enhancer("classical", scale=1), clips)


def network(public: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a denoiser of the enhancer's network, trained on public clips; its output is scaled down again.

    Training takes half a minute, once for these clips.

    Args:
        public: (M, C, T, H, W) in [0, 1], of at least 32 x 32.

    Raises:
        InputError: as `vleak.enhance.train_network`.
    """
    weights = cached_network({"denoiser": tensor_digest(public)}, lambda: public)
    enhancer = build_enhancer("network", network=weights)

    def denoise(clips: Tensor) -> Tensor:
        """Return clips (N, C, T, H, W) behind the network."""
        return functional.avg_pool3d(_each(enhancer, clips), (1, 2, 2))

    return denoise


def _each(enhancer: Enhancer, clips: Tensor) -> Tensor:
    return torch.stack([enhancer(clip).clip for clip in clips])
