"""The CUDA sources compile, on machines with and without a GPU; running them takes a device."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from vleak.native import build

FOLDER = build.source_folder()
HEADERS = build.describe_torch(Path(torch.__file__).parent)
pytestmark = pytest.mark.skipif(
    build.find_nvcc() is None or FOLDER is None, reason="no nvcc here: CUDA sources cannot be compiled"
)


def units() -> list[build.Unit]:
    return build.units("cuda", HEADERS) if HEADERS else []


def test_every_cuda_source_is_in_the_list() -> None:
    assert FOLDER is not None
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.cu")}
    assert there == {unit.source for unit in units() if unit.compiler == "nvcc"}


@pytest.mark.slow
@pytest.mark.parametrize("unit", units(), ids=lambda unit: unit.source)
def test_compiles(unit: build.Unit, tmp_path: Path) -> None:
    assert FOLDER is not None
    assert HEADERS is not None
    command = build.command(unit, "cuda", FOLDER, HEADERS, tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == "", "compiles with warnings"
    assert (tmp_path / unit.object_name).stat().st_size > 0


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_architectures(architecture: str) -> None:
    assert all(f",code={architecture}" in " ".join(u.flags) for u in units() if u.compiler == "nvcc")
