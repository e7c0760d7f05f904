"""Pictures of a cell: the names of their files in its record, and their arrays."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from vleak.errors import InputError
from vleak.results.pictures import CLIPS, Bytes, as_bytes, as_clip, picture_names
from vleak.results.records import Cell

__all__ = ["Arrays", "cell_pictures", "with_media"]


class Arrays(Protocol):
    """Function that finds an array by the name of its file."""

    def __call__(self, name: str, /) -> Bytes | None:
        """Return it, or None where there is none."""


def cell_pictures(arrays: Arrays, cell: Cell) -> dict[str, Tensor]:
    """Pictures of a cell by role, those that there are.

    Raises:
        InputError: there are none of its clip; the files are damaged.
    """
    clips = arrays(CLIPS)
    if clips is not None and cell.clip_index >= len(clips):
        raise InputError(
            f"cell {cell.id!r}: clip_index is {cell.clip_index}, the run has pictures of {len(clips)} clips; "
            "its files are damaged"
        )
    pictures = {} if clips is None else {"truth": as_clip(clips[cell.clip_index])}
    for role, name in (("reconstruction", cell.media), ("enhanced", cell.media_enhanced)):
        if name is not None and (array := arrays(name)) is not None:
            pictures[role] = as_clip(array)
    return pictures


def with_media(cell: Cell, picture: Tensor | None, enhanced: Tensor | None) -> tuple[Cell, dict[str, Bytes]]:
    """Cell with the names of its pictures, and these as bytes by name."""
    names = zip(("media", "media_enhanced"), picture_names(cell.id), (picture, enhanced), strict=True)
    kept = [(field, name, clip) for field, name, clip in names if clip is not None]
    media: dict[str, str | None] = {"media": None, "media_enhanced": None}
    media |= {field: name for field, name, _ in kept}
    return cell.model_copy(update=media), {name: as_bytes(clip) for _, name, clip in kept}
