"""One video file: the right frames, the right way up, the right grey; and files that lie."""

from __future__ import annotations

import random
import re
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from videos import Pixels, frame_numbers, noise, numbered, write_video

from vleak.data import load_clips, video, windows
from vleak.errors import InputError


@pytest.mark.parametrize(("frames", "stride"), [(4, 1), (4, 3), (2, 5)])
def test_frames_are_chosen_at_the_stride(tmp_path: Path, frames: int, stride: int) -> None:
    path = write_video(tmp_path / "count.mkv", numbered(60))
    data = load_clips(str(path), clips=2, frames=frames, stride=stride, size=8)
    expected = [list(range(0, frames * stride, stride)) for _ in range(2)]
    expected[1] = [frames * stride + number for number in expected[1]]
    assert [frame_numbers(clip) for clip in data.clips] == expected
    assert data.names == ("count@0", f"count@{frames * stride}")
    assert data.clips[0, 1, 1, 0, 0] == pytest.approx(2 * stride / 255, abs=1e-6)


@pytest.mark.parametrize(
    ("codec", "name"),
    [("mpeg4", "a.mp4"), ("mpeg4", "a.avi"), ("libx264", "a.mp4"), ("libx264", "a.mkv"), ("gif", "a.gif")],
)
def test_common_codecs_and_containers(tmp_path: Path, codec: str, name: str) -> None:
    images = np.zeros((20, 32, 32, 3), dtype=np.uint8)
    for index in range(20):
        images[index, :, : index + 8] = 255  # an edge moves right, a pixel a frame
    data = load_clips(str(write_video(tmp_path / name, images, codec)), clips=1, frames=10, stride=2)
    white = data.clips[0].mean((0, 2, 3)) * 32
    assert torch.allclose(white, torch.arange(8.0, 28, 2), atol=0.4)


@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16), (17, 40)])
def test_central_square_is_cut(tmp_path: Path, height: int, width: int) -> None:
    images = np.zeros((4, height, width, 3), dtype=np.uint8)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images[:, top : top + side, left : left + side] = 200
    clip = load_clips(str(write_video(tmp_path / "a.mkv", images)), frames=2, stride=1, size=8).clips[0]
    assert torch.allclose(clip, torch.tensor(200 / 255), atol=1e-6)


def test_scaling_averages_instead_of_skipping(tmp_path: Path) -> None:
    images = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    images[:, :, ::2] = 255  # stripes finer than a pixel of the result
    clip = load_clips(str(write_video(tmp_path / "a.mkv", images)), frames=2, stride=1, size=8).clips[0]
    assert torch.allclose(clip[:, :, 1:-1, 1:-1], torch.tensor(0.5), atol=0.01)


def quadrants(height: int = 32, width: int = 32) -> Pixels:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[: height // 2, : width // 2, 0] = 240  # red above left, green above right, blue below left
    image[: height // 2, width // 2 :, 1] = 240
    image[height // 2 :, : width // 2, 2] = 240
    return image


def set_display_matrix(path: Path, a: float, b: float, c: float, d: float) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # version 0: the matrix is 40 bytes into the box
    fixed = [round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0, 16384)]
    content[place : place + 36] = struct.pack(">9i", *fixed)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),  # a phone held upright: a quarter turn clockwise
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),  # a mirrored front camera
        ((1, 0, 0, -1), lambda image: image[::-1]),
    ],
)
def test_display_matrix_is_followed(tmp_path: Path, matrix: tuple[float, ...], upright: object) -> None:
    path = write_video(tmp_path / "a.mp4", np.stack([quadrants()] * 4), "mpeg4", qscale="1")
    set_display_matrix(path, *matrix)
    clip = load_clips(str(path), frames=2, stride=1).clips[0, :, 0].permute(1, 2, 0).numpy()
    expected = upright(quadrants()) / 255  # type: ignore[operator]
    for row, column in ((8, 8), (8, 24), (24, 8), (24, 24)):
        assert np.allclose(clip[row, column], expected[row, column], atol=0.06)


@pytest.mark.parametrize("matrix", [(0.7, 0.7, -0.7, 0.7), (0, 0, 0, 0), (1, 0, 0, 0), (1, 0.2, 0, 1)])
def test_other_turns_are_refused(tmp_path: Path, matrix: tuple[float, ...]) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(4), "mpeg4")
    set_display_matrix(path, *matrix)
    told = r"turned by other than quarter turns; convert it: `ffmpeg -i a\.mp4 -c:v libx264 out\.mp4`$"
    with pytest.raises(InputError, match=told):
        load_clips(str(path), frames=2, stride=1)


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((0.5, 0, 0, 0.5), lambda image: image),
        ((0, 2, -2, 0), lambda image: np.rot90(image, -1)),
        ((-0.3, 0, 0, -0.6), lambda image: np.rot90(image, 2)),
    ],
)
def test_turns_that_scale(tmp_path: Path, matrix: tuple[float, ...], upright: object) -> None:
    test_display_matrix_is_followed(tmp_path, matrix, upright)


OTHERS = {
    "mpeg-1": ("mpeg1video", "a.mpg"),
    "mpeg-2": ("mpeg2video", "a.mpeg"),
    "transport stream": ("libx264", "a.ts"),
    "mpeg-2 in a transport stream": ("mpeg2video", "b.TS"),
    "flash": ("flv", "a.flv"),
    "H.264 in flash": ("libx264", "b.flv"),
    "windows media": ("wmv2", "a.wmv"),
    "raw H.264": ("libx264", "a.h264"),
    "raw H.264, short": ("libx264", "a.264"),
}


@pytest.mark.parametrize(("codec", "name"), OTHERS.values(), ids=OTHERS)
def test_older_containers_and_raw_streams(tmp_path: Path, codec: str, name: str) -> None:
    form = {"264": "h264", "TS": "mpegts"}.get(name.split(".")[1])
    path = write_video(tmp_path / name, numbered(60, 32, 48), codec, form=form)
    assert video.count_frames(path, name, 1000) == 60
    data = load_clips(str(tmp_path), clips=3, public=0, frames=4, stride=3, size=8)
    for clip, start in zip(data.clips, (0, 12, 24), strict=True):
        found = frame_numbers(clip)
        assert all(abs(one - (start + 3 * at)) <= 2 for at, one in enumerate(found)), found


def test_a_track_of_a_cover_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=30)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        film = container.add_stream("ffv1", rate=30)
        film.width, film.height, film.pix_fmt = 24, 16, "bgr0"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(cover.encode())
        for image in numbered(20):
            container.mux(film.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(film.encode())
    assert frame_numbers(load_clips(str(path), frames=4, stride=2, size=8).clips[0]) == [0, 2, 4, 6]


def test_few_bytes_of_many_large_frames_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", np.zeros((40, 512, 512, 3), np.uint8), "mpeg4")
    assert path.stat().st_size < 60_000
    monkeypatch.setattr(video, "MAX_DECODED_PIXELS", 20 * 512 * 512)
    told = r"^a\.mp4: 40 frames of 512x512 .* limit is 5e\+06 pixels a file; lower `clips`.*scale=-2:480"
    with pytest.raises(InputError, match=told):
        load_clips(str(path), clips=2, public=0, frames=2, stride=13, size=8)
    monkeypatch.setattr(video, "MAX_DECODED_PIXELS", 40 * 512 * 512)
    monkeypatch.setattr(windows, "MAX_PIXELS", 5 * 512 * 512)
    with pytest.raises(InputError, match=r"pixels were decoded, the limit is 1e\+06; lower `clips`"):
        load_clips(str(path), clips=3, public=0, frames=2, stride=5, size=8)


@pytest.mark.parametrize("ending", [".tif", ".tiff", ".bmp"])
def test_other_images_are_frames(tmp_path: Path, ending: str) -> None:
    for place, image in enumerate(numbered(9, 32, 32)):
        Image.fromarray(image).save(tmp_path / f"v_{place}{ending}")
    data = load_clips(str(tmp_path), clips=1, frames=4, stride=2, size=8)
    assert frame_numbers(data.clips[0]) == [0, 2, 4, 6]


def test_a_stack_of_images_is_no_frame(tmp_path: Path) -> None:
    first, *others = (Image.fromarray(image) for image in numbered(4, 32, 32))
    for place in range(9):
        first.save(tmp_path / f"v_{place}.tif", save_all=True, append_images=others)
    told = r"^v_0\.tif: holds several images; save each as a file of its own$"
    with pytest.raises(InputError, match=told):
        load_clips(str(tmp_path), clips=1, frames=4, stride=2, size=8)


@pytest.mark.parametrize(("pixel_format", "most"), [("yuv420p", 255), ("yuv420p10le", 1023)])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("side", [32, 50, 72])  # FFmpeg's vectors end within the rows of the last two
def test_bit_depth_and_range(tmp_path: Path, side: int, pixel_format: str, most: int, full: bool) -> None:
    luma, grey = round(0.25 * most), (most + 1) // 2
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width = stream.height = side
        stream.pix_fmt = pixel_format
        stream.codec_context.color_range = 2 if full else 1
        for _ in range(4):
            frame = av.VideoFrame(side, side, pixel_format)
            frame.color_range = 2 if full else 1
            for plane, value in zip(frame.planes, (luma, grey, grey), strict=True):
                kind = np.dtype("<u2" if most > 255 else "u1")
                plane.update(np.full(plane.buffer_size // kind.itemsize, value, dtype=kind).tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    scale = (most + 1) / 256
    expected = luma / most if full else (luma / scale - 16) / 219
    clips = load_clips(str(path), frames=2, stride=1, size=side).clips
    assert torch.allclose(clips, torch.tensor(expected, dtype=torch.float32), atol=1 / 255)


def test_truncated_file_is_named_with_its_counts(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", noise(40)).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        InputError, match=r"^cut\.mkv: damaged: decoded (19|20) of 40 declared frames, 39 are"
    ):
        load_clips(str(path), frames=4)


@pytest.mark.parametrize("movflags", [{}, {"movflags": "faststart"}])
def test_truncated_mp4(tmp_path: Path, movflags: dict[str, str]) -> None:
    """The index of an mp4 stands at the end, where it is lost, or at the start, where it tells too much."""
    path = write_video(tmp_path / "cut.mp4", noise(40), "mpeg4", **movflags)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    expected = (
        "damaged: decoded .* of 40 declared frames" if movflags else "is no video, or damaged at its start"
    )
    with pytest.raises(InputError, match=expected):
        load_clips(str(path), frames=4)


def test_decoding_stops_at_the_last_wanted_frame(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", noise(40))
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    cut, good = (load_clips(str(file), clips=2, public=0, frames=4) for file in (path, whole))
    assert torch.equal(cut.clips, good.clips)


def test_damage_in_the_middle_is_reported(tmp_path: Path) -> None:
    path = write_video(tmp_path / "hole.mp4", noise(40), "mpeg4")
    content = bytearray(path.read_bytes())
    hole = content.index(b"mdat") + (content.index(b"moov") - content.index(b"mdat")) // 2
    content[hole : hole + 1000] = random.Random(0).randbytes(1000)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged: decoded .* of 40 declared frames"):
        load_clips(str(path), frames=4)


@pytest.mark.parametrize(
    ("codec", "name"),
    [("libx264", "a.mkv"), ("mpeg4", "a.mp4"), pytest.param("gif", "a.gif", marks=pytest.mark.slow)],
)
def test_any_damage_is_one_line_or_a_clip(
    tmp_path: Path, codec: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = write_video(tmp_path / name, noise(20, 32), codec).read_bytes()
    source = random.Random(name)
    messages = []
    for attempt in range(40):
        content = bytearray(whole)
        for _ in range(1 + attempt % 8):
            content[source.randrange(len(content))] ^= 1 << source.randrange(8)
        (tmp_path / name).write_bytes(content if attempt % 4 else content[: source.randrange(len(content))])
        try:
            clips = load_clips(str(tmp_path / name), frames=4).clips
        except InputError as error:
            messages.append(str(error))
        else:
            assert clips.isfinite().all()
    assert messages
    assert all(len(message.splitlines()) == 1 for message in messages)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", ["m3u8", "concat", "sdp"])
def test_playlists_open_no_other_file(tmp_path: Path, form: str) -> None:
    target = write_video(tmp_path / "target.mp4", numbered(40), "mpeg4")
    path = tmp_path / "playlist.mp4"
    path.write_text(
        {
            "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n",
            "concat": f"ffconcat version 1.0\nfile '{target.name}'\n",
            "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        }[form]
    )
    assert load_clips(str(target)).clips.shape[0] > 0
    with pytest.raises(InputError, match=r"^playlist\.mp4: is no video"):
        load_clips(str(path))


@pytest.mark.parametrize("content", [b"", b"just text\n" * 40, b"\x89PNG\r\n\x1a\n" + bytes(60)])
def test_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^a\.mp4: is no video, or damaged at its start .*\.mkv"):
        load_clips(str(path))


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 4096), dtype=np.float32), format="fltp", layout="mono"
        )
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(InputError, match="holds no video"):
        load_clips(str(path))


@pytest.mark.parametrize("name", ["concat:a.mkv", "a%03d.mkv", "file:b.mkv", "http:c.mkv"])
def test_names_are_names_of_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "plain.mkv", numbered(20)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert load_clips(name).clips.shape[0] == 1


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_FRAME_PIXELS", 16 * 24 - 1, "frames of 24x16, the limit is 383 pixels"),
        ("MAX_SECONDS", 1, "declares 0 hours, the limit is 0 hours"),
        ("MAX_DECODED_PIXELS", 1000, "15 frames of 24x16 would have to be decoded, the limit is 1e+03"),
    ],
)
def test_limits_are_checked_before_decoding(
    tmp_path: Path, limit: str, value: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mkv", numbered(60))
    monkeypatch.setattr(video, limit, value)
    monkeypatch.setattr(video, "_decode", None)  # must not be reached
    with pytest.raises(InputError, match=f"^a.mkv: {re.escape(message)}"):
        load_clips(str(path))


@pytest.mark.parametrize(("hidden", "codec"), [(0, "libx264"), (10, "mpeg4")])
def test_edited_mp4_counts_the_frames_that_are_shown(tmp_path: Path, hidden: int, codec: str) -> None:
    """An edit list, which comes with B-frames or from trimming, hides frames that are in the file."""
    path = write_video(tmp_path / "a.mp4", noise(33), codec)
    if hidden:
        content = bytearray(path.read_bytes())
        place = content.index(b"elst") + 12
        content[place : place + 8] = struct.pack(">2i", round((33 - hidden) / 30 * 1000), hidden * 512)
        path.write_bytes(content)
    assert video.count_frames(path, "a.mp4", 1000) == 33 - hidden
    assert video.count_frames(path, "a.mp4", 10) == 10
    load_clips(str(path), frames=33 - hidden, stride=1)
