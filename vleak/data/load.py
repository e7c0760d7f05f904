"""The entrances to data: ``load_data`` for any source, ``load_clips`` for pixels."""

from __future__ import annotations

from vleak.data.clipset import DEFAULT_CLIPS, ClipSet
from vleak.data.features import FeatureSet, features_of
from vleak.data.folder import FINE, load_videos
from vleak.data.sources import look
from vleak.data.synthetic import load_synthetic
from vleak.errors import InputError

MAX_BATCH_BYTES = 2**32  # all clips together, as float32
RANGES = {
    "clips": (1, 10_000),
    "frames": (2, 1_024),
    "size": (8, 1_024),
    "stride": (1, 10_000),
    "public": (0, 10_000),
    "seed": (0, 2**63 - 1),
    "reference_frames": (0, 256),
}


def load_clips(
    source: str,
    *,
    clips: int | None = None,
    frames: int = 8,
    size: int = 32,
    stride: int = 2,
    seed: int = 0,
    public: int = 48,
    references: int = 0,
    fine: bool = False,
) -> ClipSet:
    """Load clips of shape (3, frames, size, size), float32 in [0, 1], to attack and to hold in public.

    A video is cut into windows of ``frames * stride`` consecutive frames, of which every ``stride``-th is
    kept; windows never overlap. The files are put into an order drawn by ``seed``; then come the first
    windows of all files, the second windows of all files, and so on. The first ``clips`` windows are
    attacked, up to ``public`` further ones are public: from other files where there are enough of them,
    otherwise later parts of the same files. Sub-folders with two or more names give the classes; without
    them labels are drawn at random, and a note says so.

    Videos may come as images, a file a frame, such as UCF-Crime in PNG: ``Abuse001_x264_100.png``. Then the
    frames are the images of a video in the order of their numbers. A list of UCF-Crime or its ports names
    videos by their base names; they are looked for in its folder and below, in either form. The frames of
    anomalies in it are checked and not used: a clip has the class of its video.

    Args:
        source: ``"synthetic"``, or a video file, or a list of videos, or a folder of videos or images,
            which is searched with its sub-folders; hidden files and links to folders are left out. A folder
            that is itself named "synthetic" is ``"./synthetic"``.
        clips: how many clips to attack. None: 12, but where the source gives fewer than ``12 + public``
            windows no more than leave that many public clips, and never fewer than half of the windows
            (up to 12): 50 windows are 12 + 38, 10 are 5 + 5, 1 is 1 + 0.
        frames: frames of a clip, T.
        size: height and width of a clip in pixels; the central square of each frame is scaled to it.
        stride: distance in frames between two frames of a clip. The synthetic motion fills the whole
            clip and ignores it.
        seed: draws the order of the files, the random labels, and the whole of the synthetic clips.
            Clip i does not depend on how many clips are asked for.
        public: the most public clips to return.
        references: K; above 0, ``references`` of the result holds K further frames of the scene of each
            attacked clip, the nearest first. From a video they are the frames after the last attacked
            window of the file, every ``stride``-th, and all attacked clips of a file share them; they may
            also be frames of public clips, since the attacker holds both. Synthetic: the scene before and
            after the clip, alternating, at the distance of the clip's frames.
        fine: also return ``fine`` and ``public_fine``, the same clips at twice the size, same crop.
            Neither this nor ``references`` changes any clip.

    Raises:
        InputError: a number is out of range, the source does not exist, is no video, is damaged within
            the frames that are needed, is too short, gives fewer clips than ``clips``, or has
            fewer frames outside the attacked clips than ``references``.
    """
    _check_clips(clips, frames, size, stride, seed, public, references, fine)
    if source == "synthetic":
        wanted = DEFAULT_CLIPS if clips is None else clips
        return load_synthetic(wanted, frames, size, seed, public, references=references, fine=fine)
    return load_videos(
        look(source, ("videos", "frames")),
        clips,
        frames=frames,
        size=size,
        stride=stride,
        seed=seed,
        public=public,
        references=references,
        fine=fine,
    )


def recognise(source: str) -> str:
    """Return what a source holds: "synthetic", "videos", "frames" (images of videos) or "features".

    Raises:
        InputError: it does not exist or holds none of these.
    """
    return "synthetic" if source == "synthetic" else look(source).kind


def load_data(
    source: str,
    *,
    clips: int | None = None,
    frames: int = 8,
    size: int = 32,
    stride: int = 2,
    seed: int = 0,
    public: int = 48,
    references: int = 0,
    fine: bool = False,
    segments: int = 32,
) -> ClipSet | FeatureSet:
    """Load whatever a source holds; the first of the notes says what that is.

    Args:
        source: as in ``load_clips`` or ``load_features``. Where a folder holds several kinds, videos come
            before feature files and images, of which the more numerous are taken.
        clips: how many clips, or feature matrices, to attack.
        frames: see ``load_clips``; feature files have none.
        size: see ``load_clips``.
        stride: see ``load_clips``.
        seed: draws the order of the files.
        public: the most public clips or matrices to return.
        references: see ``load_clips``.
        fine: see ``load_clips``.
        segments: rows of a feature matrix, see ``load_features``.

    Raises:
        InputError: what ``load_clips`` and ``load_features`` raise; references or fine clips of features.
    """
    if source == "synthetic":
        return load_clips(
            source,
            clips=clips,
            frames=frames,
            size=size,
            stride=stride,
            seed=seed,
            public=public,
            references=references,
            fine=fine,
        )
    found = look(source)
    if found.kind == "features":
        if references or fine:
            asked = f"reference_frames={references}" if references else "fine clips"
            raise InputError(
                f"data {source!r}: {asked} asked of feature files, which hold no frames; leave it out or "
                f"give videos"
            )
        return features_of(found, clips=clips, segments=segments, seed=seed, public=public)
    _check_clips(clips, frames, size, stride, seed, public, references, fine)
    return load_videos(
        found,
        clips,
        frames=frames,
        size=size,
        stride=stride,
        seed=seed,
        public=public,
        references=references,
        fine=fine,
    )


def _check_clips(
    clips: int | None,
    frames: int,
    size: int,
    stride: int,
    seed: int,
    public: int,
    references: int,
    fine: bool,
) -> None:
    given = {
        "frames": frames,
        "size": size,
        "stride": stride,
        "public": public,
        "seed": seed,
        "reference_frames": references,
    }
    for option, value in (given if clips is None else {"clips": clips, **given}).items():
        _check_range(option, value)
    wanted = DEFAULT_CLIPS if clips is None else clips
    _check_memory(wanted, public, frames, size, references, fine)


def _check_range(option: str, value: int) -> None:
    low, high = RANGES[option]
    if not low <= value <= high:
        raise InputError(f"{option}={value}: expected a whole number from {low} to {high}")


def _check_memory(clips: int, public: int, frames: int, size: int, references: int, fine: bool) -> None:
    shown = (clips + public) * frames * (1 + FINE**2 if fine else 1) + clips * references
    total = 4 * 3 * shown * size * size
    if total > MAX_BATCH_BYTES:
        more = f", {references} references each" if references else ""
        more += ", with fine copies" if fine else ""
        raise InputError(
            f"{clips + public} clips of {frames} frames of {size}x{size}{more} take {total / 2**30:.1f} GiB, "
            f"the limit is {MAX_BATCH_BYTES / 2**30:.0f} GiB; lower `clips`, `frames` or `size`"
        )
