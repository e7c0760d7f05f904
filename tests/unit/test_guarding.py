"""Guard of a client: scores with known answers, decisions on clips that leak or do not, and refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from tiny import Residual, build
from torch import Tensor, nn
from torch.nn import functional as F

import vleak
from vleak.attacks import Matching
from vleak.data import ClipSet
from vleak.defenses import DpSgd, NoDefense, Prune
from vleak.errors import InputError
from vleak.federated import Client, Defense, LocalTraining, mean_gradient
from vleak.guarding import (
    Decision,
    dominance,
    gradient_by_clips,
    honest_facts,
    jacobian_facts,
    sample_facts,
    warning_scores,
)
from vleak.seeds import generator

# ---------------------------------------------------------------------------------------------------------
# Scores


class Mean(nn.Module):
    """Logits of two classes from the mean of a clip: its gradient is known by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(clips.mean((1, 2, 3, 4))[:, None])


def test_d_snr_of_clips_whose_gradients_are_known() -> None:
    # The gradient is (p - y) x' with p = (1/2, 1/2): its norm is the clip's mean over the root of 2.
    clips = torch.tensor([0.9, 0.2, 0.1]).view(3, 1, 1, 1, 1).expand(3, 3, 2, 4, 4).contiguous()
    facts = sample_facts(Mean(), F.cross_entropy, clips, torch.tensor([0, 1, 1]))
    expected = torch.tensor([0.9, 0.2, 0.1], dtype=torch.float64) / math.sqrt(2)
    torch.testing.assert_close(facts.norms["head.weight"], expected, atol=1e-6, rtol=0)
    assert honest_facts(Mean(), "cross_entropy", clips, torch.tensor([0, 1, 1])).d_snr == {
        "head.weight": pytest.approx(0.9 / 0.3, rel=1e-6)
    }


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        ((3.0, 1.0, 2.0), 1.0),
        ((1.0, 1.0, 1.0), 0.5),
        ((5.0,), math.inf),
        ((5.0, 0.0), math.inf),
        ((0.0, 0.0), 0.0),
    ],
)
def test_dominance_is_the_largest_over_the_sum_of_the_others(
    amounts: tuple[float, ...], expected: float
) -> None:
    assert dominance(amounts) == expected


class Smooth(nn.Module):
    """Two layers of a few numbers, in float64, so that the whole Jacobian can be had."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(36, 4), nn.Linear(4, 3)

    def forward(self, clips: Tensor) -> Tensor:
        return self.second(self.first(clips.flatten(1)).sigmoid())


@cache
def smooth() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A model, a clip (1, 1, 4, 3, 3), its label, and the exact Jacobian (entries, 36) of its gradient."""
    model = build(Smooth).double()
    clip = torch.rand(1, 1, 4, 3, 3, generator=generator("clip")).double()
    send = gradient_by_clips(model, F.cross_entropy, torch.tensor([1]))

    def flat(clip: Tensor) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in send(clip)])

    jacobian = torch.autograd.functional.jacobian(flat, clip)
    assert isinstance(jacobian, Tensor)
    return model, clip, torch.tensor([1]), jacobian.flatten(1)


def test_the_energy_of_the_jacobian_is_its_squared_frobenius_norm() -> None:
    model, clip, label, exact = smooth()
    send = gradient_by_clips(model, F.cross_entropy, label)
    facts = jacobian_facts(send, clip, generator("probes"), probes=600)
    singular = torch.linalg.svdvals(exact).square()
    assert facts.energy == pytest.approx(float(exact.square().sum()), rel=0.1)
    assert facts.effective_rank == pytest.approx(
        float(singular.sum() ** 2 / singular.square().sum()), rel=0.1
    )
    by_entry = exact.square().sum(1)
    assert float((facts.entries - by_entry).abs().sum() / by_entry.sum()) < 0.1
    by_frame = exact.square().sum(0).view(4, 9).sum(1)
    assert facts.frames == pytest.approx(by_frame.tolist(), rel=0.1)
    gradient = mean_gradient(model, F.cross_entropy, clip, label)
    torch.testing.assert_close(facts.gradient, torch.cat([g.flatten() for g in gradient.values()]))


def test_the_error_of_the_energy_falls_with_the_probes() -> None:
    model, clip, label, exact = smooth()
    send = gradient_by_clips(model, F.cross_entropy, label)
    truth = float(exact.square().sum())

    def error(probes: int) -> float:
        runs = [jacobian_facts(send, clip, generator(n), probes=probes).energy / truth - 1 for n in range(8)]
        return math.sqrt(sum(run**2 for run in runs) / len(runs))

    assert error(32) < error(1) / 2


def test_a_frame_that_the_model_sees_alone_dominates() -> None:
    class LastFrame(Smooth):
        def forward(self, clips: Tensor) -> Tensor:
            return super().forward(torch.cat([clips[:, :, 3:] if t == 3 else 0.01 * clips[:, :, t : t + 1]
                                              for t in range(4)], 2))  # fmt: skip

    model, clip, label = (
        build(LastFrame),
        torch.rand(1, 1, 4, 3, 3, generator=generator("clip")),
        torch.tensor([1]),
    )
    facts = honest_facts(model, "cross_entropy", clip, label)
    assert max(range(4), key=facts.jacobian.frames.__getitem__) == 3
    assert facts.frame_d_snr > 5


def test_scores_fall_with_what_a_defense_takes_away() -> None:
    data, model = scene(), network()
    clips, labels = data.clips[:1], data.labels[:1]
    honest = honest_facts(model, "cross_entropy", clips, labels)

    def energies(*defenses: Defense) -> list[float]:
        updates = [Client(model, defense=d).update(clips, labels, generator("scores")) for d in defenses]
        return [warning_scores(update, honest).jacobian_energy for update in updates]

    noise = energies(NoDefense(), *(DpSgd(noise_multiplier=s) for s in (0.001, 0.01, 0.1)))
    assert noise == sorted(noise, reverse=True)
    assert noise[3] < noise[0] / 20
    pruned = energies(NoDefense(), *(Prune(fraction=f) for f in (0.7, 0.99)))
    assert pruned == sorted(pruned, reverse=True)


def test_the_scores_of_an_undefended_update_are_those_of_the_gradient() -> None:
    data, model = scene(), network()
    clips, labels = data.clips[:2], data.labels[:2]
    honest = honest_facts(model, "cross_entropy", clips, labels)
    scores = warning_scores(Client(model).update(clips, labels, generator(0)), honest)
    assert scores.alignment == pytest.approx(1.0)
    gradient = mean_gradient(model, F.cross_entropy, clips, labels)
    norms = {name: float(tensor.norm()) for name, tensor in gradient.items()}
    whole = math.sqrt(sum(norm**2 for norm in norms.values()))
    assert scores.gradient_norm == pytest.approx(whole, rel=1e-5)
    assert scores.layer_share == pytest.approx((max(norms.values()) / whole) ** 2, rel=1e-5)
    energy = honest.jacobian.energy / whole**2
    assert scores.jacobian_energy == pytest.approx(energy, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------
# Decisions

ATTACKS = (Matching(iterations=40, engine="reference"),)


@cache
def scene() -> ClipSet:
    return vleak.load_clips("synthetic", clips=4, frames=4, size=16, seed=7, public=16)


@cache
def network() -> nn.Module:
    return vleak.build_model("c3d_tiny", frames=4, size=16, classes=6, seed=7)


def decide(defense: Defense | None = None, clips: int = 1, **given: Any) -> Decision:
    data = scene()
    client = Client(given.pop("model", network()), defense=defense or NoDefense())
    return vleak.guard(
        client, data.clips[:clips], data.labels[:clips],
        **{"public_clips": data.public_clips, "attacks": ATTACKS, "generator": generator("noise"), **given},
    )  # fmt: skip


def test_an_undefended_clip_that_is_rebuilt_is_not_sent() -> None:
    decision = decide(stronger=[DpSgd(noise_multiplier=1e-3), DpSgd(noise_multiplier=1.0)])
    assert decision.action == "defend more"
    assert decision.update is None
    assert decision.scores is not None
    assert decision.scores.attack is not None
    assert decision.scores.attack.gain_db > 3
    assert decision.scores.attack.recognised == 1
    assert decision.strength == "dp:noise_multiplier=1.0"
    assert [bool(each.reasons) for each in decision.tried] == [True, False]
    assert "gain in dB" in str(decision)


def test_behind_strong_noise_the_update_that_was_judged_is_sent() -> None:
    decision = decide(DpSgd(noise_multiplier=1.0))
    assert decision.action == "send"
    assert decision.update is not None
    assert decision.reasons == (vleak.guarding.NO_PROOF,)
    assert "proves nothing" in str(decision)
    assert decision.scores is not None
    assert decision.scores.alignment < 0.01


def test_without_a_strength_that_passes_nothing_is_sent() -> None:
    decision = decide(stronger=[DpSgd(noise_multiplier=1e-3)])
    assert (decision.action, decision.update, decision.strength) == ("refuse", None, None)
    assert decision.reasons[-1] == "nothing tried passes: dp:noise_multiplier=0.001"


def test_an_update_is_judged_like_that_of_a_client() -> None:
    data, defense = scene(), DpSgd(noise_multiplier=1.0)
    clips, labels = data.clips[:1], data.labels[:1]
    update = Client(network(), defense=defense).update(clips, labels, generator("own"))
    decision = vleak.guard(
        update, clips, labels, model=network(), defense="dp:noise_multiplier=1.0",
        public_clips=data.public_clips, attacks=ATTACKS,
    )  # fmt: skip
    assert decision.action == "send"
    assert decision.update is update


def test_local_steps_are_judged_too() -> None:
    data = scene()
    local = LocalTraining(steps=2, learning_rate=0.05)
    client, noise = Client(network(), local=local), generator("noise")
    decision = vleak.guard(
        client, data.clips[:1], data.labels[:1], public_clips=data.public_clips, attacks=ATTACKS,
        stronger=[DpSgd(noise_multiplier=1.0)], generator=noise,
    )  # fmt: skip
    assert decision.action == "defend more"


def test_thresholds_decide() -> None:
    off = {"gain_db": math.inf, "correlation": 1.0, "jacobian_energy": math.inf}
    assert decide(thresholds=off).action == "send"
    energy = decide(thresholds={**off, "jacobian_energy": 1e-9}, stronger=[DpSgd(noise_multiplier=0.1)])
    assert energy.action == "refuse"
    assert "Jacobian energy" in energy.reasons[0]


def test_the_attack_is_told_nothing_of_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips that are compared with others than the client trained on change no answer, only its score."""
    seen: list[Tensor] = []
    whole = Matching.finish

    def finish(self: Matching, work: Any, hooks: Any) -> Any:
        answer = whole(self, work, hooks)
        seen.append(answer.clips)
        return answer

    monkeypatch.setattr(Matching, "finish", finish)
    data, client = scene(), Client(network(), defense=DpSgd(noise_multiplier=0.1))
    update = client.update(data.clips[:1], data.labels[:1], generator(0))
    for clips in (data.clips[:1], data.clips[1:2]):
        vleak.guarding.attack_itself(
            client, update, clips, data.labels[:1], classes=6, public_clips=data.public_clips, attacks=ATTACKS
        )
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------
# What cannot be judged is not sent


class Rounded(nn.Module):
    """A model without a second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 4 * 16 * 16, 6)

    def forward(self, clips: Tensor) -> Tensor:
        return F.hardsigmoid(self.head(clips.flatten(1)))


@dataclass(frozen=True, kw_only=True)
class Silent(Defense):
    """A defense that sends zeros."""

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Any:
        return super().transmit({name: 0 * tensor for name, tensor in gradient.items()}, generator)


def broken_attack() -> Matching:
    class Broken(Matching):
        def finish(self, work: Any, hooks: Any) -> Any:
            return replace(super().finish(work, hooks), clips=torch.full((1, 3, 4, 16, 16), math.nan))

    return Broken(iterations=1)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (lambda: {"model": build(Rounded)}, "cannot be judged"),
        (lambda: {"defense": Silent()}, "every entry of the update is zero"),
        (lambda: {"attacks": [broken_attack()]}, "returned NaN or infinity"),
        (lambda: {"defense": DpSgd(), "model": build(lambda: Residual(nn.BatchNorm3d))}, "BatchNorm3d"),
    ],
)
def test_what_cannot_be_judged_is_refused(given: Callable[[], dict[str, Any]], reason: str) -> None:
    decision = decide(**given())
    assert decision.action == "refuse"
    assert decision.update is None
    assert reason in str(decision)
    assert "\n" not in str(decision)


def test_a_planted_model_is_refused_whatever_the_defense() -> None:
    model = copy.deepcopy(network())
    head = model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight[1:] = 0
    decision = decide(DpSgd(noise_multiplier=10.0), model=model)
    assert decision.action == "refuse"
    assert decision.findings[0].check == "class_trap"
    assert "2202.00580" in decision.findings[0].paper
    assert "class_trap in 'head'" in str(decision)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"thresholds": {"gain": 1.0}}, r"unknown threshold 'gain'; did you mean gain_db"),
        ({"thresholds": {"gain_db": math.nan}}, r"threshold gain_db is nan, expected a number"),
        ({"defense": "dp"}, r"sweep of 4 strengths; name the one"),
        ({"model": None}, r"give model="),
        ({"model": nn.Linear(2, 2)}, r"lacks 'weight'"),
        ({"model": "c3d_tiny"}, r"model is str, expected a torch.nn.Module"),
        ({"clips": [0.5]}, r"guard: clips is list, expected a torch.Tensor"),
        ({"labels": [0]}, r"guard: labels is list, expected a torch.Tensor"),
        ({"public_clips": [0.5]}, r"guard: public_clips is list"),
        ({"defense": 3}, r"defense is int, expected a text"),
        ({"clips": torch.zeros(3, 4, 16, 16)}, r"add the clip axis with x\[None\]"),
        ({"clips": torch.full((1, 3, 4, 16, 16), math.nan)}, r"clips hold NaN"),
        ({"labels": torch.tensor([0, 1])}, r"expected labels of shape \(1,\)"),
        ({"labels": torch.tensor([9])}, r"labels run from 9"),
        ({"public_clips": torch.zeros(2, 3, 4, 8, 8)}, r"expected public clips of shape"),
        ({"clips": torch.zeros(1, 3, 4, 16, 16)}, r"is not the gradient of these clips"),
        ({"update": "update.safetensors"}, r"update is str, expected a vleak.Update"),
        ({"spoil": True}, r"holds NaN or infinity; do not send it"),
    ],
)
def test_what_was_given_wrongly_is_named(given: dict[str, Any], message: str) -> None:
    data = scene()
    update = Client(network()).update(data.clips[:1], data.labels[:1], generator(0))
    if given.pop("spoil", False):
        update.tensors["head.bias"][0] = math.nan
    arguments: dict[str, Any] = {
        "update": update, "clips": data.clips[:1], "labels": data.labels[:1], "model": network(),
        "public_clips": data.public_clips, "attacks": ATTACKS, **given,
    }  # fmt: skip
    with pytest.raises(InputError, match=message) as caught:
        vleak.guard(**arguments)
    assert "\n" not in str(caught.value)


def test_a_client_brings_its_own_model() -> None:
    with pytest.raises(InputError, match="a client has its own model"):
        vleak.guard(Client(network()), scene().clips[:1], scene().labels[:1], model=network())


def test_the_noise_that_is_sent_comes_from_the_clients_own_generator() -> None:
    with pytest.raises(InputError, match="draws its noise from generator="):
        decide(DpSgd(noise_multiplier=1.0), generator=None)
    data, client = scene(), Client(network(), defense=DpSgd(noise_multiplier=1.0))
    decision = decide(DpSgd(noise_multiplier=1.0), generator=generator("secret"))
    expected = client.update(data.clips[:1], data.labels[:1], generator("secret"))
    assert decision.update is not None
    for name, tensor in decision.update.tensors.items():
        torch.testing.assert_close(tensor, expected.tensors[name], rtol=0, atol=0)


def test_the_model_is_left_as_it_was() -> None:
    model = copy.deepcopy(network())
    before = copy.deepcopy(model.state_dict())
    decide(model=model, stronger=[DpSgd(noise_multiplier=1.0)])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
