"""Panels of a page: one clip, and its reconstructions side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vleak.errors import InputError
from vleak.report.film import FilmStrip, film_strip
from vleak.results.pictures import CLIPS, Bytes, read_array

Role = Literal["truth", "baseline", "attack"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One moving picture with its caption.

    Attributes:
        title: "private clip", the name of the baseline, or the label of the defense.
        role: what is shown.
        strip: the frames; None where they cannot be shown.
        missing: why they cannot be shown.
        gain_db: gain over the best baseline; None where it means nothing.
        psnr_db: PSNR of this very reconstruction.
        recognised: whether the right clip was picked out; None where it means nothing.
        flags: health flags of the attack on this clip.
        cell: id of the cell that it is from; empty where it is from none.
    """

    title: str
    role: Role
    strip: FilmStrip | None = None
    missing: str = ""
    gain_db: float | None = None
    psnr_db: float | None = None
    recognised: bool | None = None
    flags: tuple[str, ...] = ()
    cell: str = ""


@dataclass(frozen=True)
class ClipPanel:
    """One clip and its reconstructions."""

    clip: str
    pictures: tuple[Picture, ...]


class PictureFiles:
    """Pictures in the folder of a run, and the bytes that they took so far."""

    def __init__(self, folder: Path) -> None:
        """Read pictures from a folder, which need not exist."""
        self._folder, self.bytes = folder, 0

    def truth(self, index: int) -> Picture:
        """Return the private clip at a position in the data."""
        try:
            clips = read_array(self._folder, CLIPS)
            if not 0 <= index < len(clips):
                raise InputError(f"clip {index} is not among the {len(clips)} of {CLIPS!r}")
            return Picture(title="private clip", role="truth", strip=self._strip(clips[index]))
        except InputError as error:
            return Picture(title="private clip", role="truth", missing=str(error))

    def load(self, name: str | None) -> tuple[FilmStrip | None, str]:
        """Return a reconstruction, or None and the reason why it cannot be shown.

        Args:
            name: its file, relative to the folder; None where none was stored.
        """
        if name is None:
            return None, "no picture was stored"
        try:
            return self._strip(read_array(self._folder, name)), ""
        except InputError as error:
            return None, str(error)

    def _strip(self, clip: Bytes) -> FilmStrip:
        strip = film_strip(clip)
        self.bytes += len(strip.uri)
        return strip
