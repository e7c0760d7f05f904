"""Film strips of clips."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from vleak.errors import InputError
from vleak.report.film import film_strip
from vleak.seeds import generator


def test_a_film_strip_holds_the_frames_in_order() -> None:
    clip = torch.randint(0, 256, (3, 5, 6, 7), generator=generator("film"), dtype=torch.uint8).numpy()
    strip = film_strip(clip)
    assert (strip.frames, strip.width, strip.height) == (5, 7, 6)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip.uri.split(",")[1]))))
    assert np.array_equal(image, np.concatenate(list(clip.transpose(1, 2, 3, 0)), axis=1))


def test_large_and_long_clips_are_shrunk_and_grey_ones_stay_grey() -> None:
    strip = film_strip(np.zeros((1, 40, 200, 400), np.uint8))
    assert (strip.frames, strip.width, strip.height) == (14, 96, 48)
    assert Image.open(io.BytesIO(base64.b64decode(strip.uri.split(",")[1]))).mode == "L"


def test_what_is_no_clip_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected a clip of shape \(channel, frame, height, width\)"):
        film_strip(np.zeros((3, 8, 8), np.uint8))
