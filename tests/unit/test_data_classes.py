"""Labels of lists are indices of classes; drawn labels follow the number of logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from videos import numbered, write_list, write_video

from vleak.data import ClipSet, clip_set, load_clips, redrawn
from vleak.data.lists import label_column, read_list

SMALL = {"frames": 4, "stride": 1, "size": 8, "public": 0}


def make(root: Path, *names: str, frames: int = 9) -> None:
    for place, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / name, numbered(frames, red=5 * place))


def labels_of(data: ClipSet) -> dict[str, int]:
    return {
        name.partition("@")[0]: label for name, label in zip(data.names, data.labels.tolist(), strict=True)
    }


@pytest.mark.parametrize(
    "values", [(0, 1), (1, 0), (0, 1, 2), (2, 0, 1), (5, 17), (3, 3, 0), (1, 2, 3), (1, 1)]
)
def test_integers_are_the_indices_of_the_classes(tmp_path: Path, values: tuple[int, ...]) -> None:
    names = [f"v/{letter}.mkv" for letter in "abc"[: len(values)]]
    make(tmp_path, *names)
    lines = [f"{name} {value}" for name, value in zip(names, values, strict=True)]
    data = load_clips(write_list(tmp_path, *lines, name="l.txt"), clips=len(values), **SMALL)
    assert labels_of(data) == dict(zip("abc", values, strict=False))
    assert data.classes == tuple(str(index) for index in range(max(2, max(values) + 1)))
    assert not data.labels_drawn
    assert any("classes from the labels of the list, which are the indices" in note for note in data.notes)


@pytest.mark.parametrize(
    ("lines", "labels", "note"),
    [
        (("v/a.mkv 300 5", "v/b.mkv 250 0"), (5, 0), "the last number of each line is the label"),
        (("v/a.mkv,300,2", "v/b.mkv,250,7"), (2, 7), "the last number of each line is the label"),
        (("v/a.mkv 1 3", "v/b.mkv 2 4"), (3, 4), "not first and last frames"),
        (("v/a.mkv 1 300", "v/b.mkv 0 250"), (1, 0), "the first number of each line is the label"),
    ],
)
def test_path_frames_label(
    tmp_path: Path, lines: tuple[str, ...], labels: tuple[int, ...], note: str
) -> None:
    make(tmp_path, "v/a.mkv", "v/b.mkv")
    data = load_clips(write_list(tmp_path, *lines), clips=2, **SMALL)
    assert labels_of(data) == {"a": labels[0], "b": labels[1]}
    assert note in " ".join(data.notes)


def test_folders_give_the_names_and_integers_the_order(tmp_path: Path) -> None:
    names = ("run/a.mkv", "run/b.mkv", "jump/c.mkv", "walk/d.mkv")
    make(tmp_path, *names)
    source = write_list(tmp_path, "run/a.mkv 0", "run/b.mkv 0", "jump/c.mkv 3", "walk/d.mkv 1")
    data = load_clips(source, clips=4, **SMALL)
    assert data.classes == ("run", "walk", "class2", "jump")
    assert labels_of(data) == {"a": 0, "b": 0, "c": 3, "d": 1}


def test_integers_beat_folders_that_say_something_else(tmp_path: Path) -> None:
    names = ("g1/a.mkv", "g1/b.mkv", "g2/c.mkv", "g2/d.mkv")
    make(tmp_path, *names)
    source = write_list(tmp_path, *(f"{name} {index % 2}" for index, name in enumerate(names)))
    assert labels_of(load_clips(source, clips=4, **SMALL)) == {"a": 0, "b": 1, "c": 0, "d": 1}


def test_counts_of_frames_are_no_classes(tmp_path: Path) -> None:
    make(tmp_path, "v/a.mkv", frames=9)
    make(tmp_path, "v/b.mkv", frames=12)
    data = load_clips(write_list(tmp_path, "v/a.mkv 9", "v/b.mkv 12"), clips=2, **SMALL)
    assert data.labels_drawn
    make(tmp_path, "w/c.mkv")
    folders = load_clips(write_list(tmp_path, "v/a.mkv 312", "w/c.mkv 97"), clips=2, **SMALL)
    assert folders.classes == ("v", "w")
    assert any("the numbers of the list are taken as frames" in note for note in folders.notes)


@pytest.mark.parametrize("anomaly", [0, 1])
def test_names_that_confirm_an_anomaly_keep_the_integers_order(tmp_path: Path, anomaly: int) -> None:
    names = ("Abuse001_x264.mkv", "Arson002_x264.mkv", "Normal_Videos_003_x264.mkv")
    make(tmp_path, *names)
    lines = [f"{name} {anomaly if place < 2 else 1 - anomaly}" for place, name in enumerate(names)]
    data = load_clips(write_list(tmp_path, *lines), clips=3, **SMALL)
    assert data.classes == (("normal", "anomaly") if anomaly else ("anomaly", "normal"))
    assert labels_of(data)["Abuse001_x264"] == anomaly
    assert any(f"an anomaly is {anomaly}, as names confirm" in note for note in data.notes)


def test_lines_of_intervals_are_no_labels(tmp_path: Path) -> None:
    for line in ("a.mp4 2820 -1", "a.mp4 Abuse 165 240", "a.mp4|300|[12, 20]", "a.mp4 20000"):
        entries = read_list(Path(write_list(tmp_path, line)), "list.txt")
        assert label_column(entries) is None, line


def test_drawn_labels_are_marked_and_follow_the_logits(tmp_path: Path) -> None:
    make(tmp_path, "a.mkv", "b.mkv")
    data = load_clips(str(tmp_path), clips=3, **{**SMALL, "public": 1}, public_from="same-file")
    assert data.labels_drawn
    assert len(data.classes) == 6
    more = redrawn(data, 40, seed=0)
    assert len(more.classes) == 40
    assert int(torch.cat([more.labels, more.public_labels]).max()) >= 6
    fewer = load_clips(str(tmp_path), clips=2, **{**SMALL, "public": 2}, public_from="same-file")
    fewer_clips = redrawn(fewer, 40, seed=0)
    assert torch.equal(
        torch.cat([more.labels, more.public_labels]),
        torch.cat([fewer_clips.labels, fewer_clips.public_labels]),
    )
    clips = torch.rand(2, 3, 4, 8, 8)
    assert clip_set(clips).labels_drawn
    assert not clip_set(clips, torch.tensor([0, 1])).labels_drawn
