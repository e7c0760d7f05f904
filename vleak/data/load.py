"""Loading of data: ``load_data`` for any source, ``load_clips`` for pixels."""

from __future__ import annotations

from vleak.data.alike import noted
from vleak.data.clipset import ClipSet, FeatureSet, PublicFrom
from vleak.data.features import features_of
from vleak.data.folder import load_videos
from vleak.data.plugins import find_source, load_source
from vleak.data.request import ClipRequest, Progress
from vleak.data.sources import search_source
from vleak.errors import InputError, argument


def load_clips(
    source: str,
    *,
    clips: int | None = None,
    frames: int = 8,
    size: int = 32,
    stride: int = 2,
    seed: int = 0,
    public: int = 48,
    public_from: PublicFrom = "other-files",
    references: int = 0,
    fine: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> ClipSet:
    """Load clips of shape (3, frames, size, size), float32 in [0, 1]: those under attack and public ones.

    A video is cut into windows of ``frames * stride`` consecutive frames, of which every ``stride``-th is
    used; windows never overlap. Windows without content or motion (``windows.FLAT``, ``windows.STILL``) are
    passed over where the video has others within reach (``windows.SEARCHED``), and come after all others. The
    order of the files is drawn by ``seed``.

    No file gives both attacked and public clips: of F files with a window, the first ``F - public``, and at
    least half, may be attacked. The first windows of these come first, then their second windows, and so on;
    the first ``clips`` of them are attacked, and where they are too few, further files are attacked, one
    after the other. Up to ``public`` windows of the files that are left are public, the first of each file
    first; a note says so where that is fewer than asked. With ``public_from="same-file"`` all files may be
    attacked, and later parts of attacked files are public where there are not enough others.

    Labels of a list are the indices of the classes, whatever they are; sub-folders with two or more names are
    classes; without either, labels are drawn at random, and a note says so.

    Videos may be stored as images, one file a frame, such as UCF-Crime in PNG: ``Abuse001_x264_100.png``. The
    frames are then the images of a video in the order of their numbers. A list of UCF-Crime or its ports
    names videos by their base names; the files are searched in its folder and below, in either form. The
    frames of anomalies in a list are checked and not used: a clip has the class of its video.

    Args:
        source: a name of ``SOURCES`` such as ``"synthetic"``, with settings or without, or
            ``package.module:function`` (called with fields of `ClipRequest`). Or a path: a video file, a list
            of videos, or a folder of videos or images, which is searched with its sub-folders; hidden files
            and links to folders are left out. A folder that is itself named "synthetic" is ``"./synthetic"``.
        clips: number of clips to attack. None: 12, or as many as the files that may be attacked have:
            12 files of 3 windows are 12 + 18, 10 files of one are 5 + 5, one file of 30 windows is 12 + 0.
            From the same files: 12, or, where the source has fewer than ``12 + public`` windows, the number
            that leaves ``public`` public clips, but at least half of the windows (up to 12).
        frames: frames of a clip, T.
        size: height and width of a clip in pixels; the central square of each frame is scaled to it.
        stride: distance in frames between two frames of a clip. The synthetic motion fills the whole
            clip and ignores it.
        seed: draws the order of the files, the random labels, and all of the synthetic clips.
            Clip i does not depend on the number of clips requested.
        public: largest number of public clips to return.
        public_from: "other-files", or "same-file" for an attacker who holds other parts of the very videos
            that are attacked.
        references: K; above 0, ``references`` of the result holds K reference frames of the scene of each
            attacked clip, the nearest first. From a video they are the frames after the last attacked
            window of the file, every ``stride``-th, and all attacked clips of a file share them; they may
            also be frames of public clips, since the attacker holds both. Synthetic: the scene before and
            after the clip, alternating, with the time step of the clip's frames.
        fine: also return ``fine`` and ``public_fine``, the same clips at twice the size, same crop.
            Neither this nor ``references`` changes any clip.
        strict: whether the first video that is damaged is an error. Otherwise it is used up to the damage, or
            skipped where its first window is damaged, and notes count and name both. A video without
            others beside it is an error either way.
        progress: called as (what is being done, parts done, parts in all).

    Raises:
        InputError: a number is out of range, the source does not exist, holds no video that can be read,
            or only ones that are too short, gives fewer clips than ``clips``, or has fewer frames outside the
            attacked clips than ``references``; with ``strict``, a video is damaged within the frames that are
            looked at.
    """
    request = ClipRequest(
        clips=clips, frames=frames, size=size, stride=stride, seed=seed, public=public,
        public_from=public_from, references=references, fine=fine, strict=strict, progress=progress,
    )  # fmt: skip
    if (reference := find_source(source)) is not None:
        return noted(load_source(reference, request), request.progress)
    videos = search_source(source, ("videos", "frames"))
    return noted(load_videos(videos, request), request.progress)


def recognise(source: str) -> str:
    """Return the kind of a source: "synthetic", "videos", "frames" (images of videos) or "features".

    A source from a plug-in, selected by name, is "clips".

    Raises:
        InputError: it does not exist or holds none of these.
    """
    if (reference := find_source(source)) is None:
        return search_source(source).kind
    return "synthetic" if reference.entry.built_in else "clips"


def load_data(
    source: str,
    *,
    clips: int | None = None,
    frames: int = 8,
    size: int = 32,
    stride: int = 2,
    seed: int = 0,
    public: int = 48,
    public_from: PublicFrom = "other-files",
    references: int = 0,
    fine: bool = False,
    segments: int = 32,
    strict: bool = False,
    progress: Progress | None = None,
) -> ClipSet | FeatureSet:
    """Load clips or feature matrices, whichever a source holds; the first of the notes says which.

    Args:
        source: as in ``load_clips`` or ``load_features``. Where a folder holds several kinds, videos
            take precedence; of feature files and images the more numerous are used.
        clips: number of clips, or feature matrices, to attack.
        frames: see ``load_clips``; feature files have none.
        size: see ``load_clips``.
        stride: see ``load_clips``.
        seed: draws the order of the files.
        public: largest number of public clips or matrices to return.
        public_from: see ``load_clips``; of feature files, a video each, only "other-files" can be asked.
        references: see ``load_clips``.
        fine: see ``load_clips``.
        segments: rows of a feature matrix, see ``load_features``.
        strict: whether a file that cannot be read is an error; otherwise it is skipped and counted.
        progress: see ``load_clips``.

    Raises:
        InputError: as ``load_clips`` and ``load_features``; references or fine clips asked of features.
    """
    if find_source(source) is None and (files := search_source(source)).kind == "features":
        if references or fine:
            asked = f"reference_frames={references}" if references else "fine clips"
            raise InputError(
                f"data {source!r}: {asked} asked of feature files, which hold no frames; leave it out or "
                f"give videos"
            )
        if public_from != "other-files":
            raise InputError(
                f"{argument('public_from', public_from)}: feature files hold one matrix a video, so that no "
                "part of a video is left to be public; leave it out"
            )
        return features_of(files, clips=clips, segments=segments, seed=seed, public=public, strict=strict)
    return load_clips(
        source, clips=clips, frames=frames, size=size, stride=stride, seed=seed, public=public,
        public_from=public_from, references=references, fine=fine, strict=strict, progress=progress,
    )  # fmt: skip
