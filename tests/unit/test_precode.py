"""PRECODE: what it adds to the model, what it draws, and how an attacker gets round it."""

from __future__ import annotations

import math

import pytest
import torch
from attacking import built_in, gap_of, observe, run, scene
from tiny import Conv, Recurrent, Residual, batch, build
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks import Matching
from vleak.attacks.matching import NonAdaptiveMatching
from vleak.attacks.matching.cut import CutModel, cut_off, total
from vleak.attacks.trials import channel_of_trial
from vleak.defenses import Defense, NoDefense, Precode, Prune, parse_defenses
from vleak.defenses.precode import Bottleneck
from vleak.errors import CapabilityError, InputError
from vleak.federated import Client, LocalTraining, Update, mean_gradient, train_federation
from vleak.federated.federation import Federation
from vleak.pipelines.conditions import Samples
from vleak.pipelines.learned import LearnedDefenses
from vleak.seeds import generator


def client(kind: type[nn.Module] = Conv, **settings: float) -> Client:
    return Client(build(kind), defense=Precode(**{"width": 8, **settings}))  # type: ignore[arg-type]


def sent(sender: Client, *seed: object, clips: int = 3) -> Update:
    return sender.update(*batch(clips), generator("precode", *seed))


@pytest.mark.parametrize("kind", [Conv, Recurrent, Residual])
def test_the_model_gains_a_bottleneck_and_keeps_its_names(kind: type[nn.Module]) -> None:
    sender, plain = client(kind), build(kind)
    names = [name for name, _ in sender.model.named_parameters()]
    before = [name for name, _ in plain.named_parameters()]
    added = {f"head.bottleneck.{part}.{of}" for part in ("encoder", "decoder") for of in ("weight", "bias")}
    assert set(names) == {*before, *added}
    assert Precode(width=8).extend_model(sender.model) is sender.model
    update = sent(sender)
    update.check(sender.model)
    assert update.wire_bytes == 4 * sum(p.numel() for p in sender.model.parameters())


def test_the_bottleneck_is_the_same_for_all_clients_and_the_divergence_is_that_of_gaussians() -> None:
    one, other = Bottleneck(6, 4), Bottleneck(6, 4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    one.draws, inputs = generator("divergence"), torch.randn(5, 6, generator=generator("inputs"))
    one(inputs)
    means, raw = one.encoder(inputs).chunk(2, -1)
    code = torch.distributions.Normal(means, F.softplus(raw))
    expected = torch.distributions.kl_divergence(code, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(one.divergence, expected)
    one.draws = None
    torch.testing.assert_close(one(inputs), one.decoder(means))


def test_the_weight_of_the_divergence_counts() -> None:
    light, heavy = (sent(client(weight=weight)).tensors for weight in (0.0, 1.0))
    assert not torch.allclose(light["conv.weight"], heavy["conv.weight"])
    assert torch.equal(light["head.bias"], heavy["head.bias"])  # it does not reach the head


def cut_gradient(sender: Client, update: Update, clip: Tensor, label: Tensor) -> dict[str, Tensor]:
    layer = "head.bottleneck.encoder"
    cut = CutModel(sender.model.eval(), layer, update.tensors[f"{layer}.bias"])
    found = mean_gradient(cut, total, clip, label)
    return {name.removeprefix("model."): tensor for name, tensor in found.items()}


@pytest.mark.parametrize("kind", [Conv, Recurrent, Residual])
def test_what_came_back_to_the_encoder_explains_all_before_it(kind: type[nn.Module]) -> None:
    sender, (clip, label) = client(kind), batch(1)
    update = sender.update(clip, label, generator("cut"))
    expected = mean_gradient(sender.model.eval(), F.cross_entropy, clip, label)
    found = cut_gradient(sender, update, clip, label)
    for name, tensor in update.tensors.items():
        if not name.startswith("head.") or name.startswith("head.bottleneck.encoder"):
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(expected["head.weight"], update.tensors["head.weight"], rtol=0.1)


def test_the_channel_leaves_out_what_is_drawn() -> None:
    sender = client()
    channel = sender.channel(sent(sender))
    assert channel is not None
    assert channel.masks is not None
    assert channel.random_behind == "head.bottleneck.encoder"
    assert {name for name, mask in channel.masks.items() if not mask.any()} == {
        name for name in channel.masks if name.startswith("head.")
    }
    assert all(mask.all() for name, mask in channel.masks.items() if not name.startswith("head."))
    local = Client(build(Conv), defense=Precode(width=8), local=LocalTraining(steps=2))
    several = local.channel(sent(local))
    assert several is not None
    assert several.random_behind is None


def seen(defense: Defense, clips: slice, *, adaptive: bool = True):  # type: ignore[no-untyped-def]
    model, data = built_in("c3d_tiny"), scene()
    return observe(
        model, data.clips[clips], data.labels[clips], defense, labels=data.labels[clips], adaptive=adaptive
    )


def test_a_trial_leaves_out_the_same_layers() -> None:
    observed, trial = seen(Precode(width=8), slice(0, 1)), seen(Precode(width=8), slice(1, 2))
    assert observed.channel is not None
    channel = channel_of_trial(observed.channel, trial, observed.update)
    assert channel.masks is not None
    assert channel.random_behind == observed.channel.random_behind
    for name, mask in (observed.channel.masks or {}).items():
        assert mask.any() or not channel.masks[name].any()
    assert channel.masks[next(iter(channel.masks))].any()


def test_of_a_batch_the_model_is_not_cut() -> None:
    observation = seen(Precode(width=8), slice(0, 2))
    assert observation.channel is not None
    assert cut_off(observation, observation.channel)[0] is observation


def test_whoever_knows_it_rebuilds_as_if_it_were_not_there() -> None:
    gaps = []
    for defense, attack in (
        (NoDefense(), Matching(iterations=80)),
        (Precode(width=32), Matching(iterations=80)),
        (Precode(width=32), NonAdaptiveMatching(iterations=80)),
    ):
        total_gap = 0.0
        for index in range(2):
            own = slice(index, index + 1)
            answer = run(attack, seen(defense, own, adaptive=attack.adaptive)).clips
            total_gap += float(gap_of(answer, scene().clips[own]))
        gaps.append(total_gap)
    plain, knowing, blind = gaps
    assert knowing < 1.5 * plain
    assert knowing < 0.3 * blind


def test_pruning_may_follow_and_another_aggregation_may_not() -> None:
    (both,) = parse_defenses("precode:width=8+prune:fraction=0.5")
    sender = Client(build(Conv), defense=both)
    update = sent(sender)
    channel = sender.channel(update)
    assert channel is not None
    assert channel.masks is not None
    assert torch.equal(channel.masks["conv.weight"], update.tensors["conv.weight"] != 0)
    assert isinstance(both, Defense)
    assert Prune(fraction=0.5) in both.stages  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="precode and dp both act on the gradients"):
        parse_defenses("precode+dp")


def test_a_federation_trains_the_bottleneck_too() -> None:
    sender = client()
    clips, labels = batch(4)
    trained = train_federation(
        sender, clips, labels, Federation(rounds=2, clients=2), generator("train")
    ).model
    before = dict(sender.model.named_parameters())
    moved = {name for name, p in trained.named_parameters() if not torch.equal(p, before[name])}
    assert {"conv.weight", "head.weight", "head.bottleneck.encoder.weight"} <= moved
    with torch.no_grad():
        assert torch.equal(trained.eval()(clips), trained(clips))  # outside of a client nothing is drawn


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 0}, "precode: width is 0, expected a whole number from 1"),
        ({"width": 2.5}, "precode: width is 2.5"),
        ({"weight": -1.0}, "precode: weight is -1.0, expected a number from 0 to 1e"),
        ({"weight": math.nan}, "precode: weight is nan"),
        ({"weight": math.inf}, "precode: weight is inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Precode(**settings)  # type: ignore[arg-type]


def test_models_without_a_last_linear_layer_are_refused() -> None:
    model = nn.Sequential(nn.Conv3d(3, 5, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    with pytest.raises(CapabilityError, match=r"precode: .* does not end in a trained linear layer"):
        Client(model, defense=Precode())


def test_a_pipeline_extends_its_model_once_for_a_defense() -> None:
    model, (clips, labels) = build(Conv), batch(2)
    kept = LearnedDefenses(model, Samples(clips, labels, clips, labels, classes=3))
    defense = Precode(width=8)
    first = kept.of(defense).model
    assert first is kept.of(defense).model
    assert any(isinstance(module, Bottleneck) for module in first.modules())
    assert kept.of(NoDefense()).model is model
    assert Client(first, defense=kept.of(defense).defense).model is first


def test_a_step_leaves_the_model_as_it_was() -> None:
    sender = client()
    (bottleneck,) = [module for module in sender.model.modules() if isinstance(module, Bottleneck)]
    before = {name: parameter.clone() for name, parameter in sender.model.named_parameters()}
    sent(sender)
    assert bottleneck.draws is None
    assert float(bottleneck.divergence) == 0.0
    assert all(torch.equal(p, before[name]) for name, p in sender.model.named_parameters())
    assert all(p.grad is None for p in sender.model.parameters())
