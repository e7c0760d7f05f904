"""Search for the extension in one process: modes, warnings, libraries that do not fit, and the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vleak.errors import InputError
from vleak.native import build, libraries, loader, operators


def test_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLEAK_EXTENSION", "maybe")
    monkeypatch.setattr(loader, "_outcomes", {})
    with pytest.raises(InputError, match="VLEAK_EXTENSION: expected one of auto, jit, off, got 'maybe'"):
        loader.ensure_loaded()


def test_off_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLEAK_EXTENSION", "off")
    monkeypatch.setattr(loader, "_outcomes", {})
    # A warning would be an error here.
    assert not loader.ensure_loaded()
    assert operators.backend() == "torch"
    status = loader.status()
    assert (status.state, status.remedy) == ("pure torch", "unset VLEAK_EXTENSION")
    assert status.loop == "Python: VLEAK_EXTENSION=off"


def test_an_unwritable_cache_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("VLEAK_EXTENSION", "jit")
    monkeypatch.setattr(loader, "_outcomes", {})
    with pytest.warns(
        loader.ExtensionWarning, match="^vleak runs in plain PyTorch on cpu: compiling failed: "
    ):
        assert not loader.ensure_loaded()
    assert operators.backend() == "torch"
    assert loader.status().state == "pure torch"


def test_a_library_that_does_not_load_says_what_it_was_built_for(tmp_path: Path) -> None:
    library = tmp_path / "libvleak_cpu.so"
    library.write_bytes(b'no ELF file vleak-build-info:{"torch": "2.99.0"}\0')
    outcome = libraries.load_kernels(library, "built", "")
    assert outcome.library is None
    assert f"built for torch 2.99.0, you have {torch.__version__}: " in outcome.reason
    assert "invalid ELF header" in outcome.reason or "file too short" in outcome.reason
    assert "\n" not in outcome.reason


@pytest.mark.parametrize(
    ("built_for", "python"),
    [("2.99.0", build.extension_suffix()), (torch.__version__, ".cpython-399-x86_64.so")],
)
def test_a_runner_for_another_torch_or_python_is_never_loaded(
    built_for: str, python: str, tmp_path: Path
) -> None:
    library = tmp_path / build.library_name("loop")
    library.write_bytes(f'vleak-build-info:{{"torch": "{built_for}", "python": "{python}"}}\0'.encode())
    outcome = libraries.load_runner(library, "built", "")
    assert outcome.module is None
    assert outcome.reason == f"the runner was built for torch {built_for} and {python}, you have torch " + (
        f"{torch.__version__} and {build.extension_suffix()}"
    )


def test_a_runner_that_does_not_load_is_no_failure(tmp_path: Path) -> None:
    library = tmp_path / build.library_name("loop")
    info = json.dumps({"torch": torch.__version__, "python": build.extension_suffix()})
    library.write_bytes(f"no ELF file vleak-build-info:{info}\0".encode())
    outcome = libraries.load_runner(library, "built", "")
    assert outcome.module is None
    assert "invalid ELF header" in outcome.reason or "file too short" in outcome.reason


def test_one_warning_where_the_runner_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_outcomes", {})
    monkeypatch.setattr(loader, "_attempt", lambda kind, mode: libraries.pure_torch("no reason"))
    expected = "^vleak runs its inner loop in Python: no reason; results are the same, only slower$"
    with pytest.warns(loader.ExtensionWarning, match=expected):
        assert loader.loop_module() is None
    assert loader.loop_module() is None
