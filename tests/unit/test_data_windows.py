"""Windows with content and motion come first; damaged videos are skipped and counted; copies are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from videos import Pixels, convert_without_threads, noise, numbered, write_video

from vleak.data import clip_set, load_clips, noted, windows
from vleak.errors import InputError

GIVEN = {"frames": 4, "stride": 1, "size": 16, "public": 0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    convert_without_threads(monkeypatch)


def black(count: int, side: int = 48) -> Pixels:
    return np.zeros((count, side, side, 3), dtype=np.uint8)


def still(count: int, side: int = 48) -> Pixels:
    return np.repeat(noise(1, side), count, axis=0)


def test_black_lead_ins_are_passed_over(tmp_path: Path) -> None:
    for name in "abc":
        write_video(tmp_path / f"{name}.mkv", np.concatenate([black(9), noise(20)]))
    data = load_clips(str(tmp_path), clips=6, **GIVEN)
    assert {name.partition("@")[2] for name in data.names} == {"8", "12"}
    # frame 8 is black, the rest of that window is not
    assert not any(windows.is_flat(clip) or windows.is_still(clip) for clip in data.clips)
    assert any("6 windows without content or motion were passed over" in note for note in data.notes)


def test_still_parts_are_passed_over_and_come_last(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", np.concatenate([noise(4), still(8), noise(8)]))
    write_video(tmp_path / "b.mkv", noise(8))
    data = load_clips(str(tmp_path), clips=7, **GIVEN)
    starts = [int(name[2:]) for name in data.names if name.startswith("a")]
    assert starts == [0, 12, 16, 4, 8]
    few = load_clips(str(tmp_path), clips=3, **GIVEN)
    assert few.names == data.names[:3]
    assert torch.equal(few.clips, data.clips[:3])
    assert any("in 2 of 7 attacked clips next to nothing moves: a@4, a@8" in note for note in data.notes)
    assert not any("nothing moves" in note for note in few.notes)


def test_a_video_without_others_is_used_as_it_is(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", black(12))
    write_video(tmp_path / "b.mkv", noise(12))
    data = load_clips(str(tmp_path), clips=6, **GIVEN)
    assert sorted(data.names) == ["a@0", "a@4", "a@8", "b@0", "b@4", "b@8"]
    note = "1 videos have no window with content and motion, and were used as they are: a.mkv"
    assert note in data.notes


def test_the_search_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "SEARCHED", 3)
    write_video(tmp_path / "near.mkv", np.concatenate([black(8), noise(8)]))
    write_video(tmp_path / "far.mkv", np.concatenate([black(12), noise(8)]))
    data = load_clips(str(tmp_path), clips=2, **GIVEN)
    assert sorted(data.names) == ["far@0", "near@8"]


def test_a_window_does_not_depend_on_the_count(tmp_path: Path) -> None:
    for place, name in enumerate("abcd"):
        parts = [black(4 * place), noise(8), still(4), noise(8), black(8)]
        write_video(tmp_path / f"{name}.mkv", np.concatenate(parts))
    write_video(tmp_path / "e.mkv", black(12))
    path = tmp_path / "f.mkv"
    write_video(path, noise(24))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    whole = load_clips(str(tmp_path), clips=26, **GIVEN)
    for count in (1, 6, 14, 21):
        part = load_clips(str(tmp_path), clips=count, **GIVEN)
        assert part.names == whole.names[:count]
        assert torch.equal(part.clips, whole.clips[:count])


def test_references_follow_the_last_attacked_window(tmp_path: Path) -> None:
    numbers = noise(40)
    numbers[..., 1] = 2 * np.arange(40)[:, None, None]  # green tells the frame
    numbers[:8] = 0
    write_video(tmp_path / "a.mkv", numbers)
    data = load_clips(str(tmp_path), clips=2, references=2, **GIVEN)
    assert data.names == ("a@8", "a@12")
    assert data.references is not None
    assert [(one[1].mean((1, 2)) * 255 / 2).round().tolist() for one in data.references] == [[16, 17]] * 2


@pytest.mark.parametrize("content", [b"", b"no video at all" * 20, b"\x1aE\xdf\xa3" + bytes(400)])
def test_a_broken_video_among_others_is_skipped_and_counted(tmp_path: Path, content: bytes) -> None:
    for name in "abc":
        write_video(tmp_path / f"{name}.mkv", noise(12))
    (tmp_path / "broken.mkv").write_bytes(content)
    data = load_clips(str(tmp_path), clips=9, **GIVEN)
    assert {name[0] for name in data.names} == set("abc")
    told = [note for note in data.notes if "cannot be read and were skipped" in note]
    assert len(told) == 1
    assert told[0].startswith("1 of 4 videos cannot be read and were skipped: broken.mkv; the first: broken")
    with pytest.raises(InputError, match=r"^broken\.mkv: "):
        load_clips(str(tmp_path), clips=9, strict=True, **GIVEN)
    for name in "abc":
        (tmp_path / f"{name}.mkv").write_bytes(content)
    with pytest.raises(InputError, match=r"^\w+\.mkv: "):
        load_clips(str(tmp_path), **GIVEN)


def test_a_cut_video_is_used_up_to_the_damage(tmp_path: Path) -> None:
    for name in ("a.mkv", "b.mkv"):
        write_video(tmp_path / name, noise(20))
    path = tmp_path / "b.mkv"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    data = load_clips(str(tmp_path), clips=7, **GIVEN)
    assert sorted(data.names) == ["a@0", "a@12", "a@16", "a@4", "a@8", "b@0", "b@4"]
    assert any("1 of 2 videos are damaged and were used up to there: b.mkv" in note for note in data.notes)
    with pytest.raises(InputError, match=r"^b\.mkv: damaged: decoded (9|10) of 20 declared frames"):
        load_clips(str(tmp_path), clips=7, strict=True, **GIVEN)


def test_copies_and_near_twins_are_named(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mkv", noise(4)).read_bytes()
    (tmp_path / "b.mkv").write_bytes(whole)
    near = noise(4).astype(np.int16)
    write_video(tmp_path / "c.mkv", np.clip(near + 1, 0, 255).astype(np.uint8))
    write_video(tmp_path / "d.mkv", noise(8)[4:])
    notes = load_clips(str(tmp_path), clips=4, **GIVEN).notes
    equal = next(note for note in notes if "equal to others" in note)
    assert equal.startswith("2 of 4 attacked clips are equal to others")
    assert "a@0 = b@0" in equal or "b@0 = a@0" in equal
    alike = next(note for note in notes if "nearly alike" in note)
    assert alike.startswith("2 pairs of attacked clips are nearly alike (48 dB PSNR)") or "48 to 48" in alike


def test_tensors_have_no_false_twins() -> None:
    clips = torch.rand(6, 3, 4, 16, 16)
    assert noted(clip_set(clips, torch.zeros(6, dtype=torch.int64))).notes == ()


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    load_clips("synthetic", clips=3, public=2, progress=lambda *state: told.append(state))
    assert ("drawing clips", 4, 5) in told


def test_progress_of_videos(tmp_path: Path) -> None:
    told: list[str] = []

    def note(what: str, done: int, total: int) -> None:
        told.append(f"{what} {done}/{total}")

    for name in "ab":
        write_video(tmp_path / f"{name}.mkv", numbered(30))
    load_clips(str(tmp_path), progress=note, **GIVEN)
    assert "reading videos 1/2" in told
