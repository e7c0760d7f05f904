"""Dropout in train mode: masks of the client's own, which an attack searches together with the clip."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import Conv, Recurrent, batch, build
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks import Knowledge, Observation
from vleak.attacks.matching import Matching
from vleak.defenses import DpSgd
from vleak.descent.loop import Descent, DescentSettings, Problem
from vleak.errors import CapabilityError
from vleak.federated import (
    Client,
    LocalTraining,
    fill_masks,
    mask_limits,
    mean_gradient,
    per_clip_gradients,
    with_masks,
    without_dropout,
)
from vleak.federated.dropout import draw_masks
from vleak.seeds import generator

X, Y = batch()


class Twice(nn.Module):
    """Linear layers with one dropout layer that is called twice, as many C3D have it."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.first, self.second = nn.Dropout(0.5), nn.Linear(X[0].numel(), 40), nn.Linear(40, 5)

    def forward(self, clips: Tensor) -> Tensor:
        return self.second(self.drop(self.first(self.drop(clips.flatten(1)))))


class Recalled(Recurrent):
    """A recurrent model, which vmap has no rule for, with dropout before its head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(0.5), self.head)


class Folded(nn.Module):
    """Frames in the batch, and dropout on each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.head = nn.Conv2d(3, 4, 3), nn.Dropout2d(0.5), nn.Linear(4, 5)

    def forward(self, clips: Tensor) -> Tensor:
        frames = self.drop(self.conv(clips.transpose(1, 2).flatten(0, 1)))
        return self.head(frames.mean((2, 3))).unflatten(0, (len(clips), -1)).mean(1)


MODELS: list[Callable[[], nn.Module]] = [Conv, Twice, Recalled, Folded]


def drawn(model: nn.Module, clips: Tensor = X) -> nn.Module:
    masked = with_masks(model.train())
    draw_masks(masked, clips, generator("masks"))
    return masked


@pytest.mark.parametrize("kind", MODELS)
def test_masks_come_from_the_generator_alone_and_the_model_stays(kind: Callable[[], nn.Module]) -> None:
    model = build(kind)
    kinds, state = [type(m) for m in model.modules()], torch.get_rng_state()
    first, again, other = (
        Client(model, mode="train").update(X, Y, generator(seed)).tensors for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(state, torch.get_rng_state())
    assert kinds == [type(m) for m in model.modules()]
    assert not [name for name, _ in model.named_buffers() if "mask" in name]


def test_a_mask_drops_half_and_doubles_the_rest() -> None:
    model = build(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(X[0].numel(), 5)))
    sent = Client(model, mode="train").update(X[:1], Y[:1], generator(0)).tensors
    inputs = sent["2.weight"][0] / sent["2.bias"][0] / X[:1].flatten()
    kept = inputs.abs() > 1
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(inputs, 2.0 * kept, rtol=1e-3, atol=1e-3)


def test_channels_are_dropped_whole_and_every_call_has_its_mask() -> None:
    masks = dict(drawn(build(Folded)).named_buffers())["drop.mask0"]
    assert masks.shape == (len(X), X.shape[2], 4, 1, 1)
    assert set(masks.unique().tolist()) == {0.0, 2.0}
    masked = drawn(build(Twice))
    assert list(mask_limits(masked)) == ["drop.mask0", "drop.mask1"]
    assert set(mask_limits(masked).values()) == {2.0}


def test_one_clip_in_a_pass_does_not_move_the_order_of_masks() -> None:
    masked = drawn(build(Twice))
    expected = masked(X)
    masked.drop.call = 1  # as after a pass that ended early
    assert torch.equal(masked(X), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_of_clips_have_their_own_masks_and_the_mean_of_the_batch(
    kind: Callable[[], nn.Module],
) -> None:
    masked = drawn(build(kind))
    samples = per_clip_gradients(masked, F.cross_entropy, X, Y)
    whole = mean_gradient(masked, F.cross_entropy, X, Y)
    for name, gradient in whole.items():
        torch.testing.assert_close(samples[name].mean(0), gradient, rtol=1e-4, atol=1e-6)
    alike = per_clip_gradients(masked, F.cross_entropy, X[:1].expand_as(X).contiguous(), Y[:1].expand_as(Y))
    head = next(name for name in reversed(samples) if name.endswith("weight"))
    assert not torch.allclose(alike[head][0], alike[head][1])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("local", [None, LocalTraining(steps=2, batch_size=2, learning_rate=0.1)])
def test_dp_checks_hold_under_masks(kind: Callable[[], nn.Module], local: LocalTraining | None) -> None:
    client = Client(build(kind), "cross_entropy", DpSgd(noise_multiplier=0.1), mode="train", local=local)
    assert client.update(X, Y, generator(0)).facts.mode == "train"


def test_noise_does_not_decide_on_the_masks() -> None:
    model = build(Twice)
    plain = Client(model, mode="train").update(X, Y, generator(0)).tensors
    clipped = Client(model, defense=DpSgd(noise_multiplier=1e-9, max_grad_norm=1e6), mode="train")
    noisy = clipped.update(X, Y, generator(0)).tensors
    for name, tensor in plain.items():
        torch.testing.assert_close(noisy[name], tensor, rtol=1e-3, atol=1e-2)


def test_every_local_step_draws_anew() -> None:
    model = build(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(X[0].numel(), 5)))
    local = LocalTraining(steps=3, learning_rate=1e-3)
    sent = Client(model, mode="train", local=local).update(X[:1].clamp(min=0.01), Y[:1], generator(0)).tensors
    untouched = (sent["2.weight"] == 0).all(0).float().mean()
    assert 0.05 < untouched < 0.2  # an eighth is dropped three times


def test_a_model_of_part_of_the_rows_is_refused() -> None:
    with pytest.raises(CapabilityError, match="masks were drawn for 3 rows, and the model was called with 1"):
        drawn(build(Conv))(X[:1])


def test_without_dropout_is_what_masks_of_ones_are() -> None:
    model = build(Twice).train()
    masked = with_masks(model)
    fill_masks(masked, X)
    torch.testing.assert_close(masked(X), copy.deepcopy(model).eval()(X))
    torch.testing.assert_close(without_dropout(model)(X), copy.deepcopy(model).eval()(X))


# --- the attack ------------------------------------------------------------------------------------------


def small() -> nn.Module:
    layers = (
        nn.Conv3d(3, 8, 3, 2, 1), nn.Sigmoid(), nn.Dropout(0.3), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(8 * 2 * 4 * 4, 3),
    )  # fmt: skip
    return nn.Sequential(*layers)


def observed(model: nn.Module, **options: Any) -> Observation:
    clip = torch.rand(1, 3, 4, 8, 8, generator=generator("clip"))
    update = Client(model, mode="train", **options).update(clip, torch.tensor([1]), generator("client"))
    return Observation(model, update, Knowledge(clip_shape=(3, 4, 8, 8), batch_size=1, classes=3))


def error(observation: Observation, **options: Any) -> float:
    clip = torch.rand(1, 3, 4, 8, 8, generator=generator("clip"))
    attack = Matching(iterations=120, spatial=0.001, temporal=0.001, coarse=0, **options)
    return float((attack.reconstruct(observation, generator("attack")).clips - clip).square().mean())


@pytest.mark.parametrize("local", [None, LocalTraining(steps=2, learning_rate=0.1)])
def test_searching_the_masks_beats_taking_their_mean(local: LocalTraining | None) -> None:
    model = build(small)
    seen = observed(model, local=local)
    mean = error(Observation(without_dropout(model), seen.update, seen.knowledge))
    assert error(seen) < 0.6 * mean


def test_the_observation_holds_no_mask() -> None:
    seen = observed(build(small))
    assert not [name for name, _ in seen.model.named_buffers()]
    assert [type(m) for m in seen.model.modules() if isinstance(m, nn.Dropout)] == [nn.Dropout] * 2


@pytest.mark.parametrize("coarse", [0, 1])
def test_both_engines_search_the_same_masks(coarse: int) -> None:
    masked = drawn(build(small), torch.rand(2, 3, 4, 8, 8, generator=generator("clips")))
    target = {name: torch.randn(p.shape, generator=generator(name)) for name, p in masked.named_parameters()}
    start = torch.full((2, 3, 4, 8, 8), 0.5)
    fill_masks(masked, start)
    problem = Problem(masked, F.cross_entropy, torch.tensor([0, 1]), target, unknown=mask_limits(masked))
    states = []
    for engine in ("native", "reference"):
        descent = Descent(problem, DescentSettings(iterations=20, coarse=coarse), start, engine=engine)
        assert descent.engine == engine
        descent.run(20)
        unknown = descent.runner.values["unknown"]
        assert (float(unknown.min()) >= 0, float(unknown.max()) <= 2) == (True, True)
        assert unknown.std() > 0.01
        states.append((descent.state.best, unknown))
    for native, reference in zip(*states, strict=True):
        torch.testing.assert_close(native, reference, rtol=1e-2, atol=1e-2)
