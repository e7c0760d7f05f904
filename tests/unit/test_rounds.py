"""Several rounds as one problem: gradients, channels and the server's step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from vleak.attacks import Knowledge, Observation
from vleak.attacks.matching.rounds import RoundsLoss, joined
from vleak.defenses import DpSgd, Prune
from vleak.federated import Client, Defense, LocalTraining, Update
from vleak.pipelines.rounds import bystander, move
from vleak.seeds import generator

CLIPS, LABELS = torch.rand(2, 3, 2, 4, 4, generator=generator("clips")), torch.tensor([0, 2])


def model(seed: int) -> nn.Module:
    made = nn.Sequential(nn.Flatten(), nn.Linear(96, 3))
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator("weights", seed))
    return made


def observation(seed: int, defense: Defense = Defense()) -> Observation:
    client = Client(model(seed), defense=defense)
    update = client.update(CLIPS, LABELS, generator("client", seed))
    knowledge = Knowledge(clip_shape=(3, 2, 4, 4), batch_size=2, classes=3, labels=LABELS)
    return Observation(client.model, update, knowledge, client.channel(update))


def test_the_gradient_of_rounds_is_that_of_each() -> None:
    rounds = [observation(seed) for seed in range(3)]
    together = joined(rounds)
    together.check()
    parameters = dict(together.model.named_parameters())
    loss = RoundsLoss(F.cross_entropy, 3)(together.model(CLIPS), LABELS)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    for name, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(gradient, together.update.tensors[name], rtol=1e-4, atol=1e-6)
    assert next(iter(parameters)) == "rounds.0.1.weight"


def test_channels_are_joined() -> None:
    pruned = joined([observation(seed, Prune(fraction=0.5)) for seed in range(2)]).channel
    assert pruned is not None
    assert pruned.masks is not None
    assert set(pruned.masks) == {f"rounds.{r}.1.{part}" for r in (0, 1) for part in ("weight", "bias")}
    noisy = [observation(seed, DpSgd(noise_multiplier=0.5)) for seed in range(2)]
    both = joined(noisy).channel
    assert both is not None
    assert both.noise_energy == 2 * noisy[0].channel.noise_energy
    mixed = joined([observation(0), observation(1, Prune(fraction=0.5))]).channel
    assert mixed is None  # no defense states no channel
    whole = joined([replace(noisy[0], channel=noisy[0].channel), observation(1, Prune(fraction=0.5))]).channel
    assert whole is not None
    assert whole.masks is not None
    assert whole.masks["rounds.0.1.weight"].all()


def test_the_server_takes_a_step_or_adds_a_delta() -> None:
    start = model(0)
    gradient = Client(start).update(CLIPS, LABELS, generator(0))
    delta = Client(start, local=LocalTraining(steps=1, learning_rate=0.5)).update(CLIPS, LABELS, generator(0))
    stepped, added = move(start, gradient, 0.5), move(start, delta, 9.0)
    for one, other in zip(stepped.parameters(), added.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not torch.equal(stepped[1].weight, start[1].weight)


def test_a_bystander_has_public_clips() -> None:
    update = bystander(Client(model(0)), CLIPS, LABELS, generator("server"))
    assert isinstance(update, Update)
    assert update.facts.batch_size == 2
