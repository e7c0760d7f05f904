"""Channels of message defenses within attacks: projections, transforms, and noise in some entries alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attacking import built_in, observe, observe_clip, psnr, run, scene
from torch import Tensor
from torch.nn import functional as F

from vleak.attacks import ATTACKS, Matching, NonAdaptiveMatching, Observation
from vleak.attacks.linkage import link_rank, link_scores
from vleak.attacks.matching.projection import ProjectedModel, in_bases
from vleak.attacks.matching.rounds import joined
from vleak.attacks.trials import channel_of_trial
from vleak.defenses import Composite, Compress, Defense, DpSgd, PowerSgd, Prune, parse_defenses
from vleak.errors import InputError
from vleak.federated import Channel, Client, Update, mean_gradient
from vleak.models import SMALL_MODELS
from vleak.seeds import generator

LOW_RANK = PowerSgd(rank=2)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_measured_coordinates_are_the_gradient_of_the_projected_model(name: str) -> None:
    clip, label = scene().clips[:1], scene().labels[:1]
    observation = observe(built_in(name), clip, label, LOW_RANK)
    assert observation.channel is not None
    projected, channel = in_bases(observation, observation.channel)
    gradient = mean_gradient(projected.model, F.cross_entropy, clip, label)
    assert channel.bases is None
    assert set(gradient) == set(projected.update.tensors)
    assert sum(name.startswith("factors.") for name in gradient) >= 2
    for name, tensor in projected.update.tensors.items():
        torch.testing.assert_close(gradient[name], tensor, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(projected.model(clip), observation.model(clip))


def test_the_model_that_was_projected_is_left_as_it_was() -> None:
    model = built_in("c3d_tiny")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ProjectedModel(model, {"head.weight": torch.eye(6)[:, :2]})
    assert list(dict(model.named_parameters())) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_matching_in_the_measured_coordinates_beats_matching_what_they_make() -> None:
    observation = observe_clip(defense=LOW_RANK)
    truth, attack = scene().clips[:1], Matching(iterations=80)
    knowing = psnr(run(attack, observation).clips, truth)
    unaware = observe_clip(defense=LOW_RANK, adaptive=False)
    blind = psnr(run(NonAdaptiveMatching(iterations=80), unaware).clips, truth)
    assert knowing > blind + 1.5


def test_masks_of_pruned_products_are_those_of_what_is_no_product() -> None:
    (defense,) = parse_defenses("prune:fraction=0.2+powersgd:rank=2,error_feedback=false")
    observation = observe_clip(defense=defense)
    assert observation.channel is not None
    assert observation.channel.masks is not None
    projected, channel = in_bases(observation, observation.channel)
    assert channel.masks is not None
    channel.check(projected.update)
    for name, mask in channel.masks.items():
        if name.startswith("factors."):
            assert mask.all()
        else:
            assert torch.equal(mask, observation.channel.masks[name.removeprefix("model.")])


def test_rounds_keep_the_bases_of_each() -> None:
    first, last = observe_clip(defense=LOW_RANK), observe_clip(defense=LOW_RANK, seed=1)
    together = joined([first, last])
    assert together.channel is not None
    assert {name.split(".")[1] for name in together.channel.bases or {}} == {"0", "1"}
    together.channel.check(together.update)
    answer = run(Matching(iterations=20), dataclasses.replace(last, earlier=(first,)))
    assert torch.isfinite(answer.clips).all()


def test_a_trial_has_the_bases_of_its_own_message() -> None:
    observed, trial = observe_clip(defense=LOW_RANK), observe_clip(1, defense=LOW_RANK)
    assert observed.channel is not None
    channel = channel_of_trial(observed.channel, trial, observed.update)
    measured = channel.measured(trial.update.tensors)
    for name, tensor in trial.update.tensors.items():
        torch.testing.assert_close(measured[name], tensor, rtol=1e-3, atol=1e-5)


def _rank(defense: Defense, index: int) -> int:
    """Return the rank of the true clip among eight, each with its own label."""
    model, data = built_in("c3d_tiny"), scene()
    observation = observe_clip(index, defense=defense)
    plain = Client(model)
    candidates = [
        [plain.update(data.clips[i : i + 1], data.labels[i : i + 1], generator(0))] for i in range(8)
    ]
    return link_rank(link_scores(observation, candidates), index)


@pytest.mark.parametrize(
    "text",
    [
        "compress:codec=sign",
        "prune_dual:largest=0.2",
        "nvflare_percentile:gamma=0.0001",
        "powersgd:rank=1",
        "dp:noise_multiplier=0.01+prune:fraction=0.9",
        "dp:noise_multiplier=0.01+compress:codec=sign",
    ],
)
def test_clips_are_linked_through_what_the_channel_says(text: str) -> None:
    (defense,) = parse_defenses(text)
    assert [_rank(defense, index) for index in (0, 3)] == [1, 1]


def test_linkage_compares_what_a_transform_would_send() -> None:
    """Of two candidates with the same direction the one whose signs were sent wins."""

    def one(*values: float) -> Update:
        return Update({"w": torch.tensor(values)}, 0)

    update = Update(Compress(codec="sign").transmit(one(0.1, -4.0, 1.0).tensors, generator(0)).tensors, 0)
    observation = dataclasses.replace(
        observe_clip(), update=update, channel=Compress(codec="sign").channel(update)
    )
    candidates = [[one(0.1, -4.0, 1.0)], [one(-1.0, -1.0, 1.0)]]
    scores = link_scores(observation, candidates)
    assert scores[0] == pytest.approx(1.0)
    assert scores[1] < 0.5


@pytest.mark.parametrize("attack", ["retrieval", "inverter"])
@pytest.mark.parametrize("text", ["compress:codec=sign", "dp:noise_multiplier=0.001+prune:fraction=0.5"])
def test_attacks_that_play_the_client_do_so_through_the_channel(attack: str, text: str) -> None:
    (defense,) = parse_defenses(text)
    truth = scene().clips[:1]
    observation = observe_clip(defense=defense, rehearse=True)
    settings = {"copies": 2, "rehearsals": 6} if attack == "inverter" else {"rehearsals": 6}
    answer = run(ATTACKS.build(attack, **settings), observation)
    prior = scene().public_clips.mean(0, keepdim=True)
    assert psnr(answer.clips, truth) > psnr(prior, truth) - 1.0


def test_bases_that_do_not_fit_are_refused() -> None:
    update = Update({"w": torch.zeros(4, 3)}, 0)
    for basis in (torch.zeros(4), torch.zeros(3, 2)):
        with pytest.raises(InputError, match="basis 'w' has shape"):
            Channel(bases={"w": basis}).check(update)
    with pytest.raises(InputError, match="basis 'v' has shape"):
        Channel(bases={"v": torch.zeros(4, 2)}).check(update)


def _energy(observation: Observation) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in observation.update.tensors.values()]).square().sum()


def test_noise_of_signs_and_ternary_entries_is_near_the_true_one() -> None:
    """It rests on how peaked gradients are; what is not along the gradient is noise."""
    for name in SMALL_MODELS:
        plain = observe_clip(name=name).update
        for codec in ("sign", "terngrad"):
            observation = observe_clip(name=name, defense=Compress(codec=codec))
            pairs = [(observation.update.tensors[n].double(), t.double()) for n, t in plain.tensors.items()]
            along = sum(float((sent * g).sum()) for sent, g in pairs)
            square = sum(float(g.square().sum()) for _, g in pairs)
            true = float(_energy(observation)) - along**2 / square
            assert observation.channel is not None
            assert observation.channel.noise_energy == pytest.approx(true, rel=0.3)


def test_a_threshold_is_simulated_as_it_was() -> None:
    observation = observe_clip(defense=Prune(which="threshold", threshold=0.003))
    assert observation.channel is not None
    plain = observe_clip().update.tensors
    sent = observation.channel.measured(plain)
    for name, tensor in observation.update.tensors.items():
        assert torch.equal(sent[name], tensor)


@pytest.mark.parametrize("noise", [1e-4, 0.003, 0.01, 0.1])
def test_noise_that_pruning_kept_is_what_arrived_of_it(noise: float) -> None:
    """Among the largest entries there is more noise than among all, where it decides which they are."""
    defense = Composite(stages=(DpSgd(noise_multiplier=noise), Prune(fraction=0.9)))
    observation = observe_clip(defense=defense)
    clean = observe_clip(defense=DpSgd(noise_multiplier=0.0)).update.tensors
    assert observation.channel is not None
    kept = [(t[t != 0].double(), clean[n][t != 0].double()) for n, t in observation.update.tensors.items()]
    true = sum(float((sent - plain).square().sum()) for sent, plain in kept)
    assert observation.channel.noise_energy == pytest.approx(true, rel=0.15)
