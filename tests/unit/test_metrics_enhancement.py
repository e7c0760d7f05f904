"""Scores before and after enhancement: known answers, and no gain for those who never saw the update."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vleak.errors import InputError
from vleak.metrics import invented_share, psnr, score_enhanced, ssim
from vleak.seeds import generator

SHAPE = (3, 4, 16, 16)


def candidates(count: int = 5) -> Tensor:
    """Smooth clips that differ, with a little detail of their own."""
    numbers = generator("candidates")
    coarse = torch.rand(count, *SHAPE[:2], 4, 4, generator=numbers).flatten(1, 2)
    smooth = functional.interpolate(coarse, size=SHAPE[2:], mode="bicubic").clamp(0.1, 0.9)
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=numbers)).clamp(0, 1).view(count, *SHAPE)


def baselines(value: float = 0.5) -> dict[str, Tensor]:
    return {"grey": torch.full(SHAPE, value)}


def noisy(clip: Tensor, sigma: float, seed: int = 0) -> Tensor:
    return (clip + sigma * torch.randn(clip.shape, generator=generator("noise", seed))).clamp(0, 1)


def pooled(clip: Tensor) -> Tensor:
    """A clip whose squares of two by two pixels are flat."""
    return functional.interpolate(functional.avg_pool2d(clip, 2), scale_factor=2.0, mode="nearest")


def test_known_answers_on_both_sides():
    rooms = candidates()
    truth = rooms[2]
    before, after = noisy(truth, 0.1), noisy(truth, 0.02)
    scores = score_enhanced(before, after, truth, 2, rooms, baselines(0.5), baselines(0.6))
    for side, clip, grey in (("before", before, 0.5), ("after", after, 0.6)):
        assert scores[side]["psnr_db"] == psnr(clip, truth)
        assert scores[side]["ssim"] == ssim(clip, truth)
        against = psnr(torch.full(SHAPE, grey), truth)  # the null attacker treated like this side
        assert scores[side]["psnr_gain_db"] == pytest.approx(psnr(clip, truth) - against)
        assert (scores[side]["identified"], scores[side]["rank"]) == (True, 1)
    change = psnr(after, truth) - psnr(before, truth)
    assert change > 10
    assert scores["psnr_change_db"] == pytest.approx(change)
    greys = psnr(baselines(0.6)["grey"], truth) - psnr(baselines(0.5)["grey"], truth)
    assert scores["psnr_gain_change_db"] == pytest.approx(change - greys)
    assert scores["identification_moved"] == "none"
    assert json.loads(json.dumps(scores)) == scores


def test_identification_gained_lost_and_unmoved():
    rooms = candidates()
    right, wrong = noisy(rooms[1], 0.05), noisy(rooms[3], 0.05)

    def moved(before: Tensor, after: Tensor) -> str:
        return score_enhanced(before, after, rooms[1], 1, rooms, baselines(), baselines())[
            "identification_moved"
        ]

    assert moved(wrong, right) == "gained"
    assert moved(right, wrong) == "lost"
    assert moved(right, right) == moved(wrong, wrong) == "none"


def test_a_null_attacker_gains_nothing_by_enhancement():
    rooms = candidates()
    mean = rooms[1:].mean(0)
    after = (mean + 0.3 * (mean - pooled(mean))).clamp(0, 1)
    scores = score_enhanced(mean, after, rooms[0], 0, rooms, {"mean": mean}, {"mean": after})
    assert scores["before"]["psnr_gain_db"] == scores["after"]["psnr_gain_db"] == 0
    assert scores["psnr_gain_change_db"] == 0
    assert scores["psnr_change_db"] != 0


def test_motion_is_none_where_nothing_moves():
    still = candidates()[:, :, :1].expand(5, *SHAPE)
    scores = score_enhanced(still[0], still[0], still[0], 0, still, baselines(), baselines())
    assert scores["before"]["motion_psnr_db"] is None


def test_invented_share_has_known_answers():
    truth = candidates()[0]
    numbers = generator("invented")
    level, none = invented_share(truth, truth)
    assert none == pytest.approx(0, abs=1e-12)
    assert level == pytest.approx(float((truth - pooled(truth)).square().mean().sqrt()), rel=1e-5)
    assert invented_share(pooled(truth), truth) == (pytest.approx(0, abs=1e-5), None)
    foreign = torch.rand(SHAPE, generator=numbers)
    assert invented_share(pooled(truth) / 2 + foreign / 2, truth)[1] == pytest.approx(1, abs=0.02)
    inverted = (2 * pooled(truth) - truth).clamp(-1, 2)  # every detail the wrong way round
    assert invented_share(inverted, truth)[1] == 1


def test_half_invented_detail_is_half():
    truth = candidates()[0]
    own = truth - pooled(truth)
    other = noisy(truth, 0.05, 1) - truth
    other = other - pooled(other)
    other = other - own * float((own * other).sum() / own.square().sum())
    other = other * float(own.norm() / other.norm())
    level, share = invented_share(pooled(truth) + own + other, truth)
    assert share == pytest.approx(0.5, abs=1e-4)
    assert level == pytest.approx(2**0.5 * invented_share(truth, truth)[0], rel=1e-4)


def test_detail_over_a_flat_truth_is_all_invented():
    assert invented_share(torch.rand(SHAPE, generator=generator(0)), torch.full(SHAPE, 0.5))[1] == 1


def test_bad_input_is_one_clear_line():
    rooms = candidates()
    clip = rooms[0]
    with pytest.raises(InputError, match=r"baselines \['grey'\] before and \[\] after"):
        score_enhanced(clip, clip, clip, 0, rooms, baselines(), {})
    with pytest.raises(InputError, match="no baseline given"):
        score_enhanced(clip, clip, clip, 0, rooms, {}, {})
    with pytest.raises(InputError, match="is not candidate 1"):
        score_enhanced(clip, clip, clip, 1, rooms, baselines(), baselines())
    with pytest.raises(InputError, match="one shape"):
        score_enhanced(clip[..., ::2], clip, clip, 0, rooms, baselines(), baselines())
    with pytest.raises(InputError, match="NaN"):
        score_enhanced(clip, clip * torch.nan, clip, 0, rooms, baselines(), baselines())
    with pytest.raises(InputError, match="15x16 pixels; expected even sides"):
        invented_share(clip[:, :, :15], clip[:, :, :15])
