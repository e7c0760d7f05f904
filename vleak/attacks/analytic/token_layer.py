"""First layer of a transformer on clips: tubelets, their embedding, and what its first attention reads."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vleak.attacks.observation import Observation
from vleak.errors import CapabilityError

__all__ = ["TokenLayer", "token_layer"]

_CLOSE = 1e-4
"""Difference of rows, relative to their size, that rounding may leave where there should be none."""


@dataclass(frozen=True)
class TokenLayer:
    """The layers y_i = gain * (h_i - mean h_i) / std h_i + shift, h_i = W x_i + offset_i, of tubelets x_i.

    All tensors are float64, on the CPU.

    Attributes:
        tubelet: (t, h, w), frames, and height and width, of a tubelet.
        grid: tubelets along time, height and width of a clip.
        colour: (2, C), what the model takes off a colour, and divides it by, before it embeds.
        weight: (d, D), W of colours as the model has them; D = C t h w.
        offset: (n, d), bias and position of each tubelet.
        gain, shift: (d,), of the layer norm; 1 and 0 where it has none.
        rows: how many tokens the attention reads, tubelets and those of the model's own.
        tubelets_gradient: (d, D), the gradient by W; None where it is not sent.
        attention_gradient: (k, d), gradients of projections of y, one under the other.
    """

    tubelet: tuple[int, int, int]
    grid: tuple[int, int, int]
    colour: Tensor
    weight: Tensor
    offset: Tensor
    gain: Tensor
    shift: Tensor
    rows: int
    tubelets_gradient: Tensor | None
    attention_gradient: Tensor

    def cut(self, clips: Tensor) -> Tensor:
        """Return the tubelets (M, n, C, t, h, w) of clips (M, C, T, H, W); what fills none is left out."""
        (frames, height, width), (times, down, across) = self.tubelet, self.grid
        whole = clips[:, :, : frames * times, : height * down, : width * across]
        parts = whole.reshape(*clips.shape[:2], times, frames, down, height, across, width)
        return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(1, 3)

    def joined(self, tubelets: Tensor, clip: Tensor) -> Tensor:
        """Return a copy of a clip (C, T, H, W) that has these tubelets (n, C, t, h, w)."""
        parts = tubelets.reshape(*self.grid, *tubelets.shape[1:]).permute(3, 0, 4, 1, 5, 2, 6)
        parts = parts.flatten(5, 6).flatten(3, 4).flatten(1, 2)
        frames, height, width = parts.shape[1:]
        clip = clip.clone()
        clip[:, :frames, :height, :width] = parts.to(clip)
        return clip


def token_layer(observation: Observation, generator: torch.Generator) -> TokenLayer:
    """Find the first layers of a transformer by running the model on a clip of zeros and a random one.

    Args:
        observation: of one clip; whose model is looked at.
        generator: of the attack.

    Raises:
        CapabilityError: the model does not embed tubelets and normalise them before its first attention, or
            the update lacks what the attention reads.
    """
    # Equations hold as exactly as what is read here.
    model = copy.deepcopy(observation.model).cpu().double()
    probe = torch.rand(observation.knowledge.batch_shape, generator=generator).double()
    calls = [_calls(model, clips) for clips in (torch.zeros_like(probe), probe)]
    if not all(call.complete for call in calls):
        raise _unlike(observation.model)
    convolution, norm, linear = calls[0].embedding, calls[0].norm, calls[0].readers
    assert convolution is not None
    assert norm is not None
    colour = _colour([call.pixels for call in calls], probe)
    offset = _offset([call.embedded for call in calls], [call.normed for call in calls])
    if colour is None or offset is None:
        raise _unlike(observation.model)
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    tensors, width = observation.update.tensors, calls[0].normed.shape[-1]
    found = [
        tensors[names[id(p)]] for reader in linear for p in reader.parameters()
        if p.ndim == 2 and p.shape[1] == width and names.get(id(p)) in tensors
    ]  # fmt: skip
    if not any(bool(tensor.any()) for tensor in found):
        raise CapabilityError(
            "tokens: the update says nothing of what the first attention reads; choose matching"
        )
    own = tensors.get(names.get(id(convolution.weight), ""))
    ones = torch.ones(width)
    return TokenLayer(
        tubelet=_three(convolution.kernel_size),
        grid=_three(calls[0].embedded.shape[2:]),
        colour=colour,
        weight=_plain(convolution.weight).flatten(1),
        offset=offset if convolution.bias is None else offset + _plain(convolution.bias),
        gain=_plain(ones if norm.weight is None else norm.weight),
        shift=_plain(0 * ones if norm.bias is None else norm.bias),
        rows=calls[0].normed.numel() // width,
        tubelets_gradient=None if own is None or not bool(own.any()) else _plain(own).flatten(1),
        attention_gradient=torch.cat([_plain(tensor) for tensor in found]),
    )


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    frames, height, width = sizes
    return frames, height, width


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _unlike(model: nn.Module) -> CapabilityError:
    return CapabilityError(
        f"tokens: {type(model).__name__} does not cut clips into tubelets, embed and normalise them before "
        "its first attention; choose matching"
    )


# ---------------------------------------------------------------------------------------------------------
# Looking at the model


@dataclass
class _Calls:
    """What a model did with one clip: its first convolution, then the first layer norm and its readers."""

    embedding: nn.Conv3d | None = None
    norm: nn.LayerNorm | None = None
    readers: list[nn.Linear] = field(default_factory=list)
    pixels: Tensor = field(default_factory=lambda: torch.zeros(0))
    embedded: Tensor = field(default_factory=lambda: torch.zeros(0))
    normed: Tensor = field(default_factory=lambda: torch.zeros(0))
    read: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def complete(self) -> bool:
        return bool(self.readers) and self.embedded.shape[1] == self.normed.shape[-1]

    def note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Keep what a layer saw and returned, where it is one of those looked for."""
        if self.embedding is None and isinstance(module, nn.Conv3d) and _cuts(module, inputs[0]):
            self.embedding, self.pixels, self.embedded = module, inputs[0], output
        elif self.embedding is not None and self.norm is None and isinstance(module, nn.LayerNorm):
            self.norm, self.normed, self.read = module, inputs[0], output
        elif self.norm is not None and isinstance(module, nn.Linear) and inputs[0] is self.read:
            self.readers.append(module)


def _cuts(layer: nn.Conv3d, pixels: Tensor) -> bool:
    """Return whether a convolution sees every pixel of a clip once at most."""
    plain = layer.kernel_size == layer.stride and layer.groups == 1 and not any(map(bool, layer.padding))
    return plain and pixels.ndim == 5 and len(pixels) == 1


def _calls(model: nn.Module, clip: Tensor) -> _Calls:
    calls = _Calls()
    with torch.no_grad(), _watched(model, calls):
        model(clip)
    return calls


@contextmanager
def _watched(model: nn.Module, calls: _Calls) -> Iterator[None]:
    hooks = [module.register_forward_hook(calls.note) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _colour(pixels: list[Tensor], probe: Tensor) -> Tensor | None:
    """Return (2, C), mean and deviation of the colours; None where they are not all that is taken out."""
    if pixels[0].shape != probe.shape:
        return None
    zero, other, given = (_plain(tensor).transpose(0, 1).flatten(1) for tensor in (*pixels, probe))
    slope = ((other - zero) * given).sum(1) / given.square().sum(1)
    shift = zero.mean(1)
    gap = (slope[:, None] * given + shift[:, None] - other).abs().max()
    if float(gap) > _CLOSE * float(other.abs().max()) or not bool((slope != 0).all()):
        return None
    return torch.stack([-shift / slope, 1 / slope])


def _offset(embedded: list[Tensor], normed: list[Tensor]) -> Tensor | None:
    """Return (n, d), what is added to each tubelet before the norm; None where that is not all.

    Tokens of the model's own may stand between those of tubelets, and the order may be another one: a token
    is a tubelet's where it differs between the two clips as the tubelet's embedding does.
    """
    inside = [_plain(tensor).flatten(2)[0].T for tensor in embedded]
    tokens = [_plain(tensor).flatten(0, -2) for tensor in normed]
    gaps = torch.cdist(inside[1] - inside[0], tokens[1] - tokens[0])
    nearest = gaps.min(1)
    if float(nearest.values.max()) > _CLOSE * float((inside[1] - inside[0]).norm(dim=1).max()):
        return None
    return tokens[0][nearest.indices] - inside[0]
