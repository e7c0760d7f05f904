"""Entry for updates that were captured: a file of any kind, and the model that it belongs to."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from vleak.errors import InputError
from vleak.federated.captured import Slots, capture, refuse_weights
from vleak.federated.saved import Saved
from vleak.federated.stored import Stored, limit_of, read_stored
from vleak.federated.update import PublicFacts, Update

__all__ = ["load_update"]

_EXAMPLE = 'PublicFacts(kind="fedavg", local=LocalTraining(learning_rate=0.1))'


def load_update(
    path: str | Path, model: nn.Module, *, facts: PublicFacts | None = None, partial: bool = False
) -> tuple[Update, tuple[str, ...]]:
    """Read an update that was captured, of any kind of file, and match it to its model.

    Args:
        path: safetensors, with or without vleak's metadata; a torch file of tensors (``weights_only=True``);
            ``.npz`` without pickles, where arrays that numpy numbered come in the order of a ``state_dict``,
            as a list from Flower does.
        model: the model that the client was sent, with the weights before.
        facts: public facts of an update whose file has none; of a delta ``PublicFacts(kind="fedavg",
            local=LocalTraining(learning_rate=...))``. Without any: a gradient of one clip, and a note.
        partial: whether the file may hold some of the model's parameters only.

    Returns:
        the update, and notes on what was done to what the file holds; they are in ``update.notes`` too.

    Raises:
        InputError: the file cannot be read, is not of this model, holds weights, or contradicts the facts.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model is {type(model).__name__}, expected a torch.nn.Module; give the model itself"
        )
    try:
        stored = read_stored(path, limit_of(model))
        update = _update(stored, model, facts, partial)
        refuse_weights(update.tensors, model)
    except InputError as error:
        text = str(error)
        raise InputError(text if str(path) in text else f"{path}: {text}") from error
    return update, update.notes


def _update(stored: Stored, model: nn.Module, facts: PublicFacts | None, partial: bool) -> Update:
    saved = Saved.of(stored.metadata, "the file")
    said = None if saved is None else PublicFacts.saved(saved.facts, "the file")
    if None not in (facts, said) and facts != said:
        raise InputError(f"its metadata says {said}, but facts is {facts}; give one of them")
    partial = partial or (saved is not None and saved.partial)
    found = capture(stored.arrays, Slots.of_model(model), partial=partial)
    notes = found.notes
    if facts is None and said is None:
        notes = (
            f"no facts in the file: taken for a gradient of one clip; else give facts={_EXAMPLE}",
            *notes,
        )
    size = found.wire_bytes if saved is None else saved.wire_bytes
    return Update.from_captured(found, facts=facts or said or PublicFacts(), wire_bytes=size, notes=notes)
