"""Strongest attack: it chooses by its own trials on public clips, and what it expects is what it gets."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from attacking import built_in, observe, observe_clip, psnr, run, scene
from torch import nn

from vleak.attacks import Strongest
from vleak.attacks.base import Hooks, Observation
from vleak.attacks.cost import slowness
from vleak.attacks.flags import NO_EVIDENCE
from vleak.attacks.learned import Inverter
from vleak.attacks.simulation import known_channel
from vleak.attacks.trials import evidence_of, trials
from vleak.defenses import Compress, DpSgd, Prune
from vleak.errors import InputError
from vleak.federated import LocalTraining


def quick(**settings: int) -> Strongest:
    return Strongest(**{"iterations": 20, "budget": 50, **settings}, engine="reference")


def gain(answer: torch.Tensor, index: int) -> float:
    truth, mean = scene().clips[index : index + 1], scene().public_clips.mean(0)[None]
    return psnr(answer, truth) - psnr(mean, truth)


def test_trials_hold_neither_their_clips_nor_others_of_their_videos() -> None:
    observation = observe_clip(rehearse=True, public_groups=torch.arange(12) // 3)
    tried = trials(observation, known_channel(observation), 3)
    assert len(tried) == 3
    groups = set()
    for trial in tried:
        public = trial.observation.knowledge.public_clips
        assert public is not None
        assert len(public) == 9
        own = int((scene().public_clips - trial.clips).flatten(1).abs().sum(1).argmin()) // 3
        assert not set(range(own * 3, own * 3 + 3)) & {
            int((scene().public_clips - clip).flatten(1).abs().sum(1).argmin()) for clip in public
        }
        groups.add(own)
    assert len(groups) == 3  # one video each


def test_trials_are_messages_of_the_same_client_and_defense() -> None:
    observation = observe_clip(rehearse=True, defense=Prune(fraction=0.9))
    (trial,) = trials(observation, known_channel(observation), 1)
    sent = torch.cat([tensor.flatten() for tensor in trial.observation.update.tensors.values()])
    assert 0.05 < float((sent != 0).float().mean()) < 0.11
    masks = trial.observation.channel.masks if trial.observation.channel else None
    assert masks is not None
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    assert torch.equal(kept, sent != 0)


def test_a_trial_is_scored_against_what_was_sent() -> None:
    observation = observe_clip(rehearse=True)
    (trial,) = trials(observation, known_channel(observation), 1)
    mean = trial.observation.knowledge.public_clips.mean(0)[None]  # type: ignore[union-attr]
    assert trial.gain(mean) == pytest.approx(0.0)
    assert trial.gain(0.5 * mean + 0.5 * trial.clips) == pytest.approx(20 * math.log10(2), abs=1e-3)


def test_undefended_it_is_as_good_as_matching_and_says_what_it_chose() -> None:
    answer = run(quick(), observe_clip(rehearse=True))
    assert any(descent in answer.method for descent in ("matching", "refinement"))
    assert gain(answer.clips, 0) > 3
    names = [name for name, _ in answer.evidence]
    assert names[:1] == ["matching"]
    assert {"refinement", "inverter", "retrieval"} <= set(names)
    assert dict(answer.evidence)[answer.method] == max(dict(answer.evidence).values())


def test_in_noise_it_follows_what_gains_on_public_clips() -> None:
    gains, evidence = [], set()
    for index in range(2):  # one choice serves both
        observation = observe_clip(index, rehearse=True, defense=DpSgd(noise_multiplier=0.02))
        answer = run(quick(), observation)
        assert answer.method not in ("matching", "baseline")
        gains.append(gain(answer.clips, index))
        evidence.add((answer.method, answer.evidence))
    assert sum(gains) / 2 > 0.5
    assert len(evidence) == 1
    assert torch.equal(run(quick(), observation).clips, answer.clips)


def test_where_nothing_gains_the_answer_is_the_baseline_and_says_so() -> None:
    seen = 0
    for index in range(2):
        observation = observe_clip(index, rehearse=True, defense=DpSgd(noise_multiplier=30.0))
        answer = run(quick(), observation)
        assert gain(answer.clips, index) > -0.3  # whatever it follows, it follows a little of the way
        if answer.method == "baseline":
            seen += 1
            assert NO_EVIDENCE in answer.flags
            torch.testing.assert_close(answer.clips, scene().public_clips.mean(0)[None])
    assert seen in (0, 2)  # one choice for one model and defense


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.005, 0.02, 0.1, 1.0])
def test_what_it_expects_is_what_it_gets(noise: float) -> None:
    gains, expected = [], 0.0
    for index in range(8):
        observation = observe_clip(index, rehearse=True, defense=DpSgd(noise_multiplier=noise))
        answer = run(Strongest(), observation)
        gains.append(gain(answer.clips, index))
        expected = max(0.0, *dict(answer.evidence).values())
    assert abs(sum(gains) / 8 - expected) < 1.0


@pytest.mark.parametrize("public", [0, 1, 2])
def test_without_enough_public_clips_it_is_matching(public: int) -> None:
    observation = observe_clip(rehearse=True, public_clips=scene().public_clips[:public])
    answer = run(quick(), observation)
    assert (answer.method, answer.evidence) == ("matching", ())


@pytest.mark.slow
def test_batches_rounds_and_unknown_defenses() -> None:
    clips, labels = scene().clips[:2], scene().labels[:2]
    batch = run(quick(iterations=5, budget=20), observe(built_in("c3d_tiny"), clips, labels, rehearse=True))
    assert batch.clips.shape == clips.shape
    assert "retrieval" not in dict(batch.evidence)  # takes one clip a client
    unknown = observe_clip(adaptive=False)
    assert run(quick(iterations=5, budget=20), unknown).defense_knowledge == "none"
    known = observe_clip(rehearse=True, labels=scene().labels[:1])
    rounds = Observation(**{**vars(known), "earlier": (known,)})
    assert run(quick(iterations=5, budget=20), rounds).evidence


def test_an_attack_that_fails_in_the_trials_is_left_out() -> None:
    class Refusing(Strongest):
        def prepare(self, observation, generator, hooks):  # type: ignore[no-untyped-def]
            raise InputError("refused")

    observation = observe_clip(rehearse=True)
    tried = trials(observation, known_channel(observation), 1)
    (refused, sound) = evidence_of({"refusing": Refusing(), "sound": quick(budget=40)}, tried, Hooks())
    assert (refused.gain, refused.failure) == (-math.inf, "refused")
    assert sound.gains


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"budget": 4}, "at least 5"),
        ({"iterations": 0}, "1 iteration"),
        ({"restarts": 2, "budget": 9}, "at least 10"),
    ],
)
def test_settings_out_of_range(settings: dict[str, int], what: str) -> None:
    with pytest.raises(InputError, match=what):
        Strongest(**settings)


def test_a_part_of_an_update_is_tried_as_a_part() -> None:
    observation = observe_clip(rehearse=True, labels=scene().labels[:1])
    name = next(iter(observation.update.tensors))
    tensors = {name: observation.update.tensors[name]}
    update = replace(observation.update, tensors=tensors, partial=True)
    partial = replace(observation, update=update, channel=None)
    (trial,) = trials(partial, None, 1)
    assert list(trial.observation.update.tensors) == [name]
    assert "inverter" not in dict(run(quick(iterations=5, budget=20), partial).evidence)


def test_trials_behind_a_quantiser_do_not_depend_on_the_update() -> None:
    energies = set()
    for index in range(2):
        observation = observe_clip(index, rehearse=True, defense=Compress(codec="qsgd", bits=2))
        (trial,) = trials(observation, known_channel(observation), 1)
        assert trial.observation.channel is not None
        energies.add(trial.observation.channel.noise_energy)
        sent = sum(float(t.square().sum()) for t in trial.observation.update.tensors.values())
        assert 0 < trial.observation.channel.noise_energy < 2 * sent
    assert len(energies) == 1


def test_stopped_trials_are_not_kept() -> None:
    observation = observe_clip(rehearse=True, defense=Prune(fraction=0.95))
    attack = quick(iterations=5, budget=20)
    stopped = run(attack, observation, stop=lambda: True)
    assert (stopped.method, stopped.evidence, stopped.flags) == ("baseline", (), ())
    assert run(attack, observation).evidence


def test_trials_with_labels_and_without_are_kept_apart() -> None:
    attack, labels = quick(iterations=5, budget=20), scene().labels[:1]
    inferred = observe_clip(rehearse=True, defense=Prune(fraction=0.99))
    granted = observe_clip(rehearse=True, defense=Prune(fraction=0.99), labels=labels)
    keys = []
    for observation in (inferred, granted):
        infers = observation.knowledge.labels is None
        knowledge = replace(observation.knowledge, labels=labels, labels_inferred=infers)
        observation = replace(observation, knowledge=knowledge)
        keys.append(attack._key(observation, observation.channel))
    assert keys[0] != keys[1]
    assert attack._key(granted, granted.channel) == keys[1]


def test_the_cost_of_an_iteration_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv3d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 4 * 16 * 16, 6))
    observation = observe(model, scene().clips[:2], scene().labels[:2])
    # two operations for each tap of each output, and for each weight of the last layer
    operations = 2 * 2 * (3 * 27 + 6) * 5 * 4 * 16 * 16
    assert slowness(observation) == 1.0
    monkeypatch.setattr("vleak.attacks.cost._SMALL", operations / 3)
    assert slowness(observation) == pytest.approx(3.0)
    for steps, batch_size, cost in ((4, 0, 12.0), (4, 1, 6.0), (40, 0, 3.0)):  # forty are not unrolled
        local = LocalTraining(steps=steps, batch_size=batch_size, learning_rate=0.1)
        delta = replace(
            observation.update, facts=replace(observation.update.facts, kind="fedavg", local=local)
        )
        assert slowness(replace(observation, update=delta)) == pytest.approx(cost)


def test_a_slow_network_has_fewer_copies() -> None:
    assert [Inverter.afforded(slow).copies for slow in (1.0, 2.0, 100.0)] == [8, 4, 1]


@pytest.mark.parametrize(("slow", "iterations"), [(1.0, 60), (2.0, 30), (100.0, 20)])
def test_a_slow_network_has_fewer_iterations(
    slow: float, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vleak.attacks.strongest.slowness", lambda observation: slow)
    unknown = observe_clip(public_clips=scene().public_clips[:2])  # nothing to try: it is one descent
    assert run(quick(iterations=60), unknown).iterations == iterations
    tried = run(quick(iterations=6, budget=20), observe_clip(rehearse=True))
    assert tried.evidence  # however few iterations are left
