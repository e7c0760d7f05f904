"""Attacks that solve for segments, and gradient matching on features."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vleak.attacks import ATTACKS, ClosedForm, Independent, Knowledge, LowRank, Matching, Observation
from vleak.attacks.analytic import NOTHING_VERIFIED, ROW_SPACE_ONLY
from vleak.attacks.flags import NEAR_ZERO
from vleak.defenses import Defense, DpSgd, NoDefense, Prune
from vleak.errors import CapabilityError
from vleak.federated import LOSSES, Client, Update
from vleak.metrics import carrying_segments, match_segments, score_segments
from vleak.models import BagPair, build_head
from vleak.seeds import generator

SEGMENTS, FEATURES = 6, 60
ROOT = Path(__file__).resolve().parents[2]
PLACES = [ROOT / "shared" / "data", ROOT.parent / "shared" / "data"]
if "VLEAK_TEST_DATA" in os.environ:
    PLACES.insert(0, Path(os.environ["VLEAK_TEST_DATA"]))
REAL = next((place / "ucf_crime" for place in PLACES if (place / "ucf_crime").is_dir()), None)
exact = pytest.mark.parametrize("attack", ["closed_form", "low_rank", "independent"])


def filled(model: nn.Module, *seed: object) -> nn.Module:
    """Draw weights as PyTorch does, from a generator of their own."""
    numbers = generator("weights", *seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                for tensor in (layer.weight, layer.bias):
                    if tensor is not None:
                        drawn = torch.rand(tensor.shape, generator=numbers)
                        tensor.copy_((2 * drawn - 1) * layer.in_features**-0.5)
    return model


def head(features: int = FEATURES, units: int = 64, *, second: bool = False, seed: int = 0) -> nn.Module:
    """Sultani's head without dropout, with or without ReLU behind the second layer."""
    with torch.random.fork_rng(devices=[]):
        middle = [nn.ReLU()] if second else []
        layers = [nn.Linear(features, units), nn.ReLU(), nn.Linear(units, 32), *middle, nn.Linear(32, 1)]
        return filled(nn.Sequential(*layers, nn.Sigmoid()), seed)


def matrices(count: int, *, segments: int = SEGMENTS, features: int = FEATURES, sign: bool = False) -> Tensor:
    """Segments of norm 1: at least 0 and mostly 0, as behind a ReLU, or of both signs."""
    numbers = generator("features", count, segments, features, sign)
    values = torch.randn(count, segments, features, generator=numbers)
    if not sign:
        values = (values - 0.4).relu()
    return values / values.norm(dim=-1, keepdim=True)


def observe(
    model: nn.Module, sample: Tensor, loss: str = "bce", defense: Defense = NoDefense(), **known: Any
) -> Observation:
    label = torch.ones(1, dtype=torch.long)
    update = Client(model, loss, defense).update(sample[None], label, generator("send"))
    settings = {"nonnegative": True, "unit_norm": True, "labels": label, **known}
    return Observation(
        model, update, Knowledge(clip_shape=tuple(sample.shape), batch_size=1, classes=2, **settings)
    )


def cosines(answer: Tensor, truth: Tensor) -> Tensor:
    return match_segments(answer, truth)[1]


def run(attack: Any, observation: Observation) -> Any:
    return attack.reconstruct(observation, generator("attack"))


# --- one row ----------------------------------------------------------------------------------------------


def test_closed_form_is_exact_for_one_row() -> None:
    truth = matrices(1, segments=1)[0]
    answer = run(ClosedForm(), observe(head(), truth))
    assert float((answer.clips[0] - truth).norm()) < 1e-5
    assert answer.recovered is not None
    assert answer.recovered.all()
    assert not answer.flags


def test_closed_form_of_a_whole_matrix_that_is_flattened() -> None:
    truth = matrices(1)[0]
    model = filled(nn.Sequential(nn.Flatten(), nn.Linear(SEGMENTS * FEATURES, 8), nn.ReLU(), nn.Linear(8, 2)))
    answer = run(ClosedForm(), observe(model, truth, "cross_entropy"))
    assert float((answer.clips[0] - truth).norm() / truth.norm()) < 1e-5
    assert answer.recovered.all()
    assert answer.ordered


def test_closed_form_of_several_rows_is_their_mean_and_says_so() -> None:
    truth = matrices(1)[0]
    answer = run(ClosedForm(), observe(head(), truth))
    assert answer.flags == (f"the mean of {SEGMENTS} segments, weighted by their gradients",)
    assert not answer.recovered.any()
    row = answer.clips[0, 0]
    weights = torch.linalg.lstsq(truth.T.double(), row[:, None].double()).solution[:, 0]
    assert torch.allclose(truth.T.double() @ weights, row.double(), atol=1e-5)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-4)


def test_closed_form_claims_one_of_equal_segments() -> None:
    truth = matrices(1)[0, :1].expand(SEGMENTS, -1).contiguous()
    answer = run(ClosedForm(), observe(head(), truth))
    assert answer.recovered.sum() == 1
    assert torch.allclose(answer.clips[0], truth, atol=1e-5)


# --- several rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("second", "known"), [(False, True), (True, True), (False, False)])
def test_low_rank_finds_every_segment(second: bool, known: bool) -> None:
    truth = matrices(1)[0]
    observation = observe(head(second=second), truth, nonnegative=known, unit_norm=known)
    answer = run(LowRank(), observation)
    assert answer.recovered.all()
    assert not answer.ordered
    assert answer.objective < 1e-5
    assert float(cosines(answer.clips[0], truth).min()) > 0.9999
    place, _ = match_segments(answer.clips[0], truth)
    assert torch.allclose(answer.clips[0][place], truth, atol=1e-3)  # scale, too


@pytest.mark.parametrize("second", [False, True])
def test_low_rank_finds_features_of_both_signs(second: bool) -> None:
    truth = matrices(1, sign=True)[0]
    model = head(units=128, second=second)
    answer = run(LowRank(), observe(model, truth, nonnegative=False, unit_norm=False))
    assert answer.recovered.all()
    assert float(cosines(answer.clips[0], truth).min()) > 0.9999


def test_low_rank_tells_how_often_a_segment_occurred() -> None:
    truth = matrices(1)[0]
    truth[3] = truth[1]
    truth[4] = truth[1]
    answer = run(LowRank(), observe(head(), truth))
    assert answer.recovered.all()
    assert float(cosines(answer.clips[0], truth).min()) > 0.9999


def test_low_rank_finds_what_the_ranking_loss_selects() -> None:
    pair, model = torch.stack(list(matrices(2))), BagPair(head())
    answer = run(LowRank(), observe(model, pair, "ranking"))
    scores = model(pair[None])[0, :, :, 0]
    for bag in (0, 1):
        selected = pair[bag, int(scores[bag].argmax())]
        found = answer.clips[0, bag][answer.recovered[0, bag]]
        assert float(torch.cosine_similarity(found, selected[None]).max()) > 0.99
    # Of the normal bag nothing else has a gradient.
    assert answer.recovered[0, 1].sum() == 1
    assert any(flag.endswith("segments not seen in the gradient") for flag in answer.flags)


def test_low_rank_of_a_built_in_head_with_classes() -> None:
    truth = matrices(1)[0]
    model = build_head("mlp", segments=SEGMENTS, features=FEATURES, outputs=2, seed=0)
    answer = run(LowRank(), observe(model, truth, "cross_entropy"))
    assert answer.recovered.sum() == SEGMENTS
    assert float(cosines(answer.clips[0], truth).min()) > 0.999


def test_low_rank_without_relu_claims_nothing_of_signed_features() -> None:
    model = filled(nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, 1), nn.Sigmoid()))
    answer = run(LowRank(), observe(model, matrices(1, sign=True)[0], nonnegative=False))
    assert ROW_SPACE_ONLY in answer.flags
    assert not answer.recovered.any()


@pytest.mark.parametrize(
    "defense", [DpSgd(noise_multiplier=0.1), pytest.param(Prune(fraction=0.9), marks=pytest.mark.slow)]
)
def test_low_rank_claims_nothing_that_a_defense_hides(defense: Defense) -> None:
    truth = matrices(1)[0]
    answer = run(LowRank(), observe(head(), truth, defense=defense))
    assert answer.flags == (NOTHING_VERIFIED,)
    assert not answer.recovered.any()
    assert float(cosines(answer.clips[0], truth).min()) < 0.99


def test_low_rank_stops_when_told() -> None:
    observation = observe(head(), matrices(1)[0])
    answer = LowRank().reconstruct(observation, generator("attack"), stop=lambda: True)
    assert not answer.recovered.any()


# --- independence -----------------------------------------------------------------------------------------


def test_independent_beats_the_mean_where_segments_are_independent() -> None:
    truth = matrices(1, features=400)[0]
    observation = observe(head(400, 96), truth)
    answer = run(Independent(), observation)
    null = matrices(8, features=400)[1:].mean(0)
    best = max(
        float(cosines(other, truth).median()) for other in (null, run(ClosedForm(), observation).clips[0])
    )
    assert float(cosines(answer.clips[0], truth).median()) > best + 0.2
    assert not answer.ordered
    assert not answer.recovered.any()
    assert answer.objective == answer.history[-1]


# --- all of them ------------------------------------------------------------------------------------------


@exact
def test_the_same_answer_twice(attack: str) -> None:
    observation = observe(head(), matrices(1)[0])
    first, second = (run(ATTACKS[attack](), observation) for _ in range(2))
    assert torch.equal(first.clips, second.clips)


@exact
def test_an_empty_update_is_flagged(attack: str) -> None:
    observation = observe(head(), matrices(1)[0])
    zeros = {name: torch.zeros_like(tensor) for name, tensor in observation.update.tensors.items()}
    empty = Observation(observation.model, Update(zeros, 0, observation.update.facts), observation.knowledge)
    answer = run(ATTACKS[attack](), empty)
    assert answer.flags == (NEAR_ZERO,)
    assert not answer.recovered.any()


@exact
def test_a_first_layer_that_is_not_linear_is_one_clear_line(attack: str) -> None:
    model = build_head("lstm", segments=SEGMENTS, features=FEATURES, outputs=None, seed=0)
    with pytest.raises(CapabilityError, match="the first trained layer of LSTMHead is not a linear one"):
        run(ATTACKS[attack](), observe(model, matrices(1)[0]))


@pytest.mark.parametrize("sign", [pytest.param(False, marks=pytest.mark.slow), True])
def test_matching_moves_and_beats_the_mean(sign: bool) -> None:
    samples = matrices(9, segments=3, features=24, sign=sign)
    truth, public = samples[0], samples[1:]
    known = {"nonnegative": not sign, "unit_norm": not sign}
    observation = observe(head(24, 32), truth, public_clips=public, **known)
    answers = [run(Matching(iterations=n, engine="reference"), observation) for n in (1, 200)]
    errors = [float((a.clips[0][match_segments(a.clips[0], truth)[0]] - truth).norm()) for a in answers]
    null = public.mean(0)
    assert errors[1] < 0.85 * errors[0]
    assert errors[1] < 0.85 * float((null[match_segments(null, truth)[0]] - truth).norm())
    if not sign:
        assert float(answers[1].clips.min()) >= 0
        assert torch.allclose(answers[1].clips.norm(dim=-1), torch.ones(1, 3), atol=1e-4)


# --- real features ----------------------------------------------------------------------------------------


@cache
def real(name: str) -> Tensor:
    assert REAL is not None
    return torch.from_numpy(np.loadtxt(REAL / f"{name}_x264.txt", dtype=np.float32))


@pytest.mark.skipif(REAL is None, reason="no UCF-Crime features; set VLEAK_TEST_DATA to their folder")
@pytest.mark.parametrize(
    ("name", "second"),
    [("RoadAccidents022", False), pytest.param("Normal_Videos_006", True, marks=pytest.mark.slow)],
)
def test_low_rank_on_real_features(name: str, second: bool) -> None:
    truth = real(name)[:16]
    model = head(4096, 512, second=second)
    label = torch.ones(1, dtype=torch.long)
    carries = carrying_segments(model, LOSSES["bce"], truth, label[0])
    answer = run(LowRank(), observe(model, truth))
    nulls = {"mean": real("Shooting008")[:16]}
    candidates = torch.stack([truth, real("Shooting008")[:16], real("Explosion008")[:16]])
    scores = score_segments(answer.clips[0], truth, 0, candidates, nulls, carries, ordered=answer.ordered)
    assert scores["recovered"] >= 0.9 * scores["carrying"] == 0.9 * 16
    assert scores["identified"]
    assert scores["in_order"] is None


def test_low_rank_says_when_there_are_more_segments_than_units() -> None:
    answer = run(LowRank(), observe(head(units=4), matrices(1)[0]))
    assert answer.recovered is not None
    assert not answer.recovered.any()
    assert "6 segments, of which a layer of rank 4 hides some" in answer.flags
