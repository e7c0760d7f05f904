"""A short real training: gradients of untrained, early and late models leak differently."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.backends import differentiable_rnn
from vleak.errors import InputError

#: state -> optimiser steps; fixed beforehand, so that no result can choose them.
TRAINING_STATES: dict[str, int] = {"untrained": 0, "early": 20, "late": 300}
_BATCH = 16


def train(model: nn.Module, clips: Tensor, labels: Tensor, steps: int, generator: torch.Generator) -> None:
    """Train in place with Adam (lr 1e-3) on cross-entropy, in eval mode as the client computes it.

    Args:
        model: a classifier; left in eval mode. Frozen parameters (``requires_grad=False``) stay as they are.
        clips: (M, C, T, H, W) in [0, 1]; public clips, never those under attack.
        labels: (M,) int64.
        steps: optimiser steps of at most 16 clips each; 0 changes nothing.
        generator: draws the batches.

    Raises:
        InputError: there is nothing to train on, every parameter is frozen, or the loss became NaN.
    """
    model.eval()
    if steps == 0:
        return
    if len(clips) == 0:
        raise InputError(
            "training needs public clips and the data has none left; give more files, or shorter clips"
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
            loss = F.cross_entropy(model(clips[batch]), labels[batch])
            if not torch.isfinite(loss):
                raise InputError(
                    "the loss became NaN in training; check the model's weights and its input range"
                )
            optimiser.zero_grad()
            torch.autograd.backward(loss)
        optimiser.step()
    optimiser.zero_grad()


def accuracy(model: nn.Module, clips: Tensor, labels: Tensor) -> float | None:
    """Return the fraction of clips (M, C, T, H, W) whose largest logit is their label; None without clips."""
    if len(clips) == 0:
        return None
    with torch.no_grad():
        hits = [
            model(part).argmax(1) == want
            for part, want in zip(torch.split(clips, _BATCH), torch.split(labels, _BATCH), strict=True)
        ]
    return float(torch.cat(hits).float().mean())
