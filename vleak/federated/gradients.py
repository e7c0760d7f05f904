"""Gradients of a loss by the parameters: of the batch, and of every clip by itself.

The model is called through ``torch.func.functional_call`` on detached parameters and copied buffers, so
nothing of it changes: no ``.grad``, no ``requires_grad``, no running statistics. Every parameter counts,
also one that is frozen (``requires_grad=False``) or unused (its gradient is zero).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from vleak.errors import CapabilityError
from vleak.federated.dropout import mask_limits
from vleak.switches import differentiable_rnn, recurrent

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (N, classes) or scores (N, ...), labels (N,)) -> scalar, a mean over the clips."""


def mean_gradient(model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the gradient of the batch's loss: what plain FedSGD sends.

    Args:
        model: maps the clips to logits or scores, a row a clip; used in the mode it is in.
        loss: (logits or scores, labels) -> scalar, a mean over the clips.
        clips: (N, C, T, H, W) in [0, 1], or features (N, ...), float32, on the model's device.
        labels: (N,) int64, on the model's device.

    Returns:
        one tensor a parameter, detached, in ``named_parameters()`` order.

    Raises:
        CapabilityError: the loss does not depend on the parameters.
    """
    parameters, buffers = _state(model)
    return _gradient(model, loss, clips, labels, {**parameters, **buffers}, list(parameters))


def _gradient(
    model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, tensors: dict[str, Tensor], names: list[str]
) -> dict[str, Tensor]:
    """Return the gradient by some of the tensors, by name, of a model that computes with all of them."""
    variables = {name: tensors[name].detach().requires_grad_() for name in names}
    with torch.enable_grad(), differentiable_rnn(model):
        logits = functional_call(model, {**tensors, **variables}, (clips,))
        value = loss(logits, labels)
        if not value.requires_grad:
            raise CapabilityError(
                "the loss does not depend on any parameter; remove no_grad() and detach() from the model"
            )
        gradients = torch.autograd.grad(
            value, list(variables.values()), allow_unused=True, materialize_grads=True
        )
    return {name: g.detach() for name, g in zip(variables, gradients, strict=True)}


def per_clip_gradients(model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the gradient of every clip as if it were a batch of one.

    Masks of dropout (`vleak.federated.dropout`) have a row for each clip, and each gradient its own.
    ``vmap(grad)`` where the model allows it, else (recurrent, data-dependent flow) a loop over the clips.

    Args:
        model: maps the clips to logits or scores, a row a clip; used in the mode it is in.
        loss: (logits or scores, labels) -> scalar, a mean over the clips.
        clips: (N, C, T, H, W) in [0, 1], or features (N, ...), float32, on the model's device.
        labels: (N,) int64, on the model's device.

    Returns:
        one tensor a parameter, (N, *parameter shape), detached, in ``named_parameters()`` order.

    Raises:
        CapabilityError: the loss does not depend on the parameters.
    """
    parameters, buffers = _state(model)
    masks = {name: buffers.pop(name)[:, None] for name in mask_limits(model)}  # a clip keeps its own

    def value(weights: dict[str, Tensor], own: dict[str, Tensor], clip: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**weights, **buffers, **own}, (clip[None],))
        return loss(logits, label[None])

    if not recurrent(model):  # vmap has no rule for RNNs
        try:
            with torch.enable_grad():
                gradients = vmap(grad(value), in_dims=(None, 0, 0, 0))(parameters, masks, clips, labels)
            return {name: gradients[name].detach() for name in parameters}
        except RuntimeError:
            pass  # vmap says in many ways that it has no rule; a genuine failure comes back from the loop.
    singles = []
    for index in range(len(clips)):
        tensors = parameters | buffers | {name: mask[index] for name, mask in masks.items()}
        row = slice(index, index + 1)
        singles.append(_gradient(model, loss, clips[row], labels[row], tensors, list(parameters)))
    return {name: torch.stack([single[name] for single in singles]) for name in parameters}


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return detached parameters (own tensors, shared memory) and copies of the buffers."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return parameters, {name: b.detach().clone() for name, b in model.named_buffers()}
