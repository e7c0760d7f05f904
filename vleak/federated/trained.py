"""What a client trains and sends: the parameters that are not frozen, and their way through local steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from vleak.errors import CapabilityError, InputError, argument
from vleak.federated import steps
from vleak.federated.defense import Defense
from vleak.federated.dropout import draw_masks
from vleak.federated.gradients import Loss
from vleak.federated.local import LocalTraining

__all__ = ["freeze_others", "local_delta", "moved", "refuse_all_frozen", "trained_part"]


def trained_part(model: nn.Module) -> nn.Module:
    """Return the model with its frozen parameters (``requires_grad=False``) as buffers.

    Its ``named_parameters()`` are what a client trains, clips, counts and sends. A copy where anything is
    frozen, else the model itself.

    Raises:
        InputError: every parameter is frozen.
    """
    if all(parameter.requires_grad for parameter in model.parameters()):
        return model
    refuse_all_frozen(model)
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not parameter.requires_grad:
                del module._parameters[name]
                module.register_buffer(name, parameter.detach())
    return model


def refuse_all_frozen(model: nn.Module) -> None:
    """Refuse a model of which nothing would be sent.

    Raises:
        InputError: every parameter is frozen.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            f"model {type(model).__name__}: all its parameters are frozen (requires_grad=False), so "
            "nothing is sent; leave some of them trainable"
        )


def moved(model: nn.Module, update: Mapping[str, Tensor], factor: float) -> nn.Module:
    """Return a copy of a model whose parameters went a multiple of an update further.

    Args:
        model: not changed.
        update: by parameter name; parameters that it lacks stay.
        factor: what the update is multiplied by.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in update:
                parameter.add_(factor * update[name].to(parameter))
    return model


def freeze_others(model: nn.Module, patterns: str) -> None:
    """Freeze every parameter whose name no pattern fits; what is frozen already stays so.

    Args:
        model: changed in place.
        patterns: shell patterns with commas between them, such as "head.*,norm.weight"; "*" for all.

    Raises:
        InputError: all parameters are frozen, or no pattern fits one that is not; names some that there are.
    """
    refuse_all_frozen(model)
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    named = dict(model.named_parameters())
    kept = {name for name in named if any(fnmatchcase(name, pattern) for pattern in wanted)}
    if not any(named[name].requires_grad for name in kept):
        known = [name for name, parameter in named.items() if parameter.requires_grad]
        raise InputError(
            f"{argument('trainable', patterns)}: no trainable parameter of the model fits; there are "
            f"{', '.join(known[:6])}{', ...' if len(known) > 6 else ''}"
        )
    for name, parameter in named.items():
        parameter.requires_grad_(parameter.requires_grad and name in kept)


def local_delta(
    defense: Defense,
    model: nn.Module,
    loss: Loss,
    clips: Tensor,
    labels: Tensor,
    *,
    local: LocalTraining,
    generator: torch.Generator,
    masks: torch.Generator | None = None,
    memory: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Train a copy of the model on a client's clips and return how its weights moved, through a defense.

    The defense acts on the gradient of every step; what it does to the message comes after this.

    Args:
        defense: of the client.
        model: from `trained_part`, in the client's mode; not changed.
        loss: (logits or scores, labels) -> scalar, a mean over the clips.
        clips: (N, ...), float32, on the model's device.
        labels: (N,) int64, on the model's device.
        local: how it trains.
        generator: CPU generator of the client; draws the order of the clips where a step takes a part.
        masks: CPU generator of the masks of dropout, which each step draws anew; None for a model from which
            `with_masks` has replaced nothing.
        memory: what the client keeps between rounds; None where there is but one round.

    Returns:
        by parameter name, weights after training less those before it.

    Raises:
        CapabilityError: the defense broke its contract, or the weights left the range of numbers.
    """
    trained = copy.deepcopy(model)
    parameters = dict(trained.named_parameters())
    optimizer = _optimizer(parameters, local)
    for rows in _batches(len(clips), local, generator):
        if masks is not None:
            draw_masks(trained, clips[rows], masks)
        gradient = steps.aggregate(defense, trained, loss, clips[rows], labels[rows], generator, memory)
        for name, parameter in parameters.items():
            parameter.grad = gradient[name].to(parameter)
        optimizer.step()
    before = dict(model.named_parameters())
    delta = {name: (p.detach() - before[name].detach()) for name, p in parameters.items()}
    for name, tensor in delta.items():
        if not torch.isfinite(tensor).all():
            raise CapabilityError(
                f"local training diverged: {name!r} is not finite after {local.steps} steps; lower the "
                f"learning rate, {local.learning_rate:g}"
            )
    return delta


def _optimizer(parameters: dict[str, nn.Parameter], local: LocalTraining) -> torch.optim.Optimizer:
    if local.optimizer == "adam":
        return torch.optim.Adam(parameters.values(), lr=local.learning_rate, weight_decay=local.weight_decay)
    return torch.optim.SGD(
        parameters.values(),
        lr=local.learning_rate,
        momentum=local.momentum,
        weight_decay=local.weight_decay,
    )


def _batches(clips: int, local: LocalTraining, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of every step; the order is drawn anew for each pass where a step takes a part."""
    size, rows = local.step_size(clips), torch.arange(0)
    for _ in range(local.steps):
        if not len(rows):
            rows = torch.arange(clips) if size == clips else torch.randperm(clips, generator=generator)
        yield rows[:size]
        rows = rows[size:]
