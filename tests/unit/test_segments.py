"""Scores of segments and of the order of frames, on answers that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vleak.errors import InputError
from vleak.federated import LOSSES
from vleak.metrics import carrying_segments, match_segments, order_scores, score_segments, segment_rank
from vleak.seeds import generator


def draw(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator("segments", shape))


CANDIDATES = draw(5, 6, 20)
TRUTH = CANDIDATES[2]
BASELINES = {"zeros": torch.zeros(6, 20), "mean": CANDIDATES.mean(0)}
TURN = torch.tensor([1, 2, 0, 3, 5, 4])


def test_a_permuted_matrix_is_all_there_and_half_out_of_place() -> None:
    scores = score_segments(TRUTH[TURN], TRUTH, 2, CANDIDATES, BASELINES)
    assert scores["recovered"] == scores["carrying"] == scores["segments"] == 6
    assert scores["cosine"] == pytest.approx(1)
    assert scores["relative_error"] == pytest.approx(0)
    assert scores["in_order"] == pytest.approx(1 / 6)
    assert scores["identified"]
    assert scores["rank"] == 1
    assert torch.equal(match_segments(TRUTH[TURN], TRUTH)[0][TURN], torch.arange(6))


def test_scale_is_an_error_that_the_cosine_does_not_see() -> None:
    scores = score_segments(2 * TRUTH, TRUTH, 2, CANDIDATES, BASELINES)
    assert scores["cosine"] == pytest.approx(1)
    assert scores["relative_error"] == pytest.approx(1)
    assert scores["in_order"] == 1


def test_no_order_is_claimed_and_none_is_scored() -> None:
    assert score_segments(TRUTH, TRUTH, 2, CANDIDATES, BASELINES, ordered=False)["in_order"] is None


def test_segments_without_gradient_are_left_out() -> None:
    found = TRUTH.clone()
    found[3:] = 0
    carries = torch.tensor([True, True, True, True, False, False])
    scores = score_segments(found, TRUTH, 2, CANDIDATES, BASELINES, carries)
    assert (scores["carrying"], scores["recovered"]) == (4, 3)
    nothing = score_segments(found, TRUTH, 2, CANDIDATES, BASELINES, torch.zeros(6, dtype=torch.bool))
    assert nothing["cosine"] is nothing["cosine_gain"] is nothing["relative_error"] is None


def test_the_best_baseline_does_not_gain() -> None:
    scores = score_segments(BASELINES["mean"], TRUTH, 2, CANDIDATES, BASELINES)
    assert scores["best_baseline"] == "mean"
    assert scores["cosine_gain"] == 0
    assert scores["baselines"]["zeros"] == {"cosine": 0}


def test_an_answer_without_content_is_last_and_another_clip_is_not_the_truth() -> None:
    mean = CANDIDATES.flatten(0, 1).mean(0).expand(6, -1)
    assert segment_rank(mean, CANDIDATES, 2) == 5
    assert segment_rank(CANDIDATES[1][TURN], CANDIDATES, 2) > 1
    assert segment_rank(CANDIDATES[1][TURN], CANDIDATES, 1) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baselines": {}}, "no baseline given"),
        ({"index": 1}, "is not candidate 1"),
        ({"reconstruction": TRUTH[:5]}, "the reconstruction has shape"),
        ({"reconstruction": TRUTH * math.nan}, "the reconstruction holds NaN"),
        ({"carries": torch.ones(5, dtype=torch.bool)}, "expected carries of shape"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    given = {
        "reconstruction": TRUTH,
        "truth": TRUTH,
        "index": 2,
        "candidates": CANDIDATES,
        "baselines": BASELINES,
    } | change
    with pytest.raises(InputError, match=message):
        score_segments(**given)  # type: ignore[arg-type]


class Scores(nn.Module):
    """A score a segment: the sigmoid of its first feature, by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        return (self.weight * features[..., :1]).sigmoid()


def test_the_ranking_loss_leaves_all_but_one_normal_segment_without_gradient() -> None:
    pair = draw(2, 6, 4)
    carries = carrying_segments(Scores(), LOSSES["ranking"], pair, torch.tensor(0))
    assert carries[:6].all()
    assert carries[6:].nonzero()[:, 0].tolist() == [int(pair[1, :, 0].argmax())]
    assert carrying_segments(Scores(), LOSSES["bce"], pair[0], torch.tensor(1)).all()


def test_a_clip_with_two_frames_exchanged() -> None:
    clip = draw(3, 4, 8, 8)
    scores = order_scores(clip[:, [0, 2, 1, 3]], clip)
    assert scores["matched_psnr_db"] == 100
    assert scores["frames_in_place"] == 0.5
    between = -10 * math.log10(float((clip[:, 1] - clip[:, 2]).square().mean()))
    assert scores["psnr_db"] == pytest.approx((2 * 100 + 2 * between) / 4, abs=1e-3)


def test_still_clips_are_in_place() -> None:
    clip = draw(3, 1, 8, 8).expand(3, 4, 8, 8)
    assert order_scores(clip, clip)["frames_in_place"] == 1
