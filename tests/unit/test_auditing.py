"""Audits of what defenses send: honest ones keep their claim and come near it, planted bugs are found."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Conv, Recurrent, Residual, batch, build
from torch import Tensor

from vleak.auditing import CanaryRun, EmpiricalEpsilon, Release, audit_claim, canary_runs, empirical_epsilon
from vleak.certificates import gaussian_epsilon
from vleak.defenses import DpClient, DpHooks, DpSgd, NoDefense, Prune, parse_defenses
from vleak.errors import CapabilityError, InputError
from vleak.federated import Channel, Client, Defense, Message, Privacy, Update, per_clip_gradients
from vleak.seeds import generator

Samples = dict[str, Tensor]


def audit(defense: Defense, draws: int = 1000, *seed: object) -> EmpiricalEpsilon:
    client = Client(build(Recurrent), defense=defense)
    return empirical_epsilon(client, *batch(2), generator("audit", *seed), draws=draws)


def norms(samples: Samples) -> Tensor:
    return torch.cat([sample.reshape(len(sample), -1) for sample in samples.values()], dim=1).norm(dim=1)


def scaled(samples: Samples, factors: Tensor) -> Samples:
    return {name: s * factors.view(-1, *[1] * (s.dim() - 1)) for name, s in samples.items()}


def noised(mean: Samples, deviation: float, numbers: torch.Generator) -> Samples:
    return {name: m + deviation * torch.randn(m.shape, generator=numbers) for name, m in mean.items()}


def mean(samples: Samples) -> Samples:
    return {name: sample.mean(0) for name, sample in samples.items()}


# ---- planted bugs, each with the claim of the honest defense


class NoOp(DpSgd):
    def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
        return mean(samples)


class NoClip(DpSgd):
    def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
        deviation = self.noise_multiplier * self.max_grad_norm / len(next(iter(samples.values())))
        return noised(mean(samples), deviation, generator)


class SquareInTheClip(DpSgd):
    """Divides by the squared norm, so that what is below 1 comes out above the clipping norm."""

    def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
        factors = (self.max_grad_norm / norms(samples).square().clamp(min=1e-12)).clamp(max=1.0)
        return NoClip.combine(self, scaled(samples, factors), generator)


class RootInTheClip(DpSgd):
    def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
        factors = (self.max_grad_norm / norms(samples).sqrt().clamp(min=1e-12)).clamp(max=1.0)
        return NoClip.combine(self, scaled(samples, factors), generator)


class ClipOfEveryTensor(DpSgd):
    def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
        clipped = {
            name: scaled({name: s}, (self.max_grad_norm / norms({name: s}).clamp(min=1e-12)).clamp(max=1.0))[
                name
            ]
            for name, s in samples.items()
        }
        return NoClip.combine(self, clipped, generator)


class ClipOfTheAverage(DpSgd):
    def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
        average = {name: sample.mean(0, keepdim=True) for name, sample in samples.items()}
        average = scaled(average, (self.max_grad_norm / norms(average).clamp(min=1e-12)).clamp(max=1.0))
        deviation = self.noise_multiplier * self.max_grad_norm / len(next(iter(samples.values())))
        return noised(mean(average), deviation, generator)


class FixedSeed(DpSgd):
    def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
        return super().combine(samples, torch.Generator().manual_seed(0))


class NoiseOverTheRootOfTheBatch(DpSgd):
    def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
        less = self.noise_multiplier / math.sqrt(len(next(iter(samples.values()))))
        return DpSgd.combine(replace(self, noise_multiplier=less), samples, generator)


class TwiceTheDeclaredNorm(DpSgd):
    def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
        other = replace(
            self, max_grad_norm=2 * self.max_grad_norm, noise_multiplier=self.noise_multiplier / 2
        )
        return DpSgd.combine(other, samples, generator)


class HalvedNoise(DpSgd):
    def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
        return DpSgd.combine(replace(self, noise_multiplier=self.noise_multiplier / 2), samples, generator)


class HalvedInAggregate(DpSgd):
    """Honest in `combine`, which it never calls."""

    def aggregate(self, *arguments, **named) -> Samples:  # type: ignore[no-untyped-def]
        half = DpSgd(noise_multiplier=self.noise_multiplier / 2, max_grad_norm=self.max_grad_norm)
        return half.aggregate(*arguments, **named)


class HalvedInTransmit(DpSgd):
    """Honest but for what it sends."""

    def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
        return DpSgd.combine(replace(self, noise_multiplier=0.0), samples, generator)

    def transmit(self, gradient: Samples, generator: torch.Generator) -> Message:
        deviation = self.noise_multiplier * self.max_grad_norm / 10
        return super().transmit(noised(gradient, deviation, generator), generator)


class ClaimFromNoiseTimesNorm(DpSgd):
    def privacy(self) -> Privacy | None:
        honest = super().privacy()
        epsilon = gaussian_epsilon(self.noise_multiplier * self.max_grad_norm, self.delta)
        return honest and replace(honest, epsilon=epsilon)


class ClaimOfTheTrainingRun(DpSgd):
    def privacy(self) -> Privacy | None:
        honest = super().privacy()
        return honest and replace(honest, epsilon=honest.training_epsilon)


@dataclass(frozen=True, kw_only=True)
class ClientWithoutClip(DpClient):
    def transmit(self, gradient: Samples, generator: torch.Generator) -> Message:
        sent = noised(gradient, self.noise_multiplier * self.max_norm, generator)
        return Message(sent, 4 * sum(tensor.numel() for tensor in sent.values()))


BUGS = [
    NoOp(),
    NoClip(),
    SquareInTheClip(max_grad_norm=0.1),
    RootInTheClip(),
    ClipOfEveryTensor(),
    ClipOfTheAverage(),
    FixedSeed(),
    NoiseOverTheRootOfTheBatch(),
    TwiceTheDeclaredNorm(),
    HalvedNoise(),
    HalvedInTransmit(),
    ClientWithoutClip(),
]
WRONG_CLAIMS = [ClaimFromNoiseTimesNorm(max_grad_norm=2.0), ClaimOfTheTrainingRun(sample_rate=0.1)]
HONEST = [
    DpSgd(),
    DpSgd(noise_multiplier=0.25, max_grad_norm=0.1),
    DpSgd(noise_multiplier=2.0, max_grad_norm=5.0),
    DpClient(noise_multiplier=0.5),
    DpClient(noise_multiplier=1.0, max_norm=3.0),
]
named = {"ids": lambda defense: type(defense).__name__}


@pytest.mark.parametrize("defense", BUGS + WRONG_CLAIMS, **named)
def test_bugs_are_refuted(defense: Defense) -> None:
    # The sensitivity of clipping tensor by tensor is the least above what is claimed.
    found = audit(defense, 250 if isinstance(defense, ClipOfEveryTensor) else 60)
    assert found.refuted
    assert found.lower.epsilon > found.claimed


@pytest.mark.parametrize("defense", BUGS, **named)
def test_bugs_are_refuted_in_five_hundred_messages(defense: Defense) -> None:
    client = Client(build(Recurrent), defense=defense)
    found = audit_claim(client, *batch(2), generator("claim"), most_draws=500)
    assert found.refuted
    assert found.e_value >= 20
    assert found.draws <= 500


def test_a_bug_that_only_aggregate_has_is_run_through_aggregate() -> None:
    client = Client(build(Recurrent), defense=HalvedInAggregate())
    assert audit_claim(client, *batch(2), generator("claim"), most_draws=500).refuted


@pytest.mark.parametrize("noise", [pytest.param(0.25, marks=pytest.mark.slow), 1.0])
def test_four_fifths_of_the_claimed_noise_are_found_in_five_hundred_messages(noise: float) -> None:
    @dataclass(frozen=True, kw_only=True)
    class FourFifths(DpSgd):
        def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
            return DpSgd.combine(
                DpSgd(noise_multiplier=0.8 * noise, max_grad_norm=self.max_grad_norm), samples, generator
            )

    client = Client(build(Recurrent), defense=FourFifths(noise_multiplier=noise, max_grad_norm=2.0))
    for seed in range(3):
        found = audit_claim(client, *batch(2), generator("four fifths", seed))
        assert found.refuted
        assert found.draws <= 500


@pytest.mark.parametrize(
    "defense",
    [HONEST[0], *(pytest.param(each, marks=pytest.mark.slow) for each in HONEST[1:-1]), HONEST[-1]],
    ids=repr,
)
def test_honest_claims_stand(defense: Defense) -> None:
    found = audit(defense, 150, 0)
    assert not found.refuted
    assert 0 < found.lower.epsilon < found.claimed
    client = Client(build(Recurrent), defense=defense)
    assert not audit_claim(client, *batch(2), generator("honest", 0), most_draws=150).refuted


@pytest.mark.slow
@pytest.mark.parametrize("defense", [DpSgd(noise_multiplier=0.25, max_grad_norm=0.1), DpClient()], ids=repr)
def test_reach_of_few_draws(defense: Defense) -> None:
    found = audit(defense, 700)
    assert found.bound("gaussian").epsilon > 0.8 * found.claimed
    assert found.bound("gaussian-dp").epsilon > 0.5 * found.claimed
    assert found.bound("clopper-pearson").epsilon > 0.12 * found.claimed


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("norm", [0.1, 1.0, 3.0])
def test_nine_tenths_from_five_thousand_draws(noise: float, norm: float) -> None:
    found = audit(DpSgd(noise_multiplier=noise, max_grad_norm=norm), 5000)
    assert 0.9 * found.claimed < found.lower.epsilon < found.claimed


@pytest.mark.slow
def test_no_honest_defense_is_accused_in_two_hundred_seeded_audits() -> None:
    found = [audit(HONEST[seed % 3], 60, "accused", seed) for seed in range(200)]
    refuted = sum(each.refuted for each in found)
    assert refuted <= 0.05 * 200  # at 95 %; of runs it is once in 2,000
    assert all(each.lower.epsilon < 1.3 * each.claimed and each.e_value < 1000 for each in found)


def test_too_little_noise_is_found_by_the_e_value_of_the_same_messages() -> None:
    @dataclass(frozen=True, kw_only=True)
    class FourFifths(DpSgd):
        def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
            return DpSgd.combine(DpSgd(noise_multiplier=0.8), samples, generator)

    found = audit(FourFifths(), 250)
    assert found.refuted
    assert (found.e_claim, found.e_value > 40) == ("noise", True)


# ---- what is audited is what is sent


def test_a_record_says_what_was_audited() -> None:
    found = audit(DpSgd(noise_multiplier=1.0), 100)
    assert found.claimed == gaussian_epsilon(1.0, 1e-5)
    assert found.replaced == gaussian_epsilon(0.5, 1e-5)
    assert (found.delta, found.unit, found.confidence, found.draws) == (1e-5, "one clip", 0.95, 100)
    assert [canary.canary for canary in found.canaries] == [
        "own clip",
        "orthogonal, 2 C",
        "orthogonal, 100 C",
    ]
    assert [canary.norm for canary in found.canaries][1:] == [pytest.approx(2.0), pytest.approx(100.0)]
    assert all(bound.confidence == pytest.approx(1 - 0.05 / 18) for c in found.canaries for bound in c.bounds)
    with pytest.raises(InputError, match="unknown method 'bayes'; known: clopper-pearson, gaussian-dp"):
        found.bound("bayes")


def test_the_own_clip_is_the_clip_of_the_client() -> None:
    model, (clips, labels) = build(Recurrent), batch(2)
    own = per_clip_gradients(model, torch.nn.functional.cross_entropy, clips, labels)
    found = audit(DpSgd(max_grad_norm=0.5), 30)
    assert found.canaries[0].norm == pytest.approx(norms(own)[0].item() / 0.5, rel=1e-5)


@pytest.mark.parametrize("defense", [DpSgd(max_grad_norm=0.5), DpClient(), Prune(fraction=0.5)], ids=repr)
@pytest.mark.parametrize("kind", [Conv, Recurrent, Residual])
def test_release_sends_what_the_client_sends(defense: Defense, kind: type[torch.nn.Module]) -> None:
    model, (clips, labels) = build(kind).eval(), batch(3)
    samples = per_clip_gradients(model, torch.nn.functional.cross_entropy, clips, labels)
    release = Release(defense, samples)
    assert release.combines
    sent = Client(model, defense=defense).update(clips, labels, generator("same")).tensors.values()
    message = release.send(torch.ones(3, dtype=torch.bool), generator("same"))
    torch.testing.assert_close(message, torch.cat([t.flatten() for t in sent]), rtol=1e-4, atol=1e-6)


def test_both_ways_of_a_release_are_one() -> None:
    samples = per_clip_gradients(build(Conv).eval(), torch.nn.functional.cross_entropy, *batch(4))
    release, present = Release(DpSgd(), samples), torch.tensor([True, False, True, True])
    fast = release.send(present, generator("way"))
    release.combines = False
    torch.testing.assert_close(release.send(present, generator("way")), fast, rtol=1e-5, atol=1e-6)
    assert not Release(HalvedInAggregate(), samples).combines
    (composite,) = parse_defenses("dp:noise_multiplier=1+prune:fraction=0.5")
    assert Release(composite, samples).combines


def test_scores_are_one_apart_and_noise_has_the_stated_deviation() -> None:
    client = Client(build(Recurrent), defense=DpSgd(noise_multiplier=0.5, max_grad_norm=2.0))
    _, (run,) = canary_runs(client, *batch(2), generator("runs"))
    pairs = [run.pair(generator("pair", index)) for index in range(400)]
    gaps = np.mean([pair.inside - pair.outside for pair in pairs], axis=0)
    assert gaps == pytest.approx([min(norm / 2.0, 1.0) for norm in run.norms], abs=0.15)
    assert run.noise_deviation == 0.5
    assert np.std([pair.noise for pair in pairs]) == pytest.approx(0.5, rel=0.12)


def test_scores_of_a_pruned_message_are_not_taken_for_gaussian() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Pruned(DpSgd):
        def channel(self, update: Update) -> Channel:
            return replace(super().channel(update), kept_fraction=0.5)

        def transmit(self, gradient: Samples, generator: torch.Generator) -> Message:
            return Prune(fraction=0.5).transmit(gradient, generator)

    found = audit(Pruned(), 100)
    assert {bound.method for c in found.canaries for bound in c.bounds} == {"clopper-pearson", "gaussian-dp"}
    assert 0 < found.lower.epsilon < found.claimed


def test_the_generator_alone_decides() -> None:
    first, again, other = audit(DpSgd(), 50, 1), audit(DpSgd(), 50, 1), audit(DpSgd(), 50, 2)
    assert first == again != other


@dataclass(frozen=True, kw_only=True)
class Secure(DpSgd):
    """Noise that no seed gives."""

    def combine(self, samples: Samples, generator: torch.Generator) -> Samples:
        return super().combine(samples, torch.Generator().manual_seed(secrets.randbits(63)))


@pytest.mark.parametrize(
    ("defense", "searchable"), [(DpSgd(), True), (DpHooks(), True), (Secure(), False)], ids=repr
)
def test_a_seed_of_32_bits_is_found(defense: Defense, searchable: bool) -> None:
    samples = {"w": torch.randn(3, 40, generator=generator("samples"))}
    run = CanaryRun(defense, samples, {"own clip": 0})
    assert run.repeats() == searchable


# ---- refusals


class ActsOnClips(DpSgd):
    def prepare_clips(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return clips / 2, labels


def test_refusals() -> None:
    client, numbers = Client(build(Recurrent), defense=DpSgd()), generator("refusal")
    with pytest.raises(InputError, match="draws is 19, expected a whole number from 20"):
        empirical_epsilon(client, *batch(2), numbers, draws=19)
    with pytest.raises(InputError, match="confidence is 1"):
        empirical_epsilon(client, *batch(2), numbers, confidence=1.0)
    with pytest.raises(InputError, match="most_draws is 1"):
        audit_claim(client, *batch(2), numbers, most_draws=1)
    with pytest.raises(InputError, match="level is 0"):
        audit_claim(client, *batch(2), numbers, level=0.0)
    (clips, labels), wrong = batch(2), torch.full((2,), 99)
    given: list[tuple[tuple[Any, ...], str]] = [
        ((client.model, clips, labels, numbers), "client is Recurrent, expected a vleak.Client"),
        ((client, clips.tolist(), labels, numbers), "client: clips is list, expected a torch.Tensor"),
        ((client, clips, wrong, numbers), "labels run from 99 to 99"),
        ((client, clips, labels, 3), "numbers is int, expected a torch.Generator"),
    ]
    for arguments, words in given:
        with pytest.raises(InputError, match=words):
            empirical_epsilon(*arguments)
    for defense in (NoDefense(), DpSgd(noise_multiplier=0.0)):
        with pytest.raises(InputError, match="proves nothing, so there is no claim to audit"):
            empirical_epsilon(Client(build(Recurrent), defense=defense), *batch(2), numbers)
    with pytest.raises(CapabilityError, match="no function of the clips' gradients"):
        empirical_epsilon(Client(build(Recurrent), defense=ActsOnClips()), *batch(2), numbers)


def test_a_model_without_room_for_canaries_is_refused() -> None:
    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(1, 2)

        def forward(self, clips: Tensor) -> Tensor:
            return self.head(clips.mean((1, 2, 3, 4))[:, None])

    with pytest.raises(InputError, match="4 trained entries are too few"):
        empirical_epsilon(Client(Small(), defense=DpSgd()), batch(2)[0], torch.tensor([0, 1]), generator(0))
