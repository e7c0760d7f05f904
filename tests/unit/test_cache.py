"""Weights made on the user's machine: once, whole, and anew where the file is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vleak.cache import cached_tensors, weights_folder


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


def test_a_damaged_file_is_made_anew() -> None:
    make = Maker()
    cached_tensors("x", {}, make)
    (path,) = weights_folder().glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    assert set(cached_tensors("x", {}, make)) == {"a", "b"}
    assert make.calls == 2


def test_without_a_cache_it_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    make = Maker()
    with pytest.warns(UserWarning, match="cannot be used as a cache"):
        assert set(cached_tensors("x", {}, make)) == {"a", "b"}
