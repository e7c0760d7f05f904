"""Feature files: every layout that users have, and files that lie about their size."""

from __future__ import annotations

import pickle
import random
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from videos import REAL_DATA, numbered, real_path, write_frames, write_list, write_video

from vleak.data import FeatureSet, load_clips, load_data, load_features, recognise
from vleak.data.features import resampled
from vleak.errors import InputError

SEGMENTS, COLUMNS = 4, 6
UCF = ("Abuse001_x264", "Arson002_x264", "Normal_Videos001_x264", "Normal_Videos_003_x264")


def matrix(place: int, rows: int = SEGMENTS, columns: int = COLUMNS) -> NDArray[np.float32]:
    """Rows that tell their video and their time: the first column is the place, the second the row."""
    values = np.random.default_rng(place).uniform(0, 1, (rows, columns)).astype(np.float32)
    values[:, 0], values[:, 1] = place, np.arange(rows)
    return values


def write_text(file: Path, values: NDArray[np.float32]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(" ".join(f"{value:.6f}" for value in row) for row in values) + "\n")
    return file


def write_npy(file: Path, values: NDArray[np.floating]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, values)
    return file


def ucf(root: Path, names: tuple[str, ...] = UCF, rows: int = SEGMENTS) -> Path:
    for place, name in enumerate(names):
        write_text(root / f"{name}.txt", matrix(place, rows))
    return root


def places(features: torch.Tensor) -> list[int]:
    return features[:, 0, 0].int().tolist()


def load(root: Path, **given: int) -> FeatureSet:
    return load_features(str(root), **{"segments": SEGMENTS, **given})


def test_feature_set_is_as_described(tmp_path: Path) -> None:
    data = load(ucf(tmp_path), clips=3)
    assert data.features.shape == (3, SEGMENTS, COLUMNS)
    assert data.public_features.shape == (1, SEGMENTS, COLUMNS)
    assert data.features.dtype == torch.float32
    assert data.labels.dtype == data.public_labels.dtype == torch.int64
    assert data.classes == ("normal", "anomaly")
    assert data.name == tmp_path.name
    assert data.public_source == "other videos"
    assert data.notes[0] == "4 feature files found"
    for place, label, name in zip(places(data.features), data.labels.tolist(), data.names, strict=True):
        assert name == UCF[place]
        assert label == (place < 2)
        row = data.features[data.names.index(name)]
        assert torch.allclose(row, torch.from_numpy(matrix(place)), atol=1e-6)


LAYOUTS = {
    "C3D text": (".txt", lambda values: values),
    "rows": (".npy", lambda values: values),
    "I3D, ten crops": ("_i3d.npy", lambda values: np.stack([values + 9 * crop for crop in range(10)], 1)),
    "ten crops first": (".npy", lambda values: np.stack([values + 9 * crop for crop in range(10)])),
    "five crops": (".npy", lambda values: np.stack([values + 9 * crop for crop in range(5)], 1)),
    "one in front": (".npy", lambda values: values[None]),
    "one between": (".npy", lambda values: values[:, None]),
    "half precision": (".npy", lambda values: values.astype(np.float16)),
    "double precision": (".npy", lambda values: values.astype(np.float64)),
    "big-endian": (".npy", lambda values: values.astype(">f4")),
    "column order": (".npy", np.asfortranarray),
}


@pytest.mark.parametrize(("ending", "change"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_matrix(tmp_path: Path, ending: str, change: object) -> None:
    for place, name in enumerate(UCF):
        values = change(matrix(place, rows=7))  # type: ignore[operator]
        (write_text if ending == ".txt" else write_npy)(tmp_path / f"{name}{ending}", values)
    data = load(tmp_path, clips=4, segments=7)
    tolerance = 1e-3 if values.dtype == np.float16 else 1e-6
    for place, features in zip(places(data.features), data.features, strict=True):
        assert torch.allclose(features, torch.from_numpy(matrix(place, rows=7)), atol=tolerance)
    assert sorted(places(data.features)) == [0, 1, 2, 3]
    assert any("the first crop used" in note for note in data.notes) == (
        values.ndim == 3 and 1 not in values.shape
    )


def test_a_file_a_crop_is_one_video(tmp_path: Path) -> None:
    for place, name in enumerate(UCF):
        for crop in range(10):
            write_npy(tmp_path / f"{name}__{crop}.npy", matrix(place) + 100 * crop)
    data = load(tmp_path, clips=4)
    assert sorted(places(data.features)) == [0, 1, 2, 3]
    assert sorted(data.names) == sorted(UCF)
    assert "a file a crop: the first crop of each video is used, 36 files are not" in data.notes
    source = write_list(tmp_path, *(f"/x/{name}__{crop}.npy" for name in UCF[1:] for crop in range(10)))
    listed = load_features(source, clips=3, segments=SEGMENTS)
    assert sorted(places(listed.features)) == [1, 2, 3]
    assert listed.notes[0] == "3 videos listed, 3 found as feature files"


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 31, 32, 33, 100, 1001])
def test_rows_become_segments_as_in_the_literature(rows: int) -> None:
    """The rule of Sultani's and RTFM's code, written out a row at a time."""
    values, segments = matrix(0, rows), 32
    edges = [place * rows // segments for place in range(segments + 1)]
    found = resampled(values, segments)
    assert found.shape == (segments, COLUMNS)
    for place in range(segments):
        part = (
            values[edges[place] : edges[place + 1]]
            if edges[place] < edges[place + 1]
            else values[[edges[place]]]
        )
        assert np.allclose(found[place], part.mean(0), atol=1e-5)
    if rows == segments:
        assert np.array_equal(found, values)


def test_resampling_is_told(tmp_path: Path) -> None:
    assert not any("segments" in note for note in load(ucf(tmp_path)).notes)
    write_text(tmp_path / "Abuse001_x264.txt", matrix(0, rows=9))
    notes = load(tmp_path, clips=4).notes
    assert "4 to 9 rows a video made 4 segments, each the mean of its rows" in notes


def test_videos_alternate_and_do_not_depend_on_the_count(tmp_path: Path) -> None:
    names = tuple(f"Abuse{number:03d}_x264" for number in range(20))
    names += tuple(f"Normal_Videos{number:03d}_x264" for number in range(6))
    ucf(tmp_path, names)
    data = load(tmp_path)
    assert data.features.shape[0] == 12
    assert data.public_features.shape[0] == 14
    assert data.labels.tolist() == [1, 0] * 6
    few = load(tmp_path, clips=5, public=3)
    assert few.names == data.names[:5]
    assert torch.equal(few.features, data.features[:5])
    assert not set(places(data.features)) & set(places(data.public_features))
    orders = [load(tmp_path, seed=seed).names for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    with pytest.raises(InputError, match="clips=27 asked, but it has 26 videos; ask for at most 26"):
        load(tmp_path, clips=27)


def test_public_features_do_not_carry_the_private_ones(tmp_path: Path) -> None:
    data = load(ucf(tmp_path), clips=2)
    assert data.public_features.untyped_storage().data_ptr() != data.features.untyped_storage().data_ptr()
    assert data.public_features.untyped_storage().nbytes() == 4 * data.public_features.numel()


def test_only_the_needed_files_are_read(tmp_path: Path) -> None:
    ucf(tmp_path)
    wanted = load(tmp_path, clips=1, public=1)
    for name in UCF:
        if name not in wanted.names:
            (tmp_path / f"{name}.txt").write_text("1 broken")
    with pytest.raises(InputError):
        load(tmp_path, clips=4)
    assert load(tmp_path, clips=1, public=0).names == wanted.names


@pytest.mark.parametrize(
    ("change", "nonnegative", "unit_norm"),
    [
        (lambda values: values, True, False),
        (lambda values: values - 0.5, False, False),
        (lambda values: values / np.linalg.norm(values, axis=1, keepdims=True), True, True),
        (lambda values: -values / np.linalg.norm(values, axis=1, keepdims=True), False, True),
    ],
)
def test_facts_are_measured(tmp_path: Path, change: object, nonnegative: bool, unit_norm: bool) -> None:
    for place, name in enumerate(UCF):
        write_npy(tmp_path / f"{name}.npy", change(matrix(place)))  # type: ignore[operator]
    data = load(tmp_path)
    assert (data.nonnegative, data.unit_norm) == (nonnegative, unit_norm)


def test_one_public_row_changes_the_facts(tmp_path: Path) -> None:
    ucf(tmp_path)
    public = next(name for name in UCF if name not in load(tmp_path, clips=3).names)
    write_text(tmp_path / f"{public}.txt", matrix(0) - 1)
    assert not load(tmp_path, clips=3).nonnegative


@pytest.mark.parametrize(
    ("names", "labels", "note"),
    [
        (
            ("Abuse/a", "Fighting/b", "Normal/c"),
            {"a": 1, "b": 1, "c": 0},
            "labels by names and folders: 1 normal (0), 2 anomaly (1)",
        ),
        (
            ("normal/a", "abnormal/b"),
            {"a": 0, "b": 1},
            "labels by names and folders: 1 normal (0), 1 anomaly (1)",
        ),
        (
            ("a__#00_label_A", "b__#00_label_B1-0-0"),
            {"a___00_label_A": 0, "b___00_label_B1-0-0": 1},
            "1 normal (0), 1 anomaly (1)",
        ),
        (("Training_Normal_Videos_Anomaly/x", "Arson/x1"), {"x": 0, "x1": 1}, "1 normal (0), 1 anomaly (1)"),
    ],
)
def test_labels_from_names(tmp_path: Path, names: tuple[str, ...], labels: dict[str, int], note: str) -> None:
    data = load(ucf(tmp_path, names), clips=len(names))
    assert dict(zip(data.names, data.labels.tolist(), strict=True)) == labels
    assert note in " ".join(data.notes)


def test_labels_that_names_do_not_tell(tmp_path: Path) -> None:
    ucf(tmp_path, tuple(f"v{number}" for number in range(20)))
    data = load(tmp_path, clips=20)
    assert set(data.labels.tolist()) == {0, 1}
    assert any("labels are drawn at random; a list may tell them" in note for note in data.notes)
    assert torch.equal(data.labels, load(tmp_path, clips=20).labels)
    assert load(ucf(tmp_path / "normal", ("a", "b")), clips=2).labels.tolist() == [0, 0]
    with pytest.raises(InputError, match=r"20 of 22 files do not tell normal from anomaly: v0\.txt, v1\.txt"):
        load(tmp_path)
    (tmp_path / "normal" / "a.txt").unlink()
    (tmp_path / "normal" / "b.txt").unlink()
    ucf(tmp_path, ("Abuse001_x264",))
    with pytest.raises(InputError, match=r"20 of 21 files do not tell normal from anomaly: v0\.txt, v1\.txt"):
        load(tmp_path)


@pytest.mark.parametrize("anomaly", [0, 1])
def test_list_whatever_it_calls_an_anomaly(tmp_path: Path, anomaly: int) -> None:
    ucf(tmp_path / "features" / "c3d")
    lines = [f"D:\\x\\{name}.mp4 {anomaly if place < 2 else 1 - anomaly}" for place, name in enumerate(UCF)]
    data = load_data(
        write_list(tmp_path, *lines, "Abuse050_x264.mp4 " + str(anomaly)), clips=4, segments=SEGMENTS
    )
    assert isinstance(data, FeatureSet)
    assert [
        label == (place < 2) for place, label in zip(places(data.features), data.labels, strict=True)
    ] == [True] * 4
    assert data.notes[:2] == (
        "5 videos listed, 4 found as feature files",
        f"1 of the 5 videos in list.txt are not in '{tmp_path.name}' or its sub-folders: Abuse050_x264.mp4",
    )
    assert f"the labels of list.txt call an anomaly {anomaly}" in data.notes[2]


def npy(shape: str = "(4, 6)", descr: str = "'<f4'", body: bytes = bytes(96), version: int = 1) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes((version, 0)) + size + header + body


WRONG = {
    "empty": (b"", r"an empty file; expected an \.npy array"),
    "text": (b"0.5 0.25 0.125 1", r"is no \.npy array, or damaged at its start"),
    "short": (b"\x93NUMPY\x01\x00", r"is no \.npy array"),
    "other version": (npy(version=9), r"is no \.npy array"),
    "claims terabytes": (
        npy("(1000000000, 1000)"),
        r"claims 1000000000x1000 of float32, 40000000000\d\d bytes",
    ),
    "claims more than 64 bits": (npy("(" + "9" * 30 + ", 9)"), r"claims 9{30}x9 of float32"),
    "claims a huge header": (
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(90),
        r"header claims 4294967295 bytes",
    ),
    "header beyond the end": (b"\x93NUMPY\x01\x00\xff\x0f{}", r"its header claims 4095 bytes; it is damaged"),
    "cut off": (
        npy(body=bytes(50)),
        r"claims 4x6 of float32, \d+ bytes, the file has \d+; it is damaged or cut",
    ),
    "more than claimed": (npy(body=bytes(97)), r"claims 4x6 of float32"),
    "objects": (npy(descr="'|O'"), r"holds Python objects; expected float16, float32 or float64"),
    "whole numbers": (npy(descr="'<i4'"), r"holds type <i4; expected float16"),
    "fields": (npy(descr="[('a', '<f4')]"), r"holds type \[\('a', '<f4'\)\]; expected float16"),
    "no literal": (npy("__import__('os')"), r"its header cannot be read"),
    "deep": (npy("(" * 5000 + ")" * 5000), r"its header cannot be read|claims shape"),
    "negative": (npy("(-4, -6)"), r"claims shape \(-4, -6\); expected rows of numbers"),
    "nothing": (npy("(0, 6)", body=b""), r"claims shape \(0, 6\)"),
    "no rows": (npy("(24,)"), r"shape \(24,\); expected \(T, F\), or with 1, 5 or 10 crops"),
    "seven crops": (npy("(2, 3, 4)"), r"shape \(2, 3, 4\); expected \(T, F\), or with 1, 5 or 10 crops"),
    "nan": (
        npy(body=bytes(28) + struct.pack("<f", np.nan) + bytes(64)),
        r"row 2, column 2: nan is no finite number",
    ),
    "inf": (npy(body=struct.pack("<f", np.inf) + bytes(92)), r"row 1, column 1: inf is no finite number"),
    "beyond float32": (
        npy("(1, 2)", "'<f8'", struct.pack("<2d", 0, 1e300)),
        r"row 1, column 2: 1e\+300 is no finite number",
    ),
    "a pickle": (pickle.dumps([1.0, 2.0] * 20), r"is no \.npy array"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_arrays_that_lie(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "Abuse001_x264.npy").write_bytes(content)
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(InputError, match=rf"^Abuse001_x264\.npy: .*{message}") as caught:
            load(tmp_path)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(caught.value).splitlines()) == 1
    assert used < 2**24
    assert time.process_time() - began < 5  # a guard against minutes, not a measurement


ROWS = "0.1 0.2 0.3\n"
WRONG_TEXT = {
    "columns": (
        ROWS * 6 + "0.1 0.2\n" + ROWS,
        r"line 7 has 2 columns, expected 3 as in the first; the file is",
    ),
    "a word": (
        ROWS * 2 + "0.1 zero 0.3\n",
        r"line 3, column 2: 'zero' is no number; expected rows of numbers",
    ),
    "an underscore": (ROWS + "0.1 01_0014 0.3\n", r"line 2, column 2: '01_0014' is no number"),
    "two points": ("0.1 0.2.3 0.3\n", r"line 1, column 2: '0\.2\.3' is no number"),
    "nan": (ROWS + "0.1 nan 0.3\n", r"row 2, column 2: nan is no finite number; remove or extract it again"),
    "infinity": (ROWS + "0.1 0.2 -inf\n", r"row 2, column 3: -inf is no finite number"),
    "beyond float32": ("1e39 1\n", r"row 1, column 1: 1e\+39 is no finite number"),
    "no text": (ROWS.encode() + b"\xff\xfe\n", r"is no text \(byte 12\); expected UTF-8"),
    "control characters": (ROWS + "0.1 \x1b[31m 0.3", r"line 2, column 2: '\\x1b\[31m' is no number"),
}


@pytest.mark.parametrize(("content", "message"), WRONG_TEXT.values(), ids=WRONG_TEXT)
def test_text_that_is_no_matrix(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = tmp_path / "Abuse001_x264.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for source in (tmp_path, file):
        with pytest.raises(InputError, match=rf"^Abuse001_x264\.txt: {message}") as caught:
            load(source)
        assert len(str(caught.value).splitlines()) == 1


def test_empty_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(
        InputError, match=r"^a\.txt: an empty file; expected a list of videos, or rows of numbers$"
    ):
        load(tmp_path / "a.txt")


DIFFERENT = r"^\S+\.txt: [56] columns, \S+\.txt has [56]; give files of one extractor$"


@pytest.mark.parametrize("place", range(4))
def test_a_file_of_another_extractor_is_skipped_and_named(place: int, tmp_path: Path) -> None:
    ucf(tmp_path)
    write_text(tmp_path / f"{UCF[place]}.txt", matrix(0, columns=5))
    data = load(tmp_path, clips=3)  # whichever is read first
    assert sorted(data.names) == sorted(name for name in UCF if name != UCF[place])
    assert data.features.shape[2] == 6
    told = next(note for note in data.notes if "skipped" in note)
    assert told.startswith(f"1 feature files cannot be read and were skipped: {UCF[place]}.txt; the first: ")
    assert f"{UCF[place]}.txt: 5 columns, " in told
    with pytest.raises(InputError, match=DIFFERENT):
        load_features(str(tmp_path), strict=True)


def test_files_of_different_extractors(tmp_path: Path) -> None:
    ucf(tmp_path)
    for name in UCF[:2]:
        write_text(tmp_path / f"{name}.txt", matrix(0, columns=5))
    with pytest.raises(InputError, match=DIFFERENT):
        load(tmp_path, clips=4)


@pytest.mark.parametrize(
    ("option", "value"),
    [("clips", 0), ("segments", 0), ("segments", 5000), ("public", -1), ("seed", -1)],
)
def test_numbers_out_of_range(tmp_path: Path, option: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"^{option}={value}: expected a whole number from"):
        load(ucf(tmp_path), **{option: value})


def test_more_than_memory_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    ucf(tmp_path)
    write_npy(tmp_path / "Abuse001_x264.npy", np.zeros((1, 2**17), np.float32))
    (tmp_path / "Abuse001_x264.txt").unlink()
    for name in UCF[1:]:
        (tmp_path / f"{name}.txt").unlink()
        write_npy(tmp_path / f"{name}.npy", np.zeros((1, 2**17), np.float32))
    with pytest.raises(
        InputError, match=r"4 videos of 4096 segments of 131072 features take 8\.0 GiB, the limit"
    ):
        load(tmp_path, clips=4, segments=4096)


def crops_first(rows: int) -> NDArray[np.float32]:
    return np.stack([matrix(crop, rows=rows) for crop in range(10)])


def test_one_layout_for_the_folder(tmp_path: Path) -> None:
    """(10, 10, F) has ten crops in front where (10, 20, F) is beside it, whichever of them is read."""
    for place, name in enumerate(UCF):
        write_npy(tmp_path / f"{name}.npy", crops_first(10 if place else 20))
    data = load(tmp_path, clips=4)
    assert data.features[:, :, 0].eq(0).all()  # the first column is the number of the crop
    assert "read 4 of (10 crops, T, F), the first crop used" in data.notes
    assert load(tmp_path, clips=1, public=0).features[:, :, 0].eq(0).all()
    (tmp_path / f"{UCF[0]}.npy").unlink()
    both = load(tmp_path, clips=3)
    assert "read 3 of (T, 10 crops, F), the first crop used" in both.notes
    assert "arrays read as (T, 10 crops, F); (10 crops, T, F) would fit as well" in both.notes


def test_an_array_of_another_layout_is_skipped(tmp_path: Path) -> None:
    for place, name in enumerate(UCF):
        stack = crops_first(20)
        write_npy(tmp_path / f"{name}.npy", stack.swapaxes(0, 1) if place == 2 else stack)
    data = load(tmp_path, clips=3)
    assert UCF[2] not in data.names
    assert any("1 feature files cannot be read and were skipped" in note for note in data.notes)
    told = r"shape \(20, 10, 6\).*as most of the other files, which are \(10 crops, T, F\)"
    with pytest.raises(InputError, match=told):
        load_features(str(tmp_path), clips=4, strict=True)


def test_broken_files_are_skipped_and_counted(tmp_path: Path) -> None:
    ucf(tmp_path)
    broken = f"{UCF[1]}.txt"
    (tmp_path / broken).write_text("1 2 three")
    data = load(tmp_path, clips=3)
    assert sorted(data.names) == sorted(name for name in UCF if name != UCF[1])
    told = next(note for note in data.notes if "skipped" in note)
    assert told.startswith(
        f"1 feature files cannot be read and were skipped: {broken}; the first: {broken}: "
    )
    with pytest.raises(InputError, match=r"'three' is no number"):
        load_features(str(tmp_path), strict=True)
    for name in UCF:
        (tmp_path / f"{name}.txt").write_text("1 2 three")
    with pytest.raises(InputError, match=r"'three' is no number"):
        load(tmp_path)


def test_ground_truth_beside_features_is_no_feature(tmp_path: Path) -> None:
    write_npy(ucf(tmp_path) / "list" / "gt-ucf.npy", np.zeros(1000))
    assert "1 files that are no feature files were ignored: list/gt-ucf.npy" in load(tmp_path, clips=4).notes


# --- which kind of data ------------------------------------------------------------------------------------


def test_what_a_source_holds(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mkv", numbered(20))
    write_frames(tmp_path / "frames", "Abuse001_x264", list(range(20)))
    ucf(tmp_path / "text")
    write_npy(tmp_path / "npy" / "Abuse001_x264.npy", matrix(0))
    expected = {
        "videos": "videos",
        "videos/a.mkv": "videos",
        "frames": "frames",
        "text": "features",
        "text/Abuse001_x264.txt": "features",
        "npy": "features",
        "npy/Abuse001_x264.npy": "features",
    }
    assert {name: recognise(str(tmp_path / name)) for name in expected} == expected
    assert recognise("synthetic") == "synthetic"
    for name, words in (("videos", "1 videos found"), ("frames", "1 videos found as 20 images")):
        assert load_data(str(tmp_path / name), frames=4, size=8).notes[0] == words
    assert load_data("synthetic", clips=1, public=0).notes[0].startswith("synthetic clips")
    assert load_data(str(tmp_path / "npy"), segments=4).notes[0] == "1 feature files found"
    assert recognise(write_list(tmp_path / "videos", "x/a.mp4")) == "videos"
    assert recognise(write_list(tmp_path / "text", "x/Abuse001_x264.mp4", name="l.csv")) == "features"
    assert recognise(write_list(tmp_path / "frames", "x/Abuse001_x264.mp4")) == "frames"


def test_list_that_serves_videos_and_features_at_once(tmp_path: Path) -> None:
    write_video(tmp_path / "Abuse001_x264.mkv", numbered(20))
    write_npy(tmp_path / "Abuse001_x264_i3d.npy", matrix(0))
    assert recognise(write_list(tmp_path, "Abuse/Abuse001_x264.mp4")) == "videos"
    assert recognise(write_list(tmp_path, "/data/Abuse001_x264_i3d.npy")) == "features"


def test_the_more_numerous_of_features_and_images(tmp_path: Path) -> None:
    write_frames(tmp_path, "Abuse001_x264", [0, 10, 20])
    (tmp_path / "counts.txt").write_text("1 2 3")
    assert recognise(str(tmp_path)) == "frames"
    ucf(tmp_path)
    assert recognise(str(tmp_path)) == "features"
    write_video(tmp_path / "a.mkv", numbered(20))
    assert recognise(str(tmp_path)) == "videos"


def test_any_damage_to_an_array_is_one_line_or_a_matrix(tmp_path: Path) -> None:
    whole = write_npy(tmp_path / "Abuse001_x264.npy", matrix(0)).read_bytes()
    source, messages = random.Random(0), []
    for attempt in range(300):
        content = bytearray(whole)
        for _ in range(1 + attempt % 4):
            content[source.randrange(len(content))] ^= 1 << source.randrange(8)
        (tmp_path / "Abuse001_x264.npy").write_bytes(content)
        try:
            features = load(tmp_path).features
        except InputError as error:
            messages.append(str(error))
        else:
            assert features.isfinite().all()
    assert len(messages) > 100
    assert all(len(message.splitlines()) == 1 for message in messages)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"references": 2},
            r"reference_frames=2 asked of feature files, which hold no frames; leave it out or give",
        ),
        ({"fine": True}, r"fine clips asked of feature files, which hold no frames"),
    ],
)
def test_features_have_no_frames(tmp_path: Path, given: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(str(ucf(tmp_path)), segments=SEGMENTS, **given)  # type: ignore[arg-type]


def test_wrong_kind_for_the_call(tmp_path: Path) -> None:
    ucf(tmp_path / "text")
    with pytest.raises(
        InputError, match=r"the folder holds 4 other files and no videos \(\.264.* or images of videos"
    ):
        load_clips(str(tmp_path / "text"))
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mkv", numbered(20))
    with pytest.raises(
        InputError, match=r"holds 1 other files and no feature files \(\.npy, or text of numbers\)$"
    ):
        load_features(str(tmp_path / "videos"))
    with pytest.raises(InputError, match=r"^a\.mkv: "):
        load_features(str(tmp_path / "videos" / "a.mkv"))
    with pytest.raises(InputError, match=r"does not exist"):
        load_data(str(tmp_path / "nothing"))


# --- real files ------------------------------------------------------------------------------------------

REAL = pytest.mark.skipif(REAL_DATA is None, reason="no test data; set VLEAK_TEST_DATA to its folder")


@REAL
def test_real_c3d_features() -> None:
    assert recognise(real_path("ucf_crime")) == "features"
    data = load_features(real_path("ucf_crime"))
    assert data.features.shape == (3, 32, 4096)
    assert data.public_features.shape == (2, 32, 4096)
    assert data.nonnegative
    assert data.unit_norm
    labels = dict(zip(data.names, data.labels.tolist(), strict=True))
    assert all(label == (not name.startswith("Normal")) for name, label in labels.items())
    zeros = (torch.cat((data.features, data.public_features)) == 0).float().mean((1, 2))
    assert ((zeros > 0.6) & (zeros < 0.9)).all()


@REAL
def test_real_lists() -> None:
    data = load_data(real_path("ucf_crime/Temporal_Anomaly_Annotation.txt"), clips=5)
    assert isinstance(data, FeatureSet)
    assert sorted(data.labels.tolist()) == [0, 1, 1, 1, 1]
    assert any(note.startswith("285 of the 290 videos") for note in data.notes)
    with pytest.raises(
        InputError, match=r"1610 of the 1610 videos in Anomaly_Train\.txt are not in 'ucf_crime'"
    ):
        load_data(real_path("ucf_crime/Anomaly_Train.txt"))
