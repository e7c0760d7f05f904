"""Clips solved for from the rank of a transformer's gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from attacking import best_baseline, observe, psnr, run
from torch import Tensor, nn

from vleak.attacks import ATTACKS, Attack, Observation, Tokens
from vleak.attacks.analytic.token_layer import TokenLayer, token_layer
from vleak.attacks.analytic.token_posterior import TokenPosterior
from vleak.data import ClipSet, load_clips
from vleak.defenses import DpSgd
from vleak.errors import CapabilityError
from vleak.models import build_model
from vleak.seeds import generator

FRAMES, SIZE = 4, 32
SMALL = "width=48,depth=1,heads=2"
VITS = {
    "joint": f"vit_tubelet:{SMALL}",
    "divided": f"vit_factorised:{SMALL},tubelet=2",
    "encoder": f"vit_factorised:{SMALL},tubelet=2,time_depth=1,attention=encoder",
}


def scene() -> ClipSet:
    return load_clips("synthetic", clips=4, frames=FRAMES, size=SIZE, seed=3, public=12)


def network(name: str) -> nn.Module:
    return build_model(VITS.get(name, name), frames=FRAMES, size=SIZE, classes=6, seed=1)


def seen(model: nn.Module, index: int = 0, **known: object) -> Observation:
    data = scene()
    known = {"public_clips": data.public_clips, **known}
    return observe(model, data.clips[index][None], data.labels[index][None], **known)  # type: ignore[arg-type]


def exact(observation: Observation, clips: Tensor, labels: Tensor) -> TokenLayer:
    """Return the layers with gradients of float64, which say all that equations can."""
    layer = token_layer(observation, generator("probe"))
    model = copy.deepcopy(observation.model).double()
    nn.functional.cross_entropy(model(clips.double()), labels).backward()
    own = model.get_parameter("patch_embed.proj.weight").grad
    read = model.get_parameter("blocks.0.attn.qkv.weight").grad
    assert own is not None
    assert read is not None
    return replace(layer, tubelets_gradient=own.flatten(1), attention_gradient=read)


@pytest.mark.parametrize("public", [True, False])
def test_equations_hold_for_the_private_clip(public: bool) -> None:
    data, model = scene(), network("vit_tubelet:width=96,depth=1,heads=2")
    clip, label = data.clips[:1], data.labels[:1]
    known = {} if public else {"public_clips": None}
    observation = seen(model, **known)
    posterior = TokenPosterior(exact(observation, clip, label), observation.knowledge)
    answer = posterior.clip(1e-9 * posterior.unit)
    assert psnr(answer, clip[0]) > 45
    assert psnr(posterior.clip(1e3 * posterior.unit), clip[0]) < 25


@pytest.mark.parametrize("name", VITS)
def test_token_is_its_tubelet_and_what_the_model_adds_there(name: str) -> None:
    model, inputs = network(name), list[Tensor]()
    observation = seen(model, 1)
    layer = token_layer(observation, generator("probe"))
    norm = next(m for n, m in model.named_modules() if n.endswith(("temporal_norm1", "blocks.0.norm1"))
                and (name != "divided" or "temporal" in n))  # fmt: skip
    norm.register_forward_hook(lambda _, given, __: inputs.append(given[0].detach()))
    clip = scene().clips[1]
    with torch.no_grad():
        model(clip[None])
    mean, deviation = layer.colour.view(2, 1, -1, 1, 1, 1)
    tubelets = ((layer.cut(clip[None].double())[0] - mean) / deviation).flatten(1)
    tokens = tubelets @ layer.weight.T + layer.offset
    gaps = torch.cdist(tokens, inputs[0].double().flatten(0, -2)).min(1)
    assert float(gaps.values.max()) < 1e-4 * float(tokens.norm(dim=1).max())
    assert len(set(gaps.indices.tolist())) == len(tokens) == 8
    assert layer.rows == inputs[0].flatten(0, -2).shape[0]


@pytest.mark.parametrize(("size", "frames"), [(32, 4), (37, 5)])
def test_tubelets_of_a_clip_make_the_clip(size: int, frames: int) -> None:
    model = build_model(VITS["joint"], frames=frames, size=size, classes=6, seed=1)
    clip = torch.rand(3, frames, size, size, generator=generator("clip"))
    observation = observe(model, clip[None], torch.tensor([0]), public_clips=None)
    layer = token_layer(observation, generator("probe"))
    tubelets = layer.cut(clip[None])[0]
    assert torch.equal(tubelets[1], clip[:, :2, :16, 16:32])
    rest = layer.joined(tubelets, torch.zeros_like(clip))
    assert torch.equal(rest[:, :4, :32, :32], clip[:, :4, :32, :32])
    assert not bool(rest[:, 4:].any())
    assert not bool(rest[..., 32:].any())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "joint" else pytest.mark.slow) for name in VITS]
)
def test_beats_matching_where_no_defense_is(name: str) -> None:
    observation, truth = seen(network(name), 2), scene().clips[2]
    answer = run(Tokens(), observation)
    matched = run(ATTACKS.build("matching", iterations=40), observation)
    assert psnr(answer.clips[0], truth) > best_baseline(observation, truth) + 4
    assert psnr(answer.clips[0], truth) > psnr(matched.clips[0], truth) + 1


def test_noise_leaves_the_prior() -> None:
    observation = seen(network("joint"), defense=DpSgd(noise_multiplier=1.0))
    assert torch.equal(run(Tokens(), observation).clips[0], scene().public_clips.mean(0))


def test_adapters_that_have_moved_tell_the_tokens() -> None:
    model = network(f"vit_tubelet:{SMALL},lora=8,lora_head=true")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(0, 0.3, generator=generator("adapter"))
    observation, truth = seen(model, 2), scene().clips[2]
    assert psnr(run(Tokens(), observation).clips[0], truth) > best_baseline(observation, truth) + 3


class OwnTokens(nn.Module):
    """A transformer from outside, with a token of its own at the end and projections of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(3, 48, (2, 16, 16), stride=(2, 16, 16), bias=False)
        self.places = nn.Parameter(torch.randn(8, 48, generator=generator("places")))
        self.token = nn.Parameter(torch.ones(1, 1, 48))
        self.norm, self.after = nn.LayerNorm(48, elementwise_affine=False), nn.LayerNorm(48)
        self.query, self.key, self.value = (nn.Linear(48, 48) for _ in range(3))
        self.head = nn.Linear(48, 6)

    def forward(self, clips: Tensor) -> Tensor:
        rows = self.embed(2 * clips - 1).flatten(2).transpose(1, 2) + self.places
        rows = torch.cat([rows, self.token.expand(len(rows), -1, -1)], 1)
        seen = self.norm(rows)
        weights = (self.query(seen) @ self.key(seen).transpose(1, 2)).softmax(-1)
        logits: Tensor = self.head(self.after(rows + weights @ self.value(seen))[:, -1])
        return logits


def test_transformer_from_outside() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OwnTokens()
    layer = token_layer(seen(model), generator("probe"))
    assert (layer.rows, layer.grid, layer.tubelet) == (9, (2, 2, 2), (2, 16, 16))
    assert torch.allclose(layer.offset, model.places.double(), atol=1e-12)
    assert torch.allclose(layer.colour, torch.tensor([[0.5] * 3] * 2).double(), atol=1e-9)
    assert tuple(layer.attention_gradient.shape) == (3 * 48, 48)


def test_stop_returns_what_is_there() -> None:
    answer = run(Tokens(), seen(network("joint")), stop=lambda: True)
    assert torch.equal(answer.clips[0], scene().public_clips.mean(0).clamp(0, 1))


def test_refuses_what_it_cannot_solve() -> None:
    data, attack = scene(), Tokens()
    narrow = network("vit_tubelet:width=8,depth=1,heads=2")
    untrained = network(f"vit_tubelet:{SMALL},lora=8,lora_head=true")
    low = network(f"vit_tubelet:{SMALL},lora=2,lora_head=true")
    for name, parameter in low.named_parameters():
        if name.endswith("lora_b"):
            nn.init.ones_(parameter)
    pair = observe(network("joint"), data.clips[:2], data.labels[:2], public_clips=None)
    _refused(attack, seen(network("c3d_tiny")), "does not cut clips into tubelets.*choose matching")
    _refused(attack, pair, "2 clips share the update.*choose matching")
    _refused(attack, seen(narrow), "8 tokens, expected fewer than the 8 numbers of a token")
    _refused(attack, seen(low), "8 tokens, expected .* at most the 2 rows")
    _refused(attack, seen(untrained), "says nothing of what the first attention reads")


def _refused(attack: Attack, observation: Observation, message: str) -> None:
    with pytest.raises(CapabilityError, match=message):
        run(attack, observation)
