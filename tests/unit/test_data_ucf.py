"""UCF-Crime as its users have it: videos by class, frames as images, lists with strangers' paths."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from videos import frame_numbers, numbered, write_frames, write_list, write_video

from vleak.data import load_clips
from vleak.data.images import group_images
from vleak.data.lists import list_labels, match_list, read_list
from vleak.data.naming import canonical, class_in_name, video_of
from vleak.data.sources import search_source
from vleak.errors import InputError

SMALL = {"frames": 4, "stride": 1, "size": 8}
TREE = (
    "Anomaly-Videos-Part-1/Abuse/Abuse001_x264.mkv",
    "Anomaly-Videos-Part-1/Abuse/Abuse002_x264.mkv",
    "Anomaly-Videos-Part-1/Arson/Arson009_x264.mkv",
    "Training_Normal_Videos_Anomaly/Normal_Videos001_x264.mkv",
    "Testing_Normal_Videos_Anomaly/Normal_Videos_003_x264.mkv",
)


def make_tree(root: Path, names: tuple[str, ...] = TREE, frames: int = 9) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / name, numbered(frames))
    return root


def test_all_normal_folders_are_one_class(tmp_path: Path) -> None:
    data = load_clips(str(make_tree(tmp_path)), clips=5, public=0, **SMALL)
    assert data.classes == ("Abuse", "Arson", "Normal")
    labels = dict(zip(data.names, data.labels.tolist(), strict=True))
    assert labels["Normal_Videos001_x264@0"] == labels["Normal_Videos_003_x264@0"] == 2
    assert labels["Arson009_x264@0"] == 1


def test_flat_folder_has_its_classes_from_the_names(tmp_path: Path) -> None:
    data = load_clips(str(make_tree(tmp_path, tuple(Path(name).name for name in TREE))), clips=5, **SMALL)
    assert data.classes == ("Abuse", "Arson", "Normal")
    assert "3 classes from the names: Abuse, Arson, Normal" in data.notes


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("Training_Normal_Videos_Anomaly", "Normal"),
        ("Testing_Normal_Videos_Anomaly", "Normal"),
        ("Normal_Videos_event", "Normal"),
        ("NormalVideos", "Normal"),
        ("Training-Normal-Videos-Part-1", "Normal"),
        ("normal", "Normal"),
        ("Abnormal", "Abnormal"),
        ("Normality", "Normality"),
        ("RoadAccidents", "RoadAccidents"),
    ],
)
def test_classes_of_folders(folder: str, kind: str) -> None:
    assert canonical(folder) == kind


@pytest.mark.parametrize(
    ("stem", "kind", "video"),
    [
        ("RoadAccidents002_x264.txt", "RoadAccidents", "roadaccidents002_x264"),
        ("Normal_Videos_006_x264_C.txt", "Normal", "normal_videos_006_x264"),
        ("Normal_Videos001_x264_i3d.npy", "Normal", "normal_videos001_x264"),
        ("D:\\ucf\\Abuse001_x264__7.npy", None, "abuse001_x264"),
        ("/data/01_0014.npy", None, "01_0014"),
        ("a.mp4.npy", None, "a"),
    ],
)
def test_what_names_tell(stem: str, kind: str | None, video: str) -> None:
    assert class_in_name(stem) == kind
    assert video_of(stem) == video


def test_images_are_grouped_by_video_and_sorted_by_number(tmp_path: Path) -> None:
    write_frames(tmp_path, "Train/Abuse/Abuse001_x264", list(range(0, 120, 10)))
    write_frames(tmp_path, "Train/Abuse/Abuse002_x264", list(range(0, 60, 10)))
    write_frames(tmp_path, "Train/NormalVideos/Normal_Videos001_x264", list(range(0, 120, 10)))
    write_frames(tmp_path, "Test/NormalVideos/Normal_Videos_003_x264", [0, 10, 20, 40])
    (tmp_path / "notes.txt").write_text("frames of something")
    data = load_clips(str(tmp_path), clips=4, references=0, public_from="same-file", **SMALL)
    assert data.classes == ("Abuse", "Normal")
    assert sorted(data.names) == sorted(
        f"{name}_x264@0" for name in ("Abuse001", "Abuse002", "Normal_Videos001", "Normal_Videos_003")
    )
    assert all(frame_numbers(clip) == [0, 1, 2, 3] for clip in data.clips)
    assert torch.allclose(data.clips[0, 1, 3], torch.tensor(6 / 255), atol=1e-6)
    assert [frame_numbers(clip)[0] for clip in data.public_clips] == [4, 4, 8, 8]
    assert data.notes[0] == "4 videos found as 34 images"
    assert "the images' numbers are 10 apart; `stride` counts images, not these numbers" in data.notes
    assert any(
        note == "1 videos lack images, which counts as a jump: Test/NormalVideos/Normal_Videos_003_x264"
        for note in data.notes
    )


def test_images_give_references_and_fine_clips(tmp_path: Path) -> None:
    write_frames(tmp_path, "Abuse001_x264", list(range(0, 100, 10)))
    data = load_clips(str(tmp_path), clips=1, references=2, fine=True, **SMALL)
    assert data.references is not None
    assert data.fine is not None
    assert [frame_numbers(one) for one in data.references] == [[4, 5]]
    assert data.fine.shape == (1, 3, 4, 16, 16)
    with pytest.raises(InputError, match=r"Abuse001_x264 has 6 frames .* reference_frames=7 asked"):
        load_clips(str(tmp_path), clips=1, references=7, **SMALL)


@pytest.mark.parametrize("pattern", ["{video}/{number:04d}.png", "{video}/img_{number:05d}.jpg"])
def test_a_folder_of_images_is_a_video(tmp_path: Path, pattern: str) -> None:
    for video in ("a/x", "a/y", "b/z"):
        write_frames(tmp_path, video, list(range(1, 6)), pattern)
    data = load_clips(str(tmp_path), clips=3, **SMALL)
    assert data.classes == ("a", "b")
    assert sorted(data.names) == ["x@0", "y@0", "z@0"]
    alone = load_clips(str(tmp_path / "a" / "x"), clips=1, **SMALL)
    assert frame_numbers(alone.clips[0]) == [0, 1, 2, 3]


def test_grouping_of_names() -> None:
    found = group_images(["a/V1_x264_100.png", "a/V1_x264_20.png", "a/V1_x264_0.png", "a/cover.png", "7.png"])
    assert [one.video for one in found] == ["", "a/V1_x264"]
    assert found[1].names == ("a/V1_x264_0.png", "a/V1_x264_20.png", "a/V1_x264_100.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"^v_1\.png: is no PNG, JPEG, TIFF or BMP image"),
        (b"no image at all", r"^v_1\.png: is no PNG, JPEG, TIFF or BMP image"),
        (b"GIF89a" + bytes(40), r"^v_1\.png: is no PNG, JPEG, TIFF or BMP image"),
        ("half", r"^v_1\.png: damaged or unreadable"),
        ("deep", r"^v_1\.png: pixels of kind 'I;16'; expected 8 bits a channel"),
        ("large", r"^v_1\.png: frames of 20000x20000, the limit is|^v_1\.png: is no PNG"),
    ],
)
def test_images_that_cannot_be_used(tmp_path: Path, content: bytes | str, message: str) -> None:
    write_frames(tmp_path, "v", [0, 1, 2, 3])
    path = tmp_path / "v_1.png"
    if content == "half":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:6000])
    elif content == "deep":
        Image.fromarray(np.zeros((64, 64), dtype=np.uint16)).save(path)
    elif content == "large":
        whole = bytearray(path.read_bytes())
        whole[16:24] = (20000).to_bytes(4, "big") * 2
        path.write_bytes(bytes(whole))
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_clips(str(tmp_path), clips=1, **SMALL)
    assert len(str(caught.value).splitlines()) == 1


def test_any_damage_to_an_image_is_one_line_or_a_clip(tmp_path: Path) -> None:
    write_frames(tmp_path, "v", [0, 1, 2, 3])
    path, source = tmp_path / "v_1.png", random.Random(0)
    whole, messages = path.read_bytes(), []
    for _ in range(100):
        content = bytearray(whole)
        content[source.randrange(len(content))] ^= 1 << source.randrange(8)
        path.write_bytes(content)
        try:
            load_clips(str(tmp_path), clips=1, **SMALL)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(len(message.splitlines()) == 1 for message in messages)


def test_one_image_is_no_video(tmp_path: Path) -> None:
    write_frames(tmp_path, "v", [0])
    with pytest.raises(InputError, match=r"^v_0\.png: one image is no video; give the folder of the images$"):
        load_clips(str(tmp_path / "v_0.png"))


LISTS = {
    "a path a line": "{path}",
    "path and frames": "{path} 2729",
    "annotation": "{base}  {kind}  165  240  -1  -1  ",
    "two intervals": "{base} {kind} 165 240 300 350",
    "anomalies of a port": "{path}|16177|[11330, 11680, 12260, 12930]",
    "normal videos of a port": "{path} 2820 -1",
    "a stranger's path": "/data/of someone/UCF Crime/{path}",
    "a stranger's path with backslashes": "D:\\UCF Crime\\{kind}\\{base}",
    "class in a column": "/somewhere/{path},{kind}",
    "features of it": "/data/{kind}/{stem}__0.npy,{kind}",
    "quoted": '"{path}" {kind}',
}


@pytest.mark.parametrize("line", LISTS.values(), ids=LISTS)
def test_every_form_of_list(tmp_path: Path, line: str) -> None:
    make_tree(tmp_path)
    lines = []
    for name in TREE:
        path = Path(name).with_suffix(".mp4")  # the list says mp4, the files were made something else
        kind = path.parent.name
        lines.append(line.format(path=f"{kind}/{path.name}", base=path.name, stem=path.stem, kind=kind))
    data = load_clips(write_list(tmp_path, *lines), clips=5, public=0, **SMALL)
    assert data.classes == ("Abuse", "Arson", "Normal")
    labels = {
        name.split("@")[0]: data.classes[label] for name, label in zip(data.names, data.labels, strict=True)
    }
    assert labels == {
        "Abuse001_x264": "Abuse",
        "Abuse002_x264": "Abuse",
        "Arson009_x264": "Arson",
        "Normal_Videos001_x264": "Normal",
        "Normal_Videos_003_x264": "Normal",
    }
    assert data.notes[0] == "5 videos listed, 5 found as videos"
    entries = read_list(tmp_path / "list.txt", "list.txt")
    assert list_labels(entries, "list.txt") == ({e.video: int(i < 3) for i, e in enumerate(entries)}, [])


def test_list_of_images(tmp_path: Path) -> None:
    for video in ("Train/Abuse/Abuse001_x264", "Train/Arson/Arson001_x264", "Train/Arson/Arson002_x264"):
        write_frames(tmp_path, video, [0, 10, 20, 30])
    source = write_list(tmp_path, "Abuse/Abuse001_x264.mp4", "Arson/Arson002_x264.mp4")
    data = load_clips(source, clips=2, **SMALL)
    assert sorted(data.names) == ["Abuse001_x264@0", "Arson002_x264@0"]
    assert data.notes[0] == "2 videos listed, 2 found as images of videos"
    assert search_source(source).kind == "frames"


def test_missing_videos_are_counted_and_named(tmp_path: Path) -> None:
    make_tree(tmp_path)
    missing = [f"Arrest/Arrest00{number}_x264.mp4" for number in range(4)]
    source = write_list(tmp_path, "Abuse/Abuse001_x264.mp4", "Arson/Arson009_x264.mp4", *missing)
    told = (
        rf"4 of the 6 videos in list\.txt are not in '{tmp_path.name}' or its sub-folders: "
        r"Arrest000_x264\.mp4, Arrest001_x264\.mp4, Arrest002_x264\.mp4, \.\.\."
    )
    assert any(re.fullmatch(told, note) for note in load_clips(source, clips=2, **SMALL).notes)
    source = write_list(tmp_path, *missing[:2])
    with pytest.raises(InputError, match=r"^2 of the 2 videos in list\.txt are not in .* put the list into"):
        load_clips(source, **SMALL)


def test_of_two_files_the_folders_decide(tmp_path: Path) -> None:
    names = ["Test/Abuse/v.mp4", "Train/Abuse/v.mp4", "Train/Other/v.mp4"]
    entries = read_list(Path(write_list(tmp_path, "/x/Train/Abuse/v.mp4")), "list.txt")
    assert list(match_list(entries, names, "list.txt", "here")[0]) == ["Train/Abuse/v.mp4"]


UCF = ("Abuse001_x264.mp4", "Arson002_x264.mp4", "Normal_Videos_003_x264.mp4")


@pytest.mark.parametrize(
    ("lines", "labels", "note"),
    [
        ([f"{UCF[0]} 1", f"{UCF[1]} 1", f"{UCF[2]} 0"], [1, 1, 0], "call an anomaly 1, as its names confirm"),
        ([f"{UCF[0]} 0", f"{UCF[1]} 0", f"{UCF[2]} 1"], [1, 1, 0], "call an anomaly 0, as Sultani's code"),
        (["01_001.avi 0", "01_0014.avi 1"], [0, 1], "are taken as 1 for an anomaly; its names do not tell"),
        (["01_001 0", "01_0014 1"], [0, 1], "are taken as 1 for an anomaly"),
        (["01_001,120,0", "01_0014,90,1"], [0, 1], "are taken as 1 for an anomaly"),
        (["a__#1_label_A.npy", "b__#1_label_B1-0-0.npy", "c_label_G-0-0.npy"], [0, 1, 1], ""),
        (["normal/a.npy", "riot/b.npy"], [0, 1], ""),
        (["path,label", "x.npy,Normal", "y.npy,Riot"], [0, 1], ""),
        ([f"v{number}.npy" for number in range(238)], [1] * 63 + [0] * 175, "the first 63 of 238 videos"),
        ([f"v{number}.npy" for number in range(1610)], [1] * 810 + [0] * 800, "the first 810 of 1610 videos"),
        (
            [f"v{number}__{crop}.npy" for number in range(238) for crop in range(10)],
            [1] * 63 + [0] * 175,
            "taken by line number as RTFM and MGFN do",
        ),
    ],
)
def test_an_anomaly_is_one_whatever_the_list_calls_it(
    tmp_path: Path, lines: list[str], labels: list[int], note: str
) -> None:
    entries = read_list(Path(write_list(tmp_path, *lines)), "list.txt")
    found, notes = list_labels(entries, "list.txt")
    assert list(found.values()) == labels
    assert len(notes) == bool(note)
    assert note in " ".join(notes)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [f"{UCF[0]} 1", f"{UCF[1]} 0", f"{UCF[2]} 0"],
            r"labels contradict the names of 1 of 3 videos: Arson002_x264\.mp4; correct the list",
        ),
        (["a.mp4", "b.mp4"], r"2 of 2 videos have no label: a\.mp4, b\.mp4; expected class folders"),
    ],
)
def test_labels_that_cannot_be_told(tmp_path: Path, lines: list[str], message: str) -> None:
    entries = read_list(Path(write_list(tmp_path, *lines)), "list.txt")
    with pytest.raises(InputError, match=message):
        list_labels(entries, "list.txt")


def test_labels_of_a_list_make_the_classes_of_clips(tmp_path: Path) -> None:
    make_tree(tmp_path, ("01_001.mkv", "01_0014.mkv"))
    data = load_clips(write_list(tmp_path, "01_001.avi 1", "01_0014.avi 0"), clips=2, public=0, **SMALL)
    assert data.classes == ("0", "1")
    assert dict(zip(data.names, data.labels.tolist(), strict=True)) == {"01_001@0": 1, "01_0014@0": 0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"^list\.txt: an empty file; expected a list of videos, or rows of numbers$"),
        (b" \n\n", r"^list\.txt: an empty file"),
        (b"# nothing\n", r"^list\.txt: an empty list; expected a path a line$"),
        (b"a.mp4\n\xff\xfe.mp4\n", r"^list\.txt: is no text \(byte 6\); expected UTF-8$"),
        (b"a.mp4 Abuse 3 4\nb.mp4 Abuse 3 four", r"^list\.txt: line 2: 'four' is no whole number; expected"),
        (b"a.mp4 Abuse 1.5 4", r"^list\.txt: line 1: '1\.5' is no whole number"),
        (b"a.mp4 Abuse 30 4", r"^list\.txt: line 1: 30 4 are no intervals"),
        (b"a.mp4 Abuse 3 -7", r"^list\.txt: line 1: -7 is negative; expected frames, or -1 for none$"),
        (b"read this first please", r"^list\.txt: line 1: 'first' is no whole number"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_clips(str(tmp_path / "list.txt"))
    assert len(str(caught.value).splitlines()) == 1


def test_windows_line_ends_and_marks(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfAbuse\\a.mp4\r\nArson\\b.mp4\r\n\r\n")
    assert [entry.path for entry in read_list(path, "list.txt")] == ["Abuse/a.mp4", "Arson/b.mp4"]
