"""torch.lstm as plain operators, which a capture can record: they have second derivatives on every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["REPLACEMENTS"]


class _Layout(NamedTuple):
    """The arguments of torch.lstm that are no tensors."""

    biased: bool
    layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool


def _plain(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return what torch.lstm does, from one product for all inputs and one sum of biases.

    None where PyTorch runs plain operators itself, with projections, or where sequences differ in length.
    """
    if kwargs or isinstance(args[1], Tensor) or args[1][0].shape != args[1][1].shape:
        return None
    x, state, weights, *layout = args
    return _lstm(x, state, weights, _Layout(*layout))


def _lstm(
    x: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor], layout: _Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what torch.lstm returns: output (time, row, width), last hidden and last cell states."""
    x = x.transpose(0, 1) if layout.batch_first else x
    count, directions = (4 if layout.biased else 2), 1 + layout.bidirectional
    ends: list[tuple[Tensor, Tensor]] = []
    for layer in range(layout.layers):
        if layer and layout.dropout and layout.train:
            x = F.dropout(x, layout.dropout)
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            own = weights[count * index : count * (index + 1)]
            start = state[0][index], state[1][index]
            output, *end = _lstm_direction(x, start, own, backwards=direction == 1)
            outputs.append(output)
            ends.append((end[0], end[1]))
        x = torch.cat(outputs, 2) if layout.bidirectional else outputs[0]
    hidden, cell = (torch.stack(states) for states in zip(*ends, strict=True))
    return (x.transpose(0, 1) if layout.batch_first else x), hidden, cell


def _lstm_direction(
    x: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor], *, backwards: bool
) -> tuple[Tensor, Tensor, Tensor]:
    (hidden, cell), (of_input, of_hidden) = state, weights[:2]
    bias = weights[2] + weights[3] if len(weights) == 4 else None
    gates = F.linear(x, of_input, bias).unbind(0)
    outputs = []
    for gate in reversed(gates) if backwards else gates:
        enter, keep, new, leave = (gate + F.linear(hidden, of_hidden)).chunk(4, 1)
        cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs[::-1] if backwards else outputs), hidden, cell


REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {torch.lstm: _plain}
"""Functions of PyTorch and what replaces them."""
