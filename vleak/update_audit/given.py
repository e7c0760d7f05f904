"""Update of an audit, out of whatever the user holds: files, tensors, and what frameworks send."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from vleak.errors import InputError, argument, unknown_name, utf8_text
from vleak.federated import LocalTraining, PublicFacts, Update, load_update
from vleak.federated.captured import Arrays, Slots, capture, contents, refuse_weights
from vleak.federated.saved import KEY
from vleak.federated.stored import limit_of, read_stored
from vleak.update_audit.payloads import Kind, read_dxo, unpacked

__all__ = ["KINDS", "Given", "Source", "read_given"]

KINDS: tuple[Kind, ...] = ("auto", "gradient", "delta", "weights")
"""What a file may hold: the gradient +dL/dw; weights after less weights before; or weights after training."""

Source = Update | Arrays | str | Path
"""An `Update`, tensors or arrays by name or in order, a payload of Flower or NVFlare, or a file."""


@dataclass(frozen=True)
class Given:
    """What the user gave.

    Attributes:
        update: matched to the model, with its public facts.
        source: in words.
        model: with the weights before.
        buffers: change of the floating-point buffers (batch-norm statistics) that came along; None where
            none came.
    """

    update: Update
    source: str
    model: nn.Module
    buffers: dict[str, Tensor] | None


def read_given(
    source: Source,
    model: nn.Module,
    facts: PublicFacts,
    *,
    kind: Kind = "auto",
    before: nn.Module | Arrays | str | Path | None = None,
    partial: bool = False,
) -> Given:
    """Return the update that a user holds, matched to the model.

    Args:
        source: what was captured.
        model: that the client was sent; not changed.
        facts: batch size, mode and local training, as they were stated.
        kind: what `source` holds; "auto" for what it says of itself, else weights where `before` is given, a
            delta where local training is, and a gradient otherwise.
        before: weights that the client started from, where they are not those of the model.
        partial: whether parameters may be missing.

    Raises:
        InputError: it cannot be read or is none, belongs to another model, or contradicts itself.
    """
    if kind not in KINDS:
        raise unknown_name("kind", str(kind), KINDS)
    if isinstance(source, Update):
        return Given(_stated(source, model), "an Update", model, None)
    name = utf8_text(str(source)) if isinstance(source, str | Path) else type(source).__name__
    stored = read_stored(source, limit_of(model)) if isinstance(source, str | Path) else None
    told, arrays, steps = read_dxo(unpacked(source) if stored is None else stored.arrays)
    if stored is not None and KEY in stored.metadata and kind == "auto" and before is None:
        said = None if facts == PublicFacts() else facts
        update, _ = load_update(cast("str | Path", source), model, facts=said, partial=partial)
        return Given(update, name, model, None)
    kind = _kind(kind, told, before, facts)
    facts = _with_steps(facts, steps)
    start = _with_weights(model, before)
    try:
        update = _read(arrays, start, kind, facts, partial)
    except InputError as error:
        raise InputError(str(error) if name in str(error) else f"{name}: {error}") from error
    update = _trained(update, start)
    return Given(update, name, start, _buffers(arrays, start, after=kind == "weights"))


def _stated(update: Update, model: nn.Module) -> Update:
    """Return an update that is one already, once it is seen to be the model's."""
    update.check(model)
    return update


def _trained(update: Update, model: nn.Module) -> Update:
    """Return an update without frozen parameters, which states and lists hold too.

    Raises:
        InputError: one of them was trained.
    """
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad} & set(update.tensors)
    if not frozen:
        return update
    for name in sorted(frozen):
        if bool(update.tensors[name].any()):
            raise InputError(
                f"{name!r} is frozen in the model (requires_grad=False), and the client trained it; give the "
                "model as the client trains it"
            )
    kept = {name: tensor for name, tensor in update.tensors.items() if name not in frozen}
    return replace(update, tensors=kept, notes=(*update.notes, f"{len(frozen)} frozen parameters dropped"))


def _kind(asked: Kind, told: Kind | None, before: object, facts: PublicFacts) -> Kind:
    if told is not None and asked not in ("auto", told):
        raise InputError(
            f"{argument('kind', asked)}: the payload says {told}; leave it out, or give the other"
        )
    if asked == "auto":
        guessed: Kind = "weights" if before is not None else "delta" if facts.local else "gradient"
        asked = told or guessed
    if asked == "gradient" and before is not None:
        raise InputError(f"{argument('kind', asked)}: a gradient has no weights before; leave `before` out")
    if asked != "gradient" and facts.local is None:
        raise InputError(
            f"{argument('kind', asked)}: how the client trained is needed; give `local_rate` and "
            "`local_steps`, in Python LocalTraining(learning_rate, steps)"
        )
    return asked


def _with_steps(facts: PublicFacts, steps: int | None) -> PublicFacts:
    """Return the facts with the local steps that a payload tells of."""
    if steps is None or facts.local is None or facts.local.steps == steps:
        return facts
    if facts.local.steps > 1:
        raise InputError(
            f"{argument('local_steps', facts.local.steps)}: the payload says {steps}; leave it out, or "
            "mend it"
        )
    return replace(facts, local=replace(facts.local, steps=steps))


def _with_weights(model: nn.Module, before: nn.Module | Arrays | str | Path | None) -> nn.Module:
    """Return the model with the weights and buffers that the client started from."""
    if before is None:
        return model
    state: Arrays
    if isinstance(before, nn.Module):
        state = before.state_dict()
    else:
        stored = read_stored(before, limit_of(model)).arrays if isinstance(before, str | Path) else None
        told, state, _ = read_dxo(unpacked(before) if stored is None else stored)
        if told == "delta":
            raise InputError("before: the payload says WEIGHT_DIFF, expected the weights before training")
    start = copy.deepcopy(model)
    try:
        weights = capture(state, Slots.of_model(model)).tensors
    except InputError as error:
        text = str(error).replace("the update", "what was given")
        raise InputError(f"the weights before: {text}") from error
    kept = {**weights, **(_moving(state, model) or {})}
    with torch.no_grad():
        for name, tensor in [*start.named_parameters(), *start.named_buffers()]:
            if name in kept:
                tensor.copy_(kept[name].to(tensor))
    return start


def _read(arrays: Arrays, model: nn.Module, kind: Kind, facts: PublicFacts, partial: bool) -> Update:
    if kind == "weights":
        assert isinstance(facts.local, LocalTraining)
        after = capture(arrays, Slots.of_model(model), partial=partial)
        update = Update.from_state_dicts(
            model, after.tensors, local=facts.local, batch_size=facts.batch_size, loss=facts.loss,
            mode=facts.mode, partial=partial,
        )  # fmt: skip
        _refuse_update(update, model)
        return replace(update, notes=tuple(dict.fromkeys((*after.notes, *update.notes))))
    facts = facts if kind == "delta" else replace(facts, kind="fedsgd", local=None)
    found = capture(arrays, Slots.of_model(model), partial=partial)
    try:
        refuse_weights(found.tensors, model)
    except InputError as error:
        what = str(error).partition(";")[0]
        raise InputError(
            f"{what}; read them with kind=weights and `local_rate`, and `before` where the model has others"
        ) from error
    return Update.from_captured(found, facts=facts)


def _refuse_update(update: Update, model: nn.Module) -> None:
    """Refuse a difference that is given for weights: after - before is then nearly minus the weights."""
    weights = dict(model.named_parameters())
    pairs = [(tensor.double(), weights[name].detach().double()) for name, tensor in update.tensors.items()]
    size = sum(float(w.square().sum()) for _, w in pairs) ** 0.5
    given = sum(float((d + w).square().sum()) for d, w in pairs) ** 0.5
    if size and given < 0.5 * sum(float(d.square().sum()) for d, _ in pairs) ** 0.5:
        raise InputError(
            f"these are no weights after training: their norm is {given:.3g}, that of the weights before "
            f"{size:.3g}; they look like an update, give it as a delta or a gradient"
        )


def _buffers(arrays: Arrays, model: nn.Module, *, after: bool) -> dict[str, Tensor] | None:
    """Return how the floating-point buffers moved, as far as they came along."""
    moving = _moving(arrays, model)
    if not moving:
        return None
    start = dict(model.named_buffers())
    return {n: t.float() - start[n].detach().cpu().float() if after else t.float() for n, t in moving.items()}


def _moving(arrays: Arrays, model: nn.Module) -> dict[str, Tensor] | None:
    """Return the floating-point buffers among captured tensors; None where there are none."""
    slots = Slots.of_model(model)
    state = set(model.state_dict())
    floats = {n: tuple(b.shape) for n, b in model.named_buffers() if b.is_floating_point() and n in state}
    inner, _ = contents(arrays)
    if not floats or (isinstance(inner, Mapping) and not any(n.endswith(tuple(floats)) for n in inner)):
        return None
    if not isinstance(inner, Mapping) and len(inner) != len(slots.listed):
        return None
    others = {n: s for n, s in {**slots.parameters, **slots.others}.items() if n not in floats}
    return capture(inner, Slots(floats, others=others, listed=slots.listed), partial=True).tensors
