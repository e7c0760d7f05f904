"""Adaptive attacks: they use the channel of a defense, stated or simulated, and are the better for it."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from attacking import (
    CLASSES,
    SHAPE,
    STRONGEST,
    WEAKEST,
    built_in,
    flat,
    observe,
    observe_clip,
    psnr,
    run,
    same_answer,
    scene,
    send,
    short,
)
from torch import Tensor

from vleak.attacks import Knowledge, Matching, NonAdaptiveMatching, Observation
from vleak.attacks.matching import AdaptiveWeights, adaptive_weights, matching
from vleak.attacks.simulation import known_channel
from vleak.defenses import Compress, Defense, DpSgd, NoDefense, Prune
from vleak.descent.loop import Descent
from vleak.federated import Channel, Client, Message, Update
from vleak.models import SMALL_MODELS
from vleak.seeds import generator


def noise_ratio(update: Update, defense: Defense) -> float:
    knowledge = Knowledge(clip_shape=SHAPE, batch_size=update.facts.batch_size, classes=6)
    return adaptive_weights(defense.channel(update), update, knowledge).noise_ratio


# ---- weights


def test_an_exact_update_asks_for_nothing() -> None:
    observation = observe_clip()
    for channel in (None, Channel(), NoDefense().channel(observation.update)):
        weights = adaptive_weights(channel, observation.update, observation.knowledge)
        assert weights == AdaptiveWeights()
        assert (weights.smoothness, weights.prior_weight) == (1.0, 0.0)
        assert (weights.background_smoothness, weights.background_weight) == (1.0, 0.0)


@pytest.mark.parametrize(("name", "batch_size"), [*((name, 1) for name in SMALL_MODELS), ("c3d_tiny", 3)])
def test_noise_ratio_under_dp_is_the_true_one(name: str, batch_size: int) -> None:
    clips, labels = scene().clips[:batch_size], scene().labels[:batch_size]
    signal = flat(send(built_in(name), clips, labels, DpSgd(noise_multiplier=0.0, max_grad_norm=0.5)))
    for noise in (0.0005, 0.01):
        defense = DpSgd(noise_multiplier=noise, max_grad_norm=0.5)
        update = send(built_in(name), clips, labels, defense)
        true = float((flat(update) - signal).norm() / signal.norm())
        assert 0.02 < true < 30
        assert noise_ratio(update, defense) == pytest.approx(true, rel=0.15)


def test_noise_ratio_under_dp_of_a_known_signal() -> None:
    signal = torch.zeros(40_000)
    signal[:4] = 0.5
    defense = DpSgd(noise_multiplier=0.02, max_grad_norm=1.0)
    for factor, expected in ((1.0, 4.0), (0.5, 2.0), (0.0, 0.0)):
        scaled = DpSgd(noise_multiplier=0.02 * factor, max_grad_norm=1.0)
        noise = factor * 0.02 * torch.randn(40_000, generator=generator("noise"))
        assert noise_ratio(Update({"w": signal + noise}, 0), scaled) == pytest.approx(expected, rel=0.1)
    hopeless = Update({"w": 0.02 * torch.randn(40_000, generator=generator("noise"))}, 0)
    assert 5 < noise_ratio(hopeless, defense) < math.inf


def test_rounding_to_int8_is_estimated_from_the_scales() -> None:
    gradient = {
        "a": torch.rand(30_000, generator=generator("a")) * 2 - 1,
        "b": 1e-3 * torch.rand(20_000, generator=generator("b")),
        "empty": torch.zeros(3),
    }
    defense = Compress(codec="int8")
    sent = Update(defense.transmit(gradient, generator(0)).tensors, 0)
    true = (flat(sent) - flat(Update(gradient, 0))).norm() / flat(sent).norm()
    assert noise_ratio(sent, defense) == pytest.approx(float(true), rel=0.02)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_rounding_to_int8_of_a_gradient_is_not_underestimated(name: str) -> None:
    defense = Compress(codec="int8")
    sent, plain = observe_clip(name=name, defense=defense).update, flat(observe_clip(name=name).update)
    true = float((flat(sent) - plain).norm() / plain.norm())
    # Entries far below a step lose less than the step's share, so the estimate may lie above.
    assert true < noise_ratio(sent, defense) < 2 * true


# At 2 bits the last bucket of c3d_tiny_pool, six entries with half of all energy, may arrive as zeros: its
# norm is lost then.
@pytest.mark.parametrize(
    ("name", "bits"), [("c3d_tiny", 2), ("c3d_tiny", 4), ("c3d_tiny_pool", 3), ("lrcn", 2), ("lrcn", 8)]
)
def test_noise_of_qsgd_is_estimated_from_what_arrived(name: str, bits: int) -> None:
    defense, data, model = Compress(codec="qsgd", bits=bits), scene(3, 8, 32, 24), built_in(name, 0, 8, 32)
    plain, sent = (send(model, data.clips[:1], data.labels[:1], d) for d in (NoDefense(), defense))
    true = float((flat(sent) - flat(plain)).norm() / flat(plain).norm())
    # The balance of energies is blurred by the largest entries, which matters where there is little noise.
    assert noise_ratio(sent, defense) == pytest.approx(true, rel=0.15, abs=0.1)


def test_noise_of_qsgd_on_even_entries() -> None:
    # No entry of the first buckets is rounded to one step, and the last bucket is not full.
    gradient = {"w": torch.cat([torch.full((4096,), 0.3), torch.tensor([0.5, -0.4])])}
    defense = Compress(codec="qsgd", bits=8, bucket=16)
    sent = Update(defense.transmit(gradient, generator(0)).tensors, 0)
    true = float((flat(sent) - gradient["w"]).norm() / gradient["w"].norm())
    assert 0.001 < true < 0.02
    assert noise_ratio(sent, defense) == pytest.approx(true, abs=0.02)


def test_more_noise_means_more_prior() -> None:
    weights = [AdaptiveWeights(noise_ratio=ratio) for ratio in (0.0, 0.01, 0.1, 0.5, 1.0, 3.0, 30.0)]
    for earlier, later in pairwise(weights):
        assert earlier.smoothness <= later.smoothness
        assert earlier.prior_weight < later.prior_weight
    assert weights[0].smoothness < weights[3].smoothness < math.inf


def test_more_pixels_an_entry_means_more_prior() -> None:
    few, many = (AdaptiveWeights(noise_ratio=0.1, pixels=n, entries=10_000) for n in (1000, 8000))
    assert few.smoothness - 1 == pytest.approx((many.smoothness - 1) / 8)
    assert few.prior_weight == pytest.approx(many.prior_weight / 8)
    seen = observe_clip(defense=DpSgd(noise_multiplier=0.002))
    weights = adaptive_weights(seen.channel, seen.update, seen.knowledge)
    assert (weights.pixels, weights.entries) == (math.prod(SHAPE), flat(seen.update).numel())
    pruned = observe_clip(defense=Prune(fraction=0.9))
    weights = adaptive_weights(pruned.channel, pruned.update, pruned.knowledge)
    assert weights.entries == int((flat(pruned.update) != 0).sum())


@pytest.mark.parametrize(("distance", "unit"), [("cosine", 1.0), ("l2", None)])
def test_channel_reaches_the_descent(
    distance: Any, unit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = []

    def spy(problem: Any, descent: Any, start: Tensor, **options: Any) -> Descent:
        settings.append(descent)
        return Descent(problem, descent, start, **options)

    monkeypatch.setattr(matching, "Descent", spy)
    defense = DpSgd(noise_multiplier=0.002)
    seen, attack = observe_clip(defense=defense), Matching(iterations=1, distance=distance)
    run(attack, seen)
    run(attack, observe_clip(defense=defense, adaptive=False))
    weights = adaptive_weights(seen.channel, seen.update, seen.knowledge)
    unit = unit or float(flat(seen.update).square().sum())
    adaptive, other = settings
    assert weights.smoothness > 1
    assert adaptive.spatial == pytest.approx(unit * attack.spatial * weights.smoothness)
    assert adaptive.temporal == pytest.approx(unit * attack.temporal * weights.smoothness)
    assert adaptive.spatial > other.spatial
    pull = weights.prior_weight / seen.knowledge.public_variance()
    assert adaptive.prior_weight - other.prior_weight == pytest.approx(unit * pull, rel=1e-4)


def test_public_variance_is_that_of_a_pixel_about_the_mean() -> None:
    def knowing(*levels: float) -> Knowledge:
        clips = torch.stack([torch.full((3, 2, 8, 8), level) for level in levels])
        return Knowledge(clip_shape=(3, 2, 8, 8), batch_size=1, classes=2, public_clips=clips)

    assert knowing(0.2, 0.6).public_variance() == pytest.approx(0.08)  # unbiased: 2 * 0.2^2
    assert knowing(0.5).public_variance() == pytest.approx(1 / 12)
    assert knowing(0.5, 0.5).public_variance() == pytest.approx(1e-6)


# ---- stated channels


@pytest.mark.parametrize("defense", [d for d in STRONGEST if d.name != "outpost"], ids=repr)
def test_answer_says_whether_the_attacker_knew_the_defense(defense: Defense) -> None:
    for adaptive, expected in ((True, "channel"), (False, "none")):
        attack = Matching(iterations=1, engine="reference")  # whatever runs it
        answer = run(attack, observe_clip(defense=defense, adaptive=adaptive))
        assert (answer.defense_knowledge, answer.adaptive) == (expected, adaptive)


def test_non_adaptive_matching_is_matching_without_a_channel() -> None:
    assert Matching.adaptive
    assert not NonAdaptiveMatching.adaptive
    seen = observe_clip(defense=WEAKEST[1], adaptive=False)
    assert same_answer(run(NonAdaptiveMatching(iterations=2), seen), run(Matching(iterations=2), seen))


def test_pruned_update_is_matched_where_it_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = []

    def spy(problem: Any, descent: Any, start: Tensor, **options: Any) -> Descent:
        problems.append(problem)
        return Descent(problem, descent, start, **options)

    monkeypatch.setattr(matching, "Descent", spy)
    seen = observe_clip(defense=Prune(fraction=0.9))
    run(Matching(iterations=1), seen)
    assert all(torch.equal(problems[0].masks[name], t != 0) for name, t in seen.update.tensors.items())
    kept = sum(int(mask.sum()) for mask in problems[0].masks.values())
    assert kept == pytest.approx(0.1 * flat(seen.update).numel(), rel=0.01)


@pytest.mark.parametrize(
    "noise", [pytest.param(0.002, marks=pytest.mark.slow), 0.01, pytest.param(0.03, marks=pytest.mark.slow)]
)
def test_knowing_of_dp_is_an_advantage(noise: float) -> None:
    data, model = scene(3, 8, 32, 24), built_in("c3d_tiny", 0, 8, 32)
    gains = {True: 0.0, False: 0.0}
    for index in range(2):
        clip, label = data.clips[index : index + 1], data.labels[index : index + 1]
        for adaptive in gains:
            defense, public = DpSgd(noise_multiplier=noise), data.public_clips
            seen = observe(model, clip, label, defense, adaptive=adaptive, public_clips=public)
            gains[adaptive] += psnr(run(Matching(iterations=50), seen, index).clips, clip) / 2
    assert gains[True] > gains[False] + 1


@pytest.mark.parametrize(
    ("name", "noise"),
    [
        pytest.param(name, noise, marks=pytest.mark.slow)
        for name in ("c3d_tiny", "lrcn")
        for noise in (0.001, 0.003, 0.01)
    ],
)
def test_knowing_of_dp_is_no_disadvantage_on_small_clips(name: str, noise: float) -> None:
    gains = {True: 0.0, False: 0.0}
    for index in range(4):
        for adaptive in gains:
            seen = observe_clip(index, name, defense=DpSgd(noise_multiplier=noise), adaptive=adaptive)
            answer = run(Matching(iterations=60), seen, index)
            gains[adaptive] += psnr(answer.clips, scene().clips[index : index + 1]) / 4
    assert gains[True] > gains[False] - 1


# ---- defenses from outside that state no channel


@dataclass(frozen=True, kw_only=True)
class Holes(Defense):
    """Sends every entry but a random half."""

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        tensors = {
            name: tensor * (torch.rand(tensor.shape, generator=generator) < 0.5)
            for name, tensor in gradient.items()
        }
        return Message(tensors, 0)


@dataclass(frozen=True, kw_only=True)
class Laplace(Defense):
    """Adds Laplace noise of a scale to every entry."""

    scale: float = 0.01

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        tensors = {}
        for name, tensor in gradient.items():
            uniform = torch.rand(tensor.shape, generator=generator) - 0.5
            noise = -self.scale * uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.4999999))
            tensors[name] = tensor + noise
        return Message(tensors, 0)


def test_zeros_of_a_defense_from_outside_carry_no_measurement() -> None:
    seen = observe_clip(defense=Holes(), rehearse=True, labels=scene().labels[:1])
    assert seen.channel is None
    channel = known_channel(seen)
    assert channel is not None
    assert channel.source == "simulated"
    assert channel.masks is not None
    assert all(torch.equal(channel.masks[name], t != 0) for name, t in seen.update.tensors.items())
    # What survives is exact.
    assert channel.noise_energy == pytest.approx(0, abs=1e-8 * float(flat(seen.update).square().sum()))


def test_zeros_that_honest_gradients_have_as_well_are_measurements() -> None:
    seen = observe_clip(defense=Laplace(scale=0.0), rehearse=True, labels=scene().labels[:1])
    channel = known_channel(seen)
    assert channel is not None
    assert channel.masks is None
    assert channel.noise_energy == pytest.approx(0, abs=1e-8 * float(flat(seen.update).square().sum()))


def test_noise_of_a_defense_from_outside_is_measured_on_public_clips() -> None:
    seen = observe_clip(defense=Laplace(scale=0.02), rehearse=True, labels=scene().labels[:1])
    channel = known_channel(seen)
    assert channel is not None
    assert channel.masks is None
    expected = 2 * 0.02**2 * flat(seen.update).numel()  # the variance of Laplace noise is 2 scale^2
    assert channel.noise_energy == pytest.approx(expected, rel=0.1)
    again = known_channel(seen)
    other = known_channel(observe_clip(defense=Laplace(scale=0.03), rehearse=True, labels=scene().labels[:1]))
    assert again is not None
    assert other is not None
    assert again.key == channel.key != other.key


def test_of_a_model_that_is_trained_in_part_that_part_is_simulated() -> None:
    model, data = copy.deepcopy(built_in("c3d_tiny")), scene()
    next(model.parameters()).requires_grad_(False)
    client = Client(model, defense=Laplace(scale=0.02))
    update = client.update(data.clips[:1], data.labels[:1], generator("part"))
    knowledge = Knowledge(
        clip_shape=SHAPE, batch_size=1, classes=CLASSES, labels=data.labels[:1],
        public_clips=data.public_clips, simulate=client.update,
    )  # fmt: skip
    channel = known_channel(Observation(model, update, knowledge))
    assert channel is not None
    assert channel.noise_energy == pytest.approx(2 * 0.02**2 * flat(update).numel(), rel=0.1)


def test_without_public_clips_a_defense_is_simulated_on_random_ones() -> None:
    for public in (None, torch.empty(0, *SHAPE)):
        seen = observe_clip(
            defense=Laplace(scale=0.02), rehearse=True, labels=scene().labels[:1], public_clips=public
        )
        channel = known_channel(seen)
        assert channel is not None
        expected = 2 * 0.02**2 * flat(seen.update).numel()
        assert channel.noise_energy == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    "defense", [Holes(), pytest.param(Laplace(scale=0.007), marks=pytest.mark.slow)], ids=repr
)
def test_simulating_a_defense_is_better_than_ignoring_it(defense: Defense) -> None:
    data, model = scene(3, 8, 32, 24), built_in("c3d_tiny", 0, 8, 32)
    gains = {True: 0.0, False: 0.0}
    for index in range(2):
        clip, label = data.clips[index : index + 1], data.labels[index : index + 1]
        for adaptive in gains:
            seen = observe(
                model, clip, label, defense, adaptive=adaptive, rehearse=True, public_clips=data.public_clips
            )
            answer = run(Matching(iterations=50), seen, index)
            assert answer.defense_knowledge == ("simulated" if adaptive else "none")
            gains[adaptive] += psnr(answer.clips, clip) / 2
    assert gains[True] > gains[False] + 0.5


@pytest.mark.parametrize(
    "attack", ["deep_prior", pytest.param("decoder", marks=pytest.mark.slow), "inverter"]
)
def test_every_adaptive_attack_simulates_what_states_no_channel(attack: str) -> None:
    seen = observe_clip(defense=Laplace(scale=0.01), rehearse=True)
    assert run(short(attack, 2), seen).defense_knowledge == "simulated"
    known = dataclasses.replace(seen.knowledge, simulate=None)
    assert run(short(attack, 2), dataclasses.replace(seen, knowledge=known)).defense_knowledge == "none"
