"""DP-SGD by layers, by windows and by hooks: what is sent, and where the hooks are void."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attacking import built_in, observe, run, scene
from tiny import Conv, Recurrent, Residual, batch, build
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks import Inverter, Knowledge, Observation, link_scores
from vleak.defenses import Defense, DpHooks, DpLayers, DpSgd, DpVideo
from vleak.errors import CapabilityError, InputError
from vleak.federated import Client, mean_gradient, per_clip_gradients
from vleak.seeds import generator


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def aggregate(defense: Defense, model: nn.Module, loss: Any = F.cross_entropy, clips: int = 3) -> Any:
    return defense.aggregate(model.eval(), loss, *batch(clips), generator("variants"))


# ---- by layers


@pytest.mark.parametrize("kind", [Conv, Recurrent, Residual])
def test_layers_are_clipped_and_noised_by_hand(kind: type[nn.Module]) -> None:
    model, (clips, labels), noise, bound = build(kind).eval(), batch(), 0.3, 0.2
    sent = aggregate(DpLayers(noise_multiplier=noise, max_grad_norm=bound), model)
    samples = per_clip_gradients(model, F.cross_entropy, clips, labels)
    draws, each = generator("variants"), bound / math.sqrt(len(samples))
    for name, sample in samples.items():
        norms = sample.reshape(3, -1).norm(dim=1)
        factors = (each / norms.clamp(min=1e-12)).clamp(max=1).view(3, *[1] * (sample.dim() - 1))
        expected = (factors * sample).sum(0) + noise * bound * torch.randn(sample.shape[1:], generator=draws)
        torch.testing.assert_close(sent[name], expected / 3, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("clips", [1, 3])
def test_the_channel_of_layers_expects_what_is_sent(clips: int) -> None:
    defense, model = DpLayers(noise_multiplier=0.0, max_grad_norm=0.05), build(Conv).eval()
    client = Client(model, defense=defense)
    update = client.update(*batch(clips), generator(0))
    channel = client.channel(update)
    assert channel is not None
    samples = per_clip_gradients(model, F.cross_entropy, *batch(clips))
    expected = channel.expected({name: sample[None] for name, sample in samples.items()})
    for name, tensor in update.tensors.items():
        torch.testing.assert_close(expected[name][0], tensor, rtol=1e-3, atol=1e-6)
    assert channel.scaled(2.0).layerwise


def test_linkage_knows_the_layers() -> None:
    model, (clips, labels) = build(Conv).eval(), batch(6)
    defense = DpLayers(noise_multiplier=1e-3, max_grad_norm=0.05)
    client, plain = Client(model, defense=defense), Client(model)
    update = client.update(clips[:1], labels[:1], generator(0))
    knowledge = Knowledge(clip_shape=tuple(clips.shape[1:]), batch_size=1, classes=5)
    seen = Observation(model, update, knowledge, client.channel(update))
    candidates = [[plain.update(clips[i : i + 1], labels[i : i + 1], generator(0))] for i in range(6)]
    scores = link_scores(seen, candidates)
    energy = float(flat(update.tensors).double().square().sum())
    # Of |sent - expected|^2 / 2 the noise alone is left, where what is expected is clipped by layers.
    left = energy / 2 - float(scores[0]) * (1e-3 * 0.05) ** 2
    entries = len(flat(update.tensors))
    assert left == pytest.approx(entries * (1e-3 * 0.05) ** 2 / 2, rel=0.2)
    assert int(scores.argmax()) == 0


def test_the_inverter_rehearses_layers_by_themselves() -> None:
    model, clips, labels = built_in("c3d_tiny"), scene().clips[:1], scene().labels[:1]
    answers = []
    for kind in (DpSgd, DpLayers, DpSgd):
        channel = observe(model, clips, labels, kind(noise_multiplier=0.0, max_grad_norm=0.1)).channel
        seen = replace(observe(model, clips, labels, labels=labels), channel=channel)
        answers.append(run(Inverter(copies=2, rehearsals=4), seen).clips)
    assert torch.equal(answers[0], answers[2])
    assert not torch.equal(answers[0], answers[1])


# ---- by windows


def windows_by_hand(clips: Tensor) -> list[Tensor]:
    """Two halves of four frames, each frame held twice."""
    return [clips[:, :, [start, start, start + 1, start + 1]] for start in (0, 2)]


def test_a_video_is_clipped_by_the_mean_over_its_windows() -> None:
    model, (clips, labels), bound = build(Conv).eval(), batch(), 0.2
    sent = aggregate(DpVideo(noise_multiplier=0.0, max_grad_norm=bound, windows=2), model)
    total: dict[str, Tensor] = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for clip in range(3):
        row = slice(clip, clip + 1)
        parts = [
            mean_gradient(model, F.cross_entropy, window[row], labels[row])
            for window in windows_by_hand(clips)
        ]
        mean = {name: (parts[0][name] + parts[1][name]) / 2 for name in total}
        norm = flat(mean).norm()
        assert norm > bound
        total = {name: total[name] + mean[name] * (bound / norm) / 3 for name in total}
    torch.testing.assert_close(flat(sent), flat(total), rtol=1e-3, atol=1e-6)


def test_one_window_of_the_whole_video_is_plain_dp() -> None:
    model = build(Conv)
    whole = aggregate(DpVideo(noise_multiplier=0.5, windows=1, part=1.0), model)
    assert torch.equal(flat(whole), flat(aggregate(DpSgd(noise_multiplier=0.5), model)))
    canaries = torch.eye(3)  # of an audit: they have no time
    assert [window is canaries for window in DpVideo(windows=2, part=1.0)._windows(canaries)] == [True, True]


def test_windows_leave_more_below_the_clip() -> None:
    model, (clips, labels) = build(Conv).eval(), batch()
    single = flat(DpSgd().per_clip(model, F.cross_entropy, clips, labels)).norm()
    assert flat(DpVideo(windows=4).per_clip(model, F.cross_entropy, clips, labels)).norm() < single


# ---- by hooks


class Plain(nn.Module):
    """3-D CNN that the hooks serve, with dropout and a layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 2 * 4 * 4, 5)
        self.spare = nn.Linear(2, 2)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.drop(F.max_pool3d(self.norm(self.conv(clips)).relu(), 2)).flatten(1))


class Folded(nn.Module):
    """Frames as a batch of images, whose answers are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, clips: Tensor) -> Tensor:
        frames = self.conv(clips.transpose(1, 2).flatten(0, 1)).relu().mean((2, 3))
        return self.head(frames).view(len(clips), -1, 5).mean(1)


@pytest.mark.parametrize("clips", [1, 3])
def test_hooks_send_what_dp_sends_where_they_are_sound(clips: int) -> None:
    model = build(Plain)
    hooks = aggregate(DpHooks(noise_multiplier=0.1, max_grad_norm=0.2), model, clips=clips)
    ours = aggregate(DpSgd(noise_multiplier=0.1, max_grad_norm=0.2), model, clips=clips)
    assert list(hooks) == list(ours)
    torch.testing.assert_close(flat(hooks), flat(ours), rtol=1e-4, atol=1e-6)


def test_hooks_leave_the_model_as_it_is_and_frozen_layers_alone() -> None:
    model = build(Plain).train()
    model.conv.requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    update = Client(model, defense=DpHooks(noise_multiplier=0.0)).update(*batch(), generator(0))
    assert not any(name.startswith("conv") for name in update.tensors)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    for module in model.modules():
        assert module.training
        assert not module._forward_hooks
        assert not module._backward_hooks
    for parameter in model.parameters():
        assert parameter.grad is None
        assert not hasattr(parameter, "grad_sample")


def test_hooks_serve_dropout_whose_masks_are_drawn() -> None:
    model = build(Plain)
    sent = [
        Client(model, defense=defense, mode="train").update(*batch(), generator(0)).tensors
        for defense in (DpHooks(noise_multiplier=0.0), DpSgd(noise_multiplier=0.0))
    ]
    torch.testing.assert_close(flat(sent[0]), flat(sent[1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Conv, r"dp_hooks: layer 'conv' pads by 'circular', .*; use padding_mode=\"zeros\", or dp"),
        (Recurrent, r"dp_hooks: layer 'lstm' is LSTM, .* use opacus\.layers\.DPLSTM, or dp"),
        (lambda: Residual(nn.BatchNorm3d), r"layer 'norm' is BatchNorm3d, which mixes clips; use GroupNorm"),
    ],
)
def test_layers_that_hooks_do_not_serve_are_refused(model: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(CapabilityError, match=words):
        Client(build(model), defense=DpHooks()).check_model()
    with pytest.raises(CapabilityError, match=words):
        aggregate(DpHooks(), build(model))


@pytest.mark.parametrize("kind", [DpLayers, DpVideo, DpHooks])
def test_a_layer_that_mixes_clips_is_named_by_the_defense_that_refuses_it(kind: type[DpSgd]) -> None:
    model = nn.Sequential(nn.BatchNorm3d(3), nn.Flatten(), nn.Linear(768, 6))
    with pytest.raises(
        CapabilityError, match=f"^{kind.name}: layer '0' is BatchNorm3d.* none and {kind.name}$"
    ):
        Client(model, defense=kind()).check_model()


def test_hooks_that_fail_say_where() -> None:
    with pytest.raises(CapabilityError, match=r"dp_hooks: the hooks of Opacus failed on Residual: .*inplace"):
        aggregate(DpHooks(), build(Residual))


def test_time_folded_into_the_batch_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"12 gradients of parameter 'conv\.weight' for 3 clips: with"):
        aggregate(DpHooks(), build(Folded))
    aggregate(DpSgd(), build(Folded))  # clip by clip there is nothing wrong with the model


def _ranking(logits: Tensor, labels: Tensor) -> Tensor:
    """A soft hinge between clips, as ranking losses over the bags of a batch have it: a mean, and coupled."""
    return F.softplus(1 - logits[:, 0] + logits[:, 0].roll(1)).mean()


def _scaled(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels) * (1 + logits[:, 1].sum().tanh())


@pytest.mark.parametrize("loss", [_ranking, _scaled])
def test_losses_that_couple_clips_are_refused(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    # Their hooks' gradients have the right number and mean: changing other clips alone tells.
    with pytest.raises(CapabilityError, match=r"of clip \d changed when other clips did"):
        aggregate(DpHooks(), build(Plain), loss)


# ---- settings


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DpVideo(windows=0), "dp_video: windows is 0, expected a whole number from 1"),
        (lambda: DpVideo(windows=1.5), "dp_video: windows is 1.5"),  # type: ignore[arg-type]
        (lambda: DpVideo(part=0.0), r"dp_video: part is 0.0, expected a number in \(0, 1\]"),
        (lambda: DpVideo(part=math.nan), "dp_video: part is nan"),
        (lambda: DpVideo(noise_multiplier=-1.0), "dp_video: noise_multiplier is -1.0"),
        (lambda: DpLayers(max_grad_norm=0.0), "dp_layers: max_grad_norm is 0.0"),
        (lambda: DpHooks(noise_multiplier=math.inf), "dp_hooks: noise_multiplier is inf"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Defense], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("kind", [DpLayers, DpVideo, DpHooks])
def test_their_certificate_is_that_of_dp(kind: type[DpSgd]) -> None:
    plain, own = DpSgd(noise_multiplier=1.3).privacy(), kind(noise_multiplier=1.3)
    unit = "one video" if kind is DpVideo else "one clip"
    assert plain is not None
    assert own.privacy() == replace(plain, unit=unit)
    client, pairs = Client(build(Conv), defense=own), Client(build(Conv), "ranking", defense=own)
    assert [each.privacy(4).unit for each in (client, pairs)] == [unit, "one bag pair"]  # type: ignore[union-attr]
    assert kind(noise_multiplier=0.0).privacy() is None


def test_what_has_no_time_cannot_be_cut_into_windows() -> None:
    canaries, model = torch.zeros(1, 1), torch.nn.Linear(1, 2)
    with pytest.raises(CapabilityError, match=r"expected clips .* got shape \(1, 1\)"):
        DpVideo().per_clip(
            model, torch.nn.functional.cross_entropy, canaries, torch.zeros(1, dtype=torch.int64)
        )
