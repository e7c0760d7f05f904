"""Attacks on updates as people have them: on a part of one, and the flag of one of the wrong sign."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from attacking import built_in, observe, psnr, run, same_answer, scene
from tiny import build
from torch import Tensor, nn

import vleak
from vleak.attacks import ATTACKS, Hooks, Knowledge, Matching, Observation, infer_labels, update_sign
from vleak.attacks.flags import NEGATED, REVERSED
from vleak.defenses import DpSgd
from vleak.errors import VleakError
from vleak.federated import Client, LocalTraining, PublicFacts, Update
from vleak.models import build_head, train
from vleak.report.flag_texts import flag_meaning
from vleak.seeds import generator

RATE = 0.125  # a power of two: multiples of it are exact
DELTA = PublicFacts(kind="fedavg", local=LocalTraining(learning_rate=RATE))


# ---- a part of an update


def part_of(observation: Observation, *names: str) -> Observation:
    """Return an observation of the tensors whose names begin with one of these."""
    held = {n: t for n, t in observation.update.tensors.items() if n.startswith(names)}
    assert held
    return replace(observation, update=replace(observation.update, tensors=held, partial=True))


def test_a_part_of_an_update_is_attacked_on_what_is_there() -> None:
    clips, labels = scene().clips[:1], scene().labels[:1]
    whole = observe(built_in("c3d_tiny"), clips, labels, labels=labels)
    part = part_of(whole, "features")
    answer = run(Matching(iterations=60, coarse=0), part)
    assert answer.engine == "native"
    baseline = psnr(scene().public_clips.mean(0, keepdim=True), clips)
    assert psnr(answer.clips, clips) > baseline + 3


def test_what_is_not_there_is_not_looked_at() -> None:
    clips, labels = scene().clips[:1], scene().labels[:1]
    whole = observe(built_in("c3d_tiny"), clips, labels, labels=labels)
    part = part_of(whole, "features")
    zeros = {n: torch.zeros_like(t) for n, t in whole.update.tensors.items()} | part.update.tensors
    filled = replace(whole, update=replace(whole.update, tensors=zeros))
    at_truth = [
        float(Matching(engine="reference").prepare(o, generator(0), Hooks()).descents[0]
              .distance_and_gradient(clips)[0])
        for o in (whole, part, filled)
    ]  # fmt: skip
    assert at_truth[0] < 1e-6
    assert at_truth[1] < 1e-6
    assert at_truth[2] > 0.01


def test_labels_of_a_part() -> None:
    clips, labels = scene().clips[2:3], scene().labels[2:3]
    whole = observe(built_in("c3d_tiny"), clips, labels)
    assert torch.equal(infer_labels(part_of(whole, "head.bias")), labels)
    assert torch.equal(infer_labels(part_of(whole, "head.weight")), infer_labels(part_of(whole, "head")))
    assert infer_labels(part_of(whole, "features")).tolist() == [0]


def test_other_attacks_use_a_part_or_say_why_not() -> None:
    clips, labels = scene().clips[:1], scene().labels[:1]
    part = part_of(observe(built_in("c3d_tiny"), clips, labels, labels=labels), "head")
    answer = run(ATTACKS.build("deep_prior", iterations=3), part)
    assert torch.isfinite(answer.clips).all()
    with pytest.raises(VleakError, match=r"inverter needs every parameter.*choose matching"):
        run(ATTACKS.build("inverter", copies=1), part)


def test_exact_attacks_on_a_part_of_a_head() -> None:
    head = build_head("mlp", segments=1, features=16, outputs=4, seed=0)
    bag = torch.rand(1, 1, 16, generator=generator("bag"))
    update = Client(head).update(bag, torch.zeros(1, dtype=torch.long), generator(0))
    whole = Observation(head, update, Knowledge(clip_shape=(1, 16), batch_size=1, classes=4))
    exact = ATTACKS.build("closed_form")
    assert torch.allclose(run(exact, part_of(whole, "layers.0")).clips, bag, atol=1e-4)
    with pytest.raises(VleakError, match=r"has no bias to divide by"):
        run(exact, part_of(whole, "layers.0.weight"))
    with pytest.raises(VleakError, match=r"lacks 'layers.0.weight', the first trained layer"):
        run(exact, part_of(whole, "layers.2"))


# ---- the sign


def negated(observation: Observation) -> Observation:
    tensors = {name: -tensor for name, tensor in observation.update.tensors.items()}
    return replace(observation, update=replace(observation.update, tensors=tensors))


class NoBias(nn.Module):
    """A classifier whose last layer has no bias and reads rectified, or signed, numbers."""

    def __init__(self, *, rectified: bool, factor: float = 1.0) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3 * 4 * 16 * 16, 12), nn.Linear(12, 6, bias=False)
        self.rectified, self.factor = rectified, factor

    def forward(self, clips: Tensor) -> Tensor:
        hidden = self.first(clips.flatten(1) - 0.5)
        return self.factor * self.head(hidden.relu() if self.rectified else hidden)


@pytest.mark.parametrize("name", ["c3d_tiny", "c3d_tiny_pool", "lrcn"])
@pytest.mark.parametrize("clips", [1, 2, 4])
def test_sign_of_a_gradient_and_of_its_negative(name: str, clips: int) -> None:
    observation = observe(built_in(name), scene().clips[:clips], scene().labels[:clips])
    assert update_sign(observation) == "gradient"
    assert update_sign(negated(observation)) == "negated gradient"


def test_sign_without_a_bias() -> None:
    clips, labels = scene().clips[:1], scene().labels[:1]
    rectified = observe(build(lambda: NoBias(rectified=True)), clips, labels)
    assert update_sign(rectified) == "gradient"
    assert update_sign(negated(rectified)) == "negated gradient"
    # An honest gradient whose layer reads signed numbers, or is turned round, has rows of any sign.
    for settings in ({"rectified": False}, {"rectified": True, "factor": -1.0}):
        model = build(lambda settings=settings: NoBias(**settings))
        for index in range(8):
            honest = observe(model, scene().clips[index:][:1], scene().labels[index:][:1])
            assert update_sign(honest) != "negated gradient"


def test_sign_needs_cross_entropy_and_the_last_layer() -> None:
    observation = observe(built_in("c3d_tiny"), scene().clips[:1], scene().labels[:1])
    assert update_sign(part_of(observation, "features")) == "undecided"
    bce = replace(observation.update, facts=PublicFacts(loss="bce"))
    assert update_sign(replace(observation, update=bce)) == "undecided"
    nothing = {n: torch.zeros_like(t) for n, t in observation.update.tensors.items()}
    empty = replace(observation, update=replace(observation.update, tensors=nothing))
    assert update_sign(empty) == "undecided"


def families() -> list[tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]]:
    """Return models of three kinds with clips or bags: private ones, their labels, and public ones."""
    classes, data = 6, scene(clips=8, public=16)
    bags = torch.rand(32, 4, 16, generator=generator("bags"))
    marks = torch.randint(classes, (32,), generator=generator("marks"))
    head = build_head("mlp", segments=4, features=16, outputs=classes, seed=1)
    models = [vleak.build_model(n, frames=4, size=16, classes=classes, seed=1) for n in ("c3d_tiny", "lrcn")]
    return [
        *((model, data.clips, data.labels, data.public_clips, data.public_labels) for model in models),
        (head, bags[:8], marks[:8], bags[8:], marks[8:]),
    ]


def honest_updates(steps: int, sizes: Sequence[int], defense: vleak.Defense) -> Iterator[Observation]:
    """Yield honest updates of models after so many steps, with public clips and without."""
    for model, clips, labels, public, targets in families():
        train(model, public, targets, steps, generator("train"))
        for size in sizes:
            chosen = torch.randperm(8, generator=generator("chosen", steps, size))[:size]
            for held in (None, public):
                yield observe(model, clips[chosen], labels[chosen], defense, public_clips=held)


NOISE = DpSgd(noise_multiplier=0.01)
STATES = [pytest.param(n, marks=pytest.mark.slow) if n in (40, 300) else n for n in (0, 20, 40, 300)]


@pytest.mark.parametrize("steps", STATES)
@pytest.mark.parametrize("defense", [vleak.Defense(), NOISE], ids=["exact", "noisy"])
def test_no_honest_update_is_accused(steps: int, defense: vleak.Defense) -> None:
    """240 updates in all, a fifth of them in the quick tests."""
    sizes = (1, 4) if steps == 20 else (1, 8) if steps == 0 else (1, 2, 3, 4, 5, 6, 7, 8)
    signs = [update_sign(observation) for observation in honest_updates(steps, sizes, defense)]
    assert len(signs) == 6 * len(sizes)
    assert "negated gradient" not in signs
    if defense is NOISE:  # a sum that noise leaves at 0 is a chance of one in thousands
        assert signs.count("undecided") >= len(signs) - 1
    else:
        # Trained models leave gradients at rounding, and many batches can have either sign.
        assert signs.count("gradient") >= len(signs) // 4


@pytest.mark.parametrize("clips", [1, 4])
def test_an_update_of_the_wrong_sign_is_flagged_not_turned(clips: int) -> None:
    observation = observe(built_in("c3d_tiny"), scene().clips[:clips], scene().labels[:clips])
    attack = Matching(iterations=3)
    assert not {NEGATED, REVERSED} & set(run(attack, observation).flags)
    assert run(attack, negated(observation)).flags[0] == NEGATED
    assert "fedavg" in flag_meaning(NEGATED)
    delta = replace(negated(observation).update, facts=replace(DELTA, batch_size=clips))
    assert not {NEGATED, REVERSED} & set(run(attack, replace(observation, update=delta)).flags)
    wrong = replace(observation.update, facts=replace(DELTA, batch_size=clips))
    assert run(attack, replace(observation, update=wrong)).flags[0] == REVERSED
    assert "after" in flag_meaning(REVERSED)


def test_a_delta_of_one_step_gives_what_its_gradient_gives() -> None:
    clips, labels = scene().clips[:1], scene().labels[:1]
    observation = observe(built_in("c3d_tiny"), clips, labels)
    model, gradient = observation.model, observation.update
    after = {n: p.detach().double() - RATE * gradient.tensors[n] for n, p in model.named_parameters()}
    delta = Update.from_state_dicts(model, after, learning_rate=RATE).as_gradient()
    assert all(torch.equal(delta.tensors[name], gradient.tensors[name]) for name in gradient.tensors)
    first = run(Matching(iterations=5), observation)
    assert same_answer(first, run(Matching(iterations=5), replace(observation, update=delta)))
