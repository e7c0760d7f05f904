"""Retrieval: public clips count by the likelihood of their own messages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attacking import SHAPE, built_in, observe, observe_clip, psnr, run, scene
from torch import Tensor, nn

from vleak.attacks import Knowledge, Observation, Retrieval
from vleak.defenses import Compress, Defense, DpSgd, NoDefense, Prune
from vleak.errors import InputError
from vleak.federated import Client
from vleak.seeds import generator

PUBLIC = torch.cat([scene().public_clips, scene().public_clips.flip(4).roll(1, 2).clamp(0, 1)])[:12]
TWINS = torch.cat([PUBLIC[:6], (PUBLIC[:6] + 0.02).clamp(0, 1)])
"""Six scenes, each twice and nearly alike."""
FILES = torch.arange(12) % 6
PRIVATE, LABEL = (PUBLIC[2:3] - 0.02).clamp(0, 1), torch.tensor([1])
"""A third take of scene 2."""


def seen(defense: Defense = NoDefense(), **known: Any) -> Observation:
    given = {"public_clips": TWINS, **known}
    return observe(built_in("c3d_tiny"), PRIVATE, LABEL, defense, rehearse=True, **given)


def mean_of(observation: Observation) -> Tensor:
    mean = observation.knowledge.public_mean()
    assert mean is not None
    return mean


@pytest.mark.parametrize(
    "defense",
    [NoDefense(), DpSgd(noise_multiplier=0.003), Prune(fraction=0.9), Compress(codec="qsgd", bits=4)],
    ids=repr,
)
def test_other_takes_of_a_scene_are_found(defense: Defense) -> None:
    observation = seen(defense)
    answer = run(Retrieval(rehearsals=12), observation)
    assert psnr(answer.clips, PRIVATE) > psnr(mean_of(observation)[None], PRIVATE) + 6
    gaps = (answer.clips - TWINS).square().mean((1, 2, 3, 4))
    assert int(gaps.argmin()) % 6 == 2
    assert answer.labels.tolist() == LABEL.tolist()
    assert answer.defense_knowledge == "channel"


def test_rehearsal_leaves_out_whole_files() -> None:
    """That takes of one scene find each other says nothing of a private clip that has no other take."""
    scenes = torch.rand(6, *SHAPE, generator=generator("scenes"))  # of which none tells of another
    known: dict[str, Any] = {"public_clips": torch.cat([scenes, 0.9 * scenes])}
    attack = Retrieval(rehearsals=12)
    fooled, warned = (run(attack, seen(**known, public_groups=groups)) for groups in (None, FILES))
    middle = mean_of(seen(**known))
    assert (warned.clips - middle).abs().mean() < 0.2 * (fooled.clips - middle).abs().mean()


def test_behind_noise_that_drowns_everything_the_answer_is_near_the_mean() -> None:
    observation = seen(DpSgd(noise_multiplier=100.0))
    answer = run(Retrieval(rehearsals=12), observation)
    assert (answer.clips - mean_of(observation)).abs().mean() < 0.01


def test_a_label_of_a_bag_that_is_not_granted_is_tried() -> None:
    """Of a label that was guessed wrong the right bag is found all the same; a granted one is believed."""
    public = torch.rand(8, 4, 5, generator=generator("bags"))
    client = Client(nn.Sequential(nn.Linear(5, 1), nn.Sigmoid()), "bce", DpSgd(noise_multiplier=0.001))
    sent = client.update(public[3:4], LABEL, generator("send"))
    wrong = Knowledge(
        clip_shape=(4, 5), batch_size=1, classes=2, public_clips=public.repeat(2, 1, 1),
        labels=torch.tensor([0]), labels_inferred=True, simulate=client.update,
    )  # fmt: skip
    observation = Observation(client.model, sent, wrong, client.channel(sent))
    tried = run(Retrieval(), observation)
    assert tried.labels.tolist() == LABEL.tolist()
    assert int((tried.clips - public).square().mean((1, 2)).argmin()) == 3
    told = run(Retrieval(), replace(observation, knowledge=replace(wrong, labels_inferred=False)))
    assert told.labels.tolist() == [0]


def test_its_answer_depends_on_the_update_and_not_on_the_generator() -> None:
    observation = seen()
    first, again = (run(Retrieval(rehearsals=4), observation, seed) for seed in (0, 1))
    assert torch.equal(first.clips, again.clips)
    other = observe(built_in("c3d_tiny"), PUBLIC[4:5], LABEL, rehearse=True, public_clips=TWINS)
    assert not torch.equal(first.clips, run(Retrieval(rehearsals=4), other).clips)


@pytest.mark.parametrize("groups", [None, torch.zeros(12, dtype=torch.int64)])
def test_without_a_rehearsal_that_says_anything_there_is_an_answer(groups: Tensor | None) -> None:
    observation = replace(seen(public_groups=groups), channel=None)
    observation = replace(observation, knowledge=replace(observation.knowledge, simulate=None))
    answer = run(Retrieval(), observation)
    assert torch.isfinite(answer.clips).all()
    if groups is not None:
        assert torch.allclose(answer.clips[0], mean_of(observation), atol=1e-5)


def test_matrices_of_features_are_retrieved_too() -> None:
    public = torch.rand(8, 4, 5, generator=generator("matrices"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 2))
    sent = Client(model).update(public[3:4], torch.tensor([1]), generator("send"))
    known = Knowledge(clip_shape=(4, 5), batch_size=1, classes=2, public_clips=public.repeat(2, 1, 1))
    answer = run(Retrieval(), Observation(model, sent, known))
    assert torch.allclose(answer.clips[0], public[3], atol=1e-3)


def test_what_it_cannot_take_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1 rehearsal"):
        Retrieval(rehearsals=0)
    with pytest.raises(InputError, match="fewer than two"):
        run(Retrieval(), observe_clip(public_clips=TWINS[:1]))
    labels = torch.tensor([1, 4])
    batch = observe(built_in("c3d_tiny"), scene().clips[:2], labels, labels=labels)
    with pytest.raises(InputError, match="takes one clip a client, got a batch of 2; choose") as caught:
        run(Retrieval(), batch)
    assert "\n" not in str(caught.value)
