"""What Soteria and weak masks send, and what an attacker who knows them makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from attacking import built_in, gap_of, observe, run, scene
from tiny import Conv, Recurrent, Residual, batch, build
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks import Matching
from vleak.attacks.matching import NonAdaptiveMatching
from vleak.defenses import Defense, NoDefense, Soteria, WeakMasks
from vleak.errors import CapabilityError, InputError
from vleak.federated import Client, LocalTraining, Update, mean_gradient
from vleak.seeds import generator


def send(defense: Defense, model: nn.Module, *, clips: int = 3, local: LocalTraining | None = None) -> Update:
    return Client(model, defense=defense, local=local).update(*batch(clips), generator("send"))


# ---- Soteria


@pytest.mark.parametrize("kind", [Conv, Recurrent, Residual])
@pytest.mark.parametrize("fraction", [0.01, 0.4, 0.8])
def test_some_columns_of_the_last_layer_are_zero_and_nothing_else(
    kind: type[nn.Module], fraction: float
) -> None:
    model = build(kind)
    sent, plain = send(Soteria(fraction=fraction), model).tensors, send(NoDefense(), model).tensors
    kept = (sent["head.weight"] == plain["head.weight"]).all(0)
    zeroed = ~plain["head.weight"].any(0)
    pruned = max(1, round(fraction * plain["head.weight"].shape[1]))
    # A feature that is zero for all clips is a column of zeros anyway.
    assert pruned - int(zeroed.sum()) <= int((~kept).sum()) <= pruned
    assert not sent["head.weight"][:, ~kept].any()
    assert all(torch.equal(sent[name], plain[name]) for name in plain if name != "head.weight")


def exact_ratios(model: nn.Module, clip: Tensor) -> Tensor:
    """Return |r_i| / |dr_i/dx| of the input of the tiny convolutional net's head, a pass a feature."""
    clip = clip.clone().requires_grad_()
    features = F.max_pool3d(model.conv(clip).relu(), 2).flatten()  # type: ignore[operator]
    slopes = [torch.autograd.grad(feature, clip, retain_graph=True)[0].norm() for feature in features]
    return features.detach() / torch.stack(slopes).clamp(min=1e-30) * (features.detach() > 0)


def test_pruned_are_the_features_of_largest_ratio() -> None:
    model, (clips, labels) = build(Conv).eval(), batch(1)
    gradient = Soteria(fraction=0.2).aggregate(model, F.cross_entropy, clips, labels, generator("ratios"))
    plain = mean_gradient(model, F.cross_entropy, clips, labels)
    pruned = (gradient["head.weight"] != plain["head.weight"]).any(0)
    ratios = exact_ratios(model, clips)
    best = ratios.topk(int(pruned.sum())).values.sum()
    assert int(pruned.sum()) == round(0.2 * len(ratios))
    # Norms that are estimated take some neighbours for each other.
    assert best > 1.8 * ratios.mean() * int(pruned.sum())
    assert ratios[pruned].sum() > 0.93 * best


def test_whoever_leaves_the_columns_out_rebuilds_more() -> None:
    model, clips, labels = built_in("c3d_tiny"), scene().clips[:4], scene().labels[:4]
    gaps = []
    for attack in (Matching(iterations=80, restarts=1), NonAdaptiveMatching(iterations=80, restarts=1)):
        seen = [
            observe(model, clips[i : i + 1], labels[i : i + 1], Soteria(fraction=0.8),
                    labels=labels[i : i + 1], adaptive=attack.adaptive)
            for i in range(4)
        ]  # fmt: skip
        answers = [run(attack, each).clips for each in seen]
        gaps.append([float(gap_of(a, clips[i : i + 1])) for i, a in enumerate(answers)])
    knowing, blind = gaps
    assert sum(knowing) < 0.8 * sum(blind)


def test_the_channel_leaves_out_the_columns_alone() -> None:
    update = send(Soteria(fraction=0.4), build(Conv))
    channel = Client(build(Conv), defense=Soteria(fraction=0.4)).channel(update)
    assert channel is not None
    assert channel.masks is not None
    columns = channel.masks["head.weight"]
    assert torch.equal(columns, update.tensors["head.weight"].any(0).expand_as(columns))
    assert all(mask.all() for name, mask in channel.masks.items() if name != "head.weight")


def test_of_several_local_steps_nothing_is_stated() -> None:
    defense, model = Soteria(fraction=0.4), build(Conv)
    for steps in (1, 2):
        update = send(defense, model, local=LocalTraining(steps=steps))
        assert (defense.channel(update) is None) == (steps == 2)


def test_batch_statistics_stay_as_they_are() -> None:
    model = build(lambda: Residual(nn.BatchNorm3d)).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Client(model, defense=Soteria(), mode="train").update(*batch(), generator(0))
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


class ConvHead(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv3d(3, 5, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ConvHead, "it has no matrix"),
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.RNN(5, 5)), "the last matrix is '1.weight_hh_l0' of RNN"),
    ],
)
def test_models_without_a_last_linear_layer_are_refused(model: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(CapabilityError, match=f"soteria: .* does not end in a trained linear layer .{words}"):
        Client(build(model), defense=Soteria()).check_model()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, math.nan, math.inf])
def test_fractions_out_of_range_are_refused(fraction: float) -> None:
    with pytest.raises(InputError, match=f"soteria: fraction is {fraction}, expected 0 < fraction < 1"):
        Soteria(fraction=fraction)


# ---- weak masks


@pytest.mark.parametrize(
    ("settings", "noise"),
    [
        ({"deviation": 0.1, "clients": 10}, 0.3),
        ({"deviation": 0.1, "clients": 2}, 0.1),
        ({"deviation": 0.2, "clients": 26, "dropped": 9}, 0.8),
    ],
)
def test_masks_are_noise_of_what_is_left_of_them(settings: dict[str, float], noise: float) -> None:
    model = build(Conv)
    defense = WeakMasks(**settings)  # type: ignore[arg-type]
    sent, plain = send(defense, model), send(NoDefense(), model)
    gaps = torch.cat([(sent.tensors[n] - plain.tensors[n]).flatten() for n in plain.tensors]).double()
    assert float(gaps.square().mean().sqrt()) == pytest.approx(noise, rel=0.1)
    channel = Client(model, defense=defense).channel(sent)
    assert channel is not None
    assert channel.noise_deviation == pytest.approx(3 * noise)
    assert channel.noise_energy == pytest.approx(noise**2 * len(gaps))
    assert channel.clip_norm == math.inf
    assert defense.privacy() is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WeakMasks(deviation=0.0), "masks: deviation is 0.0, expected a number from 1e-12 to 1e"),
        (lambda: WeakMasks(deviation=math.nan), "masks: deviation is nan"),
        (lambda: WeakMasks(clients=1), "masks: clients is 1, expected a whole number from 2"),
        (lambda: WeakMasks(clients=2.5), "masks: clients is 2.5"),  # type: ignore[arg-type]
        (lambda: WeakMasks(dropped=-1), "masks: dropped is -1, expected a whole number from 0"),
        (lambda: WeakMasks(clients=4, dropped=3), "dropped is 3 of 3 partners, .*; expected at most 2"),
    ],
)
def test_masks_that_cannot_be_are_refused(make: Callable[[], Defense], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
