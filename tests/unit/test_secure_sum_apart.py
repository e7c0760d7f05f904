"""Sums over clients of whom the server sees who sent what: the channel, labels, linkage, and the attack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attacking import built_in, flat, observe, run, scene, send
from tiny import Conv, batch, build
from torch.nn import functional as F

from vleak.attacks import Matching, Observation, infer_labels, link_scores
from vleak.attacks.apart import taken_apart
from vleak.attacks.matching.summed import SummedClients
from vleak.attacks.trials import trials
from vleak.defenses import Defense, parse_defenses
from vleak.errors import InputError
from vleak.federated import Channel, Client, LocalTraining, Message, Update, mean_gradient, steps
from vleak.seeds import generator


def defense_of(text: str) -> Defense:
    (defense,) = parse_defenses(text)
    assert isinstance(defense, Defense)
    return defense


PRUNE = defense_of("prune:fraction=0.99")


def seen(
    clients: int = 4, text: str = "prune:fraction=0.99", *, each: int = 1, **known: object
) -> Observation:
    clips, labels = scene().clips[: clients * each], scene().labels[: clients * each]
    defense = defense_of(f"{text}+secure_sum:clients={clients}")
    return observe(built_in("c3d_tiny"), clips, labels, defense, **{"labels": labels, **known})


def channel_of(observation: Observation) -> Channel:
    assert observation.channel is not None
    return observation.channel


def alone(index: int, defense: Defense = PRUNE) -> Update:
    rows = slice(index, index + 1)
    return send(built_in("c3d_tiny"), scene().clips[rows], scene().labels[rows], defense)


def test_positions_of_a_sparse_message_are_seen_and_those_of_a_dense_one_are_not() -> None:
    observation = seen()
    assert len(observation.update.senders) == len(channel_of(observation).senders) == 4
    assert observation.update.wire_bytes == pytest.approx(alone(0).wire_bytes, rel=0.05)
    dense = seen(text="prune:fraction=0.99+compress:codec=int8")
    assert dense.update.senders == dense.update.sent_alone() == ()
    assert taken_apart(dense) == [dense]
    messages = [Message({"w": torch.ones(2)}, 0, positions=True), Message({"w": torch.ones(2)}, 0)]
    assert steps.summed(messages).senders == ()


def test_what_a_client_alone_sent_is_its_own_message() -> None:
    observation = seen()
    messages = [flat(alone(index)) for index in range(4)]
    senders = torch.stack([message != 0 for message in messages]).sum(0)
    for message, update in zip(messages, observation.update.sent_alone(), strict=True):
        own = flat(update)
        assert update.facts.batch_size == 1
        torch.testing.assert_close(own, torch.where(senders == 1, message, 0.0))
        assert int((own != 0).sum()) > 20
    assert int((senders > 1).sum()) > 20  # what is left is a sum


def test_the_model_of_the_sum_has_the_update_as_its_gradient() -> None:
    defense, (clips, labels) = defense_of("prune:fraction=0.7+secure_sum:clients=2"), batch(4)
    model = build(Conv).eval()
    update = Client(model, defense=defense).update(clips, labels, generator("sum"))
    summed = SummedClients(model, update.senders)
    found = mean_gradient(summed, F.cross_entropy, clips, labels)
    for gradient, tensor in zip(found.values(), update.tensors.values(), strict=True):
        torch.testing.assert_close(gradient, tensor, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(summed(clips), model(clips))


def test_noise_of_the_clients_is_in_the_channel() -> None:
    text = "noise:deviation=0.01,max_norm=1.0+prune:which=random,fraction=0.5"
    noisy, clean = seen(text=text), seen(text=text.replace("0.01", "1e-9"))
    gaps = flat(noisy.update) - flat(clean.update)
    assert channel_of(noisy).noise_energy == pytest.approx(float(gaps.square().sum()), rel=0.1)
    assert channel_of(noisy).noise_deviation is None


def test_several_local_steps_are_left_to_simulation() -> None:
    local = LocalTraining(steps=2, learning_rate=0.05)
    client = Client(build(Conv), defense=defense_of("prune:fraction=0.9+secure_sum:clients=2"), local=local)
    assert client.channel(client.update(*batch(4), generator("local"))) is None


def test_labels_are_dealt_out_to_the_clients() -> None:
    observation = seen(labels=None)
    assert torch.equal(infer_labels(observation), scene().labels[:4])
    whole = replace(observation, channel=replace(channel_of(observation), senders=()))
    assert not torch.equal(infer_labels(whole), scene().labels[:4])


def gap_of(observation: Observation) -> float:
    answer = run(Matching(iterations=60), observation).clips
    return float((answer - scene().clips[: len(answer)]).square().mean())


@pytest.mark.slow
@pytest.mark.parametrize("clients", [4, 8])
def test_whoever_knows_who_sent_what_beats_whoever_does_not(clients: int) -> None:
    observation = seen(clients)
    whole = replace(observation, channel=replace(channel_of(observation), senders=()))
    simulated = replace(seen(clients, rehearse=True), channel=None)
    blind = replace(observation, channel=None)
    assert gap_of(observation) < 0.85 * min(map(gap_of, (whole, simulated, blind)))


def test_trials_have_senders_of_their_own() -> None:
    observation = seen(2, rehearse=True)
    (trial,) = trials(observation, observation.channel, 1)
    trial.observation.check()
    assert len(channel_of(trial.observation).senders) == 2
    assert not torch.equal(
        flat(Update(channel_of(trial.observation).senders[0], 0)),
        flat(Update(channel_of(observation).senders[0], 0)),
    )


def test_rounds_have_senders_of_their_own() -> None:
    observation = seen(2)
    both = replace(observation, earlier=(seen(2, "prune:fraction=0.95"),))
    assert run(Matching(iterations=2), both).clips.shape == scene().clips[:2].shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda sent: (sent[0],) * 3, "senders are 3, the batch has 2 clips; expected as many for each"),
        (lambda sent: ({}, {}), "mask 'features.0.weight' has shape None"),
    ],
)
def test_senders_of_another_update_are_refused(change, words: str) -> None:  # type: ignore[no-untyped-def]
    observation = seen(2)
    channel = channel_of(observation)
    broken = replace(observation, channel=replace(channel, senders=change(channel.senders)))
    with pytest.raises(InputError, match=words):
        Matching(iterations=1).reconstruct(broken, generator("broken"))


def test_linkage_looks_at_every_client() -> None:
    honest = [[alone(index, Defense())] for index in range(8)]
    assert set(link_scores(seen(), honest).topk(4).indices.tolist()) == {0, 1, 2, 3}
