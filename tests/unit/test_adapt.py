"""Models that people have: layouts and outputs found out, wrappers taken off, weights loaded from files."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import sys
import threading
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import Answer, Frames, Lazy, PerFrame, SlowFast, Transformer, Volumes
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

import vleak
from vleak.attacks import Knowledge, Observation, infer_labels
from vleak.cli import run
from vleak.errors import InputError
from vleak.evaluation import Settings
from vleak.federated import Client
from vleak.models import (
    Layout,
    adapt,
    build_extractor,
    build_head,
    build_model,
    check_second_derivative,
    load_checkpoint,
    plain_module,
    read_layout,
    trial,
)
from vleak.seeds import generator

CLASSES, SHAPE = 6, (3, 4, 8, 8)
Pair = namedtuple("Pair", "logits aux")


def make(factory: Callable[[], nn.Module]) -> nn.Module:
    """Model with weights from a generator of its own."""
    with torch.random.fork_rng(devices=[]):
        model = factory()
    numbers = generator("foreign")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=numbers))
    return model.eval()


def draw(clips: int = 2) -> Tensor:
    return torch.rand(clips, *SHAPE, generator=generator("clips"))


def adapted(model: nn.Module, classes: int = CLASSES, layout: str = "auto") -> tuple[nn.Module, str]:
    module, notes = adapt(model, SHAPE, classes, layout=read_layout(layout), seed=0)
    return module, "; ".join(notes)


def refused(call: Callable[[], object], *words: str) -> None:
    """Check that a call is refused in one line that holds the words."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


# ---- layouts of clips


def pathways(clips: Tensor, alpha: int = 4) -> list[Tensor]:
    return [clips[:, :, range(0, clips.shape[2], alpha)], clips]


LAYOUTS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Any], str]] = {
    "NCTHW": (Volumes, lambda clips: clips, ""),
    "NTCHW": (Frames, lambda clips: clips.permute(0, 2, 1, 3, 4), "takes clips as NTCHW"),
    "pathways": (SlowFast, pathways, "takes clips as pathways:alpha=4"),
    "pathways:alpha=2": (
        lambda: SlowFast(alpha=2), lambda clips: pathways(clips, 2), "takes clips as pathways:alpha=2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_found_out_or_taken_as_asked(name: str, asked: bool) -> None:
    factory, arrange, told = LAYOUTS[name]
    plain, clips = make(factory), draw()
    model, notes = adapted(copy.deepcopy(plain), layout=name if asked else "auto")
    assert torch.equal(model(clips), plain(arrange(clips)))
    assert notes == (f"{told} ({'as asked' if asked else 'found by a forward pass'})" if told else "")


def test_the_slow_pathway_has_every_alpha_th_frame() -> None:
    clips = torch.arange(8.0).reshape(1, 1, 8, 1, 1)
    slow, fast = Layout("pathways", 4)(clips)
    assert slow.flatten().tolist() == [0.0, 4.0]
    assert fast.flatten().tolist() == list(range(8))


@pytest.mark.parametrize("text", ["auto", "NCTHW", "NTCHW", "pathways:alpha=8"])
def test_layouts_are_written_as_they_are_read(text: str) -> None:
    assert str(read_layout(text) or "auto") == text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("NHWC", "expected auto, NCTHW"),
        ("pathways:beta=2", "'beta'"),
        ("pathways:alpha=0", "from 1"),
        ("", "auto"),
    ],
)
def test_other_layouts_are_refused(text: str, word: str) -> None:
    refused(lambda: read_layout(text), word)
    if text:
        refused(lambda: Settings(input_layout=text), word)


def test_a_model_that_takes_the_clips_in_no_layout_is_refused() -> None:
    refused(lambda: adapted(nn.Linear(7, 6)), "(1, 3, 4, 8, 8)", "nor as NTCHW or pathways", "`size`")
    refused(lambda: adapted(Frames(), layout="NCTHW"), "as NCTHW (clip, channel")
    refused(lambda: adapted(Volumes(made=lambda *_: sys.exit(3))), "height, width): SystemExit(3);")


# ---- what comes back

OUTPUTS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "tuple": (lambda logits, features: (logits, features), "read from 0"),
    "features first": (lambda logits, features: [features, logits], "read from 1"),
    "nested": (lambda logits, features: ([logits],), "read from 0.0"),
    "named tuple": (lambda logits, features: Pair(logits, features), "read from logits"),
    "mapping": (lambda logits, features: {"loss": None, "logits": logits}, "read from logits"),
    "object": (lambda logits, features: Answer(features, logits), "read from logits"),
    "map of one place": (lambda logits, features: logits[..., None, None, None], ""),
    "frames last": (lambda logits, features: logits[..., None].expand(-1, -1, 4), "averaged (axis 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_logits_are_found_in_what_a_model_returns(name: str) -> None:
    made, told = OUTPUTS[name]
    model, notes = adapted(make(lambda: Volumes(made=made)))
    torch.testing.assert_close(model(draw()), make(Volumes)(draw()))
    assert told in notes
    assert bool(told) == bool(notes)


def test_answers_of_transformers_are_taken_in_their_own_layout() -> None:
    model, notes = adapted(make(Transformer))
    assert torch.equal(model(draw()), make(Frames)(draw().transpose(1, 2)))
    assert "NTCHW" in notes
    assert "read from logits" in notes


def test_logits_of_frames_are_averaged() -> None:
    model, notes = adapted(make(PerFrame))
    torch.testing.assert_close(model(draw()), make(Frames)(draw().transpose(1, 2)))
    assert "averaged (axis 1" in notes


@pytest.mark.parametrize("made", [lambda logits, _: logits, lambda logits, _: logits[:, 0]])
def test_one_logit_stands_for_two_classes(made: Callable[..., Tensor]) -> None:
    plain = make(lambda: Volumes(1))
    model, notes = adapted(make(lambda: Volumes(1, made)), classes=2)
    logits = model(draw())
    torch.testing.assert_close(logits.softmax(1)[:, 1], plain(draw())[:, 0].sigmoid())
    assert "(0, z)" in notes
    refused(lambda: adapted(make(lambda: Volumes(1)), classes=3), "(1, 1)", "(1, 3)")


@pytest.mark.parametrize("bias", [True, False])
def test_the_label_behind_one_logit_is_inferred(bias: bool) -> None:
    plain = make(lambda: Volumes(1, lambda logits, features: logits))
    if not bias:
        plain.head = nn.Linear(128, 1, bias=False)
        plain.head.weight.data.fill_(0.1)
        plain.conv.bias.data.fill_(2.0)  # features above 0
    model, _ = adapted(plain, classes=2)
    for label in (0, 1):
        update = Client(model).update(draw(1), torch.tensor([label]), generator(0))
        observation = Observation(model, update, Knowledge(clip_shape=SHAPE, batch_size=1, classes=2))
        assert infer_labels(observation).tolist() == [label]


def test_softmax_and_surplus_logits_are_noted_and_missing_ones_refused() -> None:
    _, notes = adapted(make(lambda: Volumes(made=lambda logits, _: logits.softmax(1))))
    assert "softmax" in notes
    _, notes = adapted(make(lambda: Volumes(40)))
    assert notes == "has 40 logits for 6 classes, which are the first 6"
    refused(lambda: adapted(make(lambda: Volumes(5))), "(1, 5)", "(1, 6)")
    refused(
        lambda: adapted(make(lambda: Volumes(made=lambda logits, _: {"out": logits}))), "keys out", "(1, 6)"
    )
    refused(
        lambda: adapted(make(lambda: Volumes(made=lambda logits, _: (logits[:, :5],)))), "tuple of (1, 5)"
    )


@pytest.mark.parametrize("factory", [Transformer, SlowFast, PerFrame])
def test_an_adapted_model_keeps_names_copies_and_has_second_derivatives(factory: type[nn.Module]) -> None:
    plain = make(factory)
    names = list(plain.state_dict())
    model, _ = adapted(plain)
    assert list(model.state_dict()) == names
    assert torch.equal(copy.deepcopy(model)(draw()), model(draw()))
    check_second_derivative(model, draw(1))
    zeros = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    assert not functional_call(model, zeros, (draw(),)).any()


def test_finding_out_leaves_the_weights_and_the_generator_of_the_process() -> None:
    before, model = torch.get_rng_state(), make(Frames)
    weights = copy.deepcopy(model.state_dict())
    adapted(model)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters())


def test_hooks_of_the_user_see_what_they_saw_before() -> None:
    seen: list[tuple[int, ...]] = []
    model = make(Transformer)
    model.register_forward_pre_hook(lambda module, arguments: seen.append(tuple(arguments[0].shape)))
    model.register_forward_hook(lambda module, arguments, answer: seen.append(tuple(answer["logits"].shape)))
    model, _ = adapted(model)
    seen.clear()
    assert model(draw()).shape == (2, CLASSES)
    assert seen == [(2, 4, 3, 8, 8), (2, CLASSES)]


# ---- lazy layers


def test_lazy_layers_get_shapes_and_weights_from_the_seed() -> None:
    state = torch.get_rng_state()
    models = [adapt(Lazy(CLASSES), SHAPE, CLASSES, layout=None, seed=seed).module for seed in (0, 0, 1)]
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in models]
    assert models[0].conv.weight.shape == (4, 3, 3, 3, 3)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(state, torch.get_rng_state())


# ---- wrappers, types, copies


def test_wrappers_are_taken_off() -> None:
    class OptimizedModule(nn.Module):
        """As torch.compile wraps a module; making a real one imports the compiler, which takes seconds."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self._orig_mod = inner

    OptimizedModule.__module__ = "torch._dynamo.eval_frame"
    inner = make(Volumes)
    for wrapped in (nn.DataParallel(inner), OptimizedModule(nn.DataParallel(inner))):
        module, notes = plain_module(wrapped)
        assert type(module) is Volumes
        assert Settings(model=wrapped).resolved().model == "Volumes"
        assert module is not inner
        assert list(module.state_dict()) == list(inner.state_dict())
        assert "taken out of" in notes[0]
    within = make(lambda: nn.Sequential(OptimizedModule(nn.Conv3d(3, 4, 3)), nn.Flatten()))
    module, notes = plain_module(within)
    assert [name for name, _ in module.named_parameters()] == ["0.weight", "0.bias"]
    assert [name for name, _ in within.named_parameters()] == ["0._orig_mod.weight", "0._orig_mod.bias"]
    assert notes == ("taken out of OptimizedModule",)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_runs_as_the_one_inside() -> None:
    inner = make(Volumes)
    module, _ = plain_module(torch.compile(inner))
    assert torch.equal(module(draw()), inner(draw()))
    inner.forward = torch.compile(inner.forward)  # type: ignore[method-assign]
    refused(lambda: plain_module(inner), "Volumes is compiled", "before torch.compile")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_converted_and_noted(half: torch.dtype) -> None:
    given = make(Volumes).to(half)
    module, notes = plain_module(given)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert {p.dtype for p in given.parameters()} == {half}
    assert notes == (f"weights were {str(half)[6:]}, converted to float32",)


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.jit.trace(make(Volumes), draw(1)))


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 6)))


def pruned() -> nn.Module:
    model = make(Volumes)
    prune.l1_unstructured(model.head, "weight", 0.5)
    return model


def holding(value: Any) -> nn.Module:
    model = make(Volumes)
    model.conv.held = value
    return model


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (traced, ["'0'", "torch.jit", "made from"]),
        (old_weight_norm, ["'0.weight'", "WeightNorm", "parametrizations.weight_norm"]),
        (pruned, ["'head.weight'", "prune.remove"]),
        (lambda: holding(threading.Lock()), ["'conv.held'", "lock", "outside"]),
        (lambda: holding(i for i in range(3)), ["'conv.held'", "generator"]),
        (lambda: holding([make(Volumes)(draw())]), ["'conv.held'", "forward pass", "detach()"]),
        (lambda: make(Volumes).to("meta"), ["'conv.weight'", "meta device"]),
        (lambda: nn.Sequential(nn.Linear(3, 6, dtype=torch.complex64)), ["'0.weight'", "complex64", "real"]),
    ],
    ids=["traced", "weight norm", "pruned", "lock", "generator", "kept tensor", "meta", "complex"],
)
def test_what_cannot_be_copied_is_refused_with_the_remedy(
    factory: Callable[[], nn.Module], words: list[str]
) -> None:
    refused(lambda: plain_module(factory()), *words)


def test_a_model_that_keeps_tensors_of_its_forward_pass_is_refused() -> None:
    class Keeps(Volumes):
        def forward(self, clips: Tensor) -> Tensor:
            self.last = super().forward(clips)
            return self.last

    refused(lambda: adapted(make(Keeps)), "'last'", "forward pass", "detach()")


def test_new_parametrisations_pass() -> None:
    model = make(Volumes)
    parametrizations.weight_norm(model.head)
    module, _ = adapted(plain_module(model).module)
    check_second_derivative(module, draw(1))
    assert torch.equal(copy.deepcopy(module)(draw()), model(draw()))


# ---- checkpoints


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes content with torch, or with safetensors, and returns the path."""

    def write(content: Any, name: str = "weights.pt") -> str:
        path = tmp_path / name
        save_file(content, path) if name.endswith(".safetensors") else torch.save(content, path)
        return str(path)

    return write


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in make(Volumes).state_dict().items()}


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."]
)
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_weights_come_from_a_checkpoint(prefix: str, key: str | None, file: Callable[..., str]) -> None:
    state = prefixed(prefix)
    model = Volumes()
    notes = load_checkpoint(model, file(state if key is None else {"epoch": 3, key: state}))
    assert notes == ()
    assert all(
        torch.equal(value, make(Volumes).state_dict()[name]) for name, value in model.state_dict().items()
    )


def test_safetensors_and_half_precision(file: Callable[..., str]) -> None:
    state = {name: value.half() for name, value in prefixed("module.").items()}
    model = Volumes()
    notes = load_checkpoint(model, file(state, "weights.safetensors"))
    assert notes == ("weights of the checkpoint are float16, converted to float32",)
    assert torch.equal(model.head.weight, state["module.head.weight"].float())
    assert model.head.weight.dtype == torch.float32


def test_names_that_do_not_fit_are_told_in_one_line(file: Callable[..., str]) -> None:
    state = prefixed("")
    state["fc.weight"] = state.pop("conv.bias")
    state["head.bias"] = torch.zeros(400)
    model = make(Volumes)
    before = copy.deepcopy(model.state_dict())
    words = ("missing: conv.bias", "unexpected: fc.weight", "head.bias (400,) for (6,)")
    refused(lambda: load_checkpoint(model, file(state)), *words)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "odd",
    [lambda t: t.to_sparse(), lambda t: t.to("meta"), lambda t: t.cfloat()],
    ids=["sparse", "meta", "complex"],
)
def test_weights_that_are_no_dense_real_numbers_are_refused(
    odd: Callable[[Tensor], Tensor], file: Callable[..., str]
) -> None:
    state = prefixed("")
    state["head.weight"] = odd(state["head.weight"])
    refused(lambda: load_checkpoint(Volumes(), file(state)), "no dense real numbers: head.weight")


def test_a_dict_that_holds_itself_is_refused(file: Callable[..., str]) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    refused(lambda: load_checkpoint(Volumes(), file(content)), "a dict of 'model'")


class Harmful:
    """Pickled, it would make a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_files_of_something_else_are_refused(file: Callable[..., str], tmp_path: Path) -> None:
    model, trap = Volumes(), tmp_path / "trap"
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "text.pt").write_text("Dear Sir")
    (tmp_path / "text.safetensors").write_text("Dear Sir")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Harmful(trap)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(make(Volumes), draw(1)), tmp_path / "script.pt")
    for name in ("pipe.pt", "nothing.pt", "."):
        refused(lambda name=name: load_checkpoint(model, str(tmp_path / name)), "no such file")
    for name in ("text.pt", "text.safetensors", "empty.pt", "old.pt", "script.pt"):
        refused(
            lambda name=name: load_checkpoint(model, str(tmp_path / name)),
            "damaged, or holds more than tensors",
        )
    refused(lambda: load_checkpoint(model, file({"state_dict": Harmful(trap)})), "more than tensors")
    refused(lambda: load_checkpoint(model, file({"epoch": 3})), "a dict of 'epoch'", "state dict")
    refused(lambda: load_checkpoint(model, file([1])), "holds a list")
    assert not trap.exists()


# ---- in a run


def small(**changes: Any) -> vleak.Run:
    given = {"clips": 2, "frames": 4, "size": 8, "iterations": 2, "defenses": "none", "enhance": "none"}
    given["attacks"] = "matching"
    return vleak.evaluate(**given | changes)


@pytest.mark.parametrize("factory", [Transformer, SlowFast])
def test_a_foreign_model_is_attacked_by_the_captured_loop(factory: type[nn.Module]) -> None:
    done = small(model=make(factory), clips=1)
    cell = next(cell for cell in done.cells if cell.attack.name == "matching")
    assert cell.ok, cell.status
    assert cell.attack.engine == Settings().engine_that_runs()
    assert cell.scores is not None
    assert cell.scores.label_correct
    assert any("takes clips as" in note for note in done.record.models[0].notes)


def test_a_finished_classifier_is_called_given(file: Callable[..., str]) -> None:
    model = make(Volumes)
    runs = [
        small(model=model),
        small(model=vleak.named("Volumes", Volumes), checkpoint=file(model.state_dict())),
        small(model=vleak.named("Volumes", lambda: model), training_state="given"),
    ]
    for done in runs:
        record = done.record.models[0]
        assert (record.training_state, record.training_steps) == ("given", 0)
        assert record.weights_sha256 == runs[0].record.models[0].weights_sha256
        assert record.train_accuracy is not None
        assert {cell.training_state for cell in done.cells} == {"given"}
        assert all(cell.id.startswith("Volumes.given/") for cell in done.cells)
    assert runs[1].settings.checkpoint is not None


def test_the_command_line_takes_layout_and_checkpoint_and_says_what_was_done(
    file: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("warnings.showwarning", None)
    weights = file({"state_dict": make(SlowFast).half().state_dict()})
    command = "evaluate --model foreign_models:SlowFast --input-layout pathways:alpha=4 --clips 1 --frames 4"
    command += f" --size 8 --iterations 1 --defense none --enhance none --checkpoint {weights}"
    command += " --attack matching --engine reference"
    assert run([*command.split(), "--out", str(tmp_path / "run")]) == 0
    told = capfd.readouterr().err
    assert "model foreign_models:SlowFast: takes clips as pathways:alpha=4 (as asked)" in told
    assert "weights of the checkpoint are float16, converted to float32" in told
    assert "foreign_models:SlowFast given" in " ".join(told.split())


def test_training_states_of_other_models_stay() -> None:
    assert Settings().state_of("raw") == "untrained"
    assert Settings(model=Volumes).state_of("raw") == "untrained"
    assert Settings(model=make(Volumes), training_state="early").state_of("raw") == "early"
    both = Settings(model=make(Volumes), pipeline="all")
    assert (both.state_of("raw"), both.state_of("feature")) == ("given", "untrained")
    refused(lambda: Settings(training_state="given"), "training_state=given", "drawn here", "`checkpoint`")


def test_a_checkpoint_without_a_model_of_frames_is_refused(file: Callable[..., str]) -> None:
    path = file({"a": torch.ones(1)})
    refused(lambda: Settings(checkpoint=path, pipeline="feature"), "raw pipeline")
    refused(lambda: Settings(checkpoint="nowhere.pt"), "checkpoint=nowhere.pt", "no such file")


# ---- factories on trial

FACTORIES = """
import os, signal, sys, time
from torch import nn

class Ended(BaseException):
    pass

def sleeps(): time.sleep(60)
def spins():
    while True: pass
def exits(): os._exit(0)
def dies(): os.kill(os.getpid(), signal.SIGKILL)
def generator_exit(): raise GeneratorExit
def interrupt(): raise KeyboardInterrupt
def ended(): raise Ended("enough")
def system_exit(): sys.exit(3)
def closes(): sys.stdout.close(); return nn.Linear(3, 6)
def closes_descriptor(): os.close(1); return nn.Linear(3, 6)
def prints(): print("hello"); return nn.Linear(3, 6)
def fills():
    held = []
    while True: held.append(bytearray(2**26))
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"rude_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(FACTORIES, encoding="utf-8")
    (tmp_path / f"{name}_leaves.py").write_text("import os\nos._exit(0)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("factory", "word"),
    [
        ("sleeps", "did not return within 0.3 s"),
        ("spins", "did not return within 0.3 s"),
        ("exits", "ended its process (exit code 0)"),
        ("dies", "ended its process (SIGKILL)"),
        ("interrupt", "raised KeyboardInterrupt"),
        ("generator_exit", "raised GeneratorExit"),
        ("ended", "raised Ended: enough"),
        ("system_exit", "raised SystemExit: 3"),
        ("closes", "closed stdout or stderr"),
        ("closes_descriptor", "closed stdout or stderr"),
    ],
)
def test_a_factory_that_hangs_or_ends_its_process_costs_one_line(
    factory: str, word: str, factories: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if word.endswith("0.3 s"):
        monkeypatch.setenv("VLEAK_FACTORY_SECONDS", "0.3")
    name = f"{factories}:{factory}"
    refused(lambda: build_model(name, frames=4, size=8, classes=6, seed=0), repr(name), word)


def test_a_factory_that_takes_all_memory_costs_one_line(
    factories: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "free_gibibytes", lambda: 0.25)
    name = f"{factories}:fills"
    refused(
        lambda: build_model(name, frames=4, size=8, classes=6, seed=0), "took all the memory that is free"
    )


def test_a_trial_has_the_memory_that_is_free() -> None:
    free = trial.free_gibibytes()
    assert free is None or 2**24 < free * 2**30 < 2**50


@pytest.mark.parametrize("factory", ["exits", "generator_exit", "closes"])
@pytest.mark.parametrize("kind", ["extractor", "head"])
def test_factories_of_extractors_and_heads_are_tried_too(kind: str, factory: str, factories: str) -> None:
    name = f"{factories}:{factory}"
    build = {
        "extractor": lambda: build_extractor(name, size=8, frames=4, seed=0),
        "head": lambda: build_head(name, segments=2, features=4, outputs=None, seed=0),
    }
    refused(build[kind], f"{kind} {name!r}", "the factory")


@pytest.mark.parametrize("kind", ["extractor", "head"])
def test_a_module_of_a_head_is_tried_before_a_run(kind: str, factories: str) -> None:
    given: dict[str, Any] = {kind: f"{factories}_leaves:x"}
    refused(lambda: vleak.evaluate(pipeline="feature", **given), "exit code 0")


def test_a_trial_works_where_ended_children_are_ignored(factories: str) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        build_model(f"{factories}:prints", frames=4, size=8, classes=6, seed=0)
        refused(lambda: build_model(f"{factories}:exits", frames=4, size=8, classes=6, seed=0), "ended its")
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_module_that_ends_its_process_costs_one_line(factories: str) -> None:
    refused(lambda: build_model(f"{factories}_leaves:x", frames=4, size=8, classes=6, seed=0), "exit code 0")


def test_what_a_factory_prints_is_no_result(factories: str, capsys: pytest.CaptureFixture[str]) -> None:
    build_model(f"{factories}:prints", frames=4, size=8, classes=6, seed=0)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "hello\n")


@pytest.mark.parametrize("seconds", ["-1", "soon", "nan", "inf"])
def test_the_time_of_a_trial_is_a_number(
    seconds: str, factories: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLEAK_FACTORY_SECONDS", seconds)
    refused(
        lambda: build_model(f"{factories}:prints", frames=4, size=8, classes=6, seed=0),
        f"VLEAK_FACTORY_SECONDS is '{seconds}'",
    )


def test_built_in_names_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    assert build_model("c3d_tiny:width=4", frames=4, size=8, classes=6, seed=0) is not None


@pytest.mark.parametrize("content", [b"junk", b"", b"h\x01", b"\x80\x02J\x01", b"\x80\x02U\x03\xff\xfe\xfd."])
def test_a_file_of_anything_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    """The unpickler's own errors are of many types, those of a struct among them."""
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged, or holds more than tensors") as caught:
        load_checkpoint(nn.Linear(2, 2), str(path))
    assert "\n" not in str(caught.value)
