"""Steps of a defense, run and checked: a breach of the contract is refused, and nothing is sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from vleak.errors import CapabilityError, ContractError, VleakError, argument, first_line
from vleak.federated.channel import Channel, nonzero_entries
from vleak.federated.claims import Claim, ClipsNorm, GaussianNoise
from vleak.federated.defense import Defense, Message, Privacy
from vleak.federated.gradients import Loss
from vleak.federated.update import Update

Result = TypeVar("Result")


def check_model(defense: Defense, model: nn.Module) -> None:
    """Let a defense refuse a model.

    Raises:
        CapabilityError: it did, or raised something else.
    """
    _call(defense, "check_model", defense.check_model, model)


def prepare_clips(
    defense: Defense, clips: Tensor, labels: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Let a defense act on a copy of the batch.

    Args:
        defense: of the client.
        clips: (N, C, T, H, W) in [0, 1], or features (N, ...).
        labels: (N,) int64.
        generator: of the client.

    Raises:
        CapabilityError: the defense raised, or returned something else than a batch of such clips.
    """
    result = _call(defense, "prepare_clips", defense.prepare_clips, clips.clone(), labels.clone(), generator)
    if not isinstance(result, tuple) or len(result) != 2 or not all(isinstance(t, Tensor) for t in result):
        raise _broken(defense, "prepare_clips", f"returned {_kind(result)}, expected (clips, labels)")
    prepared, targets = result
    expected = f"expected (clip, {', '.join(map(str, clips.shape[1:]))}), float32"
    if prepared.dtype != torch.float32 or prepared.shape[1:] != clips.shape[1:] or not len(prepared):
        raise _broken(defense, "prepare_clips", f"returned clips {_form(prepared)}, {expected}")
    if targets.dtype != torch.int64 or targets.shape != prepared.shape[:1]:
        raise _broken(
            defense, "prepare_clips", f"returned labels {_form(targets)}, expected ({len(prepared)},), int64"
        )
    if not torch.isfinite(prepared).all():
        raise _broken(defense, "prepare_clips", "returned NaN or infinity")
    if prepared.dim() == 5 and not (prepared.min() >= 0 and prepared.max() <= 1):
        raise _broken(defense, "prepare_clips", "returned values outside [0, 1]; clamp them")
    return prepared, targets


def with_public(defense: Defense, clips: Tensor, labels: Tensor) -> Defense:
    """Let a defense learn from public clips (M, ...) with labels (M,).

    Raises:
        CapabilityError: the defense raised, or returned no defense.
    """
    learned = _call(defense, "with_public", defense.with_public, clips, labels)
    if not isinstance(learned, Defense):
        raise _broken(defense, "with_public", f"returned {_kind(learned)}, expected a vleak.Defense")
    return learned


def extend_model(defense: Defense, model: nn.Module) -> nn.Module:
    """Let a defense add to the model that is trained.

    Raises:
        CapabilityError: the defense raised, or returned no module or one that lacks parameters of the model.
    """
    extended = _call(defense, "extend_model", defense.extend_model, model)
    if extended is model:
        return model
    if not isinstance(extended, nn.Module):
        raise _broken(defense, "extend_model", f"returned {_kind(extended)}, expected a torch.nn.Module")
    found = {name: p.shape for name, p in extended.named_parameters()}
    for name, parameter in model.named_parameters():
        if found.get(name) != parameter.shape:
            raise _broken(defense, "extend_model", f"returned a model without {name!r} as it was")
    return extended


def parts_of(defense: Defense, clips: int) -> list[slice]:
    """Return which clips of a batch belong to each of the clients that a defense sums; of one client all.

    Raises:
        CapabilityError: the batch cannot be dealt out evenly.
    """
    clients = _call(defense, "summed_clients", defense.summed_clients)
    if isinstance(clients, bool) or not isinstance(clients, int) or clients < 1:
        raise _broken(defense, "summed_clients", f"returned {clients!r}, expected a whole number from 1")
    if clips % clients:
        raise CapabilityError(
            f"{defense.label}: a batch of {clips} cannot be dealt out evenly to {clients} clients; give one"
            f" of {clients} clips, such as {argument('batch', clients)}, or a multiple"
        )
    size = clips // clients
    return [slice(start, start + size) for start in range(0, clips, size)]


def summed(messages: Sequence[Message]) -> Message:
    """Return the mean of what some clients send, with the bytes of one of them; of one its message itself.

    Of the numbers that travel along the server has the mean too. Positions that travel are not summed.
    """
    if len(messages) == 1:
        return messages[0]
    tensors = {
        name: torch.stack([message.tensors[name] for message in messages]).mean(0)
        for name in messages[0].tensors
    }
    size = round(sum(message.wire_bytes for message in messages) / len(messages))
    names = set.intersection(*(set(message.metrics) for message in messages))
    metrics = {name: sum(m.metrics[name] for m in messages) / len(messages) for name in sorted(names)}
    senders = [nonzero_entries(message.tensors) for message in messages if message.positions]
    return Message(tensors, size, metrics, senders=tuple(senders) if len(senders) == len(messages) else ())


def aggregate(
    defense: Defense,
    model: nn.Module,
    loss: Loss,
    clips: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    memory: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Let a defense turn the batch into one gradient, a tensor a parameter.

    Args:
        defense: of the client.
        model, loss, clips, labels, generator: as of `Defense.aggregate`.
        memory: what the client keeps between rounds; None where there is but one round.

    Raises:
        CapabilityError: the defense raised, or returned other names or shapes, numbers that are not finite,
            or memory of the model or the clips.
    """
    given = (model, loss, clips, labels, generator)
    if memory is None:
        gradient = _call(defense, "aggregate", defense.aggregate, *given)
    else:
        gradient = _call(defense, "aggregate", defense.aggregate_in_round, *given, memory)
    parameters = dict(model.named_parameters())
    _check_tensors(defense, "aggregate", gradient, parameters)
    for name, tensor in gradient.items():
        if not torch.isfinite(tensor).all():
            hint = f" and {describe(defense)}" if _from_outside(defense) else ""
            raise CapabilityError(
                f"the gradient of parameter {name!r} is not finite; check the model for overflow{hint}"
            )
    _check_memory(defense, "aggregate", gradient, [*parameters.values(), *model.buffers(), clips, labels])
    return {name: gradient[name] for name in parameters}


def transmit(
    defense: Defense,
    gradient: dict[str, Tensor],
    generator: torch.Generator,
    memory: dict[str, Tensor] | None = None,
) -> Message:
    """Let a defense send a gradient or delta, which what it returns may share no memory with.

    With error feedback (`Defense.keeps_error`) what earlier rounds withheld is added before, and what this
    message withholds is kept in ``memory``, which is None where there is but one round.

    Raises:
        CapabilityError: the defense raised, or returned no message, other names or shapes, numbers that are
            not finite float32 on the CPU, or share memory with the gradient.
    """
    kept = memory if defense.keeps_error() else None
    if kept is not None:
        gradient = {name: g + kept[name].to(g) if name in kept else g for name, g in gradient.items()}
    if memory is None:
        message = _call(defense, "transmit", defense.transmit, dict(gradient), generator)
    else:
        message = _call(defense, "transmit", defense.transmit_in_round, dict(gradient), generator, memory)
    if not isinstance(message, Message):
        raise _broken(defense, "transmit", f"returned {_kind(message)}, expected vleak.federated.Message")
    tensors, size = message.tensors, message.wire_bytes
    _check_tensors(defense, "transmit", tensors, gradient)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise _broken(
                defense, "transmit", f"returned {name!r} as {tensor.dtype} on {tensor.device}, expected "
                "float32 on the CPU"
            )  # fmt: skip
    if (wrong := _not_finite(tensors)) is not None:
        raise _broken(defense, "transmit", f"returned NaN or infinity in {wrong!r}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise _broken(defense, "transmit", f"returned wire_bytes={size!r}, expected a whole number")
    if not isinstance(message.positions, bool):
        raise _broken(
            defense, "transmit", f"returned positions={message.positions!r}, expected True or False"
        )
    _check_metrics(defense, message.metrics)
    _check_memory(defense, "transmit", tensors, gradient.values())
    if kept is not None:
        kept.update({name: g.detach().cpu() - tensors[name] for name, g in gradient.items()})
    arrived = {name: tensors[name].detach() for name in gradient}
    return Message(arrived, size, dict(message.metrics), positions=message.positions)


def stated_channel(defense: Defense, update: Update) -> Channel | None:
    """Return the channel that a defense states for one of its updates; None where it states none.

    Raises:
        CapabilityError: the defense raised, or returned no channel or one that does not fit the update.
    """
    channel = _call(defense, "channel", defense.channel, update)
    if channel is None:
        return None
    if not isinstance(channel, Channel):
        raise _broken(defense, "channel", f"returned {_kind(channel)}, expected vleak.federated.Channel")
    try:
        channel.check(update)
        hash(channel.key)
    except (VleakError, TypeError) as error:
        raise _broken(
            defense, "channel", f"returned a channel that does not fit: {first_line(error)}"
        ) from error
    if channel.key:  # keys of two defenses never meet
        kind = type(defense)
        return replace(channel, key=(kind.__module__, kind.__qualname__, channel.key))
    return channel


def stated_claims(defense: Defense) -> tuple[Claim, ...]:
    """Return what a defense claims of its messages.

    Raises:
        CapabilityError: the defense raised, or returned something else than claims.
    """
    claims = _call(defense, "claims", lambda: tuple(defense.claims()))
    for claim in claims:
        if not isinstance(claim, Claim):
            raise _broken(defense, "claims", f"returned {_kind(claim)}, expected vleak.federated.claims")
    return claims


def check_first(defense: Defense, update: Update) -> None:
    """Refuse a first update that attacks would know as that of another defense than the one that is claimed.

    Claims are about the first round. Of a delta the channel has what local steps make of noise and norm.

    Raises:
        CapabilityError: the channel states other noise, or a larger clipping norm, than is claimed; or the
            defense raised, or returned something else than claims or a channel.
    """
    claims = [claim for claim in stated_claims(defense) if isinstance(claim, GaussianNoise | ClipsNorm)]
    channel = stated_channel(defense, update) if claims and update.facts.kind == "fedsgd" else None
    if channel is None:
        return
    for claim in claims:
        if isinstance(claim, GaussianNoise):
            expected = claim.deviation * (1 if claim.unit == "clip" else update.facts.batch_size)
            if not math.isclose(channel.noise_deviation or 0.0, expected, rel_tol=1e-6):
                raise _broken(
                    defense, "channel", f"states noise of {channel.noise_deviation or 0.0:.3g} on the sum, "
                    f"the claims {expected:.3g}; correct one of them"
                )  # fmt: skip
        if (
            isinstance(claim, ClipsNorm)
            and claim.unit == "clip"
            and channel.clip_norm > claim.limit * (1 + 1e-6)
        ):
            raise _broken(
                defense, "channel", f"states a clipping norm of {channel.clip_norm:.3g}, the claims "
                f"{claim.limit:.3g}; correct one of them"
            )  # fmt: skip


def stated_privacy(defense: Defense, uses: int = 1, updates: int = 1) -> Privacy | None:
    """Return the certificate that a defense states; None where it proves nothing.

    Args:
        defense: of the client.
        uses, updates: as of `Defense.privacy_of`.

    Raises:
        CapabilityError: the defense raised, or returned no certificate.
    """
    privacy = _call(defense, "privacy", defense.privacy)
    if privacy is not None and max(uses, updates) > 1:
        privacy = _call(defense, "privacy_of", defense.privacy_of, uses, updates)
    if privacy is not None and not isinstance(privacy, Privacy):
        raise _broken(defense, "privacy", f"returned {_kind(privacy)}, expected vleak.federated.Privacy")
    return privacy


def describe(defense: Defense) -> str:
    """Return the class of a defense and where it is from, for messages."""
    kind = type(defense)
    return f"defense {kind.__name__} ({kind.__module__}:{kind.__qualname__})"


def _call(defense: Defense, step: str, function: Callable[..., Result], *arguments: object) -> Result:
    try:
        return function(*arguments)
    except VleakError:
        raise
    except Exception as error:
        if not _from_outside(defense):
            raise
        raise _broken(defense, step, f"raised {type(error).__name__}: {first_line(error)}") from error


def _from_outside(defense: Defense) -> bool:
    return type(defense).__module__.partition(".")[0] != "vleak"


def _check_tensors(defense: Defense, step: str, tensors: object, expected: Mapping[str, Tensor]) -> None:
    """Refuse what is no dict of one tensor a parameter, of its shape."""
    if not isinstance(tensors, dict):
        raise _broken(defense, step, f"returned {_kind(tensors)}, expected a dict of tensors")
    for name in {**expected, **tensors}:
        if name not in tensors:
            raise _broken(defense, step, f"returned nothing for parameter {name!r}")
        if name not in expected:
            raise _broken(defense, step, f"returned {name!r}, which is no parameter of the model")
        if not isinstance(tensors[name], Tensor):
            raise _broken(defense, step, f"returned {_kind(tensors[name])} for {name!r}, expected a tensor")
        if tensors[name].shape != expected[name].shape:
            raise _broken(
                defense, step, f"returned {name!r} of shape {tuple(tensors[name].shape)}, expected "
                f"{tuple(expected[name].shape)}"
            )  # fmt: skip


def _check_metrics(defense: Defense, metrics: object) -> None:
    """Refuse what are no finite numbers by name."""
    if not isinstance(metrics, Mapping):
        raise _broken(defense, "transmit", f"returned metrics as {_kind(metrics)}, expected numbers by name")
    for name, value in metrics.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise _broken(
                defense, "transmit", f"returned metric {name!r} as {value!r}, expected a finite number"
            )


def _check_memory(
    defense: Defense, step: str, tensors: Mapping[str, Tensor], received: Iterable[Tensor]
) -> None:
    """Refuse tensors in the memory of the step's arguments: a later write would change what was sent."""
    storages = {tensor.untyped_storage().data_ptr() for tensor in received if tensor.numel()}
    for name, tensor in tensors.items():
        if tensor.numel() and tensor.untyped_storage().data_ptr() in storages:
            raise _broken(defense, step, f"returned {name!r} in memory that it was given; return a clone()")


def _broken(defense: Defense, step: str, what: str) -> ContractError:
    return ContractError(f"{describe(defense)}: {step} {what}; nothing was sent")


def _kind(thing: object) -> str:
    return type(thing).__name__


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of a tensor that is not finite, None where all are.

    Where the sum of all entries is finite all of them are, which is said at a fraction of the cost.
    """
    if bool(torch.stack([tensor.sum() for tensor in tensors.values()]).sum().isfinite()):
        return None
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}, {tensor.dtype}"
