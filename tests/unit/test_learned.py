"""Attacks with a prior of their own: an untrained network, a decoder of public clips, a learned inverse."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attacking import (
    SHAPE,
    best_baseline,
    built_in,
    observe,
    observe_clip,
    psnr,
    run,
    same_answer,
    scene,
    send,
    short,
)
from tiny import Residual, build
from torch import Tensor, nn

from vleak.attacks import Decoder, DeepPrior, Inverter, Knowledge, Observation, PublicMean
from vleak.attacks.base import Hooks
from vleak.attacks.cache import Cache, digest_of_model
from vleak.attacks.learned import forget_maps, rehearsal, ridge
from vleak.attacks.learned.augment import augment
from vleak.attacks.learned.decoded import DecodedSetup, Interpolate, Regularisers, decoded_problem
from vleak.attacks.learned.rehearsal import Rehearsal, Sender
from vleak.defenses import Compress, Defense, DpSgd, NoDefense, Prune
from vleak.descent.loop import Descent, DescentSettings
from vleak.errors import InputError
from vleak.federated import Channel, Client, Update
from vleak.seeds import generator, tensor_digest

PRIORS = ["deep_prior", "decoder", "inverter"]
every_prior = pytest.mark.parametrize("attack", PRIORS)


# ---- they attack


@every_prior
def test_prior_moves_and_beats_every_baseline(attack: str) -> None:
    observation, truth = observe_clip(), scene().clips[:1]
    first, last = (run(short(attack, i), observation) for i in (1, 60))
    if last.iterations:
        assert (first.clips - last.clips).abs().mean() > 0.02
        assert last.objective < 0.5 * first.objective
    assert psnr(last.clips, truth) > best_baseline(observation, truth) + 1
    assert last.labels.tolist() == scene().labels[:1].tolist()


@pytest.mark.slow
@every_prior
def test_prior_beats_every_baseline_on_a_recurrent_model(attack: str) -> None:
    observation, truth = observe_clip(0, "lrcn"), scene().clips[:1]
    assert psnr(run(short(attack, 60), observation).clips, truth) > best_baseline(observation, truth)


# ---- refusals


@every_prior
def test_features_are_refused(attack: str) -> None:
    model = nn.Linear(5, 2)
    update = Update({n: torch.ones_like(p) for n, p in model.named_parameters()}, 0)
    knowledge = Knowledge(clip_shape=(4, 5), batch_size=1, classes=2, labels=torch.tensor([0]))
    with pytest.raises(InputError, match="takes frames, not features; choose another") as caught:
        run(short(attack, 1), Observation(model, update, knowledge))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attack", PRIORS[1:])
@pytest.mark.parametrize("public", [None, torch.zeros(1, *SHAPE)])
def test_who_learns_from_public_clips_needs_some(attack: str, public: Tensor | None) -> None:
    with pytest.raises(InputError, match="public clips"):
        run(short(attack, 1), observe_clip(public_clips=public))


def test_deep_prior_needs_none() -> None:
    observation, truth = observe_clip(public_clips=None), scene().clips[:1]
    assert psnr(run(DeepPrior(iterations=60), observation).clips, truth) > psnr(
        torch.full_like(truth, 0.5), truth
    )


@pytest.mark.parametrize(
    ("made", "settings"),
    [
        (DeepPrior, {"channels": 0}),
        (DeepPrior, {"iterations": 0}),
        (Decoder, {"restarts": 0}),
        (Decoder, {"share": 0.0}),
        (Inverter, {"copies": 0}),
        (Inverter, {"rehearsals": 0}),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(made: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        made(**settings)


# ---- the price of a decoded clip


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_price_adds_the_roughness_of_the_decoded_clip(distance: Any) -> None:
    """With "l2" exactly; with "cosine" so long as the price is small."""
    seen, x = observe_clip(labels=scene().labels[:1]), torch.rand(1, *SHAPE, generator=generator("x"))
    mean = scene().public_clips.mean(0)
    scale = 1e-3
    values = []
    for factor in (0.0, scale):
        weights = Regularisers(spatial=3 * factor, temporal=5 * factor, prior=7 * factor)
        problem = decoded_problem(DecodedSetup.of(seen), nn.Identity(), weights)
        problem = dataclasses.replace(problem, distance=distance)
        loop = Descent(problem, DescentSettings(iterations=1), x, engine="reference")
        values.append(float(loop.distance_and_gradient(x)[0]))
    rough = 3 * (x.diff(dim=3).abs().sum() + x.diff(dim=4).abs().sum()) + 5 * x.diff(dim=2).abs().sum()
    cost = float(rough / x.numel() + 7 / 2 * (x - mean).square().mean()) * scale
    unit = float(problem.model.get_buffer("unit"))
    if distance == "l2":
        assert values[1] - values[0] == pytest.approx(2 * unit**2 * cost, rel=0.01)
    else:
        gradient = send(seen.model, x, scene().labels[:1]).tensors.values()
        norm = sum(float(t.double().square().sum()) for t in gradient)
        assert values[1] - values[0] == pytest.approx((1 - values[0]) * unit**2 / norm * cost, rel=0.05)


def test_interpolation_is_that_of_torch() -> None:
    x = torch.rand(2, 3, 2, 3, 4, generator=generator("x"))
    expected = nn.functional.interpolate(x, size=(4, 6, 7), mode="trilinear")
    torch.testing.assert_close(Interpolate((2, 3, 4), (4, 6, 7))(x), expected)


# ---- the learned inverse


def gains_behind(defense: Defense, attacks: Sequence[str]) -> dict[str, float]:
    """Mean gain in dB over the best baseline on three clips, by attack."""
    gains = dict.fromkeys(attacks, 0.0)
    for index in range(3):
        observation = observe_clip(index, rehearse=True, defense=defense)
        truth = scene().clips[index : index + 1]
        baseline = best_baseline(observation, truth)
        for attack in gains:
            answer = run(short(attack, 60), observation, index)
            gains[attack] += (psnr(answer.clips, truth) - baseline) / 3
            assert answer.adaptive
    return gains


def test_inverter_is_ahead_of_matching_behind_noise() -> None:
    gains = gains_behind(DpSgd(noise_multiplier=0.02), ("matching", "inverter"))
    assert gains["inverter"] > max(0.0, gains["matching"])


@pytest.mark.slow
def test_inverter_gains_behind_two_bits() -> None:
    assert gains_behind(Compress(codec="qsgd", bits=2), ("inverter",))["inverter"] > 0.5


def test_inverter_learns_from_pruned_messages() -> None:
    gains = {True: 0.0, False: 0.0}
    for index in range(2):
        truth = scene().clips[index : index + 1]
        for adaptive in gains:
            observation = observe_clip(index, rehearse=True, defense=Prune(fraction=0.99), adaptive=adaptive)
            gains[adaptive] += psnr(run(Inverter(copies=4), observation).clips, truth) / 2
    assert gains[True] > gains[False]


def test_hopeless_noise_leaves_about_the_public_mean() -> None:
    """The ridge is chosen on clips sent through the same noise: it says that there is nothing to say."""
    for index in range(2):
        observation, truth = (
            observe_clip(index, rehearse=True, defense=DpSgd(noise_multiplier=3.0)),
            scene().clips[index : index + 1],
        )
        prior = psnr(run(PublicMean(), observation).clips, truth)
        assert psnr(run(Inverter(copies=4), observation).clips, truth) > prior - 1


def test_answer_does_not_depend_on_what_was_kept() -> None:
    observation = observe_clip(0, rehearse=True, defense=DpSgd(noise_multiplier=0.01))
    answers = [run(Inverter(copies=3), observation)]
    run(Inverter(copies=3), observe_clip(1, rehearse=True, defense=Prune(fraction=0.9)))
    answers.append(run(Inverter(copies=3), observation, "another seed"))
    forget_maps()
    answers.append(run(Inverter(copies=3), observation))
    assert all(same_answer(answers[0], answer) for answer in answers[1:])


def test_inverter_that_is_stopped_keeps_nothing() -> None:
    forget_maps()
    stopped = run(Inverter(copies=3), observe_clip(), stop=lambda: True)
    torch.testing.assert_close(stopped.clips, scene().public_clips.mean(0, keepdim=True))
    seen: list[int] = []
    assert not torch.equal(run(Inverter(copies=3), observe_clip(), progress=seen.append).clips, stopped.clips)
    assert seen == sorted(seen)
    assert len(seen) > 3


@pytest.mark.parametrize("batch", [1, 2])
def test_left_out_error_is_that_of_a_fit_without_the_clip(batch: int) -> None:
    """Of a fit that has its own means; what is compared with has features and clips, and no kernel."""
    numbers, public, copies = generator("left out"), 5, 3
    clips = torch.rand(public * copies, 2, 1, 2, 2, generator=numbers)
    slots = torch.arange(len(clips)).view(-1, 1).repeat(1, batch)
    slots[:, 1:] = torch.arange(1, len(clips) + 1).view(-1, 1) % len(clips)
    sources = slots % public
    batches = Rehearsal(clips, slots, sources, [], 0)
    features = torch.randn(len(clips), 6, generator=numbers, dtype=torch.float64)
    query, flat = torch.randn(6, generator=numbers, dtype=torch.float64), clips.flatten(1).double()
    ridges = torch.tensor([0.03, 0.3, 3.0], dtype=torch.float64)
    got = ridge.errors_left_out(batches, 1, features @ features.T, features @ query, flat @ flat.T, ridges)
    rest = [i for i in range(len(clips)) if not set(sources[i].tolist()) & set(sources[1].tolist())]
    unaltered = [i for i in rest if i < public]
    assert len(unaltered) == public - 2 * batch + 1
    middle = features[unaltered].mean(0)
    x = features[rest] - middle
    for strength, error in zip(ridges, got, strict=True):
        expected = 0.0
        for slot in slots.T:
            mean = flat[slot[unaltered]].mean(0)
            fitted = torch.linalg.solve(
                x.T @ x + strength * torch.eye(6, dtype=x.dtype), x.T @ (flat[slot[rest]] - mean)
            )
            expected += float((flat[slot[1]] - mean - (query - middle) @ fitted).square().sum())
        assert float(error) == pytest.approx(expected, rel=1e-6)


def test_clip_that_public_clips_span_is_found_behind_a_linear_message() -> None:
    """Where the message is linear in the clip, so is its inverse, and it has no offset."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), 6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # the same scores for all clips
    clip = scene().public_clips[:1] * 0.7 + scene().public_clips[4:5] * 0.3
    observation = observe(
        model,
        clip,
        torch.tensor([1]),
        DpSgd(noise_multiplier=0.0, max_grad_norm=1e6),
        labels=torch.tensor([1]),
    )
    nothing = psnr(run(PublicMean(), observation).clips, clip)
    assert psnr(run(Inverter(), observation).clips, clip) > nothing + 20


@pytest.mark.parametrize("lost", [0.0, 1.0])
def test_ridge_follows_what_the_messages_say(lost: float) -> None:
    """Clips that are linear in their messages ask for the smallest; messages of nothing for the largest."""
    numbers = generator("ridge")
    clips = torch.rand(40, 1, 1, 2, 3, generator=numbers)
    rows = torch.arange(40)[:, None]
    messages = clips.flatten(1) if not lost else torch.randn(40, 6, generator=numbers)
    batches = Rehearsal(clips, rows, rows % 20, [messages.bfloat16()], 6)
    gram = (messages @ messages.T).double()
    got = ridge.best_ridge(batches, torch.arange(20), gram, gram[:, :20])
    centred = messages - messages[:20].mean(0)
    unit = float(centred.square().sum(1).mean())
    assert got == pytest.approx(unit * ridge.RIDGES[0]) if not lost else got > unit


def test_expected_message_is_what_the_defense_sends_without_noise() -> None:
    model, labels = built_in("c3d_tiny"), torch.tensor([2, 5])
    clips = scene().clips[:4].view(2, 2, *SHAPE)
    for defense in (NoDefense(), Prune(fraction=0.9), DpSgd(noise_multiplier=0.0, max_grad_norm=0.5)):
        channel = defense.channel(send(model, clips[0], labels, defense))
        sender = Sender(model, "cross_entropy", "eval", labels, channel, None)
        got = sender.expected(clips)
        for index, batch in enumerate(clips):
            for name, tensor in send(model, batch, labels, defense).tensors.items():
                torch.testing.assert_close(got[name][index], tensor, rtol=1e-3, atol=1e-6)


def test_batch_norm_of_a_training_client_is_rehearsed_as_a_batch() -> None:
    model = build(lambda: Residual(nn.BatchNorm3d)).train()
    labels, clips = torch.tensor([2, 4]), torch.rand(2, 2, 3, 4, 8, 8, generator=generator("clips"))
    got = Sender(model, "cross_entropy", "train", labels, Channel(), None).expected(clips)
    update = Client(model, mode="train").update(clips[1], labels, generator(0))
    for name, tensor in update.tensors.items():
        torch.testing.assert_close(got[name][1], tensor)


def test_folding_keeps_inner_products(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(2, 40_000, generator=generator("rows"))
    rows[1] = 0.8 * rows[0] + 0.6 * rows[1]
    (whole,) = rehearsal.folded({"w": rows}, 40_000)
    assert torch.equal(whole, rows)
    monkeypatch.setattr(rehearsal, "WIDTH", 4000)
    (short,) = rehearsal.folded({"w": rows}, 40_000)
    assert short.shape == (2, 4000)
    torch.testing.assert_close(short @ short.T, rows @ rows.T, rtol=0.1, atol=0.0)


# ---- what they share


def test_versions_of_a_clip_are_clips_and_come_in_order() -> None:
    clips = torch.rand(3, 3, 4, 8, 6, generator=generator("clips"))
    made = augment(clips, 4, generator(0))
    assert made.shape == (12, 3, 4, 8, 6)
    assert torch.equal(made[:3], clips)
    assert ((made >= 0) & (made <= 1)).all()
    assert torch.equal(made, augment(clips, 4, generator(0)))
    assert len({tensor_digest(clip) for clip in made}) == 12
    # A clip of one colour stays one: whatever is altered, row i comes from clip i modulo 3.
    flat = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1, 1, 1).expand(3, 1, 2, 4, 4)
    order = augment(flat, 5, generator(0)).mean((1, 2, 3, 4)).view(5, 3)
    assert (order.diff(dim=1) > 0).all()


def test_cache_makes_once_and_forgets_the_oldest() -> None:
    cache, made = Cache[int](2), []
    gate = threading.Barrier(4)

    def ask() -> None:
        gate.wait()
        cache.get("a", lambda: made.append("a") or 1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["a"]
    for key in ("b", "a", "c", "a", "b"):
        cache.get(key, lambda key=key: made.append(key) or 2)
    assert made == ["a", "b", "c", "b"]
    with pytest.raises(ZeroDivisionError):
        cache.get("d", lambda: 1 // 0)
    assert cache.get("d", lambda: 3) == 3


def test_digest_tells_models_apart() -> None:
    same = [digest_of_model(built_in("c3d_tiny", seed)) for seed in (0, 0, 1)]
    assert same[0] == same[1] != same[2]
    assert tensor_digest(torch.zeros(2, 3)) != tensor_digest(torch.zeros(3, 2))
    assert math.isfinite(int(same[0], 16))


@pytest.mark.parametrize(("deviation", "asked"), [(0.0, 1), (0.1, 5)])
def test_defense_without_noise_is_asked_for_one_message(deviation: float, asked: int) -> None:
    """What the others would be is known: the messages that are fitted on."""
    sent: list[int] = []

    def simulate(clips: Tensor, labels: Tensor, source: torch.Generator) -> Update:
        sent.append(len(clips))
        update = Client(built_in("c3d_tiny")).update(clips, labels, source)
        noise = {n: deviation * torch.randn(t.shape, generator=source) for n, t in update.tensors.items()}
        return dataclasses.replace(update, tensors={n: t + noise[n] for n, t in update.tensors.items()})

    seen = observe_clip(simulate=simulate)
    channel = Channel(key=("a defense", deviation))
    run(Inverter(copies=2, rehearsals=5), dataclasses.replace(seen, channel=channel))
    assert len(sent) == asked


def test_tensors_are_trusted_by_what_varies_in_them() -> None:
    """Without noise the weight is one over the variance; of a tensor that never varies it is 0."""
    numbers = generator("trust")
    clips, rows = torch.rand(12, 1, 1, 2, 3, generator=numbers), torch.arange(12)[:, None]
    messages = [deviation * torch.randn(12, 6, generator=numbers) + 3.0 for deviation in (1.0, 0.1, 0.0)]
    made = Rehearsal(clips, rows, rows % 6, [m.bfloat16() for m in messages], 18)
    sent = {str(index): m.float() for index, m in enumerate(made.messages)}

    def simulate(clip: Tensor, labels: Tensor, source: torch.Generator) -> Update:
        (at,) = (index for index in range(12) if torch.equal(clips[index], clip[0]))
        return Update({name: rows[at] for name, rows in sent.items()}, wire_bytes=0)

    sender = Sender(
        nn.Flatten(), "cross_entropy", "eval", torch.tensor([0]), Channel(clip_norm=1e6), simulate
    )
    trust = ridge.fit(sender, made, 4, Hooks()).trust
    varied = torch.stack([m.float().var(0).mean() for m in made.messages[:2]])
    torch.testing.assert_close(trust[:2], varied.min() / varied, rtol=1e-4, atol=0.0)
    assert trust[2] == 0


def test_maps_of_two_defenses_without_keys_are_not_mixed_up() -> None:
    """A channel without a key must not stand for another one; what the defenses send tells them apart."""
    answers = []
    for scale in (0.0, 1.0):

        def simulate(clips: Tensor, labels: Tensor, source: torch.Generator, scale: float = scale) -> Update:
            update = Client(built_in("c3d_tiny")).update(clips, labels, source)
            noise = {n: scale * torch.randn(t.shape, generator=source) for n, t in update.tensors.items()}
            return dataclasses.replace(update, tensors={n: t + noise[n] for n, t in update.tensors.items()})

        seen = observe_clip(simulate=simulate)
        answers.append(run(Inverter(copies=2), dataclasses.replace(seen, channel=Channel())))
    assert not torch.equal(answers[0].clips, answers[1].clips)
