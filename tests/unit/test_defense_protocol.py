"""Secure sums over clients, and clients that train on look-alikes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from attacking import built_in, observe, run, scene
from tiny import Conv, batch, build
from torch import Tensor
from torch.nn import functional as F

from vleak.attacks import Matching
from vleak.defenses import (
    Composite,
    Defense,
    DpClient,
    DpSgd,
    Lookalikes,
    NoDefense,
    SecureSum,
    parse_defenses,
)
from vleak.defenses.protocol import sent_by_one
from vleak.errors import CapabilityError, InputError
from vleak.federated import Channel, Client, LocalTraining, Message, Update, mean_gradient, steps
from vleak.seeds import generator


def send(defense: Defense, clips: int = 4, local: LocalTraining | None = None, **rounds: object) -> Update:
    client = Client(build(Conv), defense=defense, local=local)
    return client.update(*batch(clips), generator("send"), **rounds)  # type: ignore[arg-type]


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


# ---- secure sum


@pytest.mark.parametrize("clients", [2, 4])
def test_the_sum_of_gradients_is_that_of_all_clips(clients: int) -> None:
    summed, plain = send(SecureSum(clients=clients)), send(NoDefense())
    torch.testing.assert_close(flat(summed.tensors), flat(plain.tensors), rtol=1e-4, atol=1e-6)
    assert summed.facts.batch_size == 4
    assert summed.wire_bytes == plain.wire_bytes


def test_each_client_trains_on_its_own_clips() -> None:
    local = LocalTraining(steps=3, learning_rate=0.1)
    summed = send(SecureSum(clients=2), local=local).tensors
    clips, labels = batch(4)
    alone = [
        Client(build(Conv), local=local).update(clips[part], labels[part], generator(0)).tensors
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(flat(summed), (flat(alone[0]) + flat(alone[1])) / 2)
    together = send(NoDefense(), local=local).tensors
    assert not torch.allclose(flat(summed), flat(together), rtol=1e-3)


def test_clients_that_drop_out_leave_the_sum_and_below_the_threshold_nothing() -> None:
    defense = SecureSum(clients=5, dropped=1)
    assert defense.label == "sum of 4"
    assert torch.equal(flat(send(defense).tensors), flat(send(SecureSum(clients=4)).tensors))
    with pytest.raises(
        InputError, match=r"of 5 clients 3 drop out, and no sum of fewer than 3 .* nothing is sent"
    ):
        SecureSum(clients=5, dropped=3, threshold=3)


def test_every_client_has_its_own_error_feedback() -> None:
    (defense,) = parse_defenses("prune:fraction=0.9,error_feedback=true+secure_sum:clients=2")
    memory: dict[str, Tensor] = {}
    send(defense, memory=memory)
    (alone,) = parse_defenses("prune:fraction=0.9,error_feedback=true")
    clips, labels = batch(4)
    for part, start in ((slice(0, 2), ""), (slice(2, 4), "client 1/")):
        own: dict[str, Tensor] = {}
        Client(build(Conv), defense=alone).update(clips[part], labels[part], generator(0), own)
        for name, tensor in own.items():
            torch.testing.assert_close(memory[start + name], tensor)


@pytest.mark.parametrize("stage", [DpSgd(noise_multiplier=0.5), DpClient(noise_multiplier=0.5)])
def test_noise_of_all_clients_is_in_the_sum(stage: Defense) -> None:
    defense = Composite(stages=(stage, SecureSum(clients=4)))
    clean = Composite(stages=(type(stage)(noise_multiplier=0.0), SecureSum(clients=4)))  # type: ignore[call-arg]
    sent = send(defense, clips=8)
    gaps = flat(sent.tensors) - flat(send(clean, clips=8).tensors)
    channel = Client(build(Conv), defense=defense).channel(sent)
    assert channel is not None
    assert float(gaps.square().sum()) == pytest.approx(channel.noise_energy, rel=0.1)
    assert channel.noise_deviation == pytest.approx(8 * math.sqrt(channel.noise_energy / len(gaps)))
    assert defense.privacy() == stage.privacy()


def test_altered_sums_and_several_steps_are_left_to_simulation() -> None:
    (altered,) = parse_defenses("prune:fraction=0.9+compress:codec=int8+secure_sum:clients=2")
    assert Client(build(Conv), defense=altered).channel(send(altered)) is None
    local = LocalTraining(steps=2)
    assert SecureSum(clients=2).channel(send(SecureSum(clients=2), local=local)) is None
    assert isinstance(SecureSum(clients=2).channel(send(SecureSum(clients=2))), Channel)


def test_sparse_updates_show_what_one_client_alone_sends() -> None:
    def message(*values: float) -> Message:
        return Message({"w": torch.tensor(values)}, 0)

    assert sent_by_one([message(1, 0, 2, 0), message(0, 0, 3, 4)]) == pytest.approx(2 / 3)
    assert sent_by_one([message(0, 0)]) == 0
    (prune,) = parse_defenses("prune:fraction=0.99")
    clips, labels = batch(4)
    model = build(Conv)
    alone = [
        Client(model, defense=prune).update(clips[i : i + 1], labels[i : i + 1], generator(0))
        for i in range(4)
    ]
    messages = [Message(update.tensors, update.wire_bytes) for update in alone]
    assert sent_by_one(messages) > 0.3  # of a hundredth of the entries, few meet
    assert sent_by_one([Message(update.tensors, 0) for update in [send(NoDefense(), 1)] * 2]) == 0


def test_the_answer_to_a_sum_is_one_clip_a_client() -> None:
    clips, labels = scene().clips[:2], scene().labels[:2]
    observation = observe(built_in("c3d_tiny"), clips, labels, SecureSum(clients=2), labels=labels)
    assert observation.knowledge.batch_size == 2
    assert run(Matching(iterations=10), observation).clips.shape == clips.shape


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: SecureSum(clients=1),
            InputError,
            "secure_sum: clients is 1, expected a whole number from 2",
        ),
        (lambda: SecureSum(dropped=-1), InputError, "secure_sum: dropped is -1"),
        (lambda: SecureSum(threshold=1), InputError, "secure_sum: threshold is 1"),
        (lambda: parse_defenses("secure_sum:clients=2+prune"), InputError, r"write prune\+secure_sum"),
        (lambda: send(SecureSum(clients=3)), CapabilityError, "a batch of 4 cannot be dealt out evenly to 3"),
        (lambda: Lookalikes(source="x"), InputError, "unknown source of lookalikes 'x'"),
        (lambda: Lookalikes(components=0), InputError, "lookalikes: components is 0"),
        (lambda: Lookalikes(spread=math.nan), InputError, "lookalikes: spread is nan"),
        (lambda: send(Lookalikes()), CapabilityError, "no public clips to learn from"),
        (lambda: send(learned()), CapabilityError, "public clips have 3072 numbers, a clip "),
        (lambda: Lookalikes().with_public(*batch(1)), CapabilityError, "1 public clips are no model of any"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


# ---- look-alikes


def learned(**settings: object) -> Defense:
    public = scene()
    return steps.with_public(Lookalikes(**settings), public.public_clips, public.public_labels)  # type: ignore[arg-type]


def test_look_alikes_of_a_label_are_draws_around_its_public_mean() -> None:
    public, label = scene(), int(scene().public_labels[0])
    clips = torch.rand(400, *public.clips.shape[1:], generator=generator("private"))
    labels = torch.full((400,), label)
    made, kept = learned(spread=0.05).prepare_clips(clips, labels, generator("made"))
    mean = public.public_clips[public.public_labels == label].mean(0)
    assert torch.equal(kept, labels)
    torch.testing.assert_close(made.mean(0), mean, rtol=0, atol=0.01)
    assert made.std(0).max() > 0.01
    again, _ = learned(spread=0.05).prepare_clips(1 - clips, labels, generator("made"))
    assert torch.equal(made, again)  # the clips themselves do not matter


def test_look_alikes_of_a_clip_keep_as_many_numbers_of_it_as_there_are_components() -> None:
    public = scene()
    clips, labels = public.public_clips[:2], public.public_labels[:2]
    errors = []
    for components in (1, 4, 11):
        made, _ = learned(source="clip", components=components, spread=0.0).prepare_clips(
            clips, labels, generator(0)
        )
        errors.append(float((made - clips).square().mean()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3  # twelve public clips span their own


def test_a_label_without_public_clips_has_the_mean_of_all() -> None:
    public = scene()
    missing = torch.full((1,), 10**6)
    made, _ = learned(spread=0.0).prepare_clips(public.clips[:1], missing, generator(0))
    torch.testing.assert_close(made[0], public.public_clips.mean(0))


def test_what_leaves_is_the_gradient_of_look_alikes() -> None:
    model, clips, labels = built_in("c3d_tiny"), scene().clips[:1], scene().labels[:1]
    defense = learned()
    made, _ = defense.prepare_clips(clips, labels, generator("one"))
    update = Client(model, defense=defense).update(clips, labels, generator("one"))
    expected = mean_gradient(model, F.cross_entropy, made, labels)
    torch.testing.assert_close(flat(update.tensors), flat(expected))
    assert defense.privacy() is None
