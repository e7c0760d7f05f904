"""Synthetic motion: the same numbers for the same seed, and a class that only the motion tells."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from vleak.data import MOTIONS, load_clips, synthetic_clip
from vleak.data.synthetic import OVERSAMPLING, _draw, _draw_scene, _eased, _outside, _path, _render
from vleak.errors import InputError
from vleak.seeds import generator


def test_clip_set_is_as_described() -> None:
    data = load_clips("synthetic", public=7)
    assert data.name == "synthetic"
    assert data.clips.shape == (12, 3, 8, 32, 32)
    assert data.public_clips.shape == (7, 3, 8, 32, 32)
    assert data.clips.dtype == torch.float32
    assert data.labels.dtype == data.public_labels.dtype == torch.int64
    assert len(set(data.names)) == 12
    assert data.names[0] == "synthetic0@0"
    assert data.classes == MOTIONS
    assert data.public_source == "other seeds"


@pytest.mark.parametrize(("frames", "size"), [(2, 8), (5, 17), (9, 64)])
def test_any_size_stays_in_range(frames: int, size: int) -> None:
    data = load_clips("synthetic", clips=6, frames=frames, size=size, public=0)
    assert data.clips.shape == (6, 3, frames, size, size)
    assert data.public_clips.shape == (0, 3, frames, size, size)
    assert data.clips.min() >= 0
    assert data.clips.max() <= 1
    assert data.clips.isfinite().all()


def test_clip_depends_on_its_seed_and_index_alone() -> None:
    few, many = load_clips("synthetic", clips=3, public=2), load_clips("synthetic", clips=14, public=5)
    assert torch.equal(few.clips, many.clips[:3])
    assert torch.equal(few.labels, many.labels[:3])
    assert torch.equal(few.public_clips, many.public_clips[:2])
    clip, label = synthetic_clip(13, frames=8, size=32, seed=0)
    assert torch.equal(clip, many.clips[13])
    assert label == many.labels[13]


def test_seeds_and_streams_differ() -> None:
    data, other = load_clips("synthetic", clips=6, public=6), load_clips("synthetic", clips=6, seed=1)
    flat = torch.cat((data.clips, data.public_clips, other.clips)).flatten(1)
    distance = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    assert distance[~torch.eye(18, dtype=torch.bool)].min() > 0.05


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    load_clips("synthetic", clips=2, public=1)
    assert torch.equal(before, torch.get_rng_state())


def test_labels_are_balanced_and_shuffled() -> None:
    labels = load_clips("synthetic", clips=36, frames=2, size=8, public=0).labels.reshape(6, 6)
    assert torch.equal(labels.sort(dim=1).values, torch.arange(6).expand(6, 6))
    assert len({tuple(block) for block in labels.tolist()}) > 1


def test_middle_frame_is_the_same_for_every_class() -> None:
    """Background, texture, shape and place cannot tell the class: at mid-clip all classes are one image."""
    scene = _draw_scene(generator("test"), 32 * OVERSAMPLING)
    clips = [_render(scene, motion, 9) for motion in MOTIONS]
    assert all(torch.allclose(clip[:, 4], clips[0][:, 4], atol=1e-5) for clip in clips)
    assert all((clip[:, 0] - clips[0][:, 0]).abs().max() > 0.1 for clip in clips[1:])


@pytest.mark.parametrize(
    ("motion", "which", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)]
)
def test_the_way_of_the_object(motion: str, which: int, sign: int) -> None:
    scene = _draw_scene(generator("test"), 16)
    way = [value[-1] - value[0] for value in _path(scene, motion, torch.linspace(-1, 1, 8))]
    assert sign * way[which] == pytest.approx(2 * (scene.travel + sign * scene.wobble[which]), abs=1e-6)
    assert way[1 - which] == pytest.approx(2 * scene.wobble[1 - which], abs=1e-6)


def test_the_object_moves_in_every_frame_and_is_large_enough() -> None:
    for index in range(12):
        scene = _draw_scene(generator("test", index), 32 * OVERSAMPLING)
        clip = _render(scene, MOTIONS[index % 6], 8)
        still = torch.nn.functional.avg_pool2d(scene.background, OVERSAMPLING)
        covered = ((clip - still[:, None]).abs().amax(0) > 0.05).float().mean((1, 2))
        assert 0.08 < covered[3] < 0.4
        assert ((clip[:, 1:] - clip[:, :-1]).abs().mean((0, 2, 3)) > 0.002).all()


def affine_flow(clip: Tensor) -> Tensor:
    """Least-squares motion of what moves: mean x, mean y, growth and turn a frame, in pixels (4,)."""
    moving = (clip - clip.median(dim=1, keepdim=True).values).abs().amax(0) > 0.08
    x = torch.arange(clip.shape[3]).float().expand(clip.shape[2], -1)
    flows = []
    for step in range(clip.shape[1] - 1):
        now, later = clip[:, step], clip[:, step + 1]
        mean = (now + later) / 2
        across = (mean.roll(-1, 2) - mean.roll(1, 2))[:, 1:-1, 1:-1] / 2
        down = (mean.roll(-1, 1) - mean.roll(1, 1))[:, 1:-1, 1:-1] / 2
        seen = (moving[step] | moving[step + 1])[1:-1, 1:-1]
        if seen.sum() < 12:
            continue
        right, below = x[1:-1, 1:-1], x.T[1:-1, 1:-1]
        right, below = right - right[seen].mean(), below - below[seen].mean()
        grow = across * right + down * below
        turn = -across * below + down * right
        columns = torch.stack((across, down, grow, turn), -1)[:, seen].reshape(-1, 4)
        change = (now - later)[:, 1:-1, 1:-1][:, seen].reshape(-1, 1)
        flows.append(torch.linalg.lstsq(columns, change).solution[:, 0])
    return torch.stack(flows).mean(0)


def guess_motion(clip: Tensor) -> str:
    across, down, grow, turn = affine_flow(clip).tolist()
    radius = 0.2 * clip.shape[3]
    return max(
        (abs(across), "right" if across > 0 else "left"),
        (abs(down), "down" if down > 0 else "up"),
        (abs(grow) * radius, "approach"),
        (abs(turn) * radius, "rotate"),
    )[1]


def test_motion_alone_tells_the_class() -> None:
    drawn = [synthetic_clip(index, frames=16, size=48, seed=3) for index in range(60)]
    right = [guess_motion(clip) == MOTIONS[label] for clip, label in drawn]
    assert sum(right) >= 45  # chance is 10
    shifts = [clip for clip, label in drawn if MOTIONS[label] == "left"]
    assert sum(guess_motion(clip.flip(1)) == "right" for clip in shifts) >= 7


def test_clips_are_far_from_the_mean_public_clip() -> None:
    data = load_clips("synthetic")
    error = (data.clips - data.public_clips.mean(0)).square().mean((1, 2, 3, 4))
    assert (-10 * error.log10()).max() < 20


def test_needs_no_network_and_no_download() -> None:
    program = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise OSError('network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "sys.modules['pooch'] = None\n"
        "from vleak.data.synthetic import PHOTOS, _photo\n"
        "assert all(_photo(name).shape[0] == 3 for name in PHOTOS)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("clips", 0), ("clips", -3), ("frames", 1), ("size", 4), ("size", 10**6), ("stride", 0), ("public", -1)],
)
def test_numbers_out_of_range_are_refused(option: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"^{option}={value}: expected a whole number from"):
        load_clips("synthetic", **{option: value})


def test_more_than_memory_is_refused() -> None:
    with pytest.raises(InputError, match=r"take 14\.3 GiB, the limit is 4 GiB"):
        load_clips("synthetic", clips=1000, frames=8, size=400, public=0)


def test_larger_memory_for_references_and_fine_clips_is_counted() -> None:
    given = {"clips": 100, "frames": 8, "size": 400, "public": 100}  # 2.9 GiB
    with pytest.raises(InputError, match=r"400x400, 100 references each take 20\.7 GiB, the limit is 4 GiB"):
        load_clips("synthetic", **given, references=100)
    with pytest.raises(InputError, match=r"400x400, with fine copies take 14\.3 GiB, the limit is 4 GiB"):
        load_clips("synthetic", **given, fine=True)


@pytest.mark.parametrize("references", [-1, 257])
def test_count_of_references_out_of_range(references: int) -> None:
    with pytest.raises(
        InputError, match=rf"^reference_frames={references}: expected a whole number from 0 to 256"
    ):
        load_clips("synthetic", references=references)


def test_references_and_fine_clips_change_no_clip() -> None:
    given = {"clips": 4, "public": 3, "frames": 4, "size": 16}
    plain = load_clips("synthetic", **given)
    more = load_clips("synthetic", **given, references=3, fine=True)
    assert (plain.references, plain.fine, plain.public_fine) == (None, None, None)
    for field in ("clips", "labels", "public_clips", "public_labels"):
        assert torch.equal(getattr(plain, field), getattr(more, field))
    assert more.references is not None
    assert more.references.shape == (4, 3, 3, 16, 16)
    fewer = load_clips("synthetic", **{**given, "clips": 2}, references=1).references
    assert fewer is not None
    assert torch.equal(fewer, more.references[:2, :, :1])


def test_fine_clips_average_to_the_clips() -> None:
    data = load_clips("synthetic", clips=3, public=2, frames=4, size=16, fine=True)
    for fine, clips in ((data.fine, data.clips), (data.public_fine, data.public_clips)):
        assert fine is not None
        assert fine.shape == (*clips.shape[:3], 32, 32)
        pooled = torch.nn.functional.avg_pool3d(fine, (1, OVERSAMPLING, OVERSAMPLING))
        assert torch.allclose(pooled, clips, atol=1e-6)
        enlarged = torch.nn.functional.interpolate(clips, scale_factor=(1, 2, 2))
        assert (fine - enlarged).square().mean() > 1e-4  # there is detail to be found


def test_no_public_clips_give_no_fine_ones() -> None:
    data = load_clips("synthetic", clips=1, public=0, frames=4, size=16, fine=True)
    assert data.public_fine is not None
    assert data.public_fine.shape == (0, 3, 4, 32, 32)


def test_references_show_the_scene_outside_the_clip() -> None:
    """The background is that of the clip, the object is nowhere where a frame of the clip has it."""
    for index in range(12):
        drawn = _draw("clips", index, 8, 32, 0)
        clip, references = drawn.clip(), drawn.references(4)
        still = torch.nn.functional.avg_pool2d(drawn.scene.background, OVERSAMPLING)
        for reference in references.unbind(1):
            bare = (reference - still).abs().amax(0) < 1e-3
            assert bare.float().mean() > 0.2  # most of what is not object is the background, to the digit
            assert (clip - reference[:, None]).square().mean((0, 2, 3)).min() > 1e-4
    assert torch.allclose(_outside(5, 5), torch.tensor([-1.5, 1.5, -2, 2, -2.5]))


def test_nearest_references_come_first() -> None:
    for index in range(6):
        drawn = _draw("clips", index, 8, 32, 0)
        clip, references = drawn.clip(), drawn.references(4)
        ends = torch.stack((clip[:, 0], clip[:, -1], clip[:, 0], clip[:, -1]), 1)
        before, after, further_before, further_after = (references - ends).square().mean((0, 2, 3)).tolist()
        assert before < further_before
        assert after < further_after


@pytest.mark.parametrize("ease", [-0.3, 0.0, 0.3])
def test_the_object_neither_turns_back_nor_leaves(ease: float) -> None:
    place = _eased(torch.linspace(-9, 9, 181), ease)
    assert (place.diff() > 0).all()
    assert place.abs().max() < 2.5
    speed = place.diff() / 0.1
    assert speed[79:81].max() / speed[79:81].min() < 1.3  # no jolt where the clip begins
