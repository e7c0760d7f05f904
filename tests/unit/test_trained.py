"""Local training, frozen parameters and error feedback: what a client sends, beside PyTorch's own loop."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.certificates import gaussian_epsilon
from vleak.defenses import Compress, Defense, DpClient, DpSgd, Prune
from vleak.descent.unrolled import sum_of_steps, sum_over_mean
from vleak.errors import CapabilityError, InputError
from vleak.federated import Client, LocalTraining, Privacy, Update, trained_part
from vleak.seeds import generator

LABELS = torch.tensor([0, 1, 2, 1])


def small_model() -> nn.Module:
    numbers = generator("model")
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * 2 * 4 * 4, 3))
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=numbers)
    return model


def clips(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 4, 6, 6, generator=generator("clips"))


def send(model: nn.Module, defense: Defense = Defense(), count: int = 4, **options: Any) -> Update:
    client = Client(model, defense=defense, local=LocalTraining(**options) if options else None)
    return client.update(clips(count), LABELS[:count], generator("client"))


def norm(update: Update) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in update.tensors.values()))


# --- local training ---------------------------------------------------------------------------------------


def test_one_step_is_the_gradient_times_the_rate() -> None:
    model = small_model()
    gradient, delta = send(model), send(model, steps=1, learning_rate=0.5)
    assert (delta.facts.kind, delta.facts.local) == ("fedavg", LocalTraining(steps=1, learning_rate=0.5))
    for name, tensor in delta.tensors.items():
        torch.testing.assert_close(tensor, -0.5 * gradient.tensors[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            delta.as_gradient().tensors[name], gradient.tensors[name], rtol=1e-4, atol=1e-5
        )


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.3},
    "momentum and decay": {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "adam": {"learning_rate": 0.01, "optimizer": "adam"},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_full_batches_are_what_pytorch_trains(name: str) -> None:
    model, options = small_model(), OPTIMIZERS[name]
    delta, trained = send(model, steps=3, **options), copy.deepcopy(model)
    rates = {key: value for key, value in options.items() if key not in ("optimizer", "learning_rate")}
    kind = torch.optim.Adam if "optimizer" in options else torch.optim.SGD
    optimizer = kind(trained.parameters(), lr=options["learning_rate"], **rates)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(trained(clips()), LABELS).backward()
        optimizer.step()
    before = dict(model.named_parameters())
    for parameter_name, parameter in trained.named_parameters():
        expected = (parameter - before[parameter_name]).detach()
        torch.testing.assert_close(delta.tensors[parameter_name], expected, rtol=1e-3, atol=1e-5)


def test_steps_go_through_all_clips_before_any_comes_again() -> None:
    seen: list[Tensor] = []

    class Spy(Defense):
        def aggregate(self, model: Any, loss: Any, clips: Tensor, labels: Tensor, generator: Any) -> Any:
            seen.append(clips[:, 0, 0, 0, 0])
            return super().aggregate(model, loss, clips, labels, generator)

    send(small_model(), Spy(), steps=5, batch_size=2)
    first, second = [torch.cat(seen[i : i + 2]).tolist() for i in (0, 2)]
    everything = sorted(clips()[:, 0, 0, 0, 0].tolist())
    assert sorted(first) == sorted(second) == everything
    assert first != second  # another order in the second pass


def test_the_model_is_left_as_it_was_and_divergence_is_named() -> None:
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    send(model, steps=3, learning_rate=0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(CapabilityError, match="not finite"):
        send(model, steps=3, learning_rate=1e38)


def no_buffers(step: int, rows: slice) -> dict[str, Tensor]:
    return {}


@pytest.mark.parametrize("name", ["sgd", "momentum and decay"])
def test_unrolled_steps_are_those_of_the_client(name: str) -> None:
    model, local = small_model(), LocalTraining(steps=3, **OPTIMIZERS[name])
    delta = Client(model, local=local).update(clips(), LABELS, generator("client")).as_gradient()
    parameters = {key: value.detach().requires_grad_() for key, value in model.named_parameters()}
    sums = sum_of_steps(
        model, F.cross_entropy, clips(), LABELS, parameters=parameters, buffers=no_buffers, local=local
    )
    for key, total in zip(parameters, sums, strict=True):
        mean = total.detach() / sum_over_mean(local)
        torch.testing.assert_close(mean, delta.tensors[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unrolled_steps_have_the_right_derivative(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Adam's softening is held constant on purpose; with a large epsilon its steps are smooth without it.
    monkeypatch.setattr("vleak.descent.unrolled._SOFTENING", 0.0)
    monkeypatch.setattr("vleak.descent.unrolled._ADAM", (0.9, 0.999, 1.0))
    model = small_model().double()
    local = LocalTraining(steps=2, batch_size=1, **OPTIMIZERS[name])
    parameters = {key: value.detach().requires_grad_() for key, value in model.named_parameters()}
    options: dict[str, Any] = {"parameters": parameters, "buffers": no_buffers, "local": local}

    def value(x: Tensor) -> Tensor:
        sums = sum_of_steps(model, F.cross_entropy, x, LABELS[:2], **options)
        return torch.stack([total.sum() / sum_over_mean(local) for total in sums])

    x = clips(2).double()[:, :, :, :3, :3]
    model[3] = nn.Linear(4 * 2 * 1 * 1, 3).double()
    parameters.update({f"3.{key}": v.detach().requires_grad_() for key, v in model[3].named_parameters()})
    assert torch.autograd.gradcheck(value, (x.requires_grad_(),), rtol=1e-3, atol=1e-5)


# --- frozen parameters ------------------------------------------------------------------------------------


def test_frozen_parameters_are_not_sent_not_clipped_and_not_counted() -> None:
    model = small_model()
    whole = send(model)
    model[0].requires_grad_(False)
    head = send(model)
    assert list(head.tensors) == ["3.weight", "3.bias"]
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in head.tensors.items())
    assert head.wire_bytes == sum(tensor.nbytes for tensor in head.tensors.values())
    clipped = send(model, DpSgd(noise_multiplier=0.0, max_grad_norm=1e-3))
    assert norm(clipped) <= 1e-3 * (1 + 1e-4)
    assert list(send(model, steps=2).tensors) == list(head.tensors)


def test_the_trained_part_computes_the_same() -> None:
    model = small_model()
    assert trained_part(model) is model
    model[0].requires_grad_(False)
    part = trained_part(model)
    assert torch.equal(part(clips()), model(clips()))
    assert [name for name, _ in part.named_parameters()] == ["3.weight", "3.bias"]
    assert len(list(model.named_parameters())) == 4
    model.requires_grad_(False)
    with pytest.raises(InputError, match="all its parameters are frozen"):
        send(model)


# --- defenses over steps and rounds -----------------------------------------------------------------------


def test_noise_of_every_step_adds_up_and_the_guarantee_says_so() -> None:
    model, steps, rate = small_model(), 4, 0.5
    defense = DpSgd(noise_multiplier=200.0, max_grad_norm=1e-4)  # far more noise than signal
    client = Client(
        model, defense=defense, local=LocalTraining(steps=steps, batch_size=2, learning_rate=rate)
    )
    update = client.update(clips(), LABELS, generator("client"))
    flat = torch.cat([tensor.flatten() for tensor in update.tensors.values()])
    expected = rate * math.sqrt(steps) * 200.0 * 1e-4 / 2
    assert float(flat.std()) == pytest.approx(expected, rel=0.1)
    channel = client.channel(update)
    assert channel is not None
    assert channel.noise_energy == pytest.approx(len(flat) * expected**2)
    privacy = client.privacy(clips=4)  # four steps of two of four clips: each takes part twice
    assert privacy is not None
    assert privacy.epsilon == pytest.approx(gaussian_epsilon(200.0, 1e-5, releases=2))
    assert privacy.unit == "one clip"


def test_a_defense_that_does_not_compose_proves_nothing_over_steps() -> None:
    assert Client(small_model(), defense=Once()).privacy() is not None
    assert Client(small_model(), defense=Once(), local=LocalTraining(steps=2)).privacy() is None


@pytest.mark.parametrize("options", [{}, {"steps": 3, "learning_rate": 10.0}], ids=["gradient", "delta"])
def test_dp_client_clips_the_whole_update_and_adds_its_noise(options: dict[str, Any]) -> None:
    plain = send(small_model(), **options)
    clipped = send(small_model(), DpClient(noise_multiplier=0.0, max_norm=0.01), **options)
    assert norm(clipped) == pytest.approx(0.01, rel=1e-4)
    cosine = sum(float((plain.tensors[n] * clipped.tensors[n]).sum()) for n in plain.tensors)
    assert cosine == pytest.approx(norm(plain) * 0.01, rel=1e-3)
    noisy = send(small_model(), DpClient(noise_multiplier=2.0, max_norm=0.01), **options)
    noise = torch.cat([(noisy.tensors[n] - clipped.tensors[n]).flatten() for n in plain.tensors])
    assert float(noise.std()) == pytest.approx(0.02, rel=0.1)
    untouched = send(small_model(), DpClient(noise_multiplier=0.0, max_norm=1e6), **options)
    assert norm(untouched) == pytest.approx(norm(plain), rel=1e-6)


def test_more_updates_prove_less() -> None:
    for defense in (DpSgd(noise_multiplier=2.0), DpClient(noise_multiplier=2.0)):
        privacy = Client(small_model(), defense=defense).privacy(updates=4)
        assert privacy is not None
        assert privacy.epsilon == pytest.approx(gaussian_epsilon(2.0, 1e-5, releases=4))
    assert Client(small_model(), defense=Once()).privacy(updates=2) is None


class Once(DpSgd):
    """Composes over nothing."""

    def privacy_of(self, uses: int, updates: int = 1) -> Privacy | None:
        return Defense.privacy_of(self, uses, updates)


def test_dp_client_protects_the_client_whatever_its_local_steps() -> None:
    for local in (None, LocalTraining(steps=7)):
        privacy = Client(small_model(), defense=DpClient(noise_multiplier=0.7), local=local).privacy(4)
        assert privacy is not None
        assert (privacy.unit, privacy.adjacency) == ("one client", "zero out")
        assert privacy.epsilon == pytest.approx(gaussian_epsilon(0.7, 1e-5))
    assert Client(small_model(), defense=DpClient(noise_multiplier=0.0)).privacy() is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rounds": 10**400}, "rounds is 1"),
        ({"delta": 1e-320}, "delta is"),
        ({"sample_rate": 1e-320}, "sample_rate is"),
        ({"noise_multiplier": 1e-320}, "noise_multiplier is"),
    ],
)
def test_dp_client_refuses_what_no_accountant_holds(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DpClient(**settings)


@pytest.mark.parametrize("value", [math.nan, -1.0, 0.0, math.inf, 1e-320])
def test_dp_client_refuses_norms_out_of_range(value: float) -> None:
    with pytest.raises(InputError, match="max_norm is"):
        DpClient(max_norm=value)


@pytest.mark.parametrize(
    "defense", [Prune(fraction=0.9), Compress(codec="qsgd", bits=4, bucket=16)], ids=lambda d: d.name
)
def test_error_feedback_sends_in_the_end_what_was_withheld(defense: Defense) -> None:
    kind = type(defense)
    settings = {**defense.settings(), "error_feedback": True}
    client, memory = Client(small_model(), defense=kind(**settings)), dict[str, Tensor]()
    gradient = send(small_model())
    sent = {name: torch.zeros_like(tensor) for name, tensor in gradient.tensors.items()}
    for number in range(4):
        update = client.update(clips(), LABELS, generator("round", number), memory)
        sent = {name: total + update.tensors[name] for name, total in sent.items()}
    for name, total in sent.items():
        torch.testing.assert_close(total + memory[name], 4 * gradient.tensors[name], rtol=1e-4, atol=1e-5)
    forgetful = dict[str, Tensor]()
    Client(small_model(), defense=defense).update(clips(), LABELS, generator(0), forgetful)
    assert forgetful == {}
