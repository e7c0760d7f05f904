import math
import warnings

import pytest
import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.metrics import (
    PSNR_CAP_DB,
    identification_rank,
    motion_mask,
    motion_psnr,
    motion_ssim,
    psnr,
    residual_correlation,
    score_clip,
    ssim,
)
from vleak.seeds import generator


def constant(value: float, shape: tuple[int, ...] = (3, 4, 8, 8)) -> Tensor:
    return torch.full(shape, value)


def room(count: int = 12, shape: tuple[int, ...] = (3, 6, 16, 16)) -> Tensor:
    """Clips of one room: the same background, a bright square that starts elsewhere and moves."""
    generator_ = generator("room")
    background = torch.rand(shape[0], 1, *shape[2:], generator=generator_) * 0.4 + 0.3
    clips = background.expand(shape).repeat(count, 1, 1, 1, 1)
    for n in range(count):
        for t in range(shape[1]):
            row, column = (3 * n + t) % (shape[2] - 4), (5 * n + 2 * t) % (shape[3] - 4)
            clips[n, :, t, row : row + 4, column : column + 4] = (n % 4) / 4
    return clips + 0.02 * torch.rand(clips.shape, generator=generator_)


def identified(answer: Tensor, candidates: Tensor, index: int) -> bool:
    return identification_rank(answer, candidates, index) == 1


# --- fidelity ---------------------------------------------------------------------------------------------


def test_psnr_of_a_constant_error_is_known():
    assert psnr(constant(0.6), constant(0.5)) == pytest.approx(20.0, abs=1e-5)  # -10 log10(0.1^2)


def test_psnr_averages_frames_not_errors():
    truth = constant(0.5, (1, 2, 4, 4))
    x = truth.clone()
    x[:, 0] += 0.1
    x[:, 1] += 0.01
    assert psnr(x, truth) == pytest.approx((20 + 40) / 2, abs=1e-4)  # the pooled error would give 22.97


def test_a_perfect_frame_is_capped_without_a_warning():
    truth = torch.rand(3, 2, 8, 8, generator=generator(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert psnr(truth, truth) == PSNR_CAP_DB
    x = truth.clone()
    x[:, 1] = (x[:, 1] + 0.1).clamp(0, 2)
    assert psnr(x, truth) == pytest.approx((100 + 20) / 2, abs=1e-4)


def test_an_error_below_the_cap_does_not_exceed_it():
    assert psnr(constant(0.5).double() + 1e-9, constant(0.5).double()) == PSNR_CAP_DB


def test_ssim_of_equal_and_of_constant_clips_is_known():
    truth = torch.rand(3, 2, 12, 12, generator=generator(2))
    assert ssim(truth, truth) == pytest.approx(1.0)
    c1 = 0.01**2  # Wang et al. 2004: without variance only the luminance term is left
    expected = (2 * 0.5 * 0.7 + c1) / (0.5**2 + 0.7**2 + c1)
    assert ssim(constant(0.7), constant(0.5)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("side", "allowed"), [(3, True), (4, True), (6, True), (2, False)])
def test_ssim_window_fits_small_frames(side: int, allowed: bool):
    truth = torch.rand(1, 2, side, 9, generator=generator(3))
    if allowed:
        assert ssim(truth, truth) == pytest.approx(1.0)
    else:
        with pytest.raises(InputError, match="at least 3x3"):
            ssim(truth, truth)


def test_motion_mask_marks_both_frames_of_a_change():
    truth = constant(0.5, (3, 4, 5, 5))
    truth[1, 2, 1, 3] += 0.06  # one channel of one pixel, frame 2: frames 1 and 3 change against it
    expected = torch.zeros(4, 5, 5, dtype=torch.bool)
    expected[1:4, 1, 3] = True
    assert torch.equal(motion_mask(truth), expected)
    truth[1, 2, 1, 3] = 0.54
    assert not motion_mask(truth).any()


def test_motion_psnr_counts_only_what_moves():
    truth = constant(0.5, (1, 3, 8, 8))
    truth[:, 1, 2:4, 2:4] = 0.9
    x = truth.clone()
    x[..., 5:, 5:] = 0.0  # a ruined background that never moves
    assert motion_psnr(x, truth) == PSNR_CAP_DB
    x = truth.clone()
    x[..., 2:4, 2:4] -= 0.1
    assert motion_psnr(x, truth) == pytest.approx(20.0, abs=1e-4)
    assert psnr(x, truth) > 30


def test_motion_ssim_falls_when_the_moving_object_is_missing():
    truth = constant(0.5, (3, 3, 16, 16)) + 0.05 * torch.rand(3, 1, 16, 16, generator=generator(4))
    truth[:, 1, 4:9, 4:9] = 0.9
    still = truth[:, :1].expand_as(truth)
    assert motion_ssim(truth, truth) == pytest.approx(1.0)
    assert motion_ssim(still, truth) < ssim(still, truth)


@pytest.mark.parametrize("truth", [constant(0.5), torch.rand(3, 1, 8, 8, generator=generator(5))])
def test_no_motion_has_no_motion_score(truth: Tensor):
    assert motion_psnr(truth, truth) is None
    assert motion_ssim(truth, truth) is None


@pytest.mark.parametrize("metric", [psnr, ssim, motion_psnr, motion_ssim])
def test_fidelity_refuses_other_shapes_and_nan(metric):
    with pytest.raises(InputError, match="one shape"):
        metric(constant(0.5), constant(0.5, (3, 4, 8, 9)))
    with pytest.raises(InputError, match="one shape"):
        metric(constant(0.5)[0], constant(0.5)[0])
    broken = constant(0.5)
    broken[0, 0, 0, 0] = math.nan
    with pytest.raises(InputError, match="NaN"):
        metric(broken, constant(0.5))


# --- residual correlation ---------------------------------------------------------------------------------


def test_residual_correlation_has_known_values():
    prior = torch.rand(1, 2, 4, 4, generator=generator(6))
    new = torch.zeros(1, 2, 4, 4)
    new[0, 0, :, :2], new[0, 0, :, 2:] = 1.0, -1.0
    other = torch.zeros(1, 2, 4, 4)
    other[0, 1, :, :2], other[0, 1, :, 2:] = 1.0, -1.0
    truth = prior + 0.1 * new
    assert residual_correlation(truth, truth, prior) == pytest.approx(1.0)
    assert residual_correlation(prior - 0.3 * new, truth, prior) == pytest.approx(-1.0)
    assert residual_correlation(prior + 0.2 * other, truth, prior) == pytest.approx(0.0, abs=1e-6)
    half = residual_correlation(prior + 0.2 * (new + other), truth, prior)
    assert half == pytest.approx(1 / math.sqrt(2), abs=1e-6)


def test_the_prior_itself_and_a_truth_that_is_the_prior_score_zero():
    prior = torch.rand(1, 2, 4, 4, generator=generator(7))
    truth = torch.rand(1, 2, 4, 4, generator=generator(8))
    assert residual_correlation(prior, truth, prior) == 0.0
    assert residual_correlation(prior + 0.25, truth, prior) == 0.0
    assert residual_correlation(truth, prior, prior) == 0.0


# --- identification ---------------------------------------------------------------------------------------


def ignorant_answers() -> dict[str, Tensor]:
    clips = room()
    answers = {
        "grey": torch.full(clips.shape[1:], 0.5),
        "black": torch.zeros(clips.shape[1:]),
        "mean of all": clips.mean(0),
        "background": clips.median(0).values,
        "public mean": room(20)[12:].mean(0),
        "another clip": room(20)[13],
        "one of them": clips[5],
    }
    for seed in range(20):
        answers[f"noise {seed}"] = torch.rand(clips.shape[1:], generator=generator("noise", seed))
    return answers


@pytest.mark.parametrize("name", ignorant_answers())
def test_an_answer_without_the_update_identifies_at_most_one_of_all_indices(name: str):
    clips, answer = room(), ignorant_answers()[name]
    assert sum(identified(answer, clips, index) for index in range(len(clips))) <= 1


def test_leaving_the_truth_out_of_the_mean_would_let_a_null_attacker_identify():
    """Guards the reason for centring by all candidates: the tempting formula finds the truth from grey."""

    def others_centred(x: Tensor, clips: Tensor, index: int) -> bool:
        mean = (clips.sum(0) - clips[index]) / (len(clips) - 1)
        rows = (clips - mean).flatten(1)
        return int(torch.corrcoef(torch.cat([(x - mean).reshape(1, -1), rows]))[0, 1:].argmax()) == index

    clips = room()
    answer = clips.mean(0)
    assert sum(others_centred(answer, clips, index) for index in range(len(clips))) > 6
    assert sum(identified(answer, clips, index) for index in range(len(clips))) == 0


def test_ranks_of_one_answer_are_a_permutation():
    clips = room()
    answer = torch.rand(clips.shape[1:], generator=generator("p"))
    ranks = [identification_rank(answer, clips, index) for index in range(len(clips))]
    assert sorted(ranks) == list(range(1, 13))


def test_reordering_the_candidates_changes_nothing():
    clips = room()
    answer = clips[4] + 0.5 * torch.rand(clips.shape[1:], generator=generator("q"))
    order = torch.randperm(12, generator=generator("order"))
    for place, index in enumerate(order.tolist()):
        assert identification_rank(answer, clips[order], place) == identification_rank(answer, clips, index)


def test_the_truth_under_heavy_noise_is_identified():
    clips = room()
    for index, truth in enumerate(clips):
        noisy = truth + 0.5 * torch.randn(truth.shape, generator=generator("heavy", index))
        assert psnr(noisy, truth) < 7
        assert identified(noisy, clips, index)


def test_a_blurred_truth_is_identified_and_a_wrong_clip_is_not():
    clips = room()
    blurred = torch.nn.functional.avg_pool3d(clips, (1, 3, 3), stride=1, padding=(0, 1, 1))
    assert all(identified(blurred[index], clips, index) for index in range(12))
    assert not any(identified(clips[(index + 1) % 12], clips, index) for index in range(12))


def test_ties_count_against_the_attacker():
    clips = room()
    twins = torch.cat([clips[:3], clips[:1]])  # candidates 0 and 3 are one clip
    assert identification_rank(clips[0], twins, 0) == 2
    assert identification_rank(clips[0], twins, 3) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_answer_without_content_is_last(value: float):
    clips = room()
    broken = clips[0].clone()
    broken[0, 0, 0, 0] = value
    assert identification_rank(broken, clips, 0) == 12
    assert identification_rank(clips.mean(0), clips, 0) == 12
    assert identification_rank(clips[0], clips[:1].expand(12, -1, -1, -1, -1), 0) == 12


def test_identification_refuses_a_wrong_index_or_shape():
    clips = room(3)
    for index in (-1, 3):
        with pytest.raises(InputError, match="outside the 3 candidates"):
            identification_rank(clips[0], clips, index)
    with pytest.raises(InputError, match="candidate, channel"):
        identification_rank(clips[0, :, :2], clips, 0)


# --- all of it --------------------------------------------------------------------------------------------


def score(reconstruction: Tensor, index: int = 2, **changes):
    clips = room()
    baselines = {"grey": torch.full_like(clips[0], 0.5), "public_mean": room(20)[12:].mean(0)}
    arguments = {
        "truth": clips[index],
        "candidates": clips,
        "baselines": baselines,
        "prior": baselines["public_mean"],
    }
    return score_clip(reconstruction, index=index, **{**arguments, **changes})


def test_score_clip_of_the_truth_and_its_schema():
    scores = score(room()[2].clamp(0, 1))
    assert set(scores) == {
        *(
            "psnr_db",
            "psnr_gain_db",
            "ssim",
            "ssim_gain",
            "motion_psnr_db",
            "motion_psnr_gain_db",
            "motion_ssim",
        ),
        *("residual_correlation", "identified", "rank", "candidates", "baselines", "best_baseline"),
    }
    assert scores["psnr_db"] == 100.0
    assert scores["rank"] == 1
    assert scores["identified"] is True
    assert scores["candidates"] == 12
    assert scores["residual_correlation"] == pytest.approx(1.0)
    assert scores["best_baseline"] == "public_mean"
    assert set(scores["baselines"]["grey"]) == {"psnr_db", "ssim"}
    gain = 100.0 - max(null["psnr_db"] for null in scores["baselines"].values())
    assert scores["psnr_gain_db"] == pytest.approx(gain)


def test_scores_survive_json():
    import json

    scores = score(room()[3])
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_no_baseline_gains_over_the_baselines():
    clips = room()
    baselines = {"grey": torch.full_like(clips[0], 0.5), "public_mean": room(20)[12:].mean(0)}
    for clip in baselines.values():
        scores = score(clip, baselines=baselines)
        assert scores["psnr_gain_db"] <= 0
        assert scores["ssim_gain"] <= 0
        assert scores["motion_psnr_gain_db"] <= 0


def test_values_outside_the_range_are_clamped_for_the_attacker():
    clips = room()
    truth = torch.ones_like(clips[2])
    truth[:, ::2] = 0
    candidates = clips.clone()
    candidates[2] = truth
    assert score(truth * 3 - 1, truth=truth, candidates=candidates)["psnr_db"] == 100.0


def test_a_still_truth_has_no_motion_scores():
    clips = room()
    clips[2] = clips[2, :, :1]
    scores = score(clips[2], truth=clips[2], candidates=clips)
    assert (scores["motion_psnr_db"], scores["motion_psnr_gain_db"], scores["motion_ssim"]) == (
        None,
        None,
        None,
    )


def test_a_single_candidate_is_never_called_identified():
    clips = room()
    scores = score(clips[2], index=0, truth=clips[2], candidates=clips[2:3])
    assert (scores["rank"], scores["candidates"], scores["identified"]) == (1, 1, False)


def test_score_clip_refuses_what_cannot_be_scored():
    clips = room()
    broken = clips[2].clone()
    broken[0, 0, 0, 0] = math.inf
    with pytest.raises(InputError, match="reconstruction holds NaN or infinite"):
        score(broken)
    with pytest.raises(InputError, match="is not candidate 3"):
        score(clips[2], index=3, truth=clips[2])
    with pytest.raises(InputError, match="no baseline"):
        score(clips[2], baselines={})
    with pytest.raises(InputError, match="one shape"):
        score(clips[2][:, :2])
