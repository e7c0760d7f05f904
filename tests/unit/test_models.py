"""Models: what they compute, where their weights come from, what is refused before an evening is spent."""

from __future__ import annotations

import copy
import hashlib
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.data import ClipSet
from vleak.errors import CapabilityError, InputError
from vleak.evaluation import Settings, evaluate
from vleak.models import (
    MODELS,
    SMALL_MODELS,
    TRAINING_STATES,
    accuracy,
    build_model,
    check_classifier,
    check_second_derivative,
    math_attention,
    preflight,
    train,
)
from vleak.seeds import generator
from vleak.switches import differentiable_rnn, exact_arithmetic

models = pytest.mark.parametrize("name", SMALL_MODELS)

FACTORIES = """
import torch
from torch import nn

MEANING = 42


class Net(nn.Module):
    def __init__(self, outputs=6):
        super().__init__()
        self.head = nn.Linear(3, outputs)

    def forward(self, clips):
        return self.head(clips.mean((2, 3, 4)))


def plain():
    return Net()


def by_classes(num_classes):
    return Net(num_classes)


def by_both(classes, num_classes):
    return Net(max(classes, num_classes))


def by_short_name(classes):
    return Net(classes)


def by_size(size, frames=7, other="default"):
    net = Net()
    net.asked = (size, frames, other)
    return net


def double():
    return Net().double().train()


def broken():
    raise RuntimeError("no weights in /data\\nsecond line")


def needs_more(width):
    return Net(width)


def not_a_module():
    return {"head": 1}
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of a module of factories in the current folder, which is not on the path."""
    name = f"user_models_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(FACTORIES, encoding="utf-8")
    (tmp_path / f"{name}_torn.py").write_text("import there_is_no_such_module\n", encoding="utf-8")
    (tmp_path / f"{name}_slip.py").write_text("import os\nos.no_such_thing\n", encoding="utf-8")
    (tmp_path / f"{name}_raise.py").write_text("raise ValueError('set DATA first')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield name
    for module in set(sys.modules) - before:
        if module.startswith(name):
            del sys.modules[module]


def build(name: str, seed: int = 0, **changes: int) -> nn.Module:
    return build_model(name, **{"frames": 4, "size": 8, "classes": 6, "seed": seed, **changes})


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def refusal(error: type[Exception], call: Callable[[], object], *words: str) -> None:
    """Check that a call is refused in one line that holds the words."""
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


# ---- built-in models


@models
@pytest.mark.parametrize(("frames", "size", "classes"), [(8, 32, 6), (1, 8, 2), (5, 17, 3), (16, 20, 11)])
def test_logits_for_every_size(name: str, frames: int, size: int, classes: int) -> None:
    model = build(name, frames=frames, size=size, classes=classes)
    clips = torch.rand(2, 3, frames, size, size, generator=generator("clips"))
    logits = model(clips)
    assert logits.shape == (2, classes)
    assert torch.isfinite(logits).all()
    assert not model.training
    # A clip's logits do not depend on its neighbours.
    torch.testing.assert_close(model(clips[:1]), logits[:1], rtol=1e-4, atol=1e-6)


@models
def test_weights_depend_on_seed_and_name_alone(name: str) -> None:
    first, again, other = flat(build(name)), flat(build(name)), flat(build(name, seed=1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.unique().numel() > 0.9 * first.numel()


def test_models_of_the_same_shape_do_not_share_weights() -> None:
    names = ("c3d_tiny", "c3d_tiny_pool")
    kernels = [build(name).get_parameter("features.0.weight") for name in names]
    assert kernels[0].shape == kernels[1].shape
    assert not torch.equal(*kernels)


@models
def test_weights_are_spread_as_pytorch_spreads_them(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        theirs = [MODELS[name](2, 8, 6) for _ in range(40)]
    ours = [build(name, seed, frames=2) for seed in range(40)]
    for key, _ in ours[0].named_parameters():
        own, default = (torch.stack([m.get_parameter(key) for m in kind]) for kind in (ours, theirs))
        assert own.std().item() == pytest.approx(default.std().item(), rel=0.1), key
        assert own.abs().max().item() == pytest.approx(default.abs().max().item(), rel=0.05), key
        assert abs(own.mean()) < 5 * own.std() / math.sqrt(own.numel())


@models
def test_building_leaves_the_global_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    build(name)
    assert torch.equal(before, torch.get_rng_state())


def test_pooling_is_what_sets_the_two_c3d_apart() -> None:
    plain, pool = build("c3d_tiny", size=32, frames=8), build("c3d_tiny_pool", size=32, frames=8)
    assert plain.get_parameter("head.weight").shape == (6, 64 * 2 * 4 * 4)
    assert pool.get_parameter("head.weight").shape == (6, 64)


@pytest.mark.parametrize(
    ("name", "digest"),
    [("c3d_tiny", "d87bc79180e0059f"), ("c3d_tiny_pool", "e29b0d87ec58cccc"), ("lrcn", "82cfecacaffd3959")],
)
def test_default_weights_are_those_of_every_version(name: str, digest: str) -> None:
    default = {"c3d_tiny": "width=32,depth=3", "c3d_tiny_pool": "depth=3", "lrcn": "width=64"}[name]
    for spelled in (name, f"{name}:", f"{name}:{default}"):
        content = flat(build(spelled)).numpy().tobytes()
        assert hashlib.sha256(content).hexdigest().startswith(digest)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_width_and_depth_of_c3d(depth: int) -> None:
    for name in ("c3d_tiny", "c3d_tiny_pool"):
        model = build(f"{name}:width=8,depth={depth}", frames=8, size=16)
        kernels = [p for p in model.features.parameters() if p.ndim == 5]
        assert [len(kernel) for kernel in kernels] == [*[8] * (depth - 1), 16]
        maps = model.features(torch.zeros(1, 3, 8, 16, 16))
        assert maps.shape[2:] == {1: (4, 8, 8), 2: (2, 4, 4)}.get(depth, (2, 2, 2))
        assert model.head.in_features == (16 if name.endswith("pool") else maps.numel())
        assert model(torch.zeros(2, 3, 8, 16, 16)).shape == (2, 6)
        check_second_derivative(model, clip(8, 16))


def test_width_and_depth_of_lrcn() -> None:
    model = build("lrcn:width=8,depth=2")
    assert (model.lstm.hidden_size, model.lstm.num_layers, model.head.in_features) == (8, 2, 8)
    assert [len(p) for p in model.features.parameters() if p.ndim == 4] == [2, 4]
    check_second_derivative(model, clip())


def test_one_spelling_a_model() -> None:
    assert MODELS.parse("c3d_tiny:depth=2,width=16").text == "c3d_tiny:width=16,depth=2"
    assert MODELS.parse("c3d_tiny_pool:width=32").text == "c3d_tiny_pool"
    assert torch.equal(flat(build("lrcn:depth=2,width=8")), flat(build("lrcn:width=8,depth=2")))
    assert not torch.equal(flat(build("c3d_tiny:depth=3")), flat(build("c3d_tiny_pool")))


def test_lrcn_sees_the_order_of_frames() -> None:
    model, clips = build("lrcn"), torch.rand(1, 3, 4, 8, 8, generator=generator("clips"))
    assert (model(clips) - model(clips.flip(2))).abs().max() > 1e-6


# ---- the user's own


def test_factory_without_arguments(factories: str) -> None:
    model = build(f"{factories}:plain")
    assert type(model).__name__ == "Net"
    assert check_classifier(model, torch.rand(1, 3, 4, 8, 8, generator=generator(0)), 6) == 6


def test_factory_gets_the_arguments_that_it_names(factories: str) -> None:
    assert build(f"{factories}:by_classes", classes=9).get_parameter("head.weight").shape == (9, 3)
    assert build(f"{factories}:by_short_name", classes=9).get_parameter("head.weight").shape == (9, 3)
    assert build(f"{factories}:by_both", classes=9).get_parameter("head.weight").shape == (9, 3)
    assert build(f"{factories}:by_size", size=32, frames=5).asked == (32, 5, "default")
    assert build(f"{factories}:Net").get_parameter("head.weight").shape == (6, 3)


def test_factory_model_arrives_in_float32_and_eval_mode(factories: str) -> None:
    model = build(f"{factories}:double")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training


def test_factory_weights_follow_the_seed_and_leave_the_global_generator_alone(factories: str) -> None:
    before = torch.get_rng_state()
    first = flat(build(f"{factories}:plain"))
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        torch.rand(3)
        assert torch.equal(first, flat(build(f"{factories}:plain")))
    assert not torch.equal(first, flat(build(f"{factories}:plain", seed=1)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("c3d_tni", ["'c3d_tni'", "c3d_tiny", "package.module:factory"]),
        ("resnet", ["'resnet'", "lrcn"]),
        ("c3d_tni:width=3", ["unknown model 'c3d_tni'", "c3d_tiny"]),
        ("c3d_tiny:pool=1", ["pool takes true or false, got '1'"]),
        ("c3d_tiny:wide=1", ["unknown setting of model c3d_tiny 'wide'", "width"]),
        ("c3d_tiny:width=0", ["width is 0", "from 1 to 1024"]),
        ("c3d_tiny:depth=9", ["depth is 9", "from 1 to 8"]),
        ("lrcn:width=3", ["width is 3", "from 4 to 1024"]),
        ("c3d_tiny:width=1.5", ["width takes a whole number, got '1.5'"]),
        ("no.such_module:make", ["'no.such_module'", "cannot import"]),
        (":make", ["':make'", "expected package.module:name"]),
        ("{}:", ["unknown model", "package.module:factory"]),
        ("{}:absent", ["has no 'absent'"]),
        ("{}_torn:make", ["cannot import", "there_is_no_such_module"]),
        ("{}_slip:make", ["cannot import", "no_such_thing"]),
        ("{}_raise:make", ["cannot import", "ValueError: set DATA first"]),
        ("{}:MEANING", [":MEANING'", "int", "function"]),
        ("{}:broken", ["RuntimeError: no weights in /data"]),
        ("{}:needs_more", ["TypeError", "width"]),
        ("{}:not_a_module", ["dict", "torch.nn.Module"]),
    ],
)
def test_models_that_cannot_be_built_are_refused(factories: str, name: str, words: list[str]) -> None:
    given = name.format(factories)
    refusal(InputError, lambda: build(given), *words)


def test_failing_factory_puts_the_global_generator_back(factories: str) -> None:
    before = torch.get_rng_state()
    with pytest.raises(InputError):
        build(f"{factories}:broken")
    assert torch.equal(before, torch.get_rng_state())


# ---- is it a classifier of these clips?


class Answers(nn.Module):
    """A classifier whose output is made by a function of its logits."""

    def __init__(self, answer: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.head = nn.Linear(3, 6)
        self.answer = answer

    def forward(self, clips: Tensor) -> Any:
        return self.answer(self.head(clips.mean((2, 3, 4))))


def clip(frames: int = 4, size: int = 8) -> Tensor:
    return torch.rand(1, 3, frames, size, size, generator=generator("clip"))


def with_weight(model: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = value
    return model


@models
def test_built_in_models_pass(name: str) -> None:
    assert check_classifier(build(name), clip(), 6) == 6
    check_second_derivative(build(name), clip())


def test_more_logits_than_classes_pass() -> None:
    assert check_classifier(Answers(), clip(), 4) == 6


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: nn.Flatten(), ["no parameters"]),
        (lambda: with_weight(Answers(), math.nan), ["'head.weight'", "NaN"]),
        (lambda: with_weight(Answers(), math.inf), ["'head.weight'", "infinity"]),
        (lambda: build("c3d_tiny", size=16), ["(1, 3, 4, 8, 8)", "`size`"]),
        (lambda: nn.Conv2d(3, 6, 3), ["(1, 3, 4, 8, 8)", "`frames`"]),
        (lambda: Answers(lambda logits: (logits, logits)), ["tuple", "(1, 6)"]),
        (lambda: Answers(lambda logits: {"logits": logits}), ["dict", "(1, 6)"]),
        (lambda: Answers(lambda logits: logits[0]), ["(6,)", "(1, 6)"]),
        (lambda: Answers(lambda logits: logits.repeat(4, 1)), ["(4, 6)", "(1, 6)"]),
        (lambda: Answers(lambda logits: logits[:, :5]), ["(1, 5)", "(1, 6)"]),
        (lambda: Answers(lambda logits: logits / 0), ["logits", "NaN or infinite"]),
    ],
    ids=[
        "no parameters",
        "NaN weight",
        "infinite weight",
        "other size",
        "images",
        "tuple",
        "dict",
        "no clip axis",
        "a row a frame",
        "too few classes",
        "infinite logits",
    ],
)
def test_what_is_no_classifier_of_the_clips_is_refused(
    model: Callable[[], nn.Module], words: list[str]
) -> None:
    refusal(InputError, lambda: check_classifier(model(), clip(), 6), *words)


# ---- does it allow a second derivative?


class Attends(nn.Module):
    """Frames as tokens, through one of the ways in which PyTorch attends."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Linear(3 * 8 * 8, 16)
        layer = {"encoder": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
                 "multihead": lambda: nn.MultiheadAttention(16, 2, batch_first=True)}  # fmt: skip
        self.layer = layer.get(kind, nn.Identity)()
        self.head = nn.Linear(16, 6)

    def forward(self, clips: Tensor) -> Tensor:
        tokens = self.embed(clips.transpose(1, 2).flatten(2))
        if self.kind == "encoder":
            tokens = self.layer(tokens)
        elif self.kind == "multihead":
            tokens = self.layer(tokens, tokens, tokens, need_weights=False)[0]
        else:
            heads = tokens.unflatten(2, (2, 8)).transpose(1, 2)
            tokens = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        return self.head(tokens.mean(1))


attention = pytest.mark.parametrize("kind", ["encoder", "multihead", "function"])


@attention
def test_attention_passes_on_the_math_backend(kind: str) -> None:
    check_second_derivative(Attends(kind).eval(), clip())


@attention
def test_attention_is_named_where_the_math_backend_is_not_forced(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "math_attention", nullcontext)
    call = lambda: check_second_derivative(Attends(kind).eval(), clip())  # noqa: E731
    refusal(CapabilityError, call, "scaled_dot_product", "second derivative", "math backend")


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Hardsigmoid, ["hardsigmoid", "relu6(x + 3) / 6"]),
        (lambda: Checkpointed(), ["use_reentrant=False"]),
    ],
)
def test_operators_without_a_second_derivative_are_named_with_the_remedy(
    layer: Callable[[], nn.Module], words: list[str]
) -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, 3), layer(), nn.Flatten(), nn.Linear(4 * 2 * 6 * 6, 6))
    refusal(CapabilityError, lambda: check_second_derivative(model, clip()), *words)


def test_compiled_models_are_named_with_the_remedy() -> None:
    message = "torch.compile with aot_autograd does not currently support double backward"
    told = preflight._explain(message)
    assert f"{message}; pass the model as it was before torch.compile" in told
    assert "has no second derivative" not in told


def test_recurrent_models_are_checked_without_cudnn() -> None:
    class Asked(Answers):
        """Its cuDNN layer would have no second derivative on a GPU; here it tells whether it could run."""

        def __init__(self) -> None:
            super().__init__(lambda logits: seen.append(torch.backends.cudnn.enabled) or logits)
            self.unused = nn.GRU(1, 1)

    seen: list[bool] = []
    check_second_derivative(Asked(), clip())
    assert seen == [False]
    assert torch.backends.cudnn.enabled


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@models
def test_models_on_a_gpu_pass_with_a_clip_anywhere(name: str) -> None:
    model = build(name).cuda()
    for place in ("cpu", "cuda"):
        assert check_classifier(model, clip().to(place), 6) == 6
        check_second_derivative(model, clip().to(place))


class Checkpointed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=True)


class Detached(Answers):
    def forward(self, clips: Tensor) -> Tensor:
        return super().forward(clips.detach())


class Blind(Answers):
    def forward(self, clips: Tensor) -> Tensor:
        return super().forward(torch.zeros_like(clips))


class Rounded(Answers):
    def forward(self, clips: Tensor) -> Tensor:
        return super().forward((clips * 255).round())


class NoGrad(Answers):
    def forward(self, clips: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(clips)


@pytest.mark.parametrize("model", [Detached, Blind, Rounded, NoGrad])
def test_model_that_hides_the_clip_from_autograd_is_refused(model: type[nn.Module]) -> None:
    refusal(
        CapabilityError, lambda: check_second_derivative(model(), clip()), "no finite influence", "detached"
    )


def test_preflight_changes_nothing_of_the_model() -> None:
    model = build("lrcn").requires_grad_(False)
    before, state = flat(model), torch.get_rng_state()
    check_classifier(model, clip(), 6)
    check_second_derivative(model, clip())
    assert torch.equal(flat(model), before)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


# ---- the process-wide switch of attention


def switches() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )


MATH_ONLY = (False, False, True, False)


def test_math_attention_is_put_back_also_after_an_error() -> None:
    before = switches()
    assert before != MATH_ONLY
    with math_attention():
        with math_attention():
            assert switches() == MATH_ONLY
        assert switches() == MATH_ONLY
    assert switches() == before
    with pytest.raises(KeyError), math_attention():
        raise KeyError
    assert switches() == before


def test_math_attention_puts_back_what_the_user_chose() -> None:
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        before = switches()
        with math_attention():
            assert switches() == MATH_ONLY
        assert switches() == before
        assert not before[0]
    finally:
        torch.backends.cuda.enable_flash_sdp(True)


def test_a_thread_that_ends_leaves_math_attention_to_one_that_runs() -> None:
    before = switches()
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with math_attention():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    with math_attention():
        leave.set()
        thread.join(10)
        assert not thread.is_alive()
        assert switches() == MATH_ONLY
        check_second_derivative(Attends("function"), clip())
        assert switches() == MATH_ONLY
    assert switches() == before


def cuda_switches() -> tuple[bool, ...]:
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.deterministic, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("held", [partial(differentiable_rnn, nn.GRU(1, 1)), exact_arithmetic])
def test_a_switch_of_overlapping_threads_stays_set_and_is_put_back(held: Callable[[], Any]) -> None:
    before = cuda_switches()
    with held():
        inside = cuda_switches()
    assert inside != before
    both_in, one_out = threading.Barrier(2, timeout=10), threading.Barrier(2, timeout=10)
    seen: list[tuple[bool, ...]] = []

    def leaves_first() -> None:
        for _ in range(50):
            with held():
                both_in.wait()
                seen.append(cuda_switches())
            one_out.wait()

    def leaves_last() -> None:
        for _ in range(50):
            with held():
                both_in.wait()
                one_out.wait()
                seen.append(cuda_switches())

    threads = [threading.Thread(target=work) for work in (leaves_first, leaves_last)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 100
    assert set(seen) == {inside}
    assert cuda_switches() == before


def test_switches_change_nothing_else() -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with differentiable_rnn(nn.Linear(1, 1)):
        assert cudnn.enabled
    with pytest.raises(KeyError), exact_arithmetic():
        raise KeyError
    cudnn.deterministic, matmul.allow_tf32 = True, True
    try:
        with differentiable_rnn(build("lrcn")):
            assert cuda_switches() == (False, True, True, True)
        with exact_arithmetic():
            assert cuda_switches() == (True, True, False, False)
        assert cuda_switches() == (True, True, True, True)
    finally:
        cudnn.deterministic, matmul.allow_tf32 = False, False


def test_exact_arithmetic_puts_back_the_newer_switches_of_a_user() -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.conv.fp32_precision, matmul.fp32_precision = "ieee", "tf32"
    try:
        with exact_arithmetic():
            assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) != ("tf32", "tf32")
            assert matmul.fp32_precision == "ieee"
        assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("ieee", "tf32")
        assert matmul.fp32_precision == "tf32"
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = True, False


# ---- training


def easy(clips: int, *seed: object) -> tuple[Tensor, Tensor]:
    """Return clips whose brightness is their class of three."""
    numbers = generator("easy", *seed)
    labels = torch.randint(3, (clips,), generator=numbers)
    noise = 0.2 * torch.rand(clips, 3, 4, 8, 8, generator=numbers)
    return noise + 0.4 * labels[:, None, None, None, None], labels


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "c3d_tiny" else pytest.mark.slow) for name in SMALL_MODELS],
)
def test_late_training_learns(name: str) -> None:
    clips, labels = easy(24)
    model = build(name, classes=3)
    before = accuracy(model, *easy(60, "held out"))
    train(model, clips, labels, TRAINING_STATES["late"], generator("training"))
    assert accuracy(model, clips, labels) > 0.95
    assert accuracy(model, *easy(60, "held out")) > max(0.9, before + 0.2)
    assert not any(p.grad is not None for p in model.parameters())
    assert torch.isfinite(flat(model)).all()


def test_the_states_are_ordered() -> None:
    assert list(TRAINING_STATES) == ["untrained", "early", "late"]
    assert 0 == TRAINING_STATES["untrained"] < TRAINING_STATES["early"] < TRAINING_STATES["late"]


def test_untrained_leaves_the_weights_alone_and_needs_no_clips() -> None:
    model = build("c3d_tiny")
    before = flat(model)
    train(model, torch.empty(0, 3, 4, 8, 8), torch.empty(0, dtype=torch.long), 0, generator(0))
    assert torch.equal(flat(model), before)


def test_training_is_deterministic_and_draws_from_its_generator_alone() -> None:
    state = torch.get_rng_state()
    trained = []
    for seed in (0, 0, 1):
        model = build("c3d_tiny", classes=3)
        train(model, *easy(40), 5, generator(seed))
        trained.append(flat(model))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])
    assert not torch.equal(trained[0], flat(build("c3d_tiny", classes=3)))
    assert torch.equal(state, torch.get_rng_state())


def test_training_runs_in_eval_mode_as_the_client_does() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(3 * 4 * 8 * 8, 3)).train()
    twin = copy.deepcopy(model[1:])
    state = torch.get_rng_state()
    train(model, *easy(12), 5, generator(0))
    train(twin, *easy(12), 5, generator(0))
    assert torch.equal(flat(model), flat(twin))
    assert not model.training
    assert torch.equal(state, torch.get_rng_state())


def test_frozen_parameters_stay_while_the_others_learn() -> None:
    model = build("c3d_tiny", classes=3)
    model.features.requires_grad_(False)
    features, head = flat(model.features), flat(model.head)
    train(model, *easy(12), 3, generator(0))
    assert torch.equal(flat(model.features), features)
    assert not torch.equal(flat(model.head), head)
    assert [p.requires_grad for p in model.parameters()] == [False] * 6 + [True] * 2


def test_training_a_wholly_frozen_model_is_refused() -> None:
    model = build("c3d_tiny", classes=3).requires_grad_(False)
    refusal(InputError, lambda: train(model, *easy(12), 3, generator(0)), "frozen", "'untrained'")
    train(model, *easy(12), 0, generator(0))


def test_training_without_clips_or_with_nan_is_refused() -> None:
    none = torch.empty(0, 3, 4, 8, 8), torch.empty(0, dtype=torch.long)
    refusal(
        InputError, lambda: train(build("c3d_tiny"), *none, 20, generator(0)), "public clips", "none left"
    )
    broken = with_weight(build("c3d_tiny", classes=3), math.nan)
    refusal(InputError, lambda: train(broken, *easy(12), 20, generator(0)), "NaN")


def test_training_never_sees_the_attacked_clips() -> None:
    def weights(attacked: str, public: str) -> str:
        clips, labels = easy(2, attacked)
        public_clips, public_labels = easy(12, public)
        data = ClipSet("easy", clips, labels, ("a@0", "b@0"), public_clips, public_labels,
                       ("dark", "grey", "light"), "other seeds", ())  # fmt: skip
        settings = Settings(
            data=data, defenses=("none",), attacks=("matching",), training_state="early", iterations=1,
            enhance="none",
        )  # fmt: skip
        return evaluate(settings).models[0].weights_sha256

    first = weights("these", "public")
    assert weights("those", "public") == first
    assert weights("these", "other public") != first


def test_accuracy_of_known_answers() -> None:
    class Brightness(nn.Module):
        def forward(self, clips: Tensor) -> Tensor:
            return F.one_hot((clips.mean((1, 2, 3, 4)) * 3).long(), 3).float()

    clips = torch.tensor([0.1, 0.5, 0.9, 0.4] * 10)[:, None, None, None, None].expand(-1, 3, 4, 8, 8)
    labels = torch.tensor([0, 1, 2, 2] * 10)
    assert accuracy(Brightness(), clips, labels) == 0.75
    assert accuracy(Brightness(), clips[:3], labels[:3]) == 1.0
    assert accuracy(Brightness(), clips[3:4], labels[3:4]) == 0.0
    assert accuracy(Brightness(), clips[:0], labels[:0]) is None


def test_a_model_that_memory_cannot_hold_is_refused_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = {"frames": 8, "size": 32, "classes": 6, "seed": 0}
    with pytest.raises(
        InputError, match=r"'r3d_18:width=512' has 2,\d+,\d+,\d+ parameters, .* take a smaller width"
    ):
        build_model("r3d_18:width=512", **sizes)
    needed = 4 * sum(p.nbytes for p in build_model("c3d_tiny", **sizes).parameters())
    monkeypatch.setattr("vleak.models.memory.memory_bytes", lambda: needed)
    build_model("c3d_tiny", **sizes)
    monkeypatch.setattr("vleak.models.memory.memory_bytes", lambda: needed - 1)
    with pytest.raises(InputError, match="has 97,958 parameters"):
        build_model("c3d_tiny", **sizes)
