"""Videos that tests encode."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


def write_video(path: Path, images: Pixels, codec: str = "ffv1", **options: str) -> Path:
    """Encode (T, H, W, 3) RGB at 30 frames a second; FFV1 keeps every value."""
    pixel_format = {"ffv1": "bgr0", "gif": "rgb8"}.get(codec, "yuv420p")
    muxer = {"movflags": options.pop("movflags")} if "movflags" in options else {}
    with av.open(str(path), "w", options=muxer) as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = pixel_format
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def noise(count: int, side: int = 48) -> Pixels:
    """Moving noise, which takes many bytes a frame."""
    large = np.random.default_rng(0).integers(0, 256, (side, side + count, 3), dtype=np.uint8)
    return np.stack([large[:, index : index + side] for index in range(count)])
