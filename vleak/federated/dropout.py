"""Dropout with masks that are tensors of the model: drawn by a client, unknown to an attacker.

A mask holds for each number of a layer's input what it is multiplied by: 0, or 1 / (1 - p) where it is kept.
Its mean is 1, so a mask of ones is what the layer computes in eval mode.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vleak.errors import CapabilityError, argument

__all__ = ["draw_masks", "drops", "fill_masks", "mask_limits", "one_pass", "with_masks", "without_dropout"]

_AXES: dict[type[nn.Module], int | None] = {
    nn.Dropout: None, nn.Dropout1d: 3, nn.Dropout2d: 4, nn.Dropout3d: 5
}  # fmt: skip
"""Layers that are replaced; of those that drop whole channels the axes of their input."""


class MaskedDropout(nn.Module):
    """Dropout by masks that it holds as buffers ``mask0``, ``mask1``, ..., one for each call of a pass.

    A mask is (N, k, *rest): a row for each of N clips, of which the layer's input (N * k, *rest) has k, as
    where frames are folded into the batch.
    """

    def __init__(self, rate: float, axes: int | None) -> None:
        """Take the rate in (0, 1], and the axes of an input whose channels are dropped, or None."""
        super().__init__()
        self.rate, self.axes, self.calls, self.call = rate, axes, 0, 0
        self.make: Callable[[tuple[int, ...]], Tensor] | None = None
        self.made: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs times the mask of this call."""
        if self.make is not None:
            self.made.append(self.make(self._shape(inputs)).to(inputs))
            return inputs * self.made[-1]
        mask = self.get_buffer(f"mask{self.call}").flatten(0, 1)
        self.call = (self.call + 1) % self.calls
        if mask.shape[0] != inputs.shape[0]:
            raise CapabilityError(
                f"dropout: masks were drawn for {mask.shape[0]} rows, and the model was called with "
                f"{inputs.shape[0]}; call it on the whole batch, or use vleak.federated.per_clip_gradients"
            )
        return inputs * mask

    def keep(self, clips: int) -> None:
        """Hold the masks that were made in a pass of so many clips."""
        for index, mask in enumerate(self.made):
            if len(mask) % clips:
                raise CapabilityError(
                    f"dropout: a layer's input has {len(mask)} rows for {clips} clips, so that no mask "
                    f"belongs to one clip; keep clips along the first axis, or {argument('mode', 'eval')}"
                )
            self.register_buffer(f"mask{index}", mask.view(clips, -1, *mask.shape[1:]))
        self.calls, self.call, self.make, self.made = len(self.made), 0, None, []

    def _shape(self, inputs: Tensor) -> tuple[int, ...]:
        if self.axes is None:
            return tuple(inputs.shape)
        if inputs.dim() != self.axes:
            raise CapabilityError(
                f"dropout of channels: expected an input of {self.axes} axes, got {inputs.dim()}; keep the "
                "batch axis"
            )
        return (*inputs.shape[:2], *[1] * (inputs.dim() - 2))


def drops(model: nn.Module) -> bool:
    """Return whether a model has dropout layers that `with_masks` replaces."""
    return any(_rate(module) > 0 for module in model.modules())


def _rate(module: nn.Module) -> float:
    """Return the rate of a dropout layer; 0 for other modules."""
    return float(module.p) if type(module) in _AXES else 0.0  # type: ignore[arg-type]  # a number there


def with_masks(model: nn.Module) -> nn.Module:
    """Return a copy whose dropout layers take masks, to be drawn or filled; the model where it has none."""
    if not drops(model):
        return model
    made = _replaced(model, lambda layer: MaskedDropout(_rate(layer), _AXES[type(layer)]))
    made.register_forward_pre_hook(_begin_pass)
    return made


def without_dropout(model: nn.Module) -> nn.Module:
    """Return a copy without dropout layers, which they are on average; the model where it has none."""
    return _replaced(model, lambda _: nn.Identity()) if drops(model) else model


def draw_masks(model: nn.Module, clips: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the masks of one pass, a row for each clip.

    Args:
        model: from `with_masks`; its masks are replaced, all else stays.
        clips: (N, ...), of the pass.
        generator: CPU generator, the only source of randomness.

    Returns:
        what the model returns for the clips under these masks.

    Raises:
        CapabilityError: a layer's input has no row, or rows, for each clip.
    """

    def make(layer: MaskedDropout, shape: tuple[int, ...]) -> Tensor:
        kept = torch.rand(shape, generator=generator) >= layer.rate
        return kept.float() / (1 - layer.rate) if layer.rate < 1 else torch.zeros(shape)

    return _made(model, clips, make)


def fill_masks(model: nn.Module, clips: Tensor) -> Tensor:
    """Give a model from `with_masks` the masks that are expected, of ones; see `draw_masks`."""
    return _made(model, clips, lambda _, shape: torch.ones(shape))


def mask_limits(model: nn.Module) -> dict[str, float]:
    """Return the masks of a model by name of the buffer, each with its largest value."""
    return {
        f"{name}.mask{index}" if name else f"mask{index}": 1 / (1 - layer.rate) if layer.rate < 1 else 1.0
        for name, layer in model.named_modules()
        if isinstance(layer, MaskedDropout)
        for index in range(layer.calls)
    }


def one_pass(model: nn.Module, clips: Tensor) -> Tensor:
    """Return a model's output through copies of its buffers: batch norm would move its statistics."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outputs: Tensor = functional_call(model, buffers, (clips,))
    return outputs


def _made(
    model: nn.Module, clips: Tensor, make: Callable[[MaskedDropout, tuple[int, ...]], Tensor]
) -> Tensor:
    layers = [module for module in model.modules() if isinstance(module, MaskedDropout)]
    for layer in layers:
        layer.made, layer.make = [], lambda shape, layer=layer: make(layer, shape)  # type: ignore[misc]
    try:
        with torch.no_grad():
            outputs = one_pass(model, clips)
        for layer in layers:
            layer.keep(len(clips))
    finally:
        for layer in layers:
            layer.make, layer.made = None, []
    return outputs


def _begin_pass(model: nn.Module, _: object) -> None:
    for module in model.modules():  # also after a pass that ended early
        if isinstance(module, MaskedDropout):
            module.call = 0


def _replaced(model: nn.Module, replacement: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Return a deep copy with other modules for its dropout layers; one that is shared stays shared."""
    made = copy.deepcopy(model)
    layers = {id(m): m for m in made.modules() if _rate(m) > 0}
    new = {key: replacement(layer).train(layer.training) for key, layer in layers.items()}
    if id(made) in new:
        return new[id(made)]
    for module in list(made.modules()):
        for name, child in list(module._modules.items()):
            if id(child) in new:
                module._modules[name] = new[id(child)]
    return made
