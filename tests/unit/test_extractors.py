"""Extractors: what they return, that they stay frozen, where their weights come from, what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.errors import CapabilityError, InputError
from vleak.federated import LOSSES, Client
from vleak.models import (
    EXTRACTORS,
    Extractor,
    build_extractor,
    build_head,
    check_second_derivative,
    pretrained,
    train_extractor,
)
from vleak.models.kinetics import VIDEO_MODELS
from vleak.seeds import generator

OWN = ("c3d_small", "frame_cnn")
own = pytest.mark.parametrize("name", OWN)


def build(name: str, seed: int = 0, size: int = 16, frames: int = 4) -> Extractor:
    return build_extractor(name, size=size, frames=frames, seed=seed)


def draw(clips: int, frames: int = 4, size: int = 16) -> Tensor:
    return torch.rand(clips, 3, frames, size, size, generator=generator("clips", clips, frames, size))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def refusal(error: type[Exception], call: Callable[[], object], *words: str) -> None:
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


# ---- what they return


@own
@pytest.mark.parametrize(("frames", "size"), [(4, 16), (8, 32), (2, 9)])
def test_a_row_a_segment(name: str, frames: int, size: int) -> None:
    extractor = build(name, size=size, frames=frames)
    features = extractor(draw(3, frames, size))
    assert features.shape == (3, frames // extractor.segment_frames, extractor.features)
    assert extractor.features == 256
    assert features.any()


def test_eight_frames_are_four_segments_or_more() -> None:
    assert [8 // build(name).segment_frames for name in OWN] == [4, 8]


@own
def test_a_row_depends_on_its_segment_alone(name: str) -> None:
    extractor, clips = build(name), draw(2)
    changed = clips.clone()
    changed[:, :, -extractor.segment_frames :] = 0
    before, after = extractor(clips), extractor(changed)
    torch.testing.assert_close(before[:, :-1], after[:, :-1])
    assert (before[:, -1] != after[:, -1]).any()
    # The segments of a clip, each as a clip of its own.
    length = extractor.segment_frames
    alone = torch.cat([extractor(part) for part in clips.split(length, dim=2)], dim=1)
    torch.testing.assert_close(before, alone)


@own
def test_facts_about_the_features_are_true(name: str) -> None:
    extractor = build(name)
    features = extractor(draw(8))
    assert extractor.nonnegative
    assert (features >= 0).all()
    norms = features.norm(dim=2)
    assert extractor.unit_norm == (name == "c3d_small")
    assert torch.allclose(norms, torch.ones_like(norms), rtol=0, atol=1e-5) == extractor.unit_norm


def test_c3d_small_sees_motion_and_frame_cnn_the_frame() -> None:
    clips = draw(1, 2)
    assert (build("c3d_small")(clips) - build("c3d_small")(clips.flip(2))).abs().max() > 1e-3
    torch.testing.assert_close(build("frame_cnn")(clips), build("frame_cnn")(clips.flip(2)).flip(1))


def test_settings_of_the_name() -> None:
    extractor = build("c3d_small:segment_frames=4,features=8")
    assert (extractor.segment_frames, extractor.features) == (4, 8)
    assert extractor(draw(2)).shape == (2, 1, 8)
    spelled = EXTRACTORS.parse("c3d_small:features=8,segment_frames=4").text
    assert spelled == "c3d_small:segment_frames=4,features=8"


@own
def test_weights_depend_on_seed_and_name_alone(name: str) -> None:
    state = torch.get_rng_state()
    first, again, other = (flat(build(name, seed)) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ---- frozen


@own
def test_extractors_are_frozen_and_stay_in_eval_mode(name: str) -> None:
    extractor = build(name).train()
    assert not any(module.training for module in extractor.modules())
    assert not any(p.requires_grad for p in extractor.parameters())
    assert not extractor(draw(1)).requires_grad


@own
def test_clips_are_seen_through_twice(name: str) -> None:
    """An attacker who knows the extractor differentiates through it, and a client's head behind it."""
    extractor = build(name)
    head = build_head("linear", segments=1, features=256, outputs=3, seed=0)
    check_second_derivative(nn.Sequential(extractor, head), draw(1))


def test_only_the_head_is_sent() -> None:
    extractor = build("c3d_small")
    head = build_head("mlp", segments=2, features=256, outputs=None, seed=0)
    features = extractor(draw(2))
    sent = Client(head, "bce").update(features, torch.tensor([0, 1]), generator(0)).tensors
    assert sorted(sent) == sorted(name for name, _ in head.named_parameters())
    assert sent["layers.0.weight"].any()
    assert LOSSES["bce"](head(features), torch.tensor([0, 1])) > 0


# ---- trained


def bars(clips: int) -> tuple[Tensor, Tensor]:
    """Return noisy clips with a bright bar on the left, in the middle or on the right."""
    numbers = generator("bars", clips)
    labels = torch.randint(3, (clips,), generator=numbers)
    place = 5 * labels + torch.randint(5, (clips,), generator=numbers)
    bar = F.one_hot(place, 16).float()[:, None, None, None, :].expand(-1, 3, 4, 16, -1)
    return 0.8 * bar + 0.2 * torch.rand(bar.shape, generator=numbers), labels


@pytest.mark.parametrize("name", [pytest.param("c3d_small", marks=pytest.mark.slow), "frame_cnn"])
def test_training_learns_and_freezes_again(name: str) -> None:
    extractor, (clips, labels) = build(name), bars(240)
    before, state = flat(extractor), torch.get_rng_state()
    accuracy = train_extractor(extractor, clips, labels, generator("training"), steps=60)
    assert accuracy > 0.7
    assert torch.equal(state, torch.get_rng_state())
    assert (flat(extractor) != before).float().mean() > 0.5
    assert not any(p.requires_grad or p.grad is not None for p in extractor.parameters())
    again = build(name)
    assert train_extractor(again, clips, labels, generator("training"), steps=60) == accuracy
    assert torch.equal(flat(again), flat(extractor))


@own
def test_without_steps_the_accuracy_is_that_of_one_class(name: str) -> None:
    clips, labels = bars(60)
    accuracy = train_extractor(build(name), clips, labels, generator(0), steps=0)
    assert accuracy == float((labels[-12:] == 0).float().mean())


def test_the_clips_held_out_are_not_learnt_from() -> None:
    clips, labels = bars(60)
    other = clips.clone()
    other[-12:] = 0
    trained = []
    for given in (clips, other):
        extractor = build("frame_cnn")
        train_extractor(extractor, given, labels, generator(0), steps=3)
        trained.append(flat(extractor))
    assert torch.equal(*trained)


@pytest.mark.slow
def test_trained_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("vleak.models.extractors.STEPS", 5)
    made: list[int] = []

    def clips() -> tuple[Tensor, Tensor]:
        made.append(1)
        return bars(40)

    def get(name: str = "frame_cnn", seed: int = 0, **recipe: int) -> tuple[Extractor, float]:
        return pretrained(name, size=16, frames=4, seed=seed, recipe={"clips": "bars", **recipe}, clips=clips)

    first, accuracy = get()
    again, same = get("frame_cnn:features=256")
    assert len(made) == 1
    assert accuracy == same
    assert torch.equal(flat(first), flat(again))
    assert not torch.equal(flat(first), flat(build("frame_cnn")))
    assert not any(p.requires_grad for p in again.parameters())
    get("frame_cnn:features=8")
    get(seed=1)
    get(number=2)
    assert len(made) == 4
    pretrained("frame_cnn", size=16, frames=4, seed=0, recipe={"clips": "bars"}, clips=clips, again=True)
    assert len(made) == 5
    refusal(InputError, lambda: get(steps=3), "recipe", "'steps'")


def test_what_cannot_be_trained_is_refused() -> None:
    refusal(
        InputError,
        lambda: train_extractor(build("frame_cnn"), *bars(9), generator(0)),
        "at least 10 clips, got 9",
    )
    stranger = Extractor(Pooled(), 3)
    refusal(InputError, lambda: train_extractor(stranger, *bars(20), generator(0)), "only c3d_small and")


# ---- the user's own


class Pooled(nn.Module):
    segment_frames = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.drop = nn.Dropout(0.5)

    def forward(self, segments: Tensor) -> Tensor:
        return self.drop(segments.mean((2, 3, 4)) * self.scale)


FACTORIES = """
import torch
from test_extractors import Pooled


class Thawed(Pooled):
    def __init__(self):
        super().__init__()
        self.requires_grad_(True)


class Boundless(Pooled):
    segment_frames = None


class Maps(Pooled):
    def forward(self, segments):
        return segments.mean(2)


class Broken(Pooled):
    def __init__(self):
        super().__init__()
        self.scale.fill_(float("nan"))


class Picky(Pooled):
    def forward(self, segments):
        raise ValueError("needs 112 pixels")


class Sure(Pooled):
    nonnegative = True

    def __init__(self, size, frames):
        super().__init__()
        self.asked = (size, frames)


def make():
    return Pooled()


def nothing():
    return 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"user_extractors_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(FACTORIES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "test_extractors", sys.modules[__name__])
    yield name
    sys.modules.pop(name, None)


def test_factory_of_a_frozen_module(factories: str) -> None:
    extractor = build(f"{factories}:make")
    clips = draw(2)
    assert (extractor.segment_frames, extractor.features) == (2, 3)
    assert not extractor.nonnegative
    assert not extractor.unit_norm
    expected = clips.unflatten(2, (2, 2)).mean((3, 4, 5)).transpose(1, 2)
    torch.testing.assert_close(extractor(clips), expected)
    sure = build(f"{factories}:Sure")
    assert sure.nonnegative
    assert sure.net.asked == (16, 4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("c3d_smal", ["unknown extractor 'c3d_smal'", "c3d_small", "package.module:factory"]),
        ("torchvision.r3d_19", ["unknown extractor", "torchvision.r3d_18"]),
        (
            "c3d_small:feature=3",
            ["unknown setting of extractor c3d_small 'feature'", "did you mean features"],
        ),
        ("c3d_small:segment_frames=1", ["segment_frames is 1", "from 2 to 16"]),
        ("frame_cnn:features=0", ["features is 0"]),
        ("c3d_small:segment_frames=3", ["4 frames are no multiple", "segments of 3", "frames=3"]),
        ("{}:Thawed", ["'scale' is not frozen", "requires_grad_(False)"]),
        ("{}:Boundless", ["segment_frames is None", "attribute"]),
        ("{}:Maps", ["returned (1, 3, 16, 16)", "(segment, feature)"]),
        ("{}:Broken", ["'scale' holds NaN"]),
        ("{}:Picky", ["does not take segments", "needs 112 pixels", "`size`"]),
        ("{}:nothing", ["returned a int", "torch.nn.Module"]),
        ("{}:absent", ["has no 'absent'"]),
        ("no.such_module:make", ["extractor 'no.such_module:make'", "cannot import"]),
    ],
)
def test_extractors_that_are_refused(factories: str, name: str, words: list[str]) -> None:
    given = name.format(factories)
    refusal(InputError, lambda: build(given), *words)


@pytest.mark.parametrize("shape", [(1, 3, 3, 16, 16), (3, 4, 16, 16)])
def test_clips_that_cannot_be_cut_are_refused(shape: tuple[int, ...]) -> None:
    refusal(InputError, lambda: build("c3d_small")(torch.zeros(shape)), "multiple of 2 frames", str(shape))


# ---- torchvision's


@pytest.fixture(scope="module")
def torchvision() -> ModuleType:
    """Return torchvision; beside a torch that it was not built for, its operators have to be declared."""
    pytest.importorskip("torchvision", reason="torchvision is not installed", exc_type=ImportError)
    return sys.modules["torchvision"]


def _declare() -> object:
    """Declare the operators that torchvision looks for when it is imported."""
    import importlib.util

    if importlib.util.find_spec("torchvision") is None or "torchvision" in sys.modules:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_DECLARED = _declare()


def weights_of(architecture: str, path: Path) -> dict[str, Tensor]:
    """Write a state dict that training might have left, and return it."""
    from torchvision.models import get_model

    with torch.random.fork_rng(devices=[]):
        model = get_model(architecture, weights=None)
    state = model.state_dict()
    for name, tensor in model.named_parameters():
        if tensor.ndim > 1:
            state[name] = 0.02 * torch.randn(tensor.shape, generator=generator(name))
    torch.save(state, path)
    return state


FEATURES = {"r3d_18": 512, "mc3_18": 512, "r2plus1d_18": 512, "s3d": 1024, "swin3d_t": 768, "mvit_v1_b": 768}


@pytest.mark.parametrize(
    "architecture",
    ["r3d_18", *(pytest.param(name, marks=pytest.mark.slow) for name in FEATURES if name != "r3d_18")],
)
def test_torchvision_gives_what_its_classifier_reads(
    architecture: str, torchvision: ModuleType, tmp_path: Path
) -> None:
    from torchvision.models import get_model, get_model_weights

    path = tmp_path / "weights.pth"
    state = weights_of(architecture, path)
    before = torch.get_rng_state()
    frames = 2 if architecture.endswith("18") else 16  # the others have a least length
    name = f"torchvision.{architecture}:segment_frames={frames},weights={path}"
    extractor = build(name, frames=frames)
    assert torch.equal(before, torch.get_rng_state())
    clips = draw(1, frames)
    features = extractor(clips)
    assert features.shape == (1, 1, FEATURES[architecture])
    assert not any(p.requires_grad for p in extractor.parameters())
    assert not any(module.training for module in extractor.modules())
    assert extractor.nonnegative == bool((features >= 0).all())
    # The whole model on what torchvision's own preset makes of the resized frames.
    with torch.random.fork_rng(devices=[]):
        model = get_model(architecture, weights=None).eval()
    model.load_state_dict(state)
    preset = get_model_weights(architecture).DEFAULT.transforms()
    side = preset.crop_size[0]
    mean, std = (torch.tensor(value)[None, :, None, None, None] for value in (preset.mean, preset.std))
    resized = F.interpolate(clips, (frames, side, side), mode="trilinear")
    layer = getattr(model, VIDEO_MODELS[architecture][0])
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        model((resized - mean) / std)
    read = seen[0].mean((2, 3, 4)) if seen[0].ndim == 5 else seen[0]
    torch.testing.assert_close(features[0], read, rtol=1e-4, atol=1e-5)


def test_every_video_model_of_torchvision_is_offered(torchvision: ModuleType) -> None:
    from torchvision.models import list_models, video

    assert set(list_models(module=video)) == set(VIDEO_MODELS)


def test_torchvision_without_weights_says_what_to_download(
    torchvision: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    where = str(tmp_path / "hub" / "checkpoints" / "r3d_18-b3b3357e.pth")
    call = lambda: build("torchvision.r3d_18:segment_frames=1")  # noqa: E731
    refusal(InputError, call, "no weights at", where, "download https://", "weights=FILE")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    weights_of("r3d_18", Path(where))
    assert call().features == 512


@pytest.mark.parametrize("content", ["text", "other", "object"])
def test_torchvision_refuses_other_files(content: str, torchvision: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if content == "text":
        path.write_text("hello")
    else:
        torch.save({"fc.bias": torch.zeros(3)} if content == "other" else nn.Linear(2, 2), path)
    call = lambda: build(f"torchvision.r3d_18:weights={path}", frames=16)  # noqa: E731
    refusal(InputError, call, "no state dict of it", "weights.pth")
    refusal(InputError, lambda: build("torchvision.r3d_18:weights=gone.pth", frames=16), "gone.pth")


def test_without_torchvision_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    refusal(CapabilityError, lambda: build("torchvision.r3d_18", frames=16), "pip install torchvision")
