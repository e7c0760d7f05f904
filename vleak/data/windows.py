"""Windows of videos: which parts become clips. Parts that show nothing, or nothing that moves, come last.

The rule looks at the frames of a window alone, so a window is chosen whatever the seed, the attack and the
number of clips are. How far a video is searched is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from vleak.data.clipset import DEFAULT_CLIPS
from vleak.data.request import FINE, ClipRequest
from vleak.data.tree import first, printable
from vleak.data.video import Squares
from vleak.data.videos import VideoFile
from vleak.errors import InputError
from vleak.seeds import generator

SEARCHED = 32
"""Windows of a video that are looked at, from its start or from its last chosen window, for one to choose."""
SEARCHED_PIXELS = 2_000_000_000
"""Pixels of these windows at most: of large frames fewer windows are looked at."""
FLAT = 0.02
"""Standard deviation over a frame's pixels, in [0, 1], below which a clip is flat: black, or one colour."""
STILL = 0.002
"""Mean absolute change from frame to frame, in [0, 1], below which a clip is still: half a grey level."""
MAX_PIXELS = 50_000_000_000
"""Limit on the pixels that are decoded for one set of clips, as ``video.MAX_DECODED_PIXELS`` for one file."""


@dataclass(frozen=True)
class Window:
    """Position of a clip: a file and the number of the clip's first frame."""

    file: VideoFile
    start: int


def is_flat(clip: Tensor) -> bool:
    """Return whether a clip (C, T, H, W) has next to no content: its frames are nearly of one colour."""
    return float(clip.flatten(2).std(dim=2, correction=0).mean()) < FLAT


def is_still(clip: Tensor) -> bool:
    """Return whether next to nothing moves in a clip (C, T, H, W)."""
    return float(clip.diff(dim=1).abs().mean()) < STILL


@dataclass
class Reel:
    """One video, whose windows are looked at from its start on, as far as they are asked for.

    Attributes:
        file: the video.
        request: what is asked of all videos.
        chosen: numbers of the windows with content and motion, or of all where none has both.
        passed: numbers of the windows that were passed over.
        damage: why the video ends before its declared end; None where it does not.
        squares: frames of the chosen windows.
        ended: whether no further window is chosen.
        seen: number of windows looked at.
        pixels: number of pixels decoded.
    """

    file: VideoFile
    request: ClipRequest
    chosen: list[int] = field(default_factory=list)
    passed: list[int] = field(default_factory=list)
    damage: InputError | None = None
    squares: Squares = field(default_factory=lambda: Squares({}))
    ended: bool = False
    seen: int = 0
    pixels: int = 0
    judged: bool = True
    _counted: int = 0
    _cap: int = 0

    def count(self, most: int) -> int:
        """Return the number of windows of the file, counting no further than ``most``.

        Raises:
            InputError: the file cannot be opened.
        """
        if most > self._cap and self._counted == self._cap:
            frames = self.file.count((most - 1) * self.request.span + self.request.needed)
            self._counted = max(0, (frames - self.request.needed) // self.request.span + 1)
            self._cap = most
        return min(most, self._counted)

    def take(self, wanted: int) -> None:
        """Look at windows until so many are chosen, or none is left within reach."""
        while not self.ended and len(self.chosen) < wanted:
            block = max(wanted - len(self.chosen), self.seen - (self.chosen[-1] if self.chosen else 0))
            self._look(self.seen + block)
            if self.ended and not self.chosen:
                self._take_all()

    def add(self, numbers: Sequence[int]) -> None:
        """Add the frames of windows that were passed over."""
        self._read(numbers)

    def clip(self, window: int, size: int) -> Tensor:
        """Return a window whose frames are there, (3, T, size, size)."""
        return self.squares.clip(self._frames(window), size)

    def _look(self, stop: int) -> None:
        """Look at the windows from the last one seen up to ``stop``, and choose among them."""
        stop = min(stop, self._reach()) if self.judged else stop
        available = self.count(stop)
        read = self._read(range(self.seen, available))
        for window in read:
            clip = self.clip(window, self.request.size)
            usable = not self.judged or not (is_flat(clip) or is_still(clip))
            (self.chosen if usable else self.passed).append(window)
            if not usable:
                self.squares.drop(self._frames(window))
        self.seen += len(read)
        searched = self.judged and self.seen >= self._reach()
        self.ended = self.damage is not None or available < stop or searched

    def _reach(self) -> int:
        """Return the number of windows up to the last one that may be looked at."""
        of_window = self.squares.largest * self.request.span
        windows = min(SEARCHED, SEARCHED_PIXELS // of_window) if of_window else SEARCHED
        return (self.chosen[-1] + 1 if self.chosen else 0) + max(1, windows)

    def _take_all(self) -> None:
        """Choose every window, since none that was looked at has content and motion."""
        if not self.passed:
            return
        self.judged, self.passed, self.seen, self.ended, self.damage = False, [], 0, False, None

    def _read(self, windows: Sequence[int]) -> list[int]:
        """Read frames, in one pass over the file, and return the windows that are whole."""
        wanted = {number for window in windows for number in self._frames(window)}
        if not wanted:
            return []
        size = self.request.size
        sizes = (size, FINE * size) if self.request.fine else (size,)
        try:
            read = self.file.read(wanted, sizes)
        except InputError as error:
            read = Squares({one: {} for one in sizes}, damage=error)
        self.pixels += read.pixels
        self.damage = self.damage or read.damage
        if self.damage is not None and self.request.strict:
            raise self.damage
        self.squares.take(read)
        there = read.by_size[size]
        return [window for window in windows if all(number in there for number in self._frames(window))]

    def _frames(self, window: int) -> range:
        start = window * self.request.span
        return range(start, start + self.request.span, self.request.stride)


@dataclass
class Chosen:
    """Windows that were chosen, in order.

    Attributes:
        windows: positions.
        reels: the video of every file that was opened.
        broken: names of the videos of which nothing could be read, and why.
        short: names of the videos that are too short.
        attacked: how many of the windows are attacked; the others are public.
    """

    windows: list[Window]
    reels: dict[VideoFile, Reel]
    broken: list[tuple[str, InputError]]
    short: list[str]
    attacked: int = 0

    def clips(self, size: int) -> Tensor:
        """Return the windows as clips, (N, 3, T, size, size)."""
        reels = self.reels
        span = next(iter(reels.values())).request.span
        return torch.stack([reels[w.file].clip(w.start // span, size) for w in self.windows])

    def notes(self, needed: int, listed: int) -> list[str]:
        """Return notes on the videos and windows that were left out, and on those that have no others."""
        notes = []
        if self.short:
            notes.append(
                f"{len(self.short)} videos shorter than {needed} frames were skipped: {first(self.short)}"
            )
        if self.broken:
            names = sorted(name for name, _ in self.broken)
            notes.append(
                f"{len(names)} of {listed} videos cannot be read and were skipped: {first(names)}; "
                f"the first: {self.broken[0][1]}"
            )
        ends = sorted(reel.file.shown for reel in self.reels.values() if reel.damage is not None)
        if ends:
            reason = next(reel.damage for reel in self.reels.values() if reel.damage is not None)
            notes.append(
                f"{len(ends)} of {listed} videos are damaged and were used up to there: {first(ends)}; the "
                f"first: {reason}"
            )
        return notes + self._on_content()

    def _on_content(self) -> list[str]:
        notes = []
        used = {
            (window.file, window.start // self.reels[window.file].request.span) for window in self.windows
        }
        passed = [
            f"{reel.file.name}@{k * reel.request.span}"
            for reel in self.reels.values() for k in reel.passed if (reel.file, k) not in used
        ]  # fmt: skip
        if passed:
            notes.append(
                f"{len(passed)} windows without content or motion were passed over: {first(sorted(passed))}"
            )
        without = sorted(reel.file.shown for reel in self.reels.values() if not reel.judged)
        if without:
            notes.append(
                f"{len(without)} videos have no window with content and motion, and were used as they are: "
                f"{first(without)}"
            )
        return notes


def choose_windows(files: Sequence[VideoFile], request: ClipRequest, source: str) -> Chosen:
    """Return the windows to cut, the attacked ones first, in order; ``load_clips`` documents the rule.

    No more files are opened than are needed.

    Raises:
        InputError: nothing can be used, or fewer windows than were asked for; with ``strict``, the first
            video that is damaged.
    """
    found = _opened(files, request, source)
    reels = list(found.reels.values())

    def fill(some: Sequence[Reel], wanted: int) -> None:
        _fill(some, wanted, request, lambda: _check_pixels(reels, source))

    if request.public_from == "same-file":
        fill(reels, request.attacked + request.public)
        found.windows = _with_passed(reels, request.attacked + request.public)
        found.attacked = _attacked(len(found.windows), request, source)
        return found
    count = max(-(-len(reels) // 2), len(reels) - request.public)
    pool, others = reels[:count], reels[count:]
    fill(pool, request.attacked)
    attacked = list(_in_order(pool, [reel.chosen for reel in pool]))
    while request.clips is not None and len(attacked) < request.clips and others:
        pool, others = [*pool, others[0]], others[1:]
        fill(pool[-1:], request.clips - len(attacked))
        attacked += _in_order(pool[-1:], [pool[-1].chosen])
    attacked = attacked[: request.attacked]
    if request.clips is not None and len(attacked) < request.clips:
        attacked = _with_passed(pool, request.clips, attacked)
        _attacked(len(attacked), request, source)
    used = {window.file for window in attacked}
    others = [reel for reel in reels if reel.file not in used]
    fill(others, request.public)
    found.windows = attacked + _with_passed(others, request.public)
    found.attacked = len(attacked)
    return found


def _attacked(available: int, request: ClipRequest, source: str) -> int:
    """Return how many of the windows of all files are attacked.

    Raises:
        InputError: more are asked for than there are.
    """
    if request.clips is None:
        return min(DEFAULT_CLIPS, max((available + 1) // 2, available - request.public))
    if request.clips > available:
        raise InputError(
            f"data {source!r}: clips={request.clips} asked, but it gives {available}; ask for at most "
            f"{available}, or lower `frames` or `stride`"
        )
    return request.clips


def _fill(reels: Sequence[Reel], wanted: int, request: ClipRequest, check: Callable[[], None]) -> None:
    """Look at windows of some files until so many are chosen, or none is left within reach."""
    depth = 1
    while sum(len(reel.chosen) for reel in reels) < wanted and not all(reel.ended for reel in reels):
        open_reels = [reel for reel in reels if not reel.ended]
        lacking = wanted - sum(len(reel.chosen) for reel in reels)
        depth = max(depth, *(len(reel.chosen) for reel in open_reels)) + -(-lacking // len(open_reels))
        for number, reel in enumerate(reels):
            request.tell("reading videos", number, len(reels))
            reel.take(depth)
            check()


def _with_passed(reels: Sequence[Reel], wanted: int, first: Sequence[Window] | None = None) -> list[Window]:
    """Return windows in order, up to so many; those that were passed over come after all others.

    Args:
        reels: the files.
        wanted: how many.
        first: the windows that were chosen, where their order is another.
    """
    chosen = list(_in_order(reels, [reel.chosen for reel in reels]) if first is None else first)[:wanted]
    spare = list(_in_order(reels, [reel.passed for reel in reels]))[: wanted - len(chosen)]
    for reel in reels:
        reel.add([w.start // reel.request.span for w in spare if w.file == reel.file])
    return chosen + spare


def _opened(files: Sequence[VideoFile], request: ClipRequest, source: str) -> Chosen:
    """Open files in a drawn order until each of enough of them gives a window."""
    wanted = request.attacked + request.public
    order = torch.randperm(len(files), generator=generator("files", request.seed)).tolist()
    found = Chosen([], {}, [], [])
    short: list[tuple[int, str]] = []
    for file in (files[index] for index in order):
        if len(found.reels) == wanted:
            break
        request.tell("reading videos", len(found.reels), min(wanted, len(files)))
        reel = Reel(file, request)
        try:
            if not reel.count(-(-wanted // len(files))):
                short.append((file.count(request.needed), file.shown))
                continue
            reel.take(1)
            if not reel.chosen:
                raise reel.damage or InputError(f"{file.shown}: holds no frame that can be read")
        except InputError as error:
            if request.strict:
                raise
            found.broken.append((file.shown, error))
            continue
        found.reels[file] = reel
        _check_pixels(list(found.reels.values()), source)
    found.short = sorted(name for _, name in short)
    if not found.reels:
        raise found.broken[0][1] if found.broken else _too_short(short, request, source)
    return found


def _too_short(short: Sequence[tuple[int, str]], request: ClipRequest, source: str) -> InputError:
    length, longest = max(short)
    return InputError(
        f"data {source!r}: too short: {longest} has {length} frames, {request.frames} frames at stride "
        f"{request.stride} need {request.needed}; lower `frames` or `stride`"
    )


def _in_order(reels: Sequence[Reel], numbers: Sequence[Sequence[int]]) -> Iterator[Window]:
    """Yield the first window of each video, then the second of each, and so on."""
    deepest = max((len(own) for own in numbers), default=0)
    return chain.from_iterable(
        (
            Window(reel.file, own[k] * reel.request.span)
            for reel, own in zip(reels, numbers, strict=True)
            if k < len(own)
        )
        for k in range(deepest)
    )


def _check_pixels(reels: Sequence[Reel], source: str) -> None:
    total = sum(reel.pixels for reel in reels)
    if total > MAX_PIXELS:
        raise InputError(
            f"data {printable(source)!r}: {total:.1e} pixels were decoded, the limit is {MAX_PIXELS:.0e}; "
            f"lower `clips`, `frames` or `stride`, or give videos of fewer pixels"
        )
