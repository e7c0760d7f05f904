"""Updates as people have them: tensors and files of other frameworks, deltas, parts, hostile files."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacking import built_in, observe, scene
from safetensors.torch import save_file
from tiny import Residual, batch, build
from torch import Tensor, nn

import vleak
from vleak.errors import VleakError
from vleak.federated import LocalTraining, PublicFacts, Update, mean_gradient
from vleak.federated.losses import LOSSES

RATE = 0.125  # a power of two: multiples of it are exact
DELTA = PublicFacts(kind="fedavg", local=LocalTraining(learning_rate=RATE))


def norm_model() -> nn.Module:
    """Return a model with batch norm, so that its state has buffers between the parameters."""
    return build(lambda: Residual(nn.BatchNorm3d)).eval()


def gradient_of(model: nn.Module) -> dict[str, Tensor]:
    return mean_gradient(model, LOSSES["cross_entropy"], *batch(1))


def state_after(model: nn.Module, rate: float = RATE) -> dict[str, Tensor]:
    """Return the state after one step of SGD, in which the statistics of batch norm moved too."""
    gradient = gradient_of(model)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, tensor in gradient.items():
        state[name] -= rate * tensor
    return {n: t + 1 if n not in gradient else t for n, t in state.items()}


def same(update: Update, gradient: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    assert list(update.tensors) == list(gradient)
    assert all(t.dtype == torch.float32 for t in update.tensors.values())
    return all(torch.allclose(update.tensors[n], gradient[n], rtol=0, atol=tolerance) for n in gradient)


# ---- from memory


def arrays(gradient: dict[str, Tensor]) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in gradient.values()]


def with_buffers(model: nn.Module, gradient: dict[str, Tensor]) -> list[np.ndarray]:
    """Return what Flower hands over: every tensor of the state_dict, buffers included."""
    return [gradient.get(name, tensor).numpy() for name, tensor in model.state_dict().items()]


FORMS: dict[str, Callable[[nn.Module, dict[str, Tensor]], Any]] = {
    "dict of tensors": lambda m, g: g,
    "dict in another order": lambda m, g: dict(reversed(g.items())),
    "dict of arrays": lambda m, g: {n: t.numpy() for n, t in g.items()},
    "list of tensors": lambda m, g: list(g.values()),
    "tuple of arrays": lambda m, g: tuple(arrays(g)),
    "list from Flower": with_buffers,
    "dict with buffers": lambda m, g: {**m.state_dict(), **g},
    "DataParallel": lambda m, g: {f"module.{n}": t for n, t in g.items()},
    "compiled in a wrapper": lambda m, g: {f"model._orig_mod.{n}": t for n, t in g.items()},
    "other byte order": lambda m, g: {n: t.numpy().astype(">f4") for n, t in g.items()},
    "an entry of a dict": lambda m, g: {"epoch": 3, "gradients": g},
    "with a graph": lambda m, g: {n: (t.clone().requires_grad_() * 1) for n, t in g.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_other_frameworks(form: str) -> None:
    model = norm_model()
    gradient = gradient_of(model)
    update = Update.from_gradients(model, FORMS[form](model, gradient))
    assert same(update, gradient)
    assert update.wire_bytes == sum(4 * tensor.numel() for tensor in gradient.values())
    dropped = [note for note in update.notes if note.startswith("3 tensors that are no parameters")]
    assert len(dropped) == (form in ("list from Flower", "dict with buffers"))
    update.check(model)


def test_names_stand_for_a_model() -> None:
    gradient = gradient_of(norm_model())
    assert same(Update.from_gradients(list(gradient), arrays(gradient)), gradient)
    assert same(Update.from_gradients(list(gradient), gradient), gradient)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_and_said(dtype: torch.dtype) -> None:
    model = norm_model()
    gradient = {name: tensor.to(dtype) for name, tensor in gradient_of(model).items()}
    update = Update.from_gradients(model, gradient)
    assert same(update, {name: tensor.float() for name, tensor in gradient.items()})
    assert update.notes == (f"{len(gradient)} tensors converted from {str(dtype)[6:]} to float32",)
    assert update.wire_bytes == sum(t.numel() * t.element_size() for t in gradient.values())


def test_frozen_and_shared_parameters() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
            self.last.weight = self.first.weight

    model = build(Shared)
    model.last.bias.requires_grad_(False)
    ones = {"first.weight": torch.ones(3, 3), "first.bias": torch.ones(3)}
    update = Update.from_gradients(model, ones)
    assert update.partial
    assert update.notes == ("1 of 3 parameters are not in it, 1 of them frozen",)
    assert list(Update.from_gradients(model, list(ones.values())).tensors) == list(ones)
    whole = {**ones, "last.weight": torch.ones(3, 3), "last.bias": torch.ones(3)}
    assert list(Update.from_gradients(model, whole).tensors) == [*ones, "last.bias"]


def numbers(*shape: int) -> Tensor:
    return torch.ones(*shape)


def one_less(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in gradient.items() if name != "head.bias"}


MISFITS: dict[str, tuple[Callable[[nn.Module, dict[str, Tensor]], Any], str]] = {
    "nothing": (lambda m, g: {}, "holds no tensors"),
    "no list": (lambda m, g: [], "holds no tensors"),
    "a tensor": (lambda m, g: numbers(3), "expected tensors or arrays by name, .* got Tensor"),
    "a text": (lambda m, g: "weights", "got str"),
    "no array": (lambda m, g: {**g, "head.bias": [1.0]}, "'head.bias' of the update is list, expected"),
    "a number as name": (lambda m, g: {**g, 3: numbers(1)}, "is named 3"),
    "a stranger": (lambda m, g: {**g, "tail": numbers(1)}, "has 'tail', which the model has not"),
    "twice": (lambda m, g: {**g, "module.head.bias": g["head.bias"]}, "has 'head.bias' twice"),
    "missing": (lambda m, g: one_less(g), "lacks 'head.bias' of the model; .*partial=True"),
    "shape": (lambda m, g: {**g, "head.bias": numbers(4)}, r"'head.bias' .*\(4,\), the model's has \(5,\)"),
    "a huge view": (lambda m, g: {**g, "head.bias": numbers(1).expand(10**12)}, r"shape \(1000000000000,\)"),
    "a list too short": (lambda m, g: arrays(g)[1:], "has 6 tensors without names, the model 10 or 7"),
    "a list out of order": (
        lambda m, g: arrays(g)[::-1],
        r"number 0 of the update has shape \(5,\), the model's 'stem.weight' has \(4, 3, 3, 3, 3\)",
    ),
    "NaN": (lambda m, g: {**g, "head.bias": numbers(5) * float("nan")}, "'head.bias' .* NaN or infinity"),
    "too large": (lambda m, g: {**g, "head.bias": numbers(5).double() * 1e300}, "NaN or infinity"),
    "whole numbers": (lambda m, g: {**g, "head.bias": numbers(5).long()}, "is int64, expected floating"),
    "int8 codes": (lambda m, g: {**g, "head.bias": np.ones(5, np.int8)}, "is int8, expected floating"),
    "complex": (lambda m, g: {**g, "head.bias": numbers(5) * 1j}, "is complex64"),
    "sparse": (lambda m, g: {**g, "head.bias": numbers(5).to_sparse()}, "is not dense"),
    "nested": (
        lambda m, g: {**g, "head.bias": torch.nested.nested_tensor([numbers(2)] * 2, layout=torch.jagged)},
        "is nested",
    ),
    "meta": (lambda m, g: {**g, "head.bias": numbers(5).to("meta")}, "is not dense"),
    "weights": (lambda m, g: state_after(m), r"weights, not an update: .* by \d.* before and after"),
    "buffers alone": (lambda m, g: dict(m.named_buffers()), "holds none of the model's parameters"),
}  # fmt: skip


@pytest.mark.parametrize("row", MISFITS)
def test_what_does_not_fit_is_said_in_one_line(row: str) -> None:
    model = norm_model()
    form, words = MISFITS[row]
    with pytest.raises(VleakError, match=words) as caught:
        Update.from_gradients(model, form(model, gradient_of(model)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("names", ["weight", [1, 2], ["a", "a"]])
def test_names_that_are_none(names: Any) -> None:
    with pytest.raises(VleakError, match=r"expected a model or a list of the names|there twice"):
        Update.from_gradients(names, [torch.ones(1)])


def test_honest_updates_are_not_taken_for_weights() -> None:
    for index in range(4):
        observation = observe(built_in("c3d_tiny"), scene().clips[index:][:1], scene().labels[index:][:1])
        Update.from_gradients(observation.model, observation.update.tensors)


# ---- deltas


def sources(model: nn.Module, folder: Path) -> dict[str, tuple[Any, Any]]:
    before, after = dict(model.state_dict()), state_after(model)
    other = norm_model()
    other.load_state_dict(after)
    torch.save({"model": after, "optimizer": {"lr": 0.1}}, folder / "after.pt")
    np.savez(folder / "before.npz", **{name: tensor.numpy() for name, tensor in before.items()})
    return {
        "models": (model, other),
        "states": (before, after),
        "model and list": (model, [tensor.numpy() for tensor in after.values()]),
        "model and file": (model, folder / "after.pt"),
        "files": (str(folder / "before.npz"), folder / "after.pt"),
        "wrapped": (before, {f"module.{name}": tensor for name, tensor in after.items()}),
    }


@pytest.mark.parametrize(
    "form", sorted(["models", "states", "model and list", "model and file", "files", "wrapped"])
)
def test_delta_of_two_states(form: str, tmp_path: Path) -> None:
    model = norm_model()
    before, after = sources(model, tmp_path)[form]
    update = Update.from_state_dicts(before, after, learning_rate=RATE, batch_size=2, mode="train")
    assert update.facts == replace(DELTA, batch_size=2, mode="train")
    assert same(update, {name: -RATE * tensor for name, tensor in gradient_of(model).items()}, 1e-7)
    assert "3 tensors that are no parameters (buffers such as batch-norm statistics) dropped" in update.notes
    assert same(update.as_gradient(), gradient_of(model), 1e-6)


def test_delta_in_double_precision_is_subtracted_there() -> None:
    before = {"w": torch.full((4,), 1000.0, dtype=torch.float64)}
    update = Update.from_state_dicts(before, {"w": before["w"] + 1e-6}, local=LocalTraining(steps=2))
    assert torch.allclose(update.tensors["w"], torch.full((4,), 1e-6), rtol=1e-3, atol=0)


def test_gradient_behind_a_delta() -> None:
    gradient = Update({"w": torch.ones(2)}, 8)
    assert gradient.as_gradient() is gradient
    local = LocalTraining(steps=4, learning_rate=0.5)
    delta = Update({"w": torch.tensor([-2.0, 4.0])}, 8, PublicFacts("fedavg", 3, local=local))
    assert delta.as_gradient().tensors["w"].tolist() == [1, -2]
    assert delta.as_gradient().facts == PublicFacts(batch_size=3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 10**400}, "out of range"),
        ({"learning_rate": 5e-324}, "NaN or infinity"),
    ],
)
def test_deltas_behind_which_no_gradient_is(settings: dict[str, Any], words: str) -> None:
    delta = Update({"w": torch.ones(2)}, 8, PublicFacts("fedavg", local=LocalTraining(**settings)))
    with pytest.raises(VleakError, match=words):
        delta.as_gradient()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give learning_rate for one step of SGD, or local="),
        ({"learning_rate": 0.1, "local": LocalTraining()}, "not both"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": 0.1, "batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.1, "loss": "hinge"}, "unknown loss"),
    ],
)
def test_deltas_that_say_too_little(given: dict[str, Any], words: str) -> None:
    with pytest.raises(VleakError, match=words):
        Update.from_state_dicts({"w": torch.ones(1)}, {"w": torch.ones(1)}, **given)


def test_states_that_do_not_belong_together() -> None:
    one = {"w": torch.ones(1), "v": torch.ones(1)}
    for before, after, words in (
        (one, {"w": torch.ones(1)}, "lacks 'v'"),
        ({"w": torch.ones(1)}, one, "has 'v', which the model has not"),
        (one, {"w": torch.ones(2), "v": torch.ones(1)}, "has shape"),
        ([torch.ones(1)], [torch.ones(1)], "without names need their model"),
    ):
        with pytest.raises(VleakError, match=words):
            Update.from_state_dicts(before, after, learning_rate=1.0)
    part = Update.from_state_dicts(one, {"w": torch.zeros(1)}, learning_rate=1.0, partial=True)
    assert (part.partial, list(part.tensors)) == (True, ["w"])


# ---- files


def write_safetensors(path: Path, model: nn.Module, gradient: dict[str, Tensor]) -> None:
    save_file(gradient, path)


def write_torch(path: Path, model: nn.Module, gradient: dict[str, Tensor]) -> None:
    torch.save({"gradients": gradient, "round": 3}, path)


def write_npz(path: Path, model: nn.Module, gradient: dict[str, Tensor]) -> None:
    np.savez_compressed(path, **{name: tensor.numpy() for name, tensor in gradient.items()})


def write_flower(path: Path, model: nn.Module, gradient: dict[str, Tensor]) -> None:
    np.savez(path, *with_buffers(model, gradient))


def write_transposed(path: Path, model: nn.Module, gradient: dict[str, Tensor]) -> None:
    np.savez(path, **{name: np.asfortranarray(tensor.numpy()) for name, tensor in gradient.items()})


WRITERS = [write_safetensors, write_torch, write_npz, write_flower, write_transposed]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("facts", [None, PublicFacts(batch_size=4), DELTA])
def test_files_of_others(write: Callable[..., None], facts: PublicFacts | None, tmp_path: Path) -> None:
    model = norm_model()
    path = tmp_path / (
        "u.npz" if write.__name__ in ("write_npz", "write_flower", "write_transposed") else "u"
    )
    write(path, model, gradient_of(model))
    update, notes = vleak.load_update(path, model, facts=facts)
    assert same(update, gradient_of(model))
    assert update.facts == (facts or PublicFacts())
    assert notes == update.notes
    assert any("taken for a gradient of one clip" in note for note in notes) == (facts is None)


def test_own_files_keep_their_facts(tmp_path: Path) -> None:
    model = norm_model()
    update = replace(Update.from_gradients(model, gradient_of(model), facts=DELTA), wire_bytes=7)
    update.save(tmp_path / "u")
    loaded, notes = vleak.load_update(tmp_path / "u", model)
    assert (loaded.facts, loaded.wire_bytes, notes) == (DELTA, 7, ())
    assert vleak.load_update(tmp_path / "u", model, facts=DELTA)[0].facts == DELTA
    with pytest.raises(VleakError, match=r"u: its metadata says .*fedavg.* but facts is .*fedsgd"):
        vleak.load_update(tmp_path / "u", model, facts=PublicFacts())


def test_a_part_of_an_update_is_saved_as_one(tmp_path: Path) -> None:
    model = norm_model()
    part = Update.from_gradients(model, one_less(gradient_of(model)), partial=True)
    part.save(tmp_path / "u")
    assert Update.load(tmp_path / "u").partial
    assert vleak.load_update(tmp_path / "u", model)[0].partial
    Update.load(tmp_path / "u").check(model)
    with pytest.raises(VleakError, match=r"lacks 'head.bias'"):
        replace(part, partial=False).check(model)


def test_what_is_no_model_and_no_facts(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "u")
    with pytest.raises(VleakError, match=r"model is str, expected a torch.nn.Module"):
        vleak.load_update(tmp_path / "u", "c3d_tiny")  # type: ignore[arg-type]
    with pytest.raises(VleakError, match=r"facts is dict, expected vleak.PublicFacts"):
        vleak.load_update(tmp_path / "u", One(), facts={"kind": "fedsgd"})  # type: ignore[arg-type]


def test_load_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "u")
    with pytest.raises(VleakError, match="is not a file"):
        Update.load(tmp_path / "u")


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def archive(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, data)


def lying(path: Path) -> None:
    """Write an archive whose directory claims that a large entry has the size of four bytes."""
    header = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n")
    archive(path, {"w.npy": header + bytes(2**24)}, zipfile.ZIP_DEFLATED)
    true, claimed = (struct.pack("<I", len(header) + length) for length in (2**24, 4))
    assert true in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(true, claimed))


def pickled_npz(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.savez(stream, w=array)


def deep_torch(depth: int) -> dict[str, bytes]:
    """Return the entries of a torch file with a list in a list in a list, and so on."""
    return {"a/data.pkl": b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".", "a/version": b"3\n"}


def metadata(text: str) -> Callable[[Path], None]:
    return lambda path: save_file({"w": torch.ones(1)}, path, {"vleak_update": text})


def claims(shape: str, descr: str = "'<f4'") -> Callable[[Path], None]:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"
    return lambda path: archive(path, {"w.npy": npy(header, bytes(4))})


def sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(3 * 2**30)


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "is not a file"),
    "folder": (Path.mkdir, "is not a file"),
    "pipe": (lambda path: os.mkfifo(path), "is not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
    "loop": (lambda path: path.symlink_to(path), "is not a file"),
    "empty": (lambda path: path.write_bytes(b""), "not a whole file of tensors"),
    "text": (lambda path: path.write_text("hello"), "not a whole file of tensors"),
    "sparse": (sparse, "holds 3072 MiB, expected at most 64 MiB"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Bomb(path.with_name("ran")))), "is a pickle"),
    "pickle in torch": (lambda path: torch.save(Bomb(path.with_name("ran")), path), "more than tensors"),
    "old torch": (
        lambda path: torch.save({"w": numbers(1)}, path, _use_new_zipfile_serialization=False),
        "is a pickle",
    ),
    "a tensor in torch": (lambda path: torch.save(numbers(1), path), "holds Tensor, expected"),
    "no tensors in torch": (lambda path: torch.save({}, path), "holds no tensors"),
    "view in torch": (lambda path: torch.save({"w": numbers(1).expand(10**12)}, path), "has shape"),
    "compressed torch": (
        lambda path: archive(path, {"a/data.pkl": b"x" * 999}, zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "torn torch": (lambda path: archive(path, {"a/data.pkl": b"\x80\x02."}), "damaged or holds more than"),
    "deep torch": (
        lambda path: archive(path, deep_torch(10**4)),
        "is list, expected a tensor|damaged or holds more than tensors",
    ),
    "TorchScript": (
        lambda path: archive(path, {"a/data.pkl": b"", "a/constants.pkl": b""}, zipfile.ZIP_DEFLATED),
        "is a TorchScript program",
    ),
    "a long program": (lambda path: archive(path, deep_torch(2 * 10**6)), "more than any list of tensors"),
    "pickle in npz": (
        lambda path: pickled_npz(path, np.array([Bomb(path.with_name("ran"))], dtype=object)),
        "'w' in .* is pickled",
    ),
    "a huge claim": (claims("(1000000000000,)"), "claims another size"),
    "a negative claim": (claims("(-1,)"), "claims another size"),
    "two negatives": (claims("(-1, -1)"), "is damaged"),
    "no numbers": (claims("(1,)", "'|V4'"), r"is \|V4"),
    "a deep header": (claims("(" * 9000), "is damaged"),
    "a later version": (
        lambda path: archive(path, {"w.npy": npy("", version=b"\x03\x00")}),
        "is of .npy version",
    ),
    "no header": (lambda path: archive(path, {"w.npy": b"abc"}), "is damaged"),
    "a bomb": (
        lambda path: archive(path, {"w.npy": bytes(2**26 + 2**21)}, zipfile.ZIP_DEFLATED),
        "holds 66 MiB, expected at most 64 MiB",
    ),
    "a lying bomb": (lying, "is damaged|claims another size"),
    "another archive": (lambda path: archive(path, {"readme.txt": b"hello"}), "archive of something else"),
    "a torn archive": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "is damaged"),
    "a huge header": (lambda p: p.write_bytes(struct.pack("<Q", 2**60) + b"{" + bytes(99)), "not a whole"),
    "deep header": (
        lambda path: path.write_bytes(struct.pack("<Q", 9 * 10**5) + b'{"a":' * (18 * 10**4)),
        "not a whole",
    ),
    "deep JSON": (metadata('{"wire_bytes": ' + "[" * 10**6), "cannot be read"),
    "many digits": (metadata('{"metadata": {}, "wire_bytes": ' + "9" * 10**5 + "}"), "cannot be read"),
    "no settings": (
        metadata(json.dumps({"wire_bytes": 4, "metadata": {"kind": "fedavg"}})),
        "a delta .* needs its LocalTraining",
    ),
    "both kinds": (
        metadata(json.dumps({"wire_bytes": 4, "metadata": {"kind": "fedsgd", "local": {"steps": 2}}})),
        "a gradient .* has none",
    ),
    "NaN for a rate": (
        metadata('{"wire_bytes": 4, "metadata": {"kind": "fedavg", "local": {"learning_rate": NaN}}}'),
        "learning_rate is nan",
    ),
    "NaN": (lambda path: save_file({"w": numbers(1) * float("nan")}, path), "NaN or infinity"),
    "zero tensors": (lambda path: save_file({}, path), "holds no tensors"),
    "no entries": (lambda path: save_file({"w": torch.ones(0)}, path), r"shape \(0,\)"),
    "weights": (lambda path: save_file({"w": numbers(1) * 1.9}, path), "these are weights, not an update"),
}  # fmt: skip


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((1,), 2.0))


@pytest.mark.parametrize("row", HOSTILE)
def test_hostile_files_are_refused_in_one_line(row: str, tmp_path: Path) -> None:
    write, words = HOSTILE[row]
    path = tmp_path / "u.bin"
    write(path)
    with pytest.raises(VleakError, match=words) as caught:
        vleak.load_update(path, One())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "u.bin" in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("write", WRITERS)
def test_no_truncation_of_a_file_gets_through(write: Callable[..., None], tmp_path: Path) -> None:
    model = norm_model()
    path = tmp_path / "u.npz"
    write(path, model, gradient_of(model))
    content = path.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 40)):
        path.write_bytes(content[:length])
        with pytest.raises(VleakError):
            vleak.load_update(path, model)
