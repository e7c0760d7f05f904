"""Folders of videos: which windows are attacked, which are public, how they are named and labelled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from videos import convert_without_threads, frame_numbers, noise, numbered, write_video

from vleak.data import ClipSet, load_clips, tree, videos
from vleak.errors import InputError


def make(root: Path, lengths: dict[str, int]) -> Path:
    """Write one video a name; the red of its frames is 5 x its place, so that a clip tells its file."""
    for place, (name, length) in enumerate(lengths.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / name, numbered(length, red=5 * place))
    return root


def origins(clips: torch.Tensor) -> list[tuple[int, int]]:
    """Return (place of the file, first frame) of each clip."""
    return [(round(float(clip[0].mean()) * 255 / 5), frame_numbers(clip)[0]) for clip in clips]


def used_frames(clips: torch.Tensor) -> set[tuple[int, int]]:
    return {
        (place, number)
        for (place, _), clip in zip(origins(clips), clips, strict=True)
        for number in frame_numbers(clip)
    }


SMALL = {"frames": 4, "stride": 1, "size": 8}
SAME: dict[str, Any] = {**SMALL, "public_from": "same-file"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    convert_without_threads(monkeypatch)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("flat"), {f"v{index}.mkv": 10 + index for index in range(6)})


def test_first_windows_of_all_files_come_first(flat: Path) -> None:
    data = load_clips(str(flat), clips=8, public=2, **SAME)
    found = origins(data.clips)
    assert sorted(place for place, _ in found[:6]) == list(range(6))
    assert [start for _, start in found] == [0] * 6 + [4] * 2
    assert [place for place, _ in found[6:]] == [place for place, _ in found[:2]]
    assert origins(data.public_clips) == [(place, 4) for place, _ in found[2:4]]
    assert data.names == tuple(f"v{place}@{start}" for place, start in found)


def test_seed_draws_the_order(flat: Path) -> None:
    orders = [load_clips(str(flat), clips=4, seed=seed, **SMALL).names for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_no_frame_is_both_attacked_and_public(flat: Path) -> None:
    data = load_clips(str(flat), **{**SMALL, "stride": 2, "frames": 2})
    assert len(used_frames(data.clips)) == 2 * len(data.clips)
    assert not used_frames(data.clips) & used_frames(data.public_clips)


def test_clip_does_not_depend_on_the_count(flat: Path) -> None:
    few, many = (load_clips(str(flat), clips=count, **SMALL) for count in (3, 9))
    assert torch.equal(few.clips, many.clips[:3])
    assert torch.equal(few.labels, many.labels[:3])
    assert few.names == many.names[:3]


def files_of(clips: torch.Tensor) -> set[int]:
    return {place for place, _ in origins(clips)}


@pytest.mark.parametrize("clips", [None, 1, 2, 3, 5, 8, 9, 12, 15])
@pytest.mark.parametrize("public", [1, pytest.param(3, marks=pytest.mark.slow), 48])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_no_file_gives_attacked_and_public_clips(
    flat: Path, clips: int | None, public: int, seed: int
) -> None:
    """v0 .. v5 have 2, 2, 3, 3, 3 and 3 windows."""
    data = load_clips(str(flat), clips=clips, public=public, seed=seed, **SMALL)
    assert not files_of(data.clips) & files_of(data.public_clips)
    assert clips is None or len(data.clips) == clips
    assert len(data.public_clips) <= public
    assert data.public_groups is not None
    groups = dict.fromkeys(
        zip((place for place, _ in origins(data.public_clips)), data.public_groups.tolist(), strict=True)
    )
    assert len(groups) == len(files_of(data.public_clips)) == len({group for _, group in groups})
    if len(data.public_clips):
        assert (data.public_from, data.public_source) == ("other-files", "other files")
    attacked = [start for _, start in origins(data.clips)]
    assert attacked[: min(3, len(attacked))] == [0] * min(3, len(attacked))


def test_a_twelve_file_folder_leaves_half_of_its_files_public(tmp_path: Path) -> None:
    make(tmp_path, {f"v{index:02d}.mkv": 12 for index in range(12)})
    data = load_clips(str(tmp_path), **SMALL)
    assert (len(data.clips), len(data.public_clips)) == (12, 18)
    assert (len(files_of(data.clips)), len(files_of(data.public_clips))) == (6, 6)
    assert any(
        note.startswith("18 of 48 public clips: they are the windows of 6 files, of which none is attacked; ")
        for note in data.notes
    )
    many = load_clips(str(tmp_path), clips=33, **SMALL)  # eleven whole files
    assert (len(files_of(many.clips)), len(many.public_clips)) == (11, 3)
    assert many.names[:12] == data.names


def test_enough_files_are_split_without_a_note(tmp_path: Path) -> None:
    make(tmp_path, {f"v{index}.mkv": 8 for index in range(7)})
    data = load_clips(str(tmp_path), clips=4, public=3, **SMALL)
    assert [start for _, start in origins(torch.cat([data.clips, data.public_clips]))] == [0] * 7
    assert not any("public clips" in note for note in data.notes)


def test_one_file_is_attacked_or_public(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", numbered(80))
    data = load_clips(str(tmp_path), **SMALL)
    assert (len(data.clips), len(data.public_clips), data.public_from) == (12, 0, None)
    assert any(
        note == "no public clips: no file is left that is not attacked; give more files, or "
        "public_from=same-file would add other parts of the attacked videos"
        for note in data.notes
    )


def test_where_public_clips_are_from(flat: Path) -> None:
    def source(**given: int) -> tuple[str, str | None]:
        data = load_clips(str(flat), **{**SAME, **given})
        told = [note for note in data.notes if "of which some are other parts of the attacked videos" in note]
        assert len(told) == (data.public_from == "same-file")
        return data.public_source, data.public_from

    assert source(clips=2, public=3) == ("other files", "other-files")
    assert source(clips=6) == ("the same files, outside the attacked frames", "same-file")
    assert source(clips=4) == ("other files, and the same files, outside the attacked frames", "same-file")
    assert source(clips=2, public=0) == ("none", None)


def test_another_origin_of_public_clips_is_refused(flat: Path) -> None:
    with pytest.raises(InputError, match="unknown public_from 'same'; did you mean same-file"):
        load_clips(str(flat), **{**SMALL, "public_from": "same"})
    with pytest.raises(InputError, match="public_from=same-file: source 'synthetic' has no files"):
        load_clips("synthetic", public_from="same-file")


@pytest.mark.parametrize(
    ("available", "public", "attacked"),
    [(1, 48, 1), (2, 48, 1), (10, 48, 5), (11, 48, 6), (24, 48, 12), (60, 48, 12), (14, 3, 11), (9, 0, 9)],
)
def test_default_count_leaves_public_clips(
    tmp_path: Path, available: int, public: int, attacked: int
) -> None:
    write_video(tmp_path / "a.mkv", numbered(2 * available))
    data = load_clips(str(tmp_path), frames=2, stride=1, size=8, public=public, public_from="same-file")
    assert len(data.clips) == attacked
    assert len(data.public_clips) == min(public, available - attacked)
    no_public = "no public clips: all windows are attacked"
    assert (no_public in data.notes) == (len(data.public_clips) < min(public, 1))


def test_explicit_count_is_kept_and_checked(flat: Path) -> None:
    data = load_clips(str(flat), clips=15, **SAME)
    assert (len(data.clips), len(data.public_clips)) == (15, 1 + 0)
    data = load_clips(str(flat), clips=15, **SMALL)
    assert (len(data.clips), len(data.public_clips)) == (15, 0)
    with pytest.raises(InputError, match=r"clips=17 asked, but it gives 16; ask for at most 16"):
        load_clips(str(flat), clips=17, **SMALL)


def test_one_file_gives_its_consecutive_parts(tmp_path: Path) -> None:
    write_video(tmp_path / "my film (1).mkv", numbered(30))
    data = load_clips(str(tmp_path / "my film (1).mkv"), clips=3, **SAME)
    assert data.name == "my film (1).mkv"
    assert data.names == ("my_film_1_@0", "my_film_1_@4", "my_film_1_@8")
    assert origins(data.public_clips) == [(0, 12), (0, 16), (0, 20), (0, 24)]


def test_classes_are_the_folders(tmp_path: Path) -> None:
    names = {"Abuse/a.mkv": 8, "Abuse/b.mkv": 8, "Normal/a.mkv": 8, "part2/Normal/c.mkv": 8}
    data = load_clips(str(make(tmp_path, names)), clips=4, public=0, **SMALL)
    assert data.classes == ("Abuse", "Normal")
    labels = dict(zip(data.names, data.labels.tolist(), strict=True))
    assert labels == {"Abuse-a@0": 0, "b@0": 0, "Normal-a@0": 1, "c@0": 1}
    assert [place >= 2 for place, _ in origins(data.clips)] == data.labels.bool().tolist()
    assert "2 classes from the folders: Abuse, Normal" in data.notes


def test_without_classes_labels_are_drawn_by_seed(flat: Path) -> None:
    drawn = [load_clips(str(flat), clips=8, seed=seed, **SMALL) for seed in (0, 0, 1)]
    assert drawn[0].classes == tuple(f"class{index}" for index in range(6))
    assert torch.equal(drawn[0].labels, drawn[1].labels)
    assert not torch.equal(drawn[0].labels, drawn[2].labels)
    assert len(drawn[0].labels.unique()) >= 3
    assert any("drawn at random over 6 pseudo-classes" in note for note in drawn[0].notes)


def test_names_are_unique_and_safe(tmp_path: Path) -> None:
    names = [
        "x/a.mkv",
        "y/a.mkv",
        "p/x/a.mkv",
        "x/A.mkv",
        "x/ü b.mkv",
        "x/_b.mkv",
        "y/-.mkv",
        "y/" + "n" * 120 + ".mkv",
    ]
    data = load_clips(str(make(tmp_path, dict.fromkeys(names, 5))), clips=8, **SMALL)
    assert len({name.lower() for name in data.names}) == 8
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzA0123456789._-@") for name in data.names)
    assert all(len(name) < 100 and name[0] not in ".-" for name in data.names)


def test_other_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, {"a.mkv": 5, ".hidden.mkv": 5, ".git/b.mkv": 5})
    for name in ("README.md", "labels.txt"):
        (tmp_path / name).write_text("text")
    (tmp_path / "UPPER.MKV").write_bytes((tmp_path / "a.mkv").read_bytes())
    data = load_clips(str(tmp_path), clips=2, **SMALL)
    assert sorted(data.names) == ["UPPER@0", "a@0"]
    assert data.notes[0] == "2 videos found"
    assert data.notes[1] == "2 files that are no videos were ignored: README.md, labels.txt"


def test_short_files_are_skipped_and_named(tmp_path: Path) -> None:
    make(tmp_path, {"a.mkv": 9, **{f"s{index}.mkv": 3 for index in range(5)}})
    data = load_clips(str(tmp_path), clips=2, **SMALL)
    assert data.names == ("a@0", "a@4")
    assert "5 videos shorter than 4 frames were skipped: s0.mkv, s1.mkv, s2.mkv, ..." in data.notes
    with pytest.raises(
        InputError,
        match=r"too short: a\.mkv has 9 frames, 8 frames at stride 2 need 15; lower `frames` or `stride`$",
    ):
        load_clips(str(tmp_path))


def test_only_the_needed_files_are_opened(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    count_frames = videos.count_frames
    monkeypatch.setattr(
        videos, "count_frames", lambda path, *rest: opened.append(path) or count_frames(path, *rest)
    )
    load_clips(str(flat), clips=2, public=1, **SMALL)
    assert len(set(opened)) == 3


def test_damaged_file_is_an_error_when_it_is_wanted(tmp_path: Path) -> None:
    for name in ("a.mkv", "b.mkv"):
        write_video(tmp_path / name, noise(20))
    path = tmp_path / "b.mkv"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert len(load_clips(str(tmp_path), clips=2, public=0, **SMALL).clips) == 2
    with pytest.raises(
        InputError, match=r"^b\.mkv: damaged: decoded (9|10) of 20 declared frames, 20 are needed"
    ):
        load_clips(str(tmp_path), strict=True, **SMALL)


def test_one_folder_of_two_copies_gives_the_same_anywhere(flat: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere"
    link.symlink_to(flat)
    one, other = (load_clips(str(place), clips=3, public=2, **SMALL) for place in (flat, link))
    assert torch.equal(one.clips, other.clips)
    assert torch.equal(one.labels, other.labels)
    assert one.names == other.names
    assert other.name == "elsewhere"


def test_working_folder_has_a_name(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flat)
    data: ClipSet = load_clips(".", clips=3, public=2, **SMALL)
    assert data.name == flat.name
    assert os.sep not in " ".join((data.name, *data.names, *data.notes))


@pytest.mark.parametrize("source", ["", "syntetic", "missing/folder", "zero\0byte", "n" * 5000, os.devnull])
def test_what_does_not_exist(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^data '") as caught:
        load_clips(source)
    assert len(str(caught.value).splitlines()) == 1


def test_folders_without_videos(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no files and no videos \(\.264, "):
        load_clips(str(tmp_path))
    (tmp_path / "features.txt").write_text("0 0 0")
    with pytest.raises(InputError, match="holds 1 other files and no videos"):
        load_clips(str(tmp_path))


def test_file_that_only_has_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "line\nbreak.mp4").write_text("text")
    with pytest.raises(InputError, match=r"^'line\\nbreak\.mp4': is no video"):
        load_clips(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_folder_without_permission(tmp_path: Path, mode: int) -> None:
    make(tmp_path, {"shut/a.mkv": 5})
    (tmp_path / "shut").chmod(mode)
    try:
        for source in (tmp_path, tmp_path / "shut"):
            with pytest.raises(InputError, match=r"cannot read|cannot be read"):
                load_clips(str(source), **SMALL)
    finally:
        (tmp_path / "shut").chmod(0o700)


def test_walk_is_bounded(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_FILES", 5)
    with pytest.raises(InputError, match="more than 5 files"):
        load_clips(str(flat))


def test_references_are_what_follows_the_attacked_windows(flat: Path) -> None:
    """v0 .. v5 have 10 .. 15 frames; of the windows of 4, eight are attacked: two of two files."""
    plain = load_clips(str(flat), clips=8, public=2, **SMALL)
    data = load_clips(str(flat), clips=8, public=2, references=2, **SMALL)
    assert torch.equal(plain.clips, data.clips)
    assert torch.equal(plain.public_clips, data.public_clips)
    assert plain.names == data.names
    assert plain.references is None
    assert data.references is not None
    assert data.references.shape == (8, 3, 2, 8, 8)
    twice = {place for place, start in origins(data.clips) if start == 4}
    for (place, _), reference in zip(origins(data.clips), data.references, strict=True):
        first = 8 if place in twice else 4
        assert frame_numbers(reference) == [first, first + 1]
        assert origins(reference[None]) == [(place, first)]
    assert not used_frames(data.clips) & used_frames(data.references)


def test_references_keep_the_stride_and_skip_what_lies_between(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", numbered(40))
    data = load_clips(str(tmp_path), clips=2, frames=4, stride=3, size=8, references=3)
    assert data.references is not None
    assert [frame_numbers(one) for one in data.references] == [[24, 27, 30]] * 2
    with pytest.raises(
        InputError,
        match=r"a\.mkv has 6 frames at stride 3 outside its attacked clips, reference_frames=7 asked; "
        r"lower `reference_frames`, `clips` or `stride`$",
    ):
        load_clips(str(tmp_path), clips=2, frames=4, stride=3, size=8, references=7)


def test_all_frames_attacked_leaves_no_reference(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", numbered(8))
    with pytest.raises(InputError, match=r"has 0 frames at stride 1 outside .* reference_frames=1 asked"):
        load_clips(str(tmp_path), clips=2, references=1, **SMALL)


def test_fine_clips_of_a_file(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", noise(24, side=48))
    given: dict[str, Any] = {"clips": 2, "frames": 4, "stride": 1, "size": 24, "public_from": "same-file"}
    plain, data = load_clips(str(tmp_path), **given), load_clips(str(tmp_path), **given, fine=True)
    assert torch.equal(plain.clips, data.clips)
    for fine, clips in ((data.fine, data.clips), (data.public_fine, data.public_clips)):
        assert fine is not None
        assert fine.shape == (len(clips), 3, 4, 48, 48)
        assert (torch.nn.functional.avg_pool3d(fine, (1, 2, 2)) - clips).abs().mean() < 0.05
    assert torch.equal(data.fine, load_clips(str(tmp_path), **{**given, "size": 48}).clips)  # type: ignore[arg-type]
    assert not any("fine" in note for note in data.notes)
    small = load_clips(str(tmp_path), **{**given, "size": 32}, fine=True)
    assert (
        "1 videos have fewer than 64 pixels across, their fine clips show no more detail: a.mkv"
        in small.notes
    )


def test_public_fine_clips_do_not_carry_the_private_ones(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", numbered(24))
    data = load_clips(str(tmp_path), clips=2, fine=True, **SAME)
    assert data.fine is not None
    assert data.public_fine is not None
    assert data.public_fine.untyped_storage().data_ptr() != data.fine.untyped_storage().data_ptr()
