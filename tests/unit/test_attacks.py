"""Gradient matching attacks, baselines do not, flags and refusals say what is wrong."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from attacking import (
    SHAPE,
    SIZE,
    best_baseline,
    built_in,
    gap_of,
    observe,
    observe_clip,
    psnr,
    run,
    same_answer,
    scene,
    short,
)
from tiny import Residual, build
from torch import Tensor, nn

from vleak.attacks import ATTACKS, BASELINES, Grey, Knowledge, Matching, Observation, PublicMean
from vleak.attacks.flags import NEAR_ZERO, NOT_A_NUMBER, NOT_FALLING, STILL_FALLING, descent_flags
from vleak.descent.loop import State
from vleak.errors import InputError
from vleak.federated import Channel, Client, Update
from vleak.models import SMALL_MODELS
from vleak.seeds import generator

FRAME_ATTACKS = [
    "matching", "matching_blind", "deep_prior", "decoder", "inverter", "refinement", "retrieval"
]  # fmt: skip
every_attack = pytest.mark.parametrize("attack", FRAME_ATTACKS)

# ---- attacks attack


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        *(
            pytest.param("matching", name, marks=pytest.mark.slow if name == "lrcn" else ())
            for name in SMALL_MODELS
        ),
        ("matching_blind", "c3d_tiny"),
    ],
)
def test_attack_moves_its_data_and_beats_every_baseline(attack: str, name: str) -> None:
    observation, truth = observe_clip(name=name), scene().clips[:1]
    first, last = (run(short(attack, i), observation) for i in (1, 60))
    assert (first.clips - last.clips).abs().mean() > 0.02
    assert last.objective < 0.5 * first.objective
    assert psnr(last.clips, truth) > best_baseline(observation, truth) + 1
    assert last.labels.tolist() == scene().labels[:1].tolist()


@pytest.mark.parametrize(
    ("engine", "attack"),
    [
        pytest.param(
            engine, attack, marks=pytest.mark.slow if (engine, attack) == ("native", "decoder") else ()
        )
        for engine in ("native", "reference")
        for attack in ("matching", "deep_prior", "decoder")
    ],
)
def test_answer_is_complete(attack: str, engine: str) -> None:
    answer = run(short(attack, 7, 2, engine), observe_clip())
    assert answer.clips.shape == (1, *SHAPE)
    assert answer.clips.dtype == torch.float32
    assert ((answer.clips >= 0) & (answer.clips <= 1)).all()
    assert (answer.engine, answer.iterations, answer.restarts) == (engine, 14, 2)
    assert len(answer.history) == 7
    assert answer.objective in answer.history
    assert answer.seconds > 0


@pytest.mark.parametrize("attack", ["matching", "deep_prior", "decoder", "inverter"])
def test_batch_is_rebuilt_clip_by_clip(attack: str) -> None:
    clips, labels = scene().clips[:2], torch.tensor([1, 4])
    made = ATTACKS.build(attack) if attack == "inverter" else short(attack, 60)
    answer = run(made, observe(built_in("c3d_tiny"), clips, labels, labels=labels))
    assert answer.clips.shape == clips.shape
    gaps = gap_of(answer.clips, clips)
    assert gaps[0, 0] < gaps[1, 0]
    assert gaps[1, 1] < gaps[0, 1]


@pytest.mark.parametrize("settings", [{"distance": "l2"}, {"rule": "sign_adam", "schedule": "steps"}])
def test_every_setting_attacks(settings: dict[str, Any]) -> None:
    observation, truth = observe_clip(), scene().clips[:1]
    answer = run(Matching(iterations=60, **settings), observation)
    assert psnr(answer.clips, truth) > best_baseline(observation, truth) + 1


@every_attack
def test_determinism_by_generator_alone(attack: str) -> None:
    observation, made = observe_clip(), short(attack, 5, 2)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = run(made, observation, 0)
    assert same_answer(first, run(made, observation, 0))
    if first.iterations:  # without a descent there is nothing to draw
        assert not torch.equal(first.clips, run(made, observation, 1).clips)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_restarts_side_by_side_are_restarts_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made, answers = Matching(iterations=8, restarts=4), []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        answers.append(run(made, observe_clip()))
    assert same_answer(*answers)
    assert answers[0].iterations == 32


def test_progress_counts_all_restarts_and_stop_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # so that they run one after the other
    made, seen = Matching(iterations=14, restarts=3), []
    run(made, observe_clip(), progress=seen.append)
    assert seen == [10, 14, 24, 28, 38, 42]
    seen.clear()
    answer = run(made, observe_clip(), progress=seen.append, stop=lambda: len(seen) == 3)
    assert seen == [10, 14, 24]
    assert (answer.iterations, answer.restarts) == (24, 2)
    assert answer.clips.shape == (1, *SHAPE)
    answer = run(made, observe_clip(), stop=lambda: True)
    assert (answer.iterations, answer.restarts, len(answer.history)) == (0, 0, 0)
    assert math.isnan(answer.objective)
    assert torch.isfinite(answer.clips).all()


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"restarts": 0}])
def test_no_iterations_or_restarts_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Matching(**settings)


def test_attention_needs_nothing_from_the_caller() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3 * 8 * 8, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 5)

        def forward(self, clips: Tensor) -> Tensor:
            return self.head(self.layer(self.embed(clips.transpose(1, 2).flatten(2))).mean(1))

    clips = torch.rand(1, 3, 4, 8, 8, generator=generator("clips"))
    observation = observe(build(Attends).eval(), clips, torch.tensor([2]), public_clips=None)
    assert len(run(Matching(iterations=3), observation).history) == 3


def test_mode_of_the_client_is_the_mode_of_the_attack_and_the_model_stays_as_it_is() -> None:
    clips, labels = torch.rand(2, 3, 4, 8, 8, generator=generator("clips")), torch.tensor([2, 4])
    objectives = {}
    for client_mode in ("eval", "train"):
        for own in ("eval", "train", "mixed"):
            model = build(lambda: Residual(nn.BatchNorm3d)).train(own == "train")
            model.norm.train(own != "eval")
            update = Client(model, mode=client_mode).update(clips, labels, generator(0))
            before = {name: value.clone() for name, value in model.state_dict().items()}
            flags = [module.training for module in model.modules()]
            knowledge = Knowledge(clip_shape=tuple(clips.shape[1:]), batch_size=2, classes=5)
            answer = run(Matching(iterations=3), Observation(model, update, knowledge))
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            assert flags == [module.training for module in model.modules()]
            objectives[client_mode, own] = answer.objective
    assert len({objectives["eval", own] for own in ("eval", "train", "mixed")}) == 1
    assert len({objectives["train", own] for own in ("eval", "train", "mixed")}) == 1
    assert objectives["eval", "eval"] != objectives["train", "eval"]


# ---- baselines


def test_baselines_say_what_they_promise_whatever_the_update() -> None:
    granted = torch.tensor([3])
    references = torch.rand(1, 3, 2, SIZE, SIZE, generator=generator("references"))
    for name in BASELINES:
        assert BASELINES[name].baseline
        answers = [
            run(
                BASELINES.build(name),
                observe_clip(
                    index, labels=granted, references=references, public_labels=scene().public_labels
                ),
            )
            for index in (0, 1)
        ]
        assert same_answer(*answers)
        assert (answers[0].engine, answers[0].iterations, answers[0].adaptive) == ("none", 0, False)
        assert math.isnan(answers[0].objective)
        assert answers[0].labels.tolist() == [3]
    assert (run(Grey(), observe_clip()).clips == 0.5).all()
    expected = scene().public_clips.mean(0, keepdim=True)
    torch.testing.assert_close(run(PublicMean(), observe_clip()).clips, expected)
    assert run(Grey(), observe_clip()).labels.tolist() == [0]


@pytest.mark.parametrize("public", [None, torch.empty(0, *SHAPE)], ids=["none", "empty"])
def test_without_public_clips_there_is_no_mean_and_the_attack_starts_from_grey(public: Tensor | None) -> None:
    observation = observe_clip(public_clips=public)
    with pytest.raises(InputError, match="public clips"):
        run(PublicMean(), observation)
    start = run(Matching(iterations=1), observation).clips
    assert (start - 0.5).abs().max() <= 0.1
    assert abs(start.mean() - 0.5) < 0.01


# ---- flags


def descent(*history: float, nan_at: int | None = None) -> State:
    x = torch.zeros(1)
    finite = [value for value in history if not math.isnan(value)]
    return State(x, x, min(finite, default=math.inf), list(history), nan_at)


FALLING = [1.0, 0.6, 0.4, 0.3, 0.25, 0.22, 0.21, 0.205, 0.201, 0.2]


@pytest.mark.parametrize(
    ("state", "flags"),
    [
        (descent(*FALLING), ()),
        (descent(*FALLING, 0.6, 0.7), ()),
        (descent(*FALLING[:4]), (STILL_FALLING,)),
        (descent(*[1 - 0.05 * i for i in range(20)]), (STILL_FALLING,)),
        # Much of the fall, but next to nothing of what is left.
        (descent(1.0, *[0.98] * 18, 0.975), ()),
        (descent(1.0, *[0.98] * 18, 0.965), (STILL_FALLING,)),
        (descent(1.0, 0.995, 0.992, 0.991), (NOT_FALLING,)),
        (descent(1.0, 1.5, 2.0), (NOT_FALLING,)),
        (descent(1.0), (NOT_FALLING,)),
        (descent(), (NOT_FALLING,)),
        (descent(1.0, 0.5, math.nan, nan_at=3), (NOT_A_NUMBER,)),
        (descent(math.nan, nan_at=1), (NOT_A_NUMBER,)),
    ],
)
def test_flags_of_known_histories(state: State, flags: tuple[str, ...]) -> None:
    assert descent_flags(state) == flags


def test_flags_are_about_the_full_resolution() -> None:
    """Coarse clips may have smaller objectives, which say nothing of whether the fine ones go on falling."""
    falling = [1 - 0.05 * i for i in range(1, 20)]
    coarse = descent(1.0, 0.01, *falling)
    assert descent_flags(dataclasses.replace(coarse, best_objective=falling[-1], begun=2)) == (STILL_FALLING,)
    settled = descent(1.0, 0.01, *FALLING[1:])
    assert descent_flags(dataclasses.replace(settled, best_objective=min(FALLING), begun=2)) == ()


def test_healthy_attack_raises_no_flag() -> None:
    assert run(Matching(iterations=120), observe_clip()).flags == ()


def test_attack_that_is_cut_short_says_so() -> None:
    assert run(Matching(iterations=4), observe_clip()).flags == (STILL_FALLING,)


def test_attack_that_finds_no_signal_says_so() -> None:
    assert run(Matching(iterations=5, learning_rate=0.0), observe_clip()).flags == (NOT_FALLING,)


@every_attack
def test_vanished_gradient_is_flagged_and_answered_with_the_prior(attack: str) -> None:
    observation = observe_clip()
    nothing = {name: torch.zeros_like(tensor) for name, tensor in observation.update.tensors.items()}
    observation = dataclasses.replace(observation, update=Update(nothing, 0, observation.update.facts))
    answer = run(short(attack, 5), observation)
    assert answer.flags == (NEAR_ZERO,)
    assert torch.equal(answer.clips, run(PublicMean(), observation).clips)


class Logarithm(nn.Module):
    """Not a number below a brightness; the clips that a client has are above it."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.head = nn.Linear(3 * 4 * 8 * 8, 5)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head((clips - self.floor).log().flatten(1))


@pytest.mark.parametrize(("floor", "survives"), [(0.35, True), (0.5, False)])
def test_not_a_number_is_flagged_and_the_answer_is_finite(floor: float, survives: bool) -> None:
    model = build(partial(Logarithm, floor)).eval()
    clips = 0.55 + 0.4 * torch.rand(1, 3, 4, 8, 8, generator=generator("bright"))
    observation = observe(model, clips, torch.tensor([1]), labels=torch.tensor([1]), public_clips=None)
    answer = run(Matching(iterations=30, learning_rate=0.3), observation)
    assert answer.flags == (NOT_A_NUMBER,)
    assert torch.isfinite(answer.clips).all()
    assert math.isfinite(answer.objective) == survives
    assert math.isnan(answer.objective) != survives
    assert (len(answer.history) > 1) == survives


# ---- refusals


Change = Callable[[Observation], Observation]


def knowing(**changes: Any) -> Change:
    return lambda seen: dataclasses.replace(seen, knowledge=dataclasses.replace(seen.knowledge, **changes))


def receiving(tensors: Callable[[dict[str, Tensor]], dict[str, Tensor]], **facts: Any) -> Change:
    def change(seen: Observation) -> Observation:
        old = seen.update
        sent = Update(tensors(old.tensors), 0, dataclasses.replace(old.facts, **facts))
        return dataclasses.replace(seen, update=sent)

    return change


REFUSED: dict[str, tuple[Change, list[str]]] = {
    "another model": (
        lambda seen: dataclasses.replace(seen, model=built_in("lrcn")),
        ["update", "'features.0.weight'", "the model it was made with"],
    ),
    "a tensor missing": (
        receiving(lambda tensors: {k: v for k, v in tensors.items() if k != "head.bias"}),
        ["'head.bias'", "lacks"],
    ),
    "a tensor too many": (receiving(lambda tensors: {**tensors, "more": torch.zeros(1)}), ["'more'"]),
    "NaN": (
        receiving(lambda tensors: {**tensors, "head.bias": torch.full((6,), math.nan)}),
        ["'head.bias'", "NaN"],
    ),
    "labels of another batch": (knowing(labels=torch.tensor([1, 2])), ["1 labels", "(2,)"]),
    "a label too large": (knowing(labels=torch.tensor([6])), ["labels", "0 to 5", "[6]"]),
    "a label below 0": (knowing(labels=torch.tensor([-1])), ["labels", "0 to 5", "[-1]"]),
    "another batch size": (knowing(batch_size=2), ["batch_size is 2", "tells of 1"]),
    "no clip": (knowing(batch_size=0), ["positive", "(0, 3, 4, 16, 16)"]),
    "a channel of another model": (
        lambda seen: dataclasses.replace(seen, channel=Channel(masks={"w": torch.ones(1) > 0})),
        ["channel", "mask"],
    ),
    "public clips of another size": (
        knowing(public_clips=torch.zeros(2, 3, 4, 8, 8)),
        ["public clips", "(3, 4, 16, 16)", "(2, 3, 4, 8, 8)"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_observations_that_do_not_fit_are_refused(case: str) -> None:
    change, words = REFUSED[case]
    with pytest.raises(InputError) as caught:
        run(Matching(iterations=2), change(observe_clip()))
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@every_attack
def test_every_attack_refuses_the_update_of_another_model(attack: str) -> None:
    with pytest.raises(InputError, match="the model it was made with"):
        run(short(attack, 2), dataclasses.replace(observe_clip(), model=built_in("lrcn")))
