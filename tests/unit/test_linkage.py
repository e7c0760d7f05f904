"""Linkage: the update alone tells which candidate it came from, as far as the channel allows."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from attacking import CLASSES, SHAPE, built_in, scene, send

from vleak.attacks import Knowledge, Observation, link_chance, link_rank, link_scores
from vleak.certificates import identification_bound
from vleak.defenses import Compress, Defense, DpSgd, NoDefense, Prune
from vleak.errors import InputError
from vleak.federated import Channel, Scales, Update
from vleak.models import SMALL_MODELS
from vleak.seeds import generator


def seen(update: Update, defense: Defense) -> Observation:
    """Return what a server that knows the defense has; linkage does not ask the model."""
    knowledge = Knowledge(clip_shape=SHAPE, batch_size=1, classes=CLASSES)
    return Observation(torch.nn.Identity(), update, knowledge, defense.channel(update))


@cache
def candidates(name: str) -> list[list[Update]]:
    """Every clip under every label: who holds the clips does not hold their labels."""
    data, model = scene(), built_in(name)
    labels = torch.arange(len(data.classes))
    return [[send(model, clip[None], label[None]) for label in labels] for clip in data.clips]


def vector(*values: float) -> Update:
    return Update({"a": torch.tensor(values[:2]), "b": torch.tensor(values[2:])}, 0)


WEAK = [NoDefense(), Prune.sweep()[-1], Compress.sweep()[-1]]


@pytest.mark.parametrize(
    ("name", "defense"),
    [
        *(
            pytest.param(name, DpSgd.sweep()[0], marks=() if name == "c3d_tiny" else pytest.mark.slow)
            for name in SMALL_MODELS
        ),
        *(("c3d_tiny", defense) for defense in WEAK),
    ],
    ids=repr,
)
def test_linkage_is_exact_behind_weak_defenses(name: str, defense: Defense) -> None:
    data, known = scene(), candidates(name)
    for index in range(len(known)):
        update = send(built_in(name), data.clips[index][None], data.labels[index][None], defense, index)
        assert link_rank(link_scores(seen(update, defense), known), index) == 1


def test_linkage_is_chance_when_the_noise_is_huge() -> None:
    labels, hits, draws = scene().labels.tolist(), 0, 240
    known = [[group[label]] for group, label in zip(candidates("c3d_tiny_pool"), labels, strict=True)]
    defense = DpSgd(noise_multiplier=1e3)
    for draw in range(draws):
        numbers, index = generator("huge", draw), draw % len(known)
        honest = known[index][0].tensors
        noisy = {k: t + 1e3 * torch.randn(t.shape, generator=numbers) for k, t in honest.items()}
        hits += link_rank(link_scores(seen(Update(noisy, 0), defense), known), index) == 1
    chance = 1 / len(known)
    assert abs(hits / draws - chance) < 4 * math.sqrt(chance * (1 - chance) / draws)


def test_rank_is_pessimistic() -> None:
    scores = torch.tensor([0.5, 0.9, 0.5, 0.1])
    assert [link_rank(scores, index) for index in range(4)] == [3, 1, 3, 4]
    assert link_rank(torch.zeros(5), 2) == 5
    assert link_rank(torch.tensor([1.0, math.nan, 0.0]), 0) == 3
    assert link_rank(torch.tensor([math.inf, 0.0]), 0) == 2


def test_under_dp_the_likelihood_ranks() -> None:
    sent = vector(0.9, 0.05, 0.0)
    aligned, long = vector(0.45, 0.025, 0.0), vector(3.0, 0.4, 0.0)
    scores = link_scores(seen(sent, DpSgd(max_grad_norm=1.0)), [[aligned], [long]])
    clipped = torch.tensor([3.0, 0.4]).double() / math.sqrt(9.16)
    expected = [-(0.45**2 + 0.025**2), -float((clipped - torch.tensor([0.9, 0.05])).square().sum())]
    assert scores.tolist() == pytest.approx(
        [(value + 0.8125) / 2 for value in expected], rel=1e-5
    )  # + |sent|^2
    assert [link_rank(scores, index) for index in (0, 1)] == [2, 1]
    # Without the defense the direction ranks, and there the other one is exact.
    plain = link_scores(seen(sent, NoDefense()), [[aligned], [long]])
    assert [link_rank(plain, index) for index in (0, 1)] == [1, 2]
    assert plain[0].item() == pytest.approx(1.0)


def test_labels_that_are_not_known_are_summed_over() -> None:
    sent, far, near = vector(1.0, 0.0, 0.0), vector(-1.0, 0.0, 0.0), vector(0.6, 0.8, 0.0)
    scores = link_scores(seen(sent, DpSgd(noise_multiplier=1.0)), [[sent, far], [near, near]])
    one, other = math.log(math.exp(0.5) + math.exp(-1.5)), math.log(2 * math.exp(0.1))
    assert scores.tolist() == pytest.approx([one, other], rel=1e-5)
    plain = link_scores(seen(sent, NoDefense()), [[far, sent], [near, near]])
    assert plain.tolist() == pytest.approx([1.0, 0.6])


def test_pruned_entries_do_not_count() -> None:
    sent = vector(1.0, 0.0, 2.0)
    same, other = vector(1.0, 9.0, 2.0), vector(1.0, 0.0, 1.0)
    scores = link_scores(seen(sent, Prune(fraction=0.5)), [[same], [other]])
    assert scores[0].item() == pytest.approx(1.0)
    assert [link_rank(scores, index) for index in (0, 1)] == [1, 2]
    assert link_rank(link_scores(seen(sent, NoDefense()), [[same], [other]]), 0) == 2


@pytest.mark.parametrize(
    "defense",
    [
        Compress(codec="qsgd", bits=2, bucket=64),
        Compress(codec="qsgd", bits=4),
        Compress(codec="terngrad"),
    ],
    ids=repr,
)
def test_rounding_at_random_is_linked_by_its_scales(defense: Defense) -> None:
    # Gradients so alike that the rounding drowns what tells them apart, but not the scales.
    draws = generator("alike")
    common = {name: torch.randn(2000, generator=draws) for name in "ab"}
    known = [
        [Update({n: t * (1 + 0.02 * torch.randn(2000, generator=draws)) for n, t in common.items()}, 0)]
        for _ in range(12)
    ]
    ranks, by_cosine = [], []
    for index, (honest,) in enumerate(known):
        sent = Update(defense.transmit(dict(honest.tensors), draws).tensors, 0)
        observation = seen(sent, defense)
        assert observation.channel is not None
        ranks.append(link_rank(link_scores(observation, known), index))
        blind = replace(observation, channel=replace(observation.channel, scales=None))
        by_cosine.append(link_rank(link_scores(blind, known), index))
    assert ranks == [1] * 12
    assert by_cosine.count(1) < 9
    # Of a batch the scales are those of the mean, which no candidate has.
    several = replace(observation, knowledge=replace(observation.knowledge, batch_size=2))
    assert torch.equal(link_scores(several, known), link_scores(blind, known))


def test_scales_of_a_message_are_those_of_the_gradient_times_any_factor() -> None:
    draws = generator("factor")
    gradient = {"a": torch.randn(300, generator=draws), "b": torch.randn(7, 11, generator=draws)}
    for defense in (Compress(codec="qsgd", bits=4, bucket=50), Compress(codec="terngrad")):
        update = Update(defense.transmit(dict(gradient), generator("sent")).tensors, 0)
        scales = defense.channel(update).scales
        assert scales is not None
        torch.testing.assert_close(scales.sent, scales.of(gradient), rtol=1e-5, atol=0, equal_nan=True)
        assert scales.distance(gradient) < 1e-5
        scaled = defense.channel(update).scaled(-3.0).scales
        assert scaled is not None
        assert scaled.distance({name: 3 * tensor for name, tensor in gradient.items()}) < 1e-5
    with pytest.raises(InputError, match="scales have shape"):
        Channel(scales=Scales(torch.ones(9), lambda _: torch.ones(8))).check(update)


def test_linkage_goes_by_names_not_by_order() -> None:
    sent = vector(1.0, 2.0, 3.0, 4.0)
    swapped = Update(dict(reversed(sent.tensors.items())), 0)
    assert link_scores(seen(sent, NoDefense()), [[swapped]]).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([], ["at least one update"]),
        ([vector(1.0, 2.0, 3.0), vector(1.0, 2.0, 3.0, 4.0)], ["candidate 1", "other tensors"]),
        ([Update({"c": torch.zeros(3)}, 0)], ["candidate 0", "other tensors"]),
    ],
    ids=["none", "another shape", "another model"],
)
def test_linkage_refuses_what_cannot_be_compared(others: list[Update], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        link_scores(seen(vector(1.0, 2.0, 3.0), NoDefense()), [[other] for other in others])
    assert all(word in str(caught.value) for word in words), caught.value


def test_without_a_channel_the_direction_ranks() -> None:
    sent, same, other = vector(1.0, 0.0, 2.0), vector(1.0, 9.0, 2.0), vector(1.0, 0.0, 1.0)
    knowledge = Knowledge(clip_shape=SHAPE, batch_size=1, classes=CLASSES)
    unknown = Observation(torch.nn.Identity(), sent, knowledge)
    assert torch.equal(
        link_scores(unknown, [[same], [other]]), link_scores(seen(sent, NoDefense()), [[same], [other]])
    )


# ---------------------------------------------------------------------------------------------------------
# Over the noise


def canaries(count: int, norm: float) -> list[Update]:
    """Return orthogonal updates of one norm."""
    return [Update({"a": norm * torch.eye(count)[index]}, 0) for index in range(count)]


def optimum(count: int, noise: float) -> float:
    """Return how often the best attacker picks the right one of orthogonal canaries of one clipping norm."""
    # The right one has 1/s + z, the others z, and the largest is picked.
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(density * torch.special.ndtr(z + 1 / noise) ** (count - 1), z))


def excess(share: float, count: int, noise: float) -> float:
    """Return the part of the bound's excess over chance that a share takes."""
    return (share - 1 / count) / (identification_bound(count, noise) - 1 / count)


@pytest.mark.parametrize("noise", [0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("clip_norm", [0.5, 2.0])
def test_who_is_told_takes_four_fifths_of_the_bound_on_orthogonal_canaries(
    noise: float, clip_norm: float
) -> None:
    # The prior-aware attacker of Hayes et al. (arXiv 2302.07225). Excess taken: 1.00, 0.95, 0.84, 0.86.
    count, draws = 12, 40_000
    channel = Channel(noise_deviation=noise * clip_norm, clip_norm=clip_norm)
    chance = link_chance(canaries(count, 5.0), 3, channel, generator("canaries"), draws=draws)
    assert chance is not None
    expected = optimum(count, noise)
    assert chance == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / draws) + 1e-4)
    assert chance <= identification_bound(count, noise) + 1e-9
    assert excess(chance, count, noise) >= 0.8 - 0.05 * (noise == 3.0)  # of 40,000 draws, four deviations
    assert excess(expected, count, noise) >= 0.8


@pytest.mark.parametrize(
    ("noise", "draws"),
    [
        (0.1, 60),
        (0.3, 400),
        pytest.param(1.0, 4000, marks=pytest.mark.slow),
        pytest.param(3.0, 12_000, marks=pytest.mark.slow),
    ],
)
def test_linkage_of_messages_that_are_sent_takes_four_fifths_too(noise: float, draws: int) -> None:
    # One message each, through the defense's own clip and noise, and the scores that a run ranks by.
    count, norm = 12, 2.0
    defense = DpSgd(noise_multiplier=noise, max_grad_norm=norm)
    known = [[update] for update in canaries(count, 5.0)]
    hits = 0
    for draw in range(draws):
        samples = {"a": known[draw % count][0].tensors["a"][None]}
        sent = Update(defense.combine(samples, generator("sent", noise, draw)), 0)
        hits += link_rank(link_scores(seen(sent, defense), known), draw % count) == 1
    expected = optimum(count, noise)
    assert abs(hits / draws - expected) <= 4 * math.sqrt(expected * (1 - expected) / draws) + 1e-3
    if noise < 3:  # there 12,000 messages tell the excess to 9 % only
        assert excess(hits / draws, count, noise) >= 0.8


def test_chance_is_that_of_messages_that_are_sent() -> None:
    data, defense = scene(), DpSgd(noise_multiplier=0.3)
    told = [group[label] for group, label in zip(candidates("c3d_tiny"), data.labels.tolist(), strict=True)]
    clip, label = data.clips[:1], data.labels[:1]
    messages = [send(built_in("c3d_tiny"), clip, label, defense, seed) for seed in range(60)]
    ranks = [link_rank(link_scores(seen(each, defense), [[known] for known in told]), 0) for each in messages]
    channel = defense.channel(messages[0])
    assert channel is not None
    chance = link_chance(told, 0, channel, generator("sent"))
    assert chance is not None
    hits = ranks.count(1)
    assert abs(hits / 60 - chance) <= 4 * math.sqrt(max(chance * (1 - chance), 0.01) / 60)


def test_chance_is_of_gaussian_noise_alone() -> None:
    assert link_chance(canaries(3, 1.0), 0, Channel(), generator("none")) is None
    assert link_chance(canaries(1, 1.0), 0, Channel(noise_deviation=1.0), generator("one")) == 1.0
