"""Weights made on the user's machine: once, whole, and anew where the file is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vleak.cache import cached_tensors, is_intact, sealed_entry, weights_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        whole = torch.arange(6.0) + self.calls
        return {"a": whole[:3], "b": whole}  # which share memory


def test_made_once_and_equal() -> None:
    make = Maker()
    first, second = (cached_tensors("x", {"seed": 0}, make) for _ in range(2))
    assert make.calls == 1
    assert torch.equal(first["a"], second["a"])
    assert torch.equal(first["b"], torch.arange(6.0) + 1)


def test_another_recipe_or_again_is_made_anew() -> None:
    make = Maker()
    cached_tensors("x", {"seed": 0}, make)
    cached_tensors("x", {"seed": 1}, make)
    assert float(cached_tensors("x", {"seed": 0}, make, again=True)["b"][0]) == 3
    assert float(cached_tensors("x", {"seed": 0}, make)["b"][0]) == 3


@pytest.mark.parametrize("damage", [lambda content: content[:20], lambda content: content[:-1] + b"!"])
def test_a_damaged_file_is_made_anew(damage: Callable[[bytes], bytes]) -> None:
    make = Maker()
    cached_tensors("x", {}, make)
    (path,) = weights_folder().glob("*/*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    assert set(cached_tensors("x", {}, make)) == {"a", "b"}
    assert make.calls == 2


def test_only_a_whole_entry_counts(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "library.so").write_bytes(b"library")

    entry = sealed_entry(tmp_path, "key", fill)
    assert is_intact(entry)
    for damage in (b"librarz", b"library and more"):
        (entry / "library.so").write_bytes(damage)
        assert not is_intact(entry)
        assert (sealed_entry(tmp_path, "key", fill) / "library.so").read_bytes() == b"library"
    (entry / "another.so").write_bytes(b"slipped in")
    assert not is_intact(entry)
    (sealed_entry(tmp_path, "key", fill) / "sha256").unlink()
    assert not is_intact(entry)
    assert [path.name for path in entry.iterdir()] == ["library.so"]


def test_an_entry_that_cannot_be_filled_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        sealed_entry(tmp_path, "key", fail)
    assert not (tmp_path / "key").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]


@pytest.mark.parametrize("place", ["file", "/proc/read-only"])
def test_without_a_cache_it_still_works(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    make = Maker()
    with pytest.warns(UserWarning, match="cannot be used as a cache"):
        assert set(cached_tensors("x", {}, make)) == {"a", "b"}
