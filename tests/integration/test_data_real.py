"""Real videos that are not part of the repository; skipped where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from videos import REAL_DATA, real_path

from vleak.data import load_clips
from vleak.errors import InputError

pytestmark = pytest.mark.skipif(
    REAL_DATA is None, reason="no test videos; set VLEAK_TEST_DATA to their folder"
)


@pytest.mark.slow
def test_twelve_clips_of_one_room() -> None:
    halves = load_clips(real_path("clips"))
    assert (len(halves.clips), len({name.split("@")[0] for name in halves.names})) == (12, 6)
    assert (halves.public_from, len(set(halves.public_groups.tolist()))) == ("other-files", 6)
    data = load_clips(real_path("clips"), public_from="same-file")
    assert len({name.split("@")[0] for name in data.names}) == 12
    assert all(name.endswith("@0") for name in data.names)
    assert data.public_clips.shape == (32, 3, 8, 32, 32)
    assert data.public_source == "the same files, outside the attacked frames"
    assert 0.3 < data.clips.mean() < 0.7  # a bright room, neither black nor white
    between = (data.clips[:, None] - data.clips[None]).square().mean((2, 3, 4, 5)) + torch.eye(12)
    assert between.min() > 1e-4  # no two alike


def test_turned_phone_video_stands_upright() -> None:
    """Both show a keyboard; its rows are horizontal once the display matrix is followed."""
    for name in ("odd/video_0.mov", "odd/video_90.mov"):
        clip = load_clips(real_path(name), frames=2, stride=1).clips[0]
        down, across = clip.mean(0).mean(2).std(1).mean(), clip.mean(0).mean(1).std(1).mean()
        assert down > across


def test_ten_bit_colour_bars() -> None:
    row = load_clips(real_path("odd/h264_10bits.mp4"), clips=1).clips[0, :, 0, 26]
    red, yellow, blue = row[:, 2], row[:, 12], row[:, 17]
    assert torch.allclose(red, torch.tensor([1.0, 0, 0]), atol=0.1)
    assert torch.allclose(yellow, torch.tensor([1.0, 1, 0]), atol=0.1)
    assert torch.allclose(blue, torch.tensor([0.0, 0, 1]), atol=0.1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd/corrupted.mp4", r"^corrupted\.mp4: damaged: decoded 28 of 50 declared frames, 47 are needed"),
        ("odd/unordered.mov", r"unordered\.mov has 4 frames, 8 frames at stride 2 need 15"),
        ("odd/video_0.mov", r"video_0\.mov has 3 frames"),
        ("README.md", r"^README\.md: is no video"),
        ("ucf_crime", r"holds 7 other files and no videos"),
    ],
)
def test_odd_files_are_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_clips(real_path(name))
    assert len(str(caught.value).splitlines()) == 1


def test_odd_files_together_are_read_as_far_as_they_go() -> None:
    data = load_clips(real_path("odd"))
    assert data.names == ("corrupted@0",)
    assert any("1 of 5 videos are damaged and were used up to there" in note for note in data.notes)
    with pytest.raises(InputError, match=r"^corrupted\.mp4: damaged"):
        load_clips(real_path("odd"), strict=True)


def test_odd_files_whose_wanted_part_is_whole() -> None:
    assert load_clips(real_path("odd/corrupted.mp4"), clips=1, public=0).clips.shape == (1, 3, 8, 32, 32)
    assert load_clips(real_path("odd/unordered.mov"), frames=2, stride=1).clips.shape == (2, 3, 2, 32, 32)


@pytest.mark.parametrize(
    "name",
    ["carphone_pristine.mp4", pytest.param("nasa_13013.mp4", marks=pytest.mark.slow), "ucf_crime_sample.gif"],
)
def test_whole_files_read_to_their_end(name: str) -> None:
    given = {"clips": 1, "public": 1000, "frames": 2, "size": 8, "stride": 1}
    data = load_clips(real_path(f"surveillance/{name}"), **given, public_from="same-file")
    assert len(data.clips) + len(data.public_clips) == {"c": 60, "n": 162, "u": 62}[name[0]]


@pytest.mark.parametrize("share", [0.2, 0.5, pytest.param(0.8, marks=pytest.mark.slow)])
def test_truncated_copies(share: float, tmp_path: Path) -> None:
    for whole in sorted(Path(real_path("clips")).glob("*.mkv"))[:4]:
        content = whole.read_bytes()
        (tmp_path / whole.name).write_bytes(content[: int(share * len(content))])
        with pytest.raises(
            InputError, match=rf"^{whole.stem}\.mkv: damaged: decoded \d+ of \d+ declared frames"
        ):
            # All frames are wanted.
            load_clips(str(tmp_path / whole.name), frames=2, stride=1, public=1000, public_from="same-file")
