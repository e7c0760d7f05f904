"""Several updates in one audit: all are read first, none is there twice, and errors name which one it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vleak.errors import InputError
from vleak.federated import Update
from vleak.federated.stored import read_stored
from vleak.update_audit.attacking import Progress
from vleak.update_audit.given import Given, Source

__all__ = ["named", "progress_of", "read_together"]


def read_together(updates: Sequence[Source], read: Callable[[Source], Given]) -> list[Given]:
    """Return what every update holds, once all of them are read.

    Args:
        updates: of one model, at least one.
        read: reads one of them.

    Raises:
        InputError: one cannot be read or does not fit, where that of others that fit is said; or two hold
            the same tensors.
    """
    if not updates:
        raise InputError("updates: there is none; give at least one")
    found, refused = list[Given](), list[tuple[Source, InputError]]()
    for update in updates:
        try:
            given = read(update)
            found.append(replace(given, model=found[0].model) if found else given)  # one copy of a model
        except InputError as error:
            refused.append((update, error))
    if refused:
        raise _refusal(*refused[0], found)
    _refuse_equal(found)
    return found


def _refusal(source: Source, error: InputError, found: Sequence[Given]) -> InputError:
    """Return the error of an update; where it can be read, with one that does fit the model."""
    if not found or not _readable(source):
        return error
    return InputError(
        f"{error}; {found[0].source} fits the model: give updates of another model in another call"
    )


def _readable(source: Source) -> bool:
    """Return whether a file is one of tensors, so that it is their content that was refused."""
    if not isinstance(source, str | Path):
        return True
    try:
        read_stored(source)
    except InputError:
        return False
    return True


def _refuse_equal(found: Sequence[Given]) -> None:
    seen: dict[str, str] = {}
    for given in found:
        digest = _digest(given.update)
        if digest in seen:
            raise InputError(f"{seen[digest]} and {given.source} hold the same update; give it once")
        seen[digest] = given.source


def _digest(update: Update) -> str:
    """Return the SHA-256 of the tensors, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(update.tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def progress_of(progress: Progress | None, source: str, index: int, count: int) -> Progress | None:
    """Return the progress of one update of several, which tells of all of them.

    Args:
        progress: of all; None where nobody is told.
        source: of the update.
        index: of it, from 0.
        count: of all.
    """
    if progress is None or count == 1:
        return progress

    def show(what: str, done: int, parts: int) -> None:
        progress(f"{source} ({index + 1} of {count}): {what}", index * parts + done, count * parts)

    return show


@contextmanager
def named(source: str, count: int) -> Iterator[None]:
    """Name the update in errors of the block where there are several."""
    try:
        yield
    except InputError as error:
        if count == 1 or source in str(error):
            raise
        raise InputError(f"{source}: {error}") from error
