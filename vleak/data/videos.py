"""Videos of a source: files that hold one, and images that are one."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from vleak.data.images import read_images
from vleak.data.naming import canonical
from vleak.data.sources import SourceFiles
from vleak.data.tree import ids, printable
from vleak.data.video import Squares, count_frames, read_frames


@dataclass(frozen=True)
class VideoFile:
    """A video: its path, its name below the source (for errors and notes), its id, and its folder's class."""

    path: Path
    shown: str
    name: str
    parent: str
    root: Path
    images: tuple[str, ...] = field(
        default=(), compare=False
    )  # its frames, relative to root, if it is stored as images

    def count(self, most: int) -> int:
        """Return the number of frames, counting no further than ``most``."""
        return min(most, len(self.images)) if self.images else count_frames(self.path, self.shown, most)

    def read(self, wanted: Set[int], sizes: Sequence[int]) -> Squares:
        """Return the frames of the wanted numbers, decoded and scaled to each of ``sizes``.

        Where the video is damaged, the frames before the damage; ``damage`` of the result says why.
        """
        if self.images:
            return read_images(self.root, self.images, wanted, sizes)
        return read_frames(self.path, self.shown, wanted, sizes)


def video_files(source: SourceFiles) -> list[VideoFile]:
    """Return the videos of a source, sorted by name."""
    if source.kind == "frames":
        paths = [source.root / video.video for video in source.images]
        shown = [video.video or source.root.name for video in source.images]
        stems = [path.name for path in paths]
        images = [video.names for video in source.images]
    else:
        paths = [source.root / name for name in source.names]
        shown = list(source.names)
        stems = [path.stem for path in paths]
        images = [()] * len(paths)
    folders = [path.parent.name for path in paths]
    return [
        VideoFile(path, printable(name), file_id, printable(canonical(folder)), source.root, frames)
        for path, name, file_id, folder, frames in zip(
            paths, shown, ids(stems, folders), folders, images, strict=True
        )
    ]
