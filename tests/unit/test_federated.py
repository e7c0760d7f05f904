"""The client, the base defense and the update file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import Conv, Recurrent, Residual, batch, build
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.errors import CapabilityError, InputError, VleakError
from vleak.federated import Client, Defense, Message, PublicFacts, Update, mean_gradient, per_clip_gradients
from vleak.seeds import generator

MODELS = [Conv, Recurrent, Residual]


@pytest.mark.parametrize("kind", MODELS)
def test_undefended_update_is_the_autograd_gradient(kind: type[nn.Module]) -> None:
    model, (clips, labels) = build(kind), batch()
    update = Client(model).update(clips, labels, generator(0))
    model.eval()
    F.cross_entropy(model(clips), labels).backward()
    assert list(update.tensors) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(update.tensors[name], expected, rtol=1e-5, atol=1e-7)
    assert update.wire_bytes == 4 * sum(p.numel() for p in model.parameters())
    assert update.facts == PublicFacts(batch_size=3)
    update.check(model)


@pytest.mark.parametrize("kind", MODELS)
def test_per_clip_gradients_are_those_of_batches_of_one(kind: type[nn.Module]) -> None:
    model, (clips, labels) = build(kind).eval(), batch()
    samples = per_clip_gradients(model, F.cross_entropy, clips, labels)
    assert list(samples) == [name for name, _ in model.named_parameters()]
    for index in range(len(clips)):
        single = mean_gradient(model, F.cross_entropy, clips[index : index + 1], labels[index : index + 1])
        for name, expected in single.items():
            torch.testing.assert_close(samples[name][index], expected, rtol=1e-4, atol=1e-6)


def test_per_clip_gradients_survive_control_flow_that_vmap_refuses() -> None:
    class Branching(Conv):
        def forward(self, clips: Tensor) -> Tensor:
            logits = super().forward(clips)
            return logits if logits.sum() > 0 else -logits

    model, (clips, labels) = build(Branching).eval(), batch()
    samples = per_clip_gradients(model, F.cross_entropy, clips, labels)
    single = mean_gradient(model, F.cross_entropy, clips[1:2], labels[1:2])
    assert torch.equal(samples["conv.weight"][1], single["conv.weight"])


def test_tied_parameters_add_up_both_uses() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 5)
            self.second = self.first

        def forward(self, clips: Tensor) -> Tensor:
            return self.second(self.first(clips.flatten(1)[:, :5]))

    model, (clips, labels) = build(Tied), batch()
    update = Client(model).update(clips, labels, generator(0))
    F.cross_entropy(model(clips), labels).backward()
    assert list(update.tensors) == ["first.weight", "first.bias"]
    torch.testing.assert_close(update.tensors["first.weight"], model.first.weight.grad)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_client_changes_nothing_of_the_model(mode: str) -> None:
    model, (clips, labels) = build(lambda: Residual(nn.BatchNorm3d)), batch()
    model.train()
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.full_like(model.head.weight, 7.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    Client(model, mode=mode).update(clips, labels, generator(0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.head.weight.grad == 7.0).all()
    assert model.head.bias.grad is None
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 6
    assert (model.training, model.norm.training) == (True, False)
    assert torch.equal(state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()
    assert python_state == random.getstate()


def test_training_mode_uses_the_batch_statistics_and_eval_the_running_ones() -> None:
    model, (clips, labels) = build(lambda: Residual(nn.BatchNorm3d)), batch()
    modes = {mode: Client(model, mode=mode).update(clips, labels, generator(0)) for mode in ("eval", "train")}
    assert not torch.allclose(modes["eval"].tensors["stem.weight"], modes["train"].tensors["stem.weight"])
    model.train()
    F.cross_entropy(model(clips), labels).backward()
    torch.testing.assert_close(modes["train"].tensors["stem.weight"], model.stem.weight.grad)
    assert modes["train"].facts.mode == "train"


def test_facts_hold_nothing_private() -> None:
    model, (clips, _) = build(Conv), batch()
    several = {Client(model).update(clips, torch.full((3,), label), generator(0)).facts for label in range(5)}
    assert several == {PublicFacts(batch_size=3)}


def test_defense_prepares_the_clips() -> None:
    class Grey(Defense):
        def prepare_clips(self, clips: Tensor, labels: Tensor, generator: torch.Generator):
            return torch.full_like(clips, 0.5), labels

    model, (clips, labels) = build(Conv), batch()
    sent = Client(model, defense=Grey()).update(clips, labels, generator(0))
    grey = Client(model).update(torch.full_like(clips, 0.5), labels, generator(0))
    assert torch.equal(sent.tensors["conv.weight"], grey.tensors["conv.weight"])


def _aggregating(change: Callable[[nn.Module, Tensor, dict[str, Tensor]], Any]) -> Defense:
    class Aggregating(Defense):
        def aggregate(self, model, loss, clips, labels, generator):
            return change(model, clips, mean_gradient(model, loss, clips, labels))

    return Aggregating()


def _transmitting(change: Callable[[dict[str, Tensor]], Any], **message: Any) -> Defense:
    class Transmitting(Defense):
        def transmit(self, gradient, generator):
            if not message:
                return change(gradient)
            return Message(**{"tensors": change(gradient), "wire_bytes": 0} | message)

    return Transmitting()


def _preparing(change: Callable[[Tensor, Tensor], Any]) -> Defense:
    class Preparing(Defense):
        def prepare_clips(self, clips, labels, generator):
            return change(clips, labels)

    return Preparing()


def _copied(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in gradient.items()}


def _raising(*_: object) -> Any:
    raise KeyError("no such layer\nand more")


BIAS = "conv.bias"
BROKEN: dict[str, tuple[Defense, str]] = {
    "prepare raises": (_preparing(_raising), "prepare_clips raised KeyError: 'no such layer"),
    "prepare returns one": (_preparing(lambda x, y: x), "prepare_clips returned Tensor, expected"),
    "prepare crops": (_preparing(lambda x, y: (x[..., :4], y)), r"returned clips \(3, 3, 4, 8, 4\)"),
    "prepare drops all": (_preparing(lambda x, y: (x[:0], y[:0])), r"returned clips \(0, 3"),
    "prepare doubles": (_preparing(lambda x, y: (x.double(), y)), "returned clips .*float64"),
    "prepare loses labels": (
        _preparing(lambda x, y: (x, y[:2])),
        r"returned labels \(2,\), .*expected \(3,\)",
    ),
    "prepare makes NaN": (_preparing(lambda x, y: (x / 0 * 0, y)), "prepare_clips returned NaN"),
    "prepare leaves the range": (_preparing(lambda x, y: (x + 1, y)), r"values outside \[0, 1\]"),
    "aggregate raises": (_aggregating(_raising), "aggregate raised KeyError: 'no such layer"),
    "aggregate returns None": (_aggregating(lambda m, x, g: None), "aggregate returned NoneType"),
    "aggregate lacks one": (
        _aggregating(lambda m, x, g: {k: g[k] for k in g if k != BIAS}),
        "returned nothing for .*'conv.bias'",
    ),
    "aggregate has more": (_aggregating(lambda m, x, g: g | {"x": x}), "returned 'x', which is no parameter"),
    "aggregate reshapes": (
        _aggregating(lambda m, x, g: g | {BIAS: g[BIAS][None]}),
        r"'conv.bias' of shape \(1, 4\), expected \(4,\)",
    ),
    "aggregate has a list": (
        _aggregating(lambda m, x, g: g | {BIAS: [1.0]}),
        "returned list for 'conv.bias'",
    ),
    "aggregate makes NaN": (
        _aggregating(lambda m, x, g: g | {BIAS: g[BIAS] / 0}),
        "'conv.bias' is not finite; check .* and defense",
    ),
    "aggregate sends weights": (
        _aggregating(lambda m, x, g: dict(m.named_parameters())),
        "in memory that it was given",
    ),
    "aggregate sends pixels": (
        _aggregating(lambda m, x, g: g | {BIAS: x.flatten()[:4]}),
        "'conv.bias' in memory that it was given",
    ),
    "transmit raises": (_transmitting(_raising), "transmit raised KeyError"),
    "transmit returns a dict": (_transmitting(_copied), "transmit returned dict, expected .*Message"),
    "transmit sends what it got": (
        _transmitting(dict, wire_bytes=1),
        "in memory that it was given; return a clone",
    ),
    "transmit sends a view": (
        _transmitting(lambda g: _copied(g) | {BIAS: g[BIAS][:]}, wire_bytes=1),
        "'conv.bias' in memory that it",
    ),
    "transmit halves": (
        _transmitting(lambda g: {k: t.half() for k, t in g.items()}, wire_bytes=1),
        "torch.float16 on cpu",
    ),
    "transmit makes NaN": (
        _transmitting(lambda g: _copied(g) | {BIAS: g[BIAS] / 0}, wire_bytes=1),
        "NaN or infinity in 'conv.bias'",
    ),
    "transmit reshapes": (
        _transmitting(lambda g: {k: t.flatten() + 0 for k, t in g.items()}, wire_bytes=1),
        "'unused' of shape",
    ),
    "transmit counts wrong": (
        _transmitting(_copied, wire_bytes=-1),
        "wire_bytes=-1, expected a whole number",
    ),
    "transmit counts half": (_transmitting(_copied, wire_bytes=1.5), "wire_bytes=1.5"),
}


@pytest.mark.parametrize("row", BROKEN)
def test_a_defense_that_breaks_its_contract_sends_nothing(row: str) -> None:
    defense, words = BROKEN[row]
    with pytest.raises(CapabilityError, match=words) as caught:
        Client(build(Conv), defense=defense).update(*batch(), generator(0))
    said = str(caught.value)
    assert f"defense {type(defense).__name__} (test_federated:" in said
    assert "\n" not in said
    assert said.endswith("nothing was sent") or "not finite" in said


def test_a_defense_cannot_write_into_the_private_clips() -> None:
    clips, labels = batch()
    before = clips.clone()
    Client(build(Conv), defense=_preparing(lambda x, y: (x.zero_(), y.zero_()))).update(
        clips, labels, generator(0)
    )
    assert torch.equal(clips, before)
    assert torch.equal(labels, batch()[1])


def test_the_order_of_a_defense_is_not_that_of_the_update() -> None:
    defense = _transmitting(lambda g: dict(reversed(_copied(g).items())), wire_bytes=1)
    model = build(Conv)
    sent = Client(model, defense=defense).update(*batch(), generator(0))
    assert list(sent.tensors) == [name for name, _ in model.named_parameters()]


def test_what_is_no_defense_is_refused() -> None:
    with pytest.raises(InputError, match=r"defense is 'dp', expected an object of vleak\.Defense"):
        Client(build(Conv), defense="dp")  # type: ignore[arg-type]


def test_a_defense_without_a_name_has_that_of_its_class() -> None:
    class Blur(Defense):
        pass

    assert (Blur().name, Blur().label, Blur().settings(), Blur.sweep()) == ("Blur", "Blur", {}, [Blur()])
    assert Client(build(Conv), defense=Blur()).privacy() is None


def _returning(output: Callable[[Tensor], Any]) -> nn.Module:
    class Fixed(Conv):
        def forward(self, clips: Tensor) -> Any:
            return output(super().forward(clips))

    return build(Fixed)


def _with_value(value: float) -> nn.Module:
    model = build(Conv)
    with torch.no_grad():
        model.head.weight[0, 0] = value
    return model


def _overflowing() -> nn.Module:
    # Zero in value, 1e40 and so infinite in slope.
    return _returning(lambda logits: (logits - logits.detach()) * 1e20 * 1e20)


def _masked(value: float) -> nn.Module:
    model = _conv()
    model.register_buffer("mask", torch.full((2, 2), value).triu(1))
    return model


def _conv() -> nn.Module:
    return build(Conv)


X, Y = batch()


class _Lstm(Recurrent):
    """Dropout between the layers of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3 * 8 * 8, 6, 2, batch_first=True, dropout=0.5)


class _Attention(nn.Module):
    """Dropout of attention weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(192, 2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(192, 5)

    def forward(self, clips: Tensor) -> Tensor:
        frames = clips.transpose(1, 2).flatten(2)
        return self.head(self.attention(frames, frames, frames)[0].mean(1))


class _AllInOneRow(nn.Module):
    """Dropout on something that has no row for each clip."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(3 * 4 * 8 * 8, 5)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.drop(clips.flatten()[None]).view(len(clips), -1))


REFUSALS = {
    "four axes": (_conv, {}, X[0], Y, InputError, r"got shape \(3, 4, 8, 8\); add the clip axis"),
    "no clips": (_conv, {}, X[:0], Y[:0], InputError, r"got shape \(0, 3, 4, 8, 8\)"),
    "float64": (_conv, {}, X.double(), Y, InputError, "got torch.float64; convert"),
    "uint8": (_conv, {}, (X * 255).byte(), Y, InputError, "got torch.uint8"),
    "0 to 255": (_conv, {}, X * 255, Y, InputError, "got values from .* to 25.*; scale 8-bit"),
    "negative": (_conv, {}, X - 0.5, Y, InputError, "got values from -0"),
    "NaN clip": (_conv, {}, X * float("nan"), Y, InputError, "got values from nan"),
    "int32 labels": (_conv, {}, X, Y.int(), InputError, "expected labels .* int64.*torch.int32"),
    "label count": (_conv, {}, X, Y[:2], InputError, r"expected labels of shape \(3,\).*got \(2,\)"),
    "label range": (_conv, {}, X, Y + 5, InputError, "the model has 5 classes; expected 0 to 4"),
    "negative label": (_conv, {}, X, Y - 9, InputError, "labels run from -"),
    "frame size": (_conv, {}, X[..., :6], Y, CapabilityError, r"failed on .* \(3, 3, 4, 8, 6\): mat1"),
    "logits shape": (
        lambda: _returning(lambda x: x[:, :, None]), {}, X, Y, CapabilityError,
        r"model returned \(3, 5, 1\) .* expected logits \(clip, class\)",
    ),
    "folded time": (
        lambda: _returning(lambda x: x.repeat_interleave(4, 0)), {}, X, Y, CapabilityError,
        r"model returned \(12, 5\) .* with 3 rows",
    ),
    "a tuple": (
        lambda: _returning(lambda x: (x, x)), {}, X, Y, CapabilityError, "model returned tuple"
    ),
    "NaN logits": (
        lambda: _returning(lambda x: x * float("nan")), {}, X, Y, CapabilityError, "infinite logits"
    ),
    "detached": (
        lambda: _returning(Tensor.detach), {}, X, Y, CapabilityError, "does not depend on any parameter"
    ),
    "NaN weight": (lambda: _with_value(float("nan")), {}, X, Y, InputError, "'head.weight' .* NaN"),
    "infinite weight": (lambda: _with_value(float("inf")), {}, X, Y, InputError, "'head.weight'"),
    "NaN buffer": (lambda: _masked(float("nan")), {}, X, Y, InputError, "buffer 'mask' .* NaN"),
    "float64 model": (lambda: build(Conv).double(), {}, X, Y, CapabilityError, "is torch.float64, not"),
    "a lazy layer": (
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), {}, X, Y, InputError, "'1.weight' has no shape"
    ),
    "no parameters": (nn.Identity, {}, X, Y, InputError, "Identity has no parameters"),
    "overflow": (_overflowing, {}, X, Y, CapabilityError, "gradient of parameter .* is not finite"),
    "functional dropout": (
        lambda: _returning(F.dropout), {"mode": "train"}, X, Y, CapabilityError,
        "draws random numbers in mode 'train'",
    ),
    "dropout in a recurrent layer": (
        _Lstm, {"mode": "train"}, X, Y, CapabilityError, "which only layers nn.Dropout may"
    ),
    "dropout in attention": (
        _Attention, {"mode": "train"}, X, Y, CapabilityError, "which only layers nn.Dropout may"
    ),
    "no row for each clip": (
        _AllInOneRow, {"mode": "train"}, X, Y, CapabilityError, "so that no mask"
    ),
    "mode": (_conv, {"mode": "training"}, X, Y, InputError, "unknown mode 'training'; did you mean train"),
    "loss": (_conv, {"loss": "crossentropy"}, X, Y, InputError, "did you mean cross_entropy"),
}  # fmt: skip


@pytest.mark.parametrize("row", REFUSALS)
def test_client_refusals(row: str) -> None:
    model, options, clips, labels, error, words = REFUSALS[row]
    made, state = model(), torch.get_rng_state()
    with pytest.raises(error, match=words):
        Client(made, **options).update(clips, labels, generator(0))
    assert torch.equal(state, torch.get_rng_state())


def test_a_causal_mask_is_no_refusal() -> None:
    assert Client(_masked(float("-inf"))).update(X, Y, generator(0)).facts.batch_size == 3


def _update() -> Update:
    tensors = {"b": torch.tensor(2.0), "a": torch.arange(6.0).reshape(2, 3).T}
    return Update(tensors, 28, PublicFacts(batch_size=2, loss="bce", mode="train"))


def test_update_round_trip(tmp_path: Path) -> None:
    update = _update()
    update.save(tmp_path / "u.safetensors")
    loaded = Update.load(tmp_path / "u.safetensors")
    assert list(loaded.tensors) == ["b", "a"]
    assert all(torch.equal(loaded.tensors[name], update.tensors[name]) for name in update.tensors)
    assert (loaded.wire_bytes, loaded.facts) == (28, update.facts)
    assert [path.name for path in tmp_path.iterdir()] == ["u.safetensors"]


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    whole = torch.arange(8.0)
    replace(_update(), tensors={"a": whole[:4], "b": whole[4:], "c": whole}).save(str(tmp_path / "u"))
    assert Update.load(str(tmp_path / "u")).tensors["b"].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("metadata", "facts"),
    [
        ({"kind": "fedsgd"}, PublicFacts()),
        (
            {"kind": "fedsgd", "batch_size": 4, "loss": "bce", "mode": "train"},
            PublicFacts("fedsgd", 4, "bce", "train"),
        ),
    ],
    ids=["of another framework", "of an older vleak"],
)
def test_files_that_others_wrote_are_read(metadata: object, facts: PublicFacts, tmp_path: Path) -> None:
    public = {"wire_bytes": 4, "metadata": metadata}
    save_file({"w": torch.ones(1)}, tmp_path / "u", {"vleak_update": json.dumps(public)})
    assert Update.load(tmp_path / "u").facts == facts
    assert PublicFacts.from_dict(facts.to_dict()) == facts


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"kind": "fedprox"}, "unknown kind 'fedprox'"),
        ({"kind": "fedavg"}, "a delta \\(fedavg\\) needs its LocalTraining"),
        ({"local": {"steps": 2}}, "a gradient \\(fedsgd\\) has none"),
        ({"kind": "fedavg", "local": 3}, "local is int, expected an object"),
        ({"kind": "fedavg", "local": {"steps": 0}}, "steps is 0, expected a whole number from 1"),
        ({"kind": "fedavg", "local": {"step": 1}}, "unknown setting of local training 'step'"),
        ({"kind": "fedavg", "local": {"learning_rate": 0}}, "learning_rate is 0"),
        ({"kind": "fedavg", "local": {"momentum": 1}}, "momentum is 1, expected a number in"),
        ({"kind": "fedavg", "local": {"optimizer": "lion"}}, "unknown optimizer 'lion'"),
        ({"kind": "fedavg", "local": {"optimizer": "adam", "momentum": 0.9}}, "a setting of sgd"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"loss": ["bce"]}, "unknown loss"),
        ({"mode": "training"}, "unknown mode 'training'; did you mean train"),
        ({"batch_size": 0}, "batch_size is 0, expected a whole number from 1"),
        ({"batch_size": True}, "batch_size is True"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"batchsize": 2}, "unknown public fact 'batchsize'; did you mean batch_size"),
    ],
)
def test_facts_that_cannot_be(facts: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        PublicFacts.from_dict(facts)


def _file(tensors: dict[str, Tensor], metadata: object) -> Callable[[Path], None]:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    return lambda path: save_file(tensors, path, {"vleak_update": text})


GOOD = {"wire_bytes": 4, "metadata": {}}
ONE = {"layer.w": torch.ones(1)}
BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "is not a file"),
    "folder": (Path.mkdir, "is not a file"),
    "text": (lambda path: path.write_text("hello, this is no update"), "is not a whole safetensors file"),
    "empty": (lambda path: path.write_bytes(b""), "is not a whole safetensors file"),
    "no metadata": (lambda path: save_file(ONE, path), "has no update metadata; expected .*vleak_update"),
    "NaN": (_file({"layer.w": torch.tensor([float("nan")])}, GOOD), "'layer.w' .* holds NaN"),
    "infinite": (_file({"layer.w": torch.tensor([float("inf")])}, GOOD), "holds NaN or infinity"),
    "float64": (
        _file({"layer.w": torch.ones(1).double()}, GOOD),
        "'layer.w' .* is float64, expected float32",
    ),
    "float16": (_file({"layer.w": torch.ones(1).half()}, GOOD), "'layer.w' .* is float16"),
    "int64": (_file({"layer.w": torch.ones(1).long()}, GOOD), "'layer.w' .* is int64"),
    "no JSON": (_file(ONE, "{"), "cannot be read"),
    "deep JSON": (_file(ONE, "[" * 200000), "cannot be read"),
    "a list": (_file(ONE, [1]), "cannot be read"),
    "no bytes": (_file(ONE, {"metadata": {}}), "cannot be read"),
    "bytes": (_file(ONE, GOOD | {"wire_bytes": -1}), "wire_bytes .* is -1"),
    "metadata": (_file(ONE, GOOD | {"metadata": 3}), "metadata .* is int, expected a JSON object"),
    "unknown fact": (_file(ONE, GOOD | {"metadata": {"rounds": 3}}), "metadata .* unknown public fact"),
    "batch size": (_file(ONE, GOOD | {"metadata": {"batch_size": -1}}), "metadata .*: batch_size is -1"),
    "order": (_file(ONE, GOOD | {"order": ["layer.v"]}), "lists other tensors"),
    "order types": (_file(ONE, GOOD | {"order": [[1]]}), "lists other tensors"),
    "order twice": (_file(ONE, GOOD | {"order": ["layer.w", "layer.w"]}), "lists other tensors"),
}


@pytest.mark.parametrize("row", BAD_FILES)
def test_load_refusals(row: str, tmp_path: Path) -> None:
    write, words = BAD_FILES[row]
    path = tmp_path / "u.safetensors"
    write(path)
    with pytest.raises(InputError, match=words) as caught:
        Update.load(path)
    assert "\n" not in str(caught.value)
    assert "u.safetensors" in str(caught.value)


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    _update().save(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(InputError):
            Update.load(tmp_path / "cut")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tensors": {}}, "holds no tensors"),
        ({"tensors": {"w": torch.tensor(float("nan"))}}, "'w' .* holds NaN"),
        ({"tensors": {"w": torch.ones(1).double()}}, "'w' .* is float64"),
        ({"wire_bytes": 1.5}, "wire_bytes .* is 1.5"),
    ],
)
def test_save_refusals(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        replace(_update(), **change).save(tmp_path / "u")
    assert not list(tmp_path.iterdir())


def test_save_into_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(VleakError, match=r"cannot write .*No such file"):
        _update().save(tmp_path / "nowhere" / "u")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("conv.bias"), "lacks 'conv.bias'"),
        (lambda t: t.update(extra=torch.ones(1)), "has 'extra', which the model has not"),
        (
            lambda t: t.update({"head.bias": torch.ones(4)}),
            r"'head.bias' .* shape \(4,\), the model's has \(5,\)",
        ),
    ],
)
def test_check_names_the_tensor(change: Callable[[dict[str, Tensor]], Any], words: str) -> None:
    model = build(Conv)
    update = Client(model).update(*batch(), generator(0))
    change(update.tensors)
    with pytest.raises(InputError, match=words):
        update.check(model)
