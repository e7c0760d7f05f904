"""Capture of a training step: what is recorded is what a client sends, and what cannot be is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from audits import SHAPE, clips, model, with_norm
from torch import Tensor, nn

import vleak
from vleak.errors import CapabilityError, InputError
from vleak.federated import Client, LocalTraining, Update
from vleak.seeds import generator


def loss_of(net: nn.Module, rows: slice = slice(0, 1)) -> Tensor:
    return nn.functional.cross_entropy(net(clips().clips[rows]), clips().labels[rows])


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()


def same(one: Update, other: Update, tolerance: float = 1e-5) -> bool:
    return list(one.tensors) == list(other.tensors) and all(
        torch.allclose(one.tensors[name], other.tensors[name], atol=tolerance) for name in one.tensors
    )


def test_one_step_is_the_gradient_of_the_client() -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters())
    honest = Client(net).update(clips().clips[:1], clips().labels[:1], generator(0))
    with vleak.watch(net, optimizer) as watched:
        train(net, optimizer)
    update = watched.update()
    assert same(update, honest)
    assert update.facts == honest.facts
    assert same(Client(watched.before()).update(clips().clips[:1], clips().labels[:1], generator(0)), honest)
    train(net, optimizer)  # the hooks are gone
    assert watched.steps == 1


@pytest.mark.parametrize(
    ("make", "local"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.05), LocalTraining(steps=3, learning_rate=0.05)),
        (
            lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
            LocalTraining(steps=3, learning_rate=0.05, momentum=0.9, weight_decay=0.01),
        ),
        (
            lambda p: torch.optim.Adam(p, lr=0.001),
            LocalTraining(steps=3, learning_rate=0.001, optimizer="adam"),
        ),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_several_steps_are_the_delta_of_the_client(
    make: Callable[[Any], torch.optim.Optimizer], local: LocalTraining
) -> None:
    net = model()
    honest = Client(net, local=local).update(clips().clips[:1], clips().labels[:1], generator(0))
    optimizer = make(net.parameters())
    watched = vleak.watch(net, optimizer)
    train(net, optimizer, steps=3)
    assert watched.steps == 3
    assert same(watched.update(), honest)
    assert watched.update().facts == honest.facts


def test_accumulated_gradients_are_one_step() -> None:
    net = model()
    honest = Client(net).update(clips().clips[:4], clips().labels[:4], generator(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = vleak.watch(net, optimizer)
    for row in range(4):
        (loss_of(net, slice(row, row + 1)) / 4).backward()
    optimizer.step()
    update = watched.update(batch_size=4)
    assert watched.steps == 1
    assert same(update, honest)
    assert update.facts.batch_size == 4
    assert "accumulates 4 backward passes" in update.notes[0]


def test_train_mode_is_recorded_with_the_statistics_before() -> None:
    net = with_norm().train()
    before = net.norm.running_mean.clone()
    honest = Client(net, mode="train").update(clips().clips[:2], clips().labels[:2], generator(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = vleak.watch(net, optimizer)
    loss_of(net, slice(0, 2)).backward()
    optimizer.step()
    update = watched.update(batch_size=2)
    assert update.facts.mode == "train"
    assert same(update, honest)
    assert not torch.equal(net.norm.running_mean, before)
    assert torch.equal(watched.before().norm.running_mean, before)


@pytest.mark.parametrize("fused", [False, True])  # a fused optimizer is handed the scale
def test_the_scale_of_mixed_precision_is_taken_out(fused: bool) -> None:
    net = model()
    honest = Client(net).update(clips().clips[:1], clips().labels[:1], generator(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    watched = vleak.watch(net, optimizer)
    scaler.scale(loss_of(net)).backward()
    scaler.step(optimizer)
    assert same(watched.gradient(), honest)


def test_a_part_of_the_model_is_a_part_of_the_update() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
    watched = vleak.watch(net, optimizer)
    train(net, optimizer)
    update = watched.update()
    assert list(update.tensors) == ["head.weight", "head.bias"]
    assert update.partial
    update.check(net)


def test_a_reset_begins_a_new_round() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = vleak.watch(net, optimizer)
    train(net, optimizer, steps=2)
    watched.reset()
    honest = Client(net).update(clips().clips[:1], clips().labels[:1], generator(0))
    train(net, optimizer)
    assert same(watched.update(), honest)


def test_what_was_watched_is_audited() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    watched = vleak.watch(net, optimizer)
    train(net, optimizer, steps=2)
    made = watched.audit(input_shape=SHAPE, attacks=(), public=clips().public_clips)
    assert {check.outcome for check in made.record.consistency} == {"fits"}
    assert made.record.update.local.startswith("steps 2")


def test_what_cannot_be_described_is_refused() -> None:
    net = model()
    with pytest.raises(InputError, match="calls a closure"):
        vleak.watch(net, torch.optim.LBFGS(net.parameters()))
    with pytest.raises(InputError, match="trains none"):
        vleak.watch(net, torch.optim.SGD(model(1).parameters(), lr=0.1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = vleak.watch(net, optimizer)
    with pytest.raises(InputError, match="no step of the optimizer was seen"):
        watched.update()
    with pytest.raises(InputError, match="calls a closure"):
        optimizer.step(lambda: 0.0)
    train(net, optimizer)
    optimizer.param_groups[0]["lr"] = 0.2
    train(net, optimizer)
    with pytest.raises(CapabilityError, match="changed between steps"):
        watched.update()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "nesterov=True is not described"),
        (lambda p: torch.optim.RMSprop(p, lr=0.1), "of RMSprop is not described"),
        (
            lambda p: torch.optim.SGD(
                [{"params": list(p)[:2], "lr": 0.1}, {"params": list(p)[2:], "lr": 0.2}]
            ),
            "settings of their own",
        ),
    ],
    ids=["nesterov", "rmsprop", "groups"],
)
def test_a_delta_of_other_training_is_refused(
    make: Callable[[Any], torch.optim.Optimizer], words: str
) -> None:
    net = model()
    optimizer = make(list(net.parameters()))
    watched = vleak.watch(net, optimizer)
    train(net, optimizer, steps=2)
    with pytest.raises(CapabilityError, match=words):
        watched.update()
    watched.gradient()  # of the first step it is all the same


def test_a_momentum_from_before_is_refused() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    train(net, optimizer)
    watched = vleak.watch(net, optimizer)
    train(net, optimizer, steps=2)
    with pytest.raises(CapabilityError, match="momentum from before"):
        watched.delta()
