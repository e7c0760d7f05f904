"""Small videos, frames and lists that tests write, and where real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = [
    Path(os.environ.get("VLEAK_TEST_DATA", ROOT / "shared" / "data")),
    ROOT.parent / "shared" / "data",
]
REAL_DATA = next((folder for folder in _FOLDERS if (folder / "clips").is_dir()), None)
"""Real clips and features, which are not part of the repository; None where they are missing."""


def real_path(name: str) -> str:
    """Return the path of a real file, for tests that are skipped without them."""
    assert REAL_DATA is not None
    return str(REAL_DATA / name)


def write_video(
    path: Path, images: Pixels, codec: str = "ffv1", form: str | None = None, **options: str
) -> Path:
    """Encode (T, H, W, 3) RGB at 30 frames a second; FFV1 keeps every value."""
    pixel_format = {"ffv1": "bgr0", "gif": "rgb8"}.get(codec, "yuv420p")
    muxer = {"movflags": options.pop("movflags")} if "movflags" in options else {}
    with av.open(str(path), "w", format=form, options=muxer) as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = pixel_format
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbered(count: int, height: int = 16, width: int = 24, red: int = 0) -> Pixels:
    """Frames whose green is twice their number and whose red is the same in all."""
    images = np.zeros((count, height, width, 3), dtype=np.uint8)
    images[..., 0] = red
    images[..., 1] = 2 * np.arange(count)[:, None, None]
    return images


def noise(count: int, side: int = 48) -> Pixels:
    """Moving noise, which takes many bytes a frame."""
    large = np.random.default_rng(0).integers(0, 256, (side, side + count, 3), dtype=np.uint8)
    return np.stack([large[:, index : index + side] for index in range(count)])


def frame_numbers(clip: torch.Tensor) -> list[int]:
    return (clip[1].mean((1, 2)) * 255 / 2).round().int().tolist()


def convert_without_threads(patch: pytest.MonkeyPatch) -> None:
    """Convert frames by one thread each.

    Starting threads for every frame takes most of the time of small videos. Not for tests of pixels, of
    orientation or of large frames.
    """

    def upright(frame: av.VideoFrame, stored: bytes | None, shown: str) -> Pixels:
        assert stored is None
        return np.asarray(frame.to_ndarray(format="gbrap", threads=1), dtype=np.uint8)[..., :3]

    patch.setattr("vleak.data.video._upright", upright)


def write_frames(root: Path, video: str, numbers: list[int], pattern: str = "{video}_{number}.png") -> None:
    """Images whose green is twice their place in the video."""
    for place, number in enumerate(sorted(numbers)):
        path = root / pattern.format(video=video, number=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbered(place + 1, 64, 64)[place]).save(path)


def write_list(root: Path, *lines: str, name: str = "list.txt") -> str:
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(root / name)
