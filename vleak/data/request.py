"""Request to a data source: which clips to load, checked before a file is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vleak.data.clipset import DEFAULT_CLIPS, PUBLIC_FROM, PublicFrom
from vleak.errors import InputError, argument, unknown_name

FINE = 2
"""Scale of the fine copies of clips, in width and in height."""

MAX_BATCH_BYTES = 2**32  # all clips together, as float32
_RANGES = {
    "clips": (1, 10_000),
    "frames": (2, 1_024),
    "size": (8, 1_024),
    "stride": (1, 10_000),
    "public": (0, 10_000),
    "seed": (0, 2**63 - 1),
    "references": (0, 256),
}
_ARGUMENTS = {"references": "reference_frames"}


Progress = Callable[[str, int, int], None]
"""Called as (what is being done, parts done, parts in all)."""


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """Settings of the clips to load; `vleak.data.load_clips` documents each number.

    Raises:
        InputError: a number is out of range, or the clips would not fit in memory.
    """

    clips: int | None = None
    frames: int = 8
    size: int = 32
    stride: int = 2
    seed: int = 0
    public: int = 48
    public_from: PublicFrom = "other-files"
    references: int = 0
    fine: bool = False
    strict: bool = False
    progress: Progress | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Check the ranges and the memory."""
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                text = argument(_ARGUMENTS.get(name, name), value)
                raise InputError(f"{text}: expected a whole number from {low} to {high}")
        if self.public_from not in PUBLIC_FROM:
            raise unknown_name("public_from", str(self.public_from), PUBLIC_FROM)
        self._check_memory()

    @property
    def attacked(self) -> int:
        """Number of clips to attack where the source has enough of them."""
        return DEFAULT_CLIPS if self.clips is None else self.clips

    @property
    def span(self) -> int:
        """Frames of a video from the start of one window to the start of the next."""
        return self.frames * self.stride

    @property
    def needed(self) -> int:
        """Frames of a video from the first to the last frame of a clip."""
        return (self.frames - 1) * self.stride + 1

    def tell(self, what: str, done: int, total: int) -> None:
        """Report progress to whoever asked for it."""
        if self.progress is not None:
            self.progress(what, done, total)

    def _check_memory(self) -> None:
        loaded = self.attacked + self.public
        frames = loaded * self.frames * (1 + FINE**2 if self.fine else 1) + self.attacked * self.references
        total = 4 * 3 * frames * self.size**2
        if total > MAX_BATCH_BYTES:
            more = f", {self.references} references each" if self.references else ""
            more += ", with fine copies" if self.fine else ""
            raise InputError(
                f"{loaded} clips of {self.frames} frames of {self.size}x{self.size}{more} take "
                f"{total / 2**30:.1f} GiB, the limit is {MAX_BATCH_BYTES / 2**30:.0f} GiB; lower `clips`, "
                "`frames` or `size`"
            )
