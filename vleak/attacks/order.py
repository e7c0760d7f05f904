"""Order of frames, or of segments: can it be told from a gradient at all?"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vleak.errors import InputError, unknown_name
from vleak.federated import LOSSES, trained_part
from vleak.seeds import generator
from vleak.switches import differentiable_rnn, math_attention

__all__ = ["order_identifiable"]

ROUNDING = 1e-5
"""Relative difference of two float32 gradients below which they are the same: measured 2e-7 where order is
lost, 0.2 and more on the built-in classifiers."""


def order_identifiable(
    model: nn.Module, clip_shape: tuple[int, ...], *, loss: str = "cross_entropy", clips: Tensor | None = None
) -> bool:
    """Tell whether permuting frames, or segments, changes the gradient of a model.

    Where it does not, as in nets that look at one frame at a time and average, no attack can know the order,
    and only a score after matching says what leaked.

    Args:
        model: maps clips or features to logits or scores, in the mode that the client uses; stays as it is.
        clip_shape: (C, T, H, W), or (S, F) or (2, S, F) for features.
        loss: by name, a key of `vleak.federated.LOSSES`.
        clips: (M, *clip_shape), public ones to try, at least one; None for two of random numbers in [0, 1].

    Raises:
        InputError: the loss is unknown, the clips have another shape, or the model has no parameters.
    """
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    numbers = generator("order")
    if clips is None:
        clips = torch.rand(2, *clip_shape, generator=numbers)
    if tuple(clips.shape[1:]) != tuple(clip_shape) or not len(clips):
        raise InputError(
            f"order: expected clips of shape (clip, *{tuple(clip_shape)}), at least one, got "
            f"{tuple(clips.shape)}"
        )
    weight = next(model.parameters(), None)
    if weight is not None:
        model = trained_part(model)
    if weight is None:
        raise InputError("the model has no parameters, so it has no gradient that could tell an order")
    axis = 1 if len(clip_shape) == 2 else 2
    length = clips.shape[axis]
    orders = [torch.arange(length).flip(0), torch.randperm(length, generator=numbers)]
    with math_attention(), differentiable_rnn(model):
        for clip in torch.split(clips.to(weight), 1):
            plain = _gradient(model, clip, loss)
            for order in orders:
                moved = _gradient(model, clip.index_select(axis, order.to(weight.device)), loss)
                if float((moved - plain).norm()) > ROUNDING * float(plain.norm()):
                    return True
    return False


def _gradient(model: nn.Module, clip: Tensor, loss: str) -> Tensor:
    """Return the gradient at one clip (1, ...), label 0, as one vector in double precision."""
    parameters = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    buffers = {name: copy.deepcopy(buffer) for name, buffer in model.named_buffers()}
    label = torch.zeros(1, dtype=torch.long, device=clip.device)
    with torch.enable_grad():
        value = LOSSES[loss](functional_call(model, {**parameters, **buffers}, (clip,)), label)
        gradients = torch.autograd.grad(
            value, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
    return torch.cat([gradient.flatten().double() for gradient in gradients])
