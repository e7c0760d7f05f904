"""Published networks: their structure, what their settings change, and that they can be attacked."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks import Knowledge, Observation, infer_labels, update_sign
from vleak.attacks.last_layer import last_layer
from vleak.descent import Descent, DescentSettings, Problem
from vleak.errors import CapabilityError, InputError
from vleak.federated import Client
from vleak.models import MODELS, build_model, check_second_derivative, is_built_in, load_checkpoint, train
from vleak.models.networks import NETWORKS, Network
from vleak.native import operators
from vleak.seeds import generator

CLASSES = 6
NARROW = {
    "r3d_18": "width=4,depth=1",
    "mc3_18": "width=4,depth=1",
    "r2plus1d_18": "width=4,depth=1",
    "s3d": "width=8,depth=1,dropout=0",
    "x3d_s": "width=8,depth=0.4,features=16,dropout=0",
    "slowfast": "width=8,depth=14,dropout=0",
    "vit_tubelet": "width=16,depth=1,heads=2",
    "vit_factorised": "width=16,depth=1,heads=2",
    "cnn_gru": "width=8",
}
"""Settings of every network with which an iteration takes milliseconds."""

networks = pytest.mark.parametrize("name", NARROW)


def narrow(name: str, more: str = "") -> Network:
    """Return a network of few channels, in eval mode."""
    settings = ",".join(filter(None, (NARROW[name], more)))
    model = build_model(f"{name}:{settings}", frames=8, size=32, classes=CLASSES, seed=0)
    assert isinstance(model, Network)
    return model


def clips(count: int = 2, frames: int = 8, size: int = 32) -> Tensor:
    return torch.rand(count, 3, frames, size, size, generator=generator("clips", count, frames, size))


def count(name: str, *, frames: int = 16, size: int = 32, classes: int = 400, **settings: int) -> int:
    """Number of parameters; no weight is drawn."""
    with torch.device("meta"):
        model = MODELS[name](frames, size, classes, **settings)
    return sum(parameter.numel() for parameter in model.parameters())


# ---- structure


def test_every_network_is_tested() -> None:
    assert set(NARROW) == set(NETWORKS) <= set(MODELS)


@pytest.mark.parametrize(
    ("name", "settings", "published"),
    [
        ("r3d_18", {}, 33_371_472),
        ("mc3_18", {}, 11_695_440),
        ("r2plus1d_18", {}, 31_505_325),
        ("x3d_s", {}, 3_794_274),  # 3.79 M
        ("s3d", {"size": 224}, 8_320_048),
        ("slowfast", {}, 34_566_488),  # 34.57 M
        ("vit_factorised", {"frames": 8, "size": 224, "classes": 174}, 121_392_558),  # 121.4 M
        ("vit_tubelet", {"size": 224}, 22_033_936),  # 22 M
        ("vit_tubelet", {"size": 224, "width": 768, "heads": 12}, 86_534_800),  # 87 M
    ],
)
def test_default_widths_have_the_published_number_of_parameters(
    name: str, settings: dict[str, int], published: int
) -> None:
    assert count(name, **settings) == published


def test_vivit_has_nearly_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = MODELS["vit_factorised"](32, 224, 400, attention="encoder", tubelet=2)
    # Published: 115.1 M.
    assert sum(parameter.numel() for parameter in model.parameters()) == 115_062_928


@pytest.fixture(scope="module")
def torchvision() -> ModuleType:
    """Torchvision; beside a torch that it was not built for, its operators have to be declared."""
    import importlib.util

    library = torch.library.Library("torchvision", "FRAGMENT")
    if importlib.util.find_spec("torchvision") is not None and "torchvision" not in sys.modules:
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    pytest.importorskip("torchvision", reason="torchvision is not installed", exc_type=ImportError)
    return sys.modules["torchvision"]


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18", "s3d"])
def test_networks_compute_what_those_of_torchvision_do(name: str, torchvision: ModuleType) -> None:
    from torchvision.models import get_model

    frames, size = (16, 224) if name == "s3d" else (8, 32)
    with torch.random.fork_rng(devices=[]):
        theirs = get_model(name, weights=None, num_classes=CLASSES).eval()
    ours = build_model(name, frames=frames, size=size, classes=CLASSES, seed=0)
    assert list(shapes(ours).items()) == list(shapes(theirs).items())
    ours.load_state_dict(theirs.state_dict())
    x = clips(1, frames, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs((x - ours.mean) / ours.std))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


# ---- what they compute


@networks
def test_logits_of_clips(name: str) -> None:
    model, batch = narrow(name), clips()
    assert not model.training
    with torch.no_grad():
        logits = model(batch)
        assert logits.shape == (2, CLASSES)
        assert logits.std() > 0
        # A clip's logits do not depend on its neighbours.
        torch.testing.assert_close(model(batch[:1]), logits[:1], rtol=1e-4, atol=1e-6)


@networks
def test_larger_clips(name: str) -> None:
    model = build_model(f"{name}:{NARROW[name]}", frames=8, size=64, classes=CLASSES, seed=0)
    with torch.no_grad():
        assert model(clips(1, 8, 64)).shape == (1, CLASSES)


@networks
def test_every_weight_is_drawn_from_the_seed(name: str) -> None:
    before = torch.get_rng_state()
    first, again = narrow(name), narrow(name)
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(dict(first.named_buffers()), dict(again.named_buffers()), rtol=0, atol=0)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        for tensor in [*first.parameters(), *first.buffers()]:
            tensor.fill_(torch.nan if tensor.is_floating_point() else 7)
    first.draw(generator("other"))
    assert all(tensor.isfinite().all() for tensor in [*first.parameters(), *first.buffers()])
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("r3d_18:width=0", ["width is 0", "from 1"]),
        ("r2plus1d_18:depth=9", ["depth is 9", "1 to 8"]),
        ("x3d_s:depth=0", ["depth is 0.0", "above 0"]),
        ("x3d_s:dropout=1", ["dropout is 1.0", "below 1"]),
        ("x3d_s:norm=layer", ["norm", "layer", "batch, group"]),
        ("s3d:depth=6", ["depth is 6", "1 to 5"]),
        ("slowfast:depth=18", ["depth is 18", "14, 26, 50, 101"]),
        ("slowfast:alpha=0", ["alpha is 0"]),
        ("vit_factorised:attention=divide", ["attention", "divide", "divided"]),
        ("vit_factorised:patch=64", ["vit_factorised", "64 x 64"]),
        ("cnn_gru:width=2", ["width is 2", "4 to"]),
        ("vit_tubelet:heads=5", ["width is 384 with 5 heads", "multiple"]),
        ("vit_tubelet:patch=64", ["vit_tubelet", "at least 2 frames of 64 x 64", "8 of 32 x 32"]),
        ("vit_tubelet:tubelet=16", ["at least 16 frames"]),
        ("vit_tubelet:lora=-1", ["lora is -1", "0 to 256"]),
        ("r3d_18:widht=16", ["widht", "width"]),
    ],
)
def test_wrong_settings_are_refused_in_one_line(text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        build_model(text, frames=8, size=32, classes=CLASSES, seed=0)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_clips_too_small_for_the_strides_are_refused() -> None:
    for frames, size in ((4, 32), (8, 16)):
        with pytest.raises(
            InputError, match=f"s3d needs clips of at least 5 frames of 17 x 17, got {frames}"
        ):
            build_model("s3d", frames=frames, size=size, classes=CLASSES, seed=0)
    smallest = build_model(f"s3d:{NARROW['s3d']}", frames=5, size=17, classes=CLASSES, seed=0)
    assert smallest(clips(1, 5, 17)).shape == (1, CLASSES)


def test_slow_pathway_sees_every_alphath_frame() -> None:
    model, batch = narrow("slowfast"), clips(1)
    for block in model.modules():  # blocks begin as nothing
        if isinstance(block, nn.BatchNorm3d):
            nn.init.ones_(block.weight)
    seen: list[Tensor] = []
    for stem in model.get_submodule("blocks.0.multipathway_blocks").children():
        stem.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        model(batch)
    slow, fast = seen
    torch.testing.assert_close(fast, (batch - 0.45) / 0.225)
    torch.testing.assert_close(slow, fast[:, :, [0, 4]])


def test_order_of_frames_counts() -> None:
    batch = clips(1)
    for name in ("vit_tubelet", "vit_factorised", "cnn_gru", "r2plus1d_18"):
        model = narrow(name)
        if name == "vit_factorised":  # TimeSformer begins without a notion of time
            nn.init.normal_(model.get_parameter("time_embed"), generator=generator("time"))
        with torch.no_grad():
            assert (model(batch) - model(batch.flip(2))).abs().max() > 1e-5, name


def test_divided_and_factorised_attention_are_two_networks() -> None:
    divided, encoder = narrow("vit_factorised"), narrow("vit_factorised", "attention=encoder,time_depth=2")
    names = [set(dict(model.named_parameters())) for model in (divided, encoder)]
    assert "time_embed" in names[0] - names[1]
    assert "time.blocks.1.attn.qkv.weight" in names[1] - names[0]
    assert encoder(clips()).shape == (2, CLASSES)
    check_second_derivative(encoder, clips(1))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "x3d_s" else ())
        for name in NARROW
        if not name.startswith("vit")
    ],
)
def test_group_normalisation_keeps_names_and_does_not_mix_clips(name: str) -> None:
    plain, model = narrow(name), narrow(name, "norm=group").train()
    named = dict(plain.named_parameters())
    assert {key: value.shape for key, value in model.named_parameters()} == {
        k: v.shape for k, v in named.items()
    }
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())
    batch = clips()
    with torch.no_grad():
        torch.testing.assert_close(model(batch)[:1], model(batch[:1]), rtol=1e-4, atol=1e-5)


# ---- that they can be attacked


@networks
def test_second_derivative(name: str) -> None:
    check_second_derivative(narrow(name), clips(1))


def problem_of(model: nn.Module, batch: Tensor, *, mode: str = "eval") -> Problem:
    labels = torch.arange(len(batch)) % CLASSES
    client = Client(model, mode=mode)
    update = client.update(batch, labels, generator(0)).tensors
    return Problem(client.model, F.cross_entropy, labels, update)


QUICK = ("r3d_18", "vit_tubelet")
NORMALISED = ("r2plus1d_18", "s3d", "x3d_s", "slowfast", "cnn_gru")
"""Networks with batch normalisation, of one kind of convolutions each: train mode is another function."""


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param("r3d_18", "eval", marks=pytest.mark.slow),
        ("vit_tubelet", "eval"),
        *(pytest.param(name, "eval", marks=pytest.mark.slow) for name in NARROW if name not in QUICK),
        *(pytest.param(name, "train", marks=pytest.mark.slow) for name in NORMALISED),
    ],
)
def test_descent_runs_on_the_native_engine(name: str, mode: str) -> None:
    model = narrow(name)
    problem = problem_of(model, clips(2), mode=mode)
    settings = DescentSettings(iterations=4, spatial=0.01, temporal=0.01)
    start = torch.full((2, 3, 8, 32, 32), 0.5) + 0.01 * clips(2)
    native, reference = (Descent(problem, settings, start, engine=e) for e in ("native", "reference"))
    if operators.backend() == "native":
        assert native.engine == "native"
    ours, theirs = (descent.run(4).history for descent in (native, reference))
    assert ours == pytest.approx(theirs, rel=0.02)
    assert len(set(theirs)) == 4


@networks
def test_label_is_read_from_the_last_layer(name: str) -> None:
    model, batch = narrow(name), clips(1)
    label = torch.tensor([4])
    knowledge = Knowledge(clip_shape=(3, 8, 32, 32), batch_size=1, classes=CLASSES)
    client = Client(model)
    observation = Observation(model, client.update(batch, label, generator(0)), knowledge)
    last = last_layer(observation)
    names = [key for key, _ in model.named_parameters()][-2:]
    assert [last.weight, last.bias] == names
    assert torch.equal(infer_labels(observation), label)
    assert update_sign(observation) == "gradient"


# ---- adapters of low rank


@pytest.mark.parametrize("name", [name for name in NARROW if name.startswith("vit")])
def test_only_adapters_are_sent(name: str) -> None:
    model, plain = narrow(name, "lora=2"), narrow(name)
    sent = set(Client(model).update(clips(1), torch.tensor([1]), generator(0)).tensors)
    base = set(dict(plain.named_parameters()))
    assert sent == set(dict(model.named_parameters())) - base
    assert {key.rpartition(".")[2] for key in sent} == {"lora_a", "lora_b"}
    # Adapters change nothing before they are trained.
    model.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(model(clips()), plain(clips()))
    with_head = narrow(name, "lora=2,lora_head=true")
    more = set(Client(with_head).update(clips(1), torch.tensor([1]), generator(0)).tensors)
    assert more - sent == {"head.weight", "head.bias"}


# ---- training


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "cnn_gru" else pytest.mark.slow) for name in NARROW]
)
def test_training_lowers_the_loss_and_leaves_what_is_frozen(name: str) -> None:
    lora = "lora=2" if name.startswith("vit") else ""
    model, batch = narrow(name, lora), clips(12)
    labels = torch.arange(12) % 2
    frozen = {key: p.detach().clone() for key, p in model.named_parameters() if not p.requires_grad}
    assert bool(frozen) == bool(lora)

    def loss() -> float:
        with torch.no_grad():
            return F.cross_entropy(model(batch), labels).item()

    before = loss()
    train(model, batch, labels, 10, generator("training"))
    assert loss() < before
    torch.testing.assert_close({key: model.get_parameter(key) for key in frozen}, frozen, rtol=0, atol=0)


# ---- checkpoints


@pytest.mark.parametrize("name", ["s3d", "vit_tubelet"])
def test_checkpoint_with_other_classes_keeps_the_last_layer(name: str, tmp_path: Path) -> None:
    theirs = build_model(f"{name}:{NARROW[name]}", frames=8, size=32, classes=400, seed=1)
    model, plain = narrow(name), narrow(name)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "net.pth")
    with pytest.raises(InputError, match="of another shape"):
        load_checkpoint(model, str(tmp_path / "net.pth"))
    (note,) = load_checkpoint(model, str(tmp_path / "net.pth"), new_head=True)
    assert "400 classes, the data 6" in note
    *base, weight, bias = theirs.state_dict()
    for key, tensor in model.state_dict().items():
        source = plain if key in (weight, bias) else theirs
        assert torch.equal(tensor, source.state_dict()[key]), key
    assert len(base) == len(model.state_dict()) - 2


def test_checkpoint_without_adapters_fits_a_network_with_them(tmp_path: Path) -> None:
    plain, model = narrow("vit_factorised"), narrow("vit_factorised", "lora=2")
    torch.save(plain.state_dict(), tmp_path / "net.pth")
    (note,) = load_checkpoint(model, str(tmp_path / "net.pth"))
    assert "no adapters" in note
    with torch.no_grad():
        torch.testing.assert_close(model(clips()), plain(clips()))


# ---- torchvision's own


def test_without_torchvision_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert is_built_in("torchvision:r3d_18")
    assert is_built_in("torchvision:s3d:side=32")
    assert not is_built_in("torchvision:r3d_19")
    with pytest.raises(CapabilityError, match=r"model 'torchvision:r3d_18' needs torchvision.*pip install"):
        build_model("torchvision:r3d_18", frames=8, size=32, classes=CLASSES, seed=0)


@pytest.mark.parametrize(
    "name",
    ["r3d_18", *(pytest.param(n, marks=pytest.mark.slow) for n in ("s3d", "swin3d_t"))],
)
def test_torchvision_classifies_normalised_clips(name: str, torchvision: ModuleType) -> None:
    before = torch.get_rng_state()
    model = build_model(f"torchvision:{name}", frames=16, size=32, classes=CLASSES, seed=0)
    again = build_model(f"torchvision:{name}", frames=16, size=32, classes=CLASSES, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(model.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not {"clip_mean", "clip_std"} & model.state_dict().keys()
    x = clips(1, 16)
    seen: list[Tensor] = []
    next(model.children()).register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        assert model(x).shape == (1, CLASSES)
    mean, std = (model.get_buffer(key) for key in ("clip_mean", "clip_std"))
    size = (16, 224, 224) if name == "s3d" else (16, 32, 32)
    expected = (F.interpolate(x, size, mode="trilinear") - mean) / std
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


def test_mvit_takes_its_own_number_of_frames(torchvision: ModuleType) -> None:
    with pytest.raises(InputError, match="takes 16 frames, got 8; choose frames=16"):
        build_model("torchvision:mvit_v2_s", frames=8, size=32, classes=CLASSES, seed=0)
