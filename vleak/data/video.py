"""Decoding of a video file: the number of its frames, and chosen frames. The files are not trusted.

FFmpeg is restricted to a few containers and to local files: a playlist disguised as a video would make it
open other files. Limits are checked against the header before a frame is decoded, and a file with fewer
frames than it declares is an error as soon as one of the missing frames is wanted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import av
import numpy as np
import torch
from av.sidedata.sidedata import SideData, SideDataContainer
from av.stream import Disposition
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vleak.data.suffixes import VIDEO_SUFFIXES
from vleak.errors import InputError

# No format whose files name other files: playlists, scripts, streams.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,gif,mpeg,mpegvideo,mpegts,flv,asf,h264"
MAX_FRAME_PIXELS = 8192 * 4320
MAX_SECONDS = 24 * 3600
# Limit for one file: 4 800 frames of 1920x1080, or 280 of 8192x4320; some three minutes on one core.
MAX_DECODED_PIXELS = 10_000_000_000
# Larger frames are halved, and decoded by one thread: every thread of a decoder holds frames of its own.
_LARGE_FRAME = 4096 * 2304
_STREAMS = frozenset({"h264", "mpegvideo"})  # without a header; FFmpeg guesses how long they are
_STILLS = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
_PICTURES = frozenset({"png", "mjpeg", "bmp", "webp", "tiff"})  # codecs of covers, where another track moves
_TURNED = 0.01  # largest ratio between the small and the large entries of the matrix of a quarter turn
CONVERSION = "convert it: `ffmpeg -i {} -c:v libx264 out.mp4`"


def count_frames(path: Path, shown: str, most: int) -> int:
    """Return the number of frames that a video declares, counting up to ``most``; nothing is decoded.

    Packets are counted, since Matroska stores no frame count and edit lists hide frames. Where the file
    ends well before the time that its header declares, the missing frames count as declared.

    Args:
        path: the file.
        shown: its name in error messages.
        most: number at which counting stops.

    Raises:
        InputError: the file cannot be opened, is no video, or exceeds a limit of this module.
    """
    with _opened(path, shown) as (container, stream):
        check_limits(
            shown,
            stream.codec_context.width,
            stream.codec_context.height,
            _declared_seconds(container, stream)[0],
        )
        counted, end, ended = 0, 0.0, False
        try:
            for packet in container.demux(stream):
                ended = packet.size == 0 and packet.dts is None  # PyAV's sign of the end
                if counted == most or ended:
                    break
                counted += packet.size > 0 and not packet.is_discard
                end = max(end, _end_of(packet))
        except av.FFmpegError:
            ended = True
        missing = _missing_frames(container, stream, end) if ended else 0
    return min(most, counted + missing)


@dataclass
class Squares:
    """Square frames of one video, at one or more sizes.

    Attributes:
        by_size: for each requested size, the frames by their number, float32 (3, size, size) in [0, 1].
        smallest: the shorter side of the smallest frame, in pixels as stored.
        largest: height times width of the largest frame.
        damage: why no frame after the last of these could be read; None where all wanted ones were.
        pixels: number of pixels decoded, those of unwanted frames included.
    """

    by_size: dict[int, dict[int, Tensor]]
    smallest: int = MAX_FRAME_PIXELS
    largest: int = 0
    damage: InputError | None = None
    pixels: int = 0

    def add(self, number: int, image: NDArray[np.uint8]) -> None:
        """Add an upright frame, RGB (H, W, 3), cut and scaled to every size."""
        self.smallest = min(self.smallest, *image.shape[:2])
        self.largest = max(self.largest, image.shape[0] * image.shape[1])
        for size, squares in self.by_size.items():
            squares[number] = _square(image, size)

    def clip(self, numbers: Iterable[int], size: int) -> Tensor:
        """Return frames in the order of their numbers, (3, T, size, size)."""
        return torch.stack([self.by_size[size][number] for number in numbers], 1)

    def take(self, other: Squares) -> None:
        """Take the frames of another reading of the same video."""
        self.smallest, self.largest = min(self.smallest, other.smallest), max(self.largest, other.largest)
        for size, squares in other.by_size.items():
            self.by_size.setdefault(size, {}).update(squares)

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget frames."""
        for number in numbers:
            for squares in self.by_size.values():
                squares.pop(number, None)


def read_frames(path: Path, shown: str, wanted: Set[int], sizes: Sequence[int]) -> Squares:
    """Return the wanted frames of one file, each scaled to every size of ``sizes``.

    Frames are turned upright (display matrix), cut to the central square and scaled with antialiasing.
    Decoding stops at the last wanted frame, or where the file is damaged: ``damage`` of the result then says
    why, and the wanted frames before it are there. Non-square pixels are taken as they are.

    Args:
        path: the file.
        shown: its name in error messages.
        wanted: the numbers of the frames, from 0; at least one.
        sizes: heights (and widths) of the frames to return, in pixels.

    Raises:
        InputError: the file cannot be opened, or its header exceeds a limit.
    """
    last, squares = max(wanted), Squares({size: {} for size in sizes})
    with _opened(path, shown) as (container, stream):
        context = stream.codec_context
        _check_decoding(shown, context.width, context.height, last + 1)
        # Without "explode" FFmpeg conceals damage and reports success.
        context.options = {"err_detect": "explode"}
        if context.width * context.height > _LARGE_FRAME:
            context.thread_count = 1
        try:
            decoded = _take_frames(squares, _decode(container, stream), wanted, shown)
        except InputError as error:
            squares.damage = error
            return squares
        declared = max(
            last + 1, stream.frames, round(_declared_seconds(container, stream)[0] * _rate(stream))
        )
    if decoded <= last:
        squares.damage = InputError(
            f"{shown}: damaged: decoded {decoded} of {declared} declared frames, {last + 1} are needed; "
            f"replace or remove the file"
        )
    return squares


def _take_frames(squares: Squares, frames: Iterable[av.VideoFrame], wanted: Set[int], shown: str) -> int:
    """Add the wanted frames and return how many were decoded, up to the last wanted one or to damage.

    Raises:
        InputError: a frame, or all together, exceed a limit, or are turned by other than quarter turns.
    """
    decoded, last = 0, max(wanted)
    matrix: bytes | None = None
    for frame in frames:
        if frame.is_corrupt:
            break
        if not decoded:
            matrix = _display_matrix(frame)
        check_limits(shown, frame.width, frame.height)
        squares.pixels += frame.width * frame.height
        if squares.pixels > MAX_DECODED_PIXELS:  # frames may be larger than the header declares
            raise _too_many_pixels(shown, frame.width, frame.height, last + 1)
        if decoded in wanted:
            squares.add(decoded, _upright(frame, matrix, shown))
        decoded += 1
        if decoded > last:
            break
    return decoded


@contextmanager
def _opened(path: Path, shown: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        # "file:" keeps a name such as "concat:a|b" from being read as another protocol.
        container = av.open(f"file:{path.absolute()}", options=options, metadata_errors="replace")
    except PermissionError as error:
        raise InputError(f"{shown}: no permission to read it") from error
    except av.FFmpegError as error:
        raise InputError(
            f"{shown}: is no video, or damaged at its start ({error.strerror}); expected one of "
            f"{', '.join(sorted(VIDEO_SUFFIXES))}; where it is another format, {CONVERSION.format(shown)}"
        ) from error
    with container:
        yield container, _moving_stream(container, shown)


def _moving_stream(container: av.container.InputContainer, shown: str) -> av.VideoStream:
    """Return the first video track that is no still picture, such as a cover."""
    tracks = list(container.streams.video)
    readable = [track for track in tracks if track.codec_context is not None]
    if not readable:
        what = f" (its {container.format.name} holds a video of an unknown kind)" if tracks else ""
        raise InputError(f"{shown}: holds no video that can be decoded{what}; {CONVERSION.format(shown)}")
    moving = [track for track in readable if not track.disposition & _STILLS]
    if not moving:
        raise InputError(f"{shown}: holds a still picture and no video; give a video")
    if len(moving) > 1:
        pictures = [track for track in moving if track.codec_context.name in _PICTURES]
        moving = [track for track in moving if track.frames != 1 and track not in pictures] or moving
    return moving[0]


def check_limits(shown: str, width: int, height: int, seconds: float = 0) -> None:
    """Check the size of frames and the duration of a video against the limits.

    Raises:
        InputError: a frame has no pixels or more than MAX_FRAME_PIXELS, or the video lasts too long.
    """
    if width * height == 0:
        raise InputError(f"{shown}: damaged: its header declares no frame size")
    if width * height > MAX_FRAME_PIXELS:
        raise InputError(
            f"{shown}: frames of {width}x{height}, the limit is {MAX_FRAME_PIXELS} pixels a frame"
        )
    if seconds > MAX_SECONDS:
        raise InputError(
            f"{shown}: declares {seconds / 3600:.0f} hours, the limit is {MAX_SECONDS // 3600} hours"
        )


def _check_decoding(shown: str, width: int, height: int, frames: int) -> None:
    check_limits(shown, width, height)
    if width * height * frames > MAX_DECODED_PIXELS:
        raise _too_many_pixels(shown, width, height, frames)


def _too_many_pixels(shown: str, width: int, height: int, frames: int) -> InputError:
    return InputError(
        f"{shown}: {frames} frames of {width}x{height} would have to be decoded, the limit is "
        f"{MAX_DECODED_PIXELS:.0e} pixels a file; lower `clips`, `frames` or `stride`, or scale it down: "
        f"`ffmpeg -i {shown} -vf scale=-2:480 out.mp4`"
    )


def _declared_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[float, bool]:
    """Return the declared end of the video in seconds, 0 if unknown, and whether its stream declares it."""
    if stream.duration and stream.time_base:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base), True
    hours, *rest = stream.metadata.get("DURATION", "").split(":")  # Matroska: "00:00:02.600000000"
    try:
        seconds = int(hours) * 3600 + int(rest[0]) * 60 + float(rest[1])
        return max(0.0, seconds), True  # max() turns a NaN into 0
    except (ValueError, IndexError):
        return (container.duration or 0) / av.time_base, False


def _rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def _end_of(packet: av.Packet[av.VideoStream]) -> float:
    """Return the time in seconds at which the frame of a packet ends."""
    if packet.pts is None or packet.time_base is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _missing_frames(container: av.container.InputContainer, stream: av.VideoStream, end: float) -> int:
    """Return how many frames the header declares beyond the time ``end`` where the file ends."""
    if container.format.name in _STREAMS:
        return 0
    seconds, own = _declared_seconds(container, stream)
    # The container's duration may be that of longer audio; rounded times may miss a frame or two.
    slack = max(0.1, 3 / _rate(stream)) if own else 1.0
    return round((seconds - end) * _rate(stream)) if seconds - end > slack else 0


def _decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Yield frames until the file ends or cannot be decoded further; the caller checks their number."""
    try:
        yield from container.decode(stream)
    except av.FFmpegError:
        return


def _display_matrix(frame: av.VideoFrame) -> bytes | None:
    """Return the display matrix of a frame, which all frames of a video share.

    A frame and its side data refer to each other once it was asked for, so the frame outlives its use.
    """
    stored: SideData | None = cast(SideDataContainer, frame.side_data).get("DISPLAYMATRIX")
    return None if stored is None else bytes(stored)


def _upright(frame: av.VideoFrame, stored: bytes | None, shown: str) -> NDArray[np.uint8]:
    """Return the frame in display orientation, RGB (H, W, 3), following the display matrix."""
    width, height, method = frame.width, frame.height, None
    if width * height > _LARGE_FRAME:  # the largest clip, at twice its size, has fewer pixels than half of it
        width, height, method = width // 2, height // 2, "AREA"
    # Planar RGB: swscale's packed "rgb24" is up to two grey levels darker than the standard says. Its "gbrp"
    # leaves the last columns as they were in memory where the width is no multiple of 16; "gbrap" does not.
    layout = "gbrap" if width % 16 else "gbrp"
    planes = frame.to_ndarray(format=layout, width=width, height=height, interpolation=method)
    image = np.asarray(planes, dtype=np.uint8)[..., :3]
    if stored is None:
        return image
    # Nine fixed-point numbers [a b u; c d v; x y w]: x' = a x + c y, y' = b x + d y. They may also scale,
    # which the square of a clip makes good, or stretch, as pixels that are not square do.
    matrix = struct.unpack("=9i", stored)
    a, b, c, d = (matrix[index] for index in (0, 1, 3, 4))
    if max(abs(b), abs(c)) < _TURNED * min(abs(a), abs(d)):
        return image[:: _sign(d), :: _sign(a)]
    if max(abs(a), abs(d)) < _TURNED * min(abs(b), abs(c)):
        return image.transpose(1, 0, 2)[:: _sign(b), :: _sign(c)]
    raise InputError(
        f"{shown}: is to be shown turned by other than quarter turns; {CONVERSION.format(shown)}"
    )


def _sign(number: int) -> int:
    return 1 if number > 0 else -1


def _square(image: NDArray[np.uint8], size: int) -> Tensor:
    """Cut the central square of (H, W, 3) and scale it: float32 (3, size, size) in [0, 1]."""
    height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = torch.from_numpy(np.ascontiguousarray(image[top : top + side, left : left + side]))
    # One channel after the other: as floats, a large frame takes a gigabyte.
    channels = [crop[None, None, :, :, channel].contiguous().float() / 255 for channel in range(3)]
    scaled = [functional.interpolate(one, (size, size), mode="bicubic", antialias=True) for one in channels]
    return torch.cat(scaled, 1)[0].clamp(0, 1)
