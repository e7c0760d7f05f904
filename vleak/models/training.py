"""Short training of models: gradients of untrained, early and late models leak differently."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.errors import InputError, argument
from vleak.switches import differentiable_rnn

#: training state -> optimiser steps; fixed, so that they cannot be tuned on results.
TRAINING_STATES: dict[str, int] = {"untrained": 0, "early": 20, "late": 300}
GIVEN = "given"
"""Training state of a classifier whose weights were handed over: it was trained elsewhere, and not here."""
_BATCH = 16


def training_steps(state: str) -> int:
    """Return the optimiser steps of a training state: 0 for "given"."""
    return 0 if state == GIVEN else TRAINING_STATES[state]


def train(
    model: nn.Module,
    clips: Tensor,
    labels: Tensor,
    steps: int,
    generator: torch.Generator,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> None:
    """Train a model in place with Adam (lr 1e-3), in eval mode, like the client's loss.

    Args:
        model: a classifier or head; left in eval mode. Frozen parameters (``requires_grad=False``) stay as
            they are.
        clips: (M, C, T, H, W) in [0, 1], or features (M, S, F) or (M, 2, S, F); public, never those under
            attack.
        labels: (M,) int64.
        steps: optimiser steps of at most 16 clips each; 0 changes nothing.
        generator: draws the batches.
        loss: (output, labels) -> scalar, the client's training loss.

    Raises:
        InputError: there is nothing to train on, every parameter is frozen, or the loss became NaN.
    """
    model.eval()
    if steps == 0:
        return
    if len(clips) == 0:
        raise InputError(
            "training needs public clips and the data has none left; give more files, or "
            f"{argument('public_from', 'same-file')}"
        )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise InputError(
            "every parameter of the model is frozen, so it cannot be trained; take the training state "
            "'untrained', or thaw some with requires_grad_(True)"
        )
    optimiser = torch.optim.Adam(trainable, lr=1e-3)
    for _ in range(steps):
        batch = torch.randperm(len(clips), generator=generator)[:_BATCH]
        with differentiable_rnn(model):
            value = loss(model(clips[batch]), labels[batch])
            if not torch.isfinite(value):
                raise InputError(
                    "the loss became NaN in training; check the model's weights and its input range"
                )
            optimiser.zero_grad()
            torch.autograd.backward(value)
        optimiser.step()
    optimiser.zero_grad()


def accuracy(model: nn.Module, clips: Tensor, labels: Tensor) -> float | None:
    """Return the fraction of clips that the model classifies correctly (`hits`); None without clips.

    Args:
        model, clips, labels: as of `hits`.
    """
    return float(hits(model, clips, labels).float().mean()) if len(clips) else None


def hits(model: nn.Module, clips: Tensor, labels: Tensor) -> Tensor:
    """Return for each clip whether the model classifies it correctly, (M,) bool.

    Correct means, for logits (N, classes): the largest one is the label's. For scores (N, S, 1): the largest
    over the segments is above 0.5 for label 1 and at most 0.5 for label 0. For scores of bag pairs
    (N, 2, S, 1): the largest of the first bag exceeds the largest of the second.

    Args:
        model: a classifier or head, on the device of the clips.
        clips: (M, *clip shape), inputs of the model, M >= 1.
        labels: (M,) int64; ignored for pairs.
    """
    with torch.no_grad():
        outputs = torch.cat([model(part) for part in torch.split(clips, _BATCH)])
    if outputs.ndim == 2:
        return outputs.argmax(1) == labels
    if outputs.ndim == 3:
        return (outputs.amax((1, 2)) > 0.5) == labels.bool()
    return outputs[:, 0].amax((1, 2)) > outputs[:, 1].amax((1, 2))
