"""Reference frames: what they say alone, what matching makes of them, and whether order can be told."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import Conv, Recurrent, build
from torch import Tensor, nn

from vleak.attacks import (
    BASELINES,
    Hooks,
    Knowledge,
    Matching,
    NonAdaptiveMatching,
    Observation,
    Reconstruction,
    ReferenceMean,
    ReferenceStill,
    Work,
    answerable,
    order_identifiable,
)
from vleak.attacks.expectation import background, expected_variance
from vleak.attacks.matching import AdaptiveWeights, BackgroundModel, adaptive_weights, matching
from vleak.attacks.matching.background import moving_mask, still_backgrounds, without_covered_texture
from vleak.attacks.matching.matching import REFERENCE_USES
from vleak.data import ClipSet, load_clips
from vleak.defenses import Defense, DpSgd, NoDefense, Prune
from vleak.descent.loop import Descent, State
from vleak.errors import InputError
from vleak.federated import Client, LocalTraining
from vleak.models import build_model
from vleak.seeds import generator

FRAMES, SIZE, CLASSES = 4, 16, 6
SHAPE = (3, FRAMES, SIZE, SIZE)
every_use = pytest.mark.parametrize("use", REFERENCE_USES)


@cache
def scene() -> ClipSet:
    return load_clips("synthetic", clips=3, frames=FRAMES, size=SIZE, seed=5, public=12, references=4)


@cache
def network() -> nn.Module:
    return build_model("c3d_tiny", frames=FRAMES, size=SIZE, classes=CLASSES, seed=0)


def observe(index: int, frames: int, defense: Defense = NoDefense(), *, adaptive: bool = True) -> Observation:
    """Return what a server has that holds so many reference frames of the clip's scene."""
    data, one = scene(), slice(index, index + 1)
    update = Client(network(), defense=defense).update(data.clips[one], data.labels[one], generator("send"))
    assert data.references is not None
    references = data.references[one, :, :frames] if frames else None
    known = knowledge(references, public_clips=data.public_clips)
    return Observation(network(), update, known, defense.channel(update) if adaptive else None)


def knowledge(references: Tensor | None, **known: Any) -> Knowledge:
    return Knowledge(clip_shape=SHAPE, batch_size=1, classes=CLASSES, references=references, **known)


def run(attack: Any, observation: Observation, **hooks: Any) -> Reconstruction:
    return attack.reconstruct(observation, generator("attack"), **hooks)


def psnr(answer: Tensor, truth: Tensor) -> float:
    return -10 * math.log10(float((answer - truth).square().mean()))


def square(place: int) -> Tensor:
    """A bright square of 6x6 pixels on a dark scene, (1, 3, 1, 16, 16)."""
    frame = torch.full((1, 3, 1, SIZE, SIZE), 0.2)
    frame[..., place : place + 6, place : place + 6] = 0.9
    return frame


# ---- what frames say alone


def test_background_of_many_frames_is_rid_of_what_moves_and_of_few_is_the_nearest() -> None:
    frames = torch.cat([square(0), square(7), square(10)], dim=2)
    assert torch.equal(background(frames[:, :, :1]), frames[:, :, :1])
    assert torch.equal(background(frames[:, :, :2]), frames[:, :, :1])
    overlap = frames.median(2, keepdim=True).values
    torch.testing.assert_close(background(frames), overlap)
    assert float((background(frames) == 0.2).float().mean()) > 0.9
    assert background(frames.expand(2, -1, -1, -1, -1)).shape == (2, 3, 1, SIZE, SIZE)


def test_scene_is_the_one_whose_gradient_the_update_is_nearest_to(monkeypatch: pytest.MonkeyPatch) -> None:
    data = scene()
    assert data.references is not None
    scenes = still_backgrounds(data.references[:1])
    assert [still.shape for still in scenes] == [(1, 3, 1, SIZE, SIZE)] * 3
    assert len(still_backgrounds(data.references[:1, :, :2])) == 2
    assert torch.equal(still_backgrounds(data.references[:1, :, :1])[0], data.references[:1, :, :1])
    made: list[Tensor] = []
    monkeypatch.setattr(
        matching,
        "BackgroundModel",
        lambda model, still, unit: made.append(still) or BackgroundModel(model, still, unit),
    )
    for place, held in enumerate(scenes):  # the private clip is that scene, held still
        made.clear()
        update = Client(network()).update(held.expand(1, *SHAPE), data.labels[:1], generator("send"))
        run(
            Matching(iterations=1, reference="prior"),
            Observation(network(), update, knowledge(data.references[:1])),
        )
        torch.testing.assert_close(made[0], scenes[place])


def test_variance_about_the_background_is_what_the_attacker_can_tell() -> None:
    flat = torch.full((1, 3, 1, SIZE, SIZE), 0.5)
    assert expected_variance(knowledge(flat)) == pytest.approx(1 / 12)
    drifting = torch.linspace(0.2, 0.5, FRAMES)[None, None, :, None, None].expand(2, *SHAPE)
    assert expected_variance(knowledge(flat, public_clips=drifting)) == pytest.approx(0.09)
    # Three frames, of which one is 0.4 away from the median of them: 0.4^2 / 2.
    three = torch.cat([flat, flat, flat - 0.4], dim=2)
    assert expected_variance(knowledge(three)) == pytest.approx(0.08)
    assert expected_variance(knowledge(three, public_clips=drifting)) == pytest.approx(0.09)
    assert expected_variance(knowledge(None, public_clips=drifting)) == pytest.approx(1e-6)


def test_mask_is_where_something_moves() -> None:
    noise = 0.05 * torch.randn(1, *SHAPE, generator=generator("noise"))
    clips = torch.cat([square(place) for place in (1, 3, 5, 7)], dim=2) + noise
    mask = moving_mask(clips, torch.full((1, 3, 1, SIZE, SIZE), 0.2))
    assert mask.shape == (1, 1, *SHAPE[1:])
    for frame, place in enumerate((1, 3, 5, 7)):
        inside = mask[0, 0, frame, place : place + 6, place : place + 6]
        assert inside.all()
        assert mask[0, 0, frame].sum() < 11 * 11
    assert not mask[0, 0, 0, 13:, 13:].any()


def test_texture_is_taken_out_where_something_covers_the_background_and_only_there() -> None:
    texture = torch.rand(1, 3, 1, SIZE, SIZE, generator=generator("texture"))
    everywhere = torch.ones(1, 1, *SHAPE[1:])
    covered, faint = texture.repeat(1, 1, FRAMES, 1, 1), texture.repeat(1, 1, FRAMES, 1, 1)
    covered[..., :8] = 0.9  # flat, and far from the texture
    faint[..., :8] += 0.1  # the texture still shows
    altered = without_covered_texture(covered, texture, everywhere)
    assert (altered[..., :4] > 0.8).all()
    assert torch.equal(altered[..., 12:], covered[..., 12:])
    assert torch.equal(without_covered_texture(faint, texture, everywhere), texture.expand_as(faint))
    assert torch.equal(without_covered_texture(covered, texture, 0 * everywhere), texture.expand_as(covered))


def test_baselines_hold_reference_frames_still() -> None:
    observation = observe(0, 4)
    references = observation.knowledge.references
    assert references is not None
    still, mean = run(ReferenceStill(), observation).clips, run(ReferenceMean(), observation).clips
    assert all(torch.equal(still[:, :, t], references[:, :, 0]) for t in range(FRAMES))
    assert all(torch.allclose(mean[:, :, t], references.mean(2)) for t in range(FRAMES))
    assert psnr(mean, scene().clips[:1]) != psnr(still, scene().clips[:1])


def test_baselines_answer_where_they_can() -> None:
    without = observe(0, 0)
    for frames in (2, 4):
        known = observe(0, frames).knowledge
        labels = {"labels": torch.tensor([1]), "public_labels": scene().public_labels}
        assert answerable(replace(known, **labels)) == tuple(BASELINES)
        without_label = tuple(name for name in BASELINES if name != "label_mean")
        assert answerable(known) == without_label
        assert answerable(replace(known, labels=labels["labels"])) == without_label
    # Of one frame the mean is that frame: the same answer is not counted twice.
    one = ("grey", "public_mean", "reference_still", "reference_nearest")
    assert answerable(observe(0, 1).knowledge) == one
    assert answerable(without.knowledge) == ("grey", "public_mean")
    assert answerable(knowledge(None)) == ("grey",)
    for name in ("reference_still", "reference_mean", "reference_nearest"):
        with pytest.raises(InputError, match="no reference frames"):
            run(BASELINES.build(name), without)
    with pytest.raises(InputError, match="no labels"):
        run(BASELINES.build("label_mean"), without)


def test_the_nearest_public_clip_is_nearest_to_the_frames_and_not_to_the_clip() -> None:
    """Public clip 3 is the private clip itself, public clip 5 is its scene held still."""
    observation, data = observe(0, 1), scene()
    assert data.references is not None
    public = data.public_clips.clone()
    public[3], public[5] = data.clips[0], data.references[0, :, :1].expand(SHAPE)
    known = replace(observation.knowledge, public_clips=public)
    answer = run(BASELINES.build("reference_nearest"), replace(observation, knowledge=known))
    assert torch.equal(answer.clips[0], public[5])


def test_the_mean_of_a_label_is_of_its_public_clips() -> None:
    known = replace(observe(0, 0).knowledge, labels=torch.tensor([4]), public_labels=torch.arange(12) % 6)
    observation = replace(observe(0, 0), knowledge=known)
    answer = run(BASELINES.build("label_mean"), observation)
    assert torch.allclose(answer.clips[0], scene().public_clips[[4, 10]].mean(0))
    missing = replace(known, public_labels=torch.zeros(12, dtype=torch.int64))
    answer = run(BASELINES.build("label_mean"), replace(observation, knowledge=missing))
    assert torch.allclose(answer.clips[0], scene().public_clips.mean(0))
    with pytest.raises(InputError, match="expected public_labels of one number a public clip"):
        replace(known, public_labels=torch.zeros(3, dtype=torch.int64)).check()


# ---- what matching makes of them


def test_another_use_is_refused() -> None:
    with pytest.raises(InputError, match="unknown reference 'mean'"):
        Matching(reference="mean")  # type: ignore[arg-type]


@every_use
def test_without_reference_frames_no_use_makes_a_difference(use: Any) -> None:
    first, second = (run(Matching(iterations=4, reference=r), observe(0, 0)) for r in ("start", use))
    assert torch.equal(first.clips, second.clips)
    assert first.history == second.history


@every_use
def test_every_use_beats_the_baselines_with_the_same_frames(use: Any) -> None:
    observation, truth = observe(0, 4), scene().clips[:1]
    first, last = (run(Matching(iterations=i, reference=use), observation) for i in (2, 80))
    names = answerable(observation.knowledge)
    best = max(psnr(run(BASELINES.build(name), observation).clips, truth) for name in names)
    assert psnr(last.clips, truth) > best + 1
    assert (first.clips - last.clips).abs().mean() > 0.01
    assert last.engine == "native"
    assert (last.iterations, len(last.history)) == (80, 80)


@pytest.mark.parametrize(
    "defense", [NoDefense(), pytest.param(Prune(fraction=0.9), marks=pytest.mark.slow)], ids=repr
)
def test_one_reference_frame_helps(defense: Defense) -> None:
    gains = []
    for index in range(3):
        truth = scene().clips[index : index + 1]
        with_one, without = (
            psnr(run(Matching(iterations=80), observe(index, frames, defense)).clips, truth)
            for frames in (1, 0)
        )
        gains.append(with_one - without)
    assert sum(gains) / 3 > 1


def calm() -> ClipSet:
    """The same clips with a third of their motion: most real scenes are nearly still."""
    data = scene()
    assert data.references is not None
    still, first = data.references[:, :, :1], data.public_clips[:, :, :1]
    return replace(
        data,
        clips=still + (data.clips - still) / 3,
        references=still + (data.references - still) / 3,
        public_clips=first + (data.public_clips - first) / 3,
    )


@pytest.mark.parametrize(
    "defense",
    [
        DpSgd(noise_multiplier=0.03),
        pytest.param(DpSgd(noise_multiplier=1.0), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_behind_noise_the_answer_falls_back_on_the_background(
    defense: Defense, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = calm()
    monkeypatch.setitem(globals(), "scene", lambda: data)
    adaptive, held, other = [], [], []
    for index in range(3):
        truth, observation = data.clips[index : index + 1], observe(index, 1, defense)
        adaptive.append(psnr(run(Matching(iterations=80), observation).clips, truth))
        unaware = observe(index, 1, defense, adaptive=False)
        other.append(psnr(run(NonAdaptiveMatching(iterations=80), unaware).clips, truth))
        held.append(psnr(run(ReferenceStill(), observation).clips, truth))
    assert sum(adaptive) > sum(held) - 0.5 * 3
    assert sum(adaptive) > sum(other) + 2 * 3


def test_what_pruning_leaves_open_is_the_backgrounds_and_not_the_public_means() -> None:
    few, many = (
        adaptive_weights(seen.channel, seen.update, seen.knowledge)
        for seen in (observe(0, 1, Prune(fraction=f)) for f in (0.999, 0.5))
    )
    assert few.pixels == math.prod(SHAPE)
    assert few.background_smoothness == pytest.approx(math.sqrt(few.pixels / few.entries))
    assert few.background_weight > many.background_weight == many.prior_weight == few.prior_weight == 0
    assert many.background_smoothness == many.smoothness == few.smoothness == 1
    noisy = AdaptiveWeights(noise_ratio=3.0, pixels=1000, entries=4000)
    assert (noisy.background_smoothness, noisy.background_weight) == (noisy.smoothness, noisy.prior_weight)


@pytest.mark.parametrize(
    "local",
    [pytest.param(None, marks=pytest.mark.slow), LocalTraining(steps=2, batch_size=1, learning_rate=0.01)],
)
def test_a_batch_has_reference_frames_of_its_own(local: LocalTraining | None) -> None:
    data = scene()
    labels = torch.tensor([1, 4])
    update = Client(network(), local=local).update(data.clips[:2], labels, generator("send"))
    assert data.references is not None
    known = Knowledge(clip_shape=SHAPE, batch_size=2, classes=CLASSES, labels=labels,
                      references=data.references[:2])  # fmt: skip
    observation = Observation(network(), update, known)
    work = Matching().prepare(observation, generator("attack"), Hooks())
    assert isinstance(work, Work)
    assert work.descents[0].problem.local == local  # a step takes the backgrounds of its clips
    answer = run(Matching(iterations=60), observation)
    gaps = (answer.clips[:, None] - data.clips[None, :2]).square().mean((2, 3, 4, 5))
    assert torch.equal(gaps.argmin(1), torch.tensor([0, 1]))


def test_both_engines_agree_on_a_masked_descent() -> None:
    native, plain = (
        run(Matching(iterations=8, engine=engine), observe(0, 4)) for engine in ("native", "reference")
    )
    assert (native.engine, plain.engine) == ("native", "reference")
    assert native.history == pytest.approx(plain.history, rel=1e-3)
    torch.testing.assert_close(native.clips, plain.clips, atol=2e-2, rtol=0)


def test_progress_counts_both_parts_and_stop_ends_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    attack, seen = Matching(iterations=13, restarts=2), []
    run(attack, observe(0, 1), progress=seen.append)
    assert seen == [7, 14, 20, 26]
    for count, done in ((1, 7), (3, 20)):
        seen.clear()
        answer = run(attack, observe(0, 1), progress=seen.append, stop=lambda count=count: len(seen) == count)
        assert answer.iterations == done
        assert torch.isfinite(answer.clips).all()


@pytest.mark.parametrize("use", ["prior", "mask"])
def test_difference_from_the_background_is_what_descends(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, Any, Tensor]] = []

    def spy(problem: Any, descent: Any, start: Tensor, **options: Any) -> Descent:
        made.append((problem, descent, start))
        return Descent(problem, descent, start, **options)

    monkeypatch.setattr(matching, "Descent", spy)
    observation = observe(0, 1)
    references = observation.knowledge.references
    assert references is not None
    run(Matching(iterations=10, reference=use), observation)
    problem, descent, start = made[0]
    assert start.abs().max() <= 0.1 + 1e-6  # the noise alone: the background is not in the variable
    torch.testing.assert_close(problem.model.compose(torch.zeros_like(start))[:, :, 0], references[:, :, 0])
    assert not descent.prior.any()
    assert (descent.low, descent.high) == (-math.inf, math.inf)
    assert len(made) == (2 if use == "mask" else 1)
    if use == "mask":
        unit = made[1][0].model.unit
        assert set(unit.unique().tolist()) == {matching.STILL_UNIT, 1.0}


def after_two_rounds(first: State, second: State) -> State:
    """Return where a restart stands whose two rounds ended so."""
    ended: Any = SimpleNamespace(state=second)
    return Work(descents=[ended], iterations=1, labels=torch.zeros(1), earlier=[first]).states()[0]


def test_a_second_round_that_found_nothing_leaves_the_first() -> None:
    first = State(torch.zeros(1), torch.ones(1), best_objective=0.3, history=[1.0, 0.3])
    nothing = State(torch.zeros(1), torch.zeros(1))
    assert after_two_rounds(first, nothing) is first
    better = State(torch.zeros(1), torch.full((1,), 2.0), best_objective=0.2, history=[0.4, 0.2])
    joined = after_two_rounds(first, better)
    assert (joined.history, joined.begun, float(joined.best)) == ([1.0, 0.3, 0.4, 0.2], 2, 2.0)
    broken = State(torch.zeros(1), torch.ones(1), best_objective=0.3, history=[1.0], nan_at=1)
    assert after_two_rounds(broken, better) is broken


# ---- order


class PerFrame(nn.Module):
    """A net that looks at one frame at a time and averages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, clips: Tensor) -> Tensor:
        frames = clips.transpose(1, 2).flatten(0, 1)
        return self.head(self.conv(frames).relu().mean((2, 3)).unflatten(0, (len(clips), -1)).mean(1))


class PerSegment(nn.Module):
    """A head on features (N, S, F) that averages over segments, or weighs them by their place."""

    def __init__(self, placed: bool) -> None:
        super().__init__()
        self.layer, self.placed = nn.Linear(7, 5), placed

    def forward(self, features: Tensor) -> Tensor:
        weights = torch.linspace(0, 1, features.shape[1]) if self.placed else torch.ones(features.shape[1])
        return (self.layer(features).tanh() * weights[:, None]).mean(1)


def test_order_is_lost_where_frames_are_averaged_and_only_there() -> None:
    shape = (3, 4, 8, 8)
    assert not order_identifiable(build(PerFrame), shape)
    assert order_identifiable(build(Conv).eval(), shape)
    assert order_identifiable(build(Recurrent), shape)
    assert not order_identifiable(build(Conv).eval(), shape, clips=torch.full((1, *shape), 0.3))
    for placed in (True, False):
        assert order_identifiable(build(lambda placed=placed: PerSegment(placed)), (6, 7)) == placed


def test_order_of_built_in_models_can_be_told() -> None:
    assert order_identifiable(network(), SHAPE)
    assert order_identifiable(network(), SHAPE, clips=scene().public_clips[:1])


def test_order_leaves_the_model_as_it_is_and_refuses_what_does_not_fit() -> None:
    model = build(PerFrame)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    order_identifiable(model, (3, 4, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(InputError, match="unknown loss"):
        order_identifiable(model, (3, 4, 8, 8), loss="hinge")
    with pytest.raises(InputError, match="expected clips of shape"):
        order_identifiable(model, (3, 4, 8, 8), clips=torch.rand(1, 3, 4, 8, 9))
    with pytest.raises(InputError, match="no parameters"):
        order_identifiable(nn.Flatten(), (3, 4, 8, 8))
