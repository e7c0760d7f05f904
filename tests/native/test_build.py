"""Build and installation: what is compiled from what, what lands in site-packages, and what runs there when
torch, the compiler or the cache are not as they should be."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from environments import (
    REPORT,
    ROOT,
    SITE,
    Environment,
    compiler_runs,
    copy_tree,
    write_broken_compiler,
    write_quick_compiler,
)

from vleak.native import StepSettings, build

HEADERS = build.describe_torch(SITE / "torch")

pytest.importorskip("setuptools", minversion="77")
pytest.importorskip("pip")
needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler on this machine")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def quick_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quick_compiler(tmp_path_factory.mktemp("compiler"))


@pytest.fixture(scope="module")
def pure(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Environment, Path]:
    """An environment with a wheel that was built where no torch was to be seen."""
    folder = tmp_path_factory.mktemp("pure")
    environment = Environment(folder / "venv", torch_visible=False)
    wheel = environment.build(tree, "build_wheel", folder / "dist")
    environment.install(wheel)
    return environment, wheel


def top_level(names: list[str]) -> set[str]:
    return {name.split("/")[0] for name in names}


def check_contents(wheel: Path) -> list[str]:
    names = zipfile.ZipFile(wheel).namelist()
    assert top_level(names) == {"vleak", f"{wheel.name.split('-py3')[0]}.dist-info"}
    sources = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.[hc]*") if path.is_file()
    }
    for source in sources:
        assert f"vleak/{source}" in names
    for needed in (
        "vleak/py.typed",
        "vleak/native/operators.py",
        "vleak/native/build.py",
        "vleak/defenses/__init__.py",
    ):
        assert needed in names
    for pattern in ("*.html", "*.css", "*.js"):
        for path in (ROOT / "vleak").rglob(pattern):
            assert path.relative_to(ROOT).as_posix() in names
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]
    return names


# ---------------------------------------------------------------------------------------------------------
# Installing


@pytest.mark.slow
@needs_compiler
def test_native_wheel(tree: Path, tmp_path: Path, quick_compiler: Path) -> None:
    environment = Environment(tmp_path / "venv", torch_visible=True)
    wheel = environment.build(tree, "build_wheel", tmp_path / "dist", CXX=str(quick_compiler))
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    names = check_contents(wheel)
    assert {f"vleak/native/{build.library_name(kind)}" for kind in ("cpu", "loop")} <= set(names)
    (environment.site / "torch").unlink()
    environment.install(wheel)
    landed = {path.name for path in environment.site.iterdir()}
    assert landed == {"vleak", f"{wheel.name.split('-py3')[0]}.dist-info", "borrowed.pth"}
    report = environment.report(tmp_path, PATH="")
    assert report["state"] == "built"
    assert report["backend"] == "native"
    assert report["warnings"] == []
    assert report["loop"] == "built: came with this installation"
    assert report["built_for"] == torch.__version__
    assert report["remedy"] is None
    assert report["library"] == str(environment.site / "vleak" / "native" / "libvleak_cpu.so")


def test_pure_wheel(pure: tuple[Environment, Path]) -> None:
    environment, wheel = pure
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in check_contents(wheel) if name.endswith(".so")]
    code = (
        "from importlib.util import find_spec as f; print(f('vleak.defenses').origin, f('vleak.cli').origin)"
    )
    for place, name in zip(environment.run(code, Path("/")).split(), ("defenses", "cli"), strict=True):
        assert Path(place).parent == environment.site / "vleak" / name


@pytest.mark.slow
@needs_compiler
def test_editable_install(tmp_path: Path, quick_compiler: Path) -> None:
    tree = copy_tree(tmp_path / "checkout")
    environment = Environment(tmp_path / "venv", torch_visible=True)
    wheel = environment.build(tree, "build_editable", tmp_path / "dist", CXX=str(quick_compiler))
    environment.install(wheel)
    code = "import vleak.defenses, vleak.cli; print(vleak.defenses.__file__); print(vleak.cli.__file__)"
    for line, name in zip(environment.run(code, Path("/")).splitlines(), ("defenses", "cli"), strict=True):
        assert Path(line).parent == tree / name
    report = environment.report(Path("/"), PATH="")
    assert report["state"] == "built"
    assert report["loop"] == "built: came with this installation"
    assert report["home"] == str(tree / "vleak" / "__init__.py")
    assert not {"defenses", "cli", "csrc", "tests"} & {path.name for path in environment.site.iterdir()}
    # An edited source must not be hidden by the library built from the old one.
    with (tree / "csrc" / "kernels" / "common.h").open("a") as header:
        header.write("// edited\n")
    edited = environment.report(Path("/"), PATH="")
    assert edited["state"] == "pure torch"
    assert "built from other sources" in edited["reason"]


def test_a_failing_compiler_does_not_fail_the_installation(tree: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv", torch_visible=True)
    compiler = str(write_broken_compiler(tmp_path))
    wheel = environment.build(tree, "build_wheel", tmp_path / "dist", CXX=compiler)
    assert wheel.name.endswith("-py3-none-any.whl")
    check_contents(wheel)


def test_source_distribution_holds_what_a_wheel_needs(tree: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv", torch_visible=False)
    archive = environment.build(tree, "build_sdist", tmp_path / "dist")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for name in (
        "setup.py",
        "csrc/bindings/convolution.cpp",
        "csrc/kernels/common.h",
        "defenses/__init__.py",
        "tests/native/test_build.py",
    ):
        assert (unpacked / name).is_file(), name


# ---------------------------------------------------------------------------------------------------------
# Compiling at first use


@pytest.mark.slow
@needs_compiler
def test_first_use_compiles_once_and_replaces_a_broken_cache_entry(
    pure: tuple[Environment, Path], quick_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, _ = pure
    assert HEADERS is not None
    monkeypatch.setenv("CXX", str(quick_compiler))
    entry = tmp_path / "vleak" / "extension" / f"cpu-{build.fingerprint('cpu', ROOT / 'csrc', HEADERS)}"
    entry.mkdir(parents=True)
    (entry / "libvleak_cpu.so").write_bytes(b"\x7fELF, half written")
    (entry / "sha256").write_text("0" * 64)

    variables = {"CXX": str(quick_compiler), "XDG_CACHE_HOME": str(tmp_path)}
    before = compiler_runs(quick_compiler)
    both = [environment.popen(REPORT, tmp_path, **variables) for _ in range(2)]
    answers = [process.communicate(timeout=300) for process in both]
    for output, errors in answers:
        report = json.loads(output)
        assert errors == ""
        assert (report["state"], report["warnings"]) == ("compiled at first use", [])
        assert report["library"] == str(entry / "libvleak_cpu.so")
        assert report["loop"].startswith("compiled at first use: ")
        assert report["values"] == [[1.0]] * 3
    once = sum(len(build.units(kind, HEADERS)) + 1 for kind in ("cpu", "loop"))
    assert compiler_runs(quick_compiler) - before == once, "two processes at once must compile once"
    assert environment.report(tmp_path, **variables)["backend"] == "native"
    assert compiler_runs(quick_compiler) - before == once, "a later process must find the cache"
    runner = entry.with_name(f"loop-{build.fingerprint('loop', ROOT / 'csrc', HEADERS)}")
    left = {f"{folder.name}{lock}" for folder in (entry, runner) for lock in ("", ".lock")}
    assert {path.name for path in entry.parent.iterdir()} == left


@pytest.mark.parametrize("mode", ["auto", pytest.param("jit", marks=pytest.mark.slow)])
def test_without_a_compiler_one_warning_and_plain_torch(
    pure: tuple[Environment, Path], mode: str, tmp_path: Path
) -> None:
    report = pure[0].report(tmp_path, PATH="", VLEAK_EXTENSION=mode)
    assert report["state"] == "pure torch"
    assert report["backend"] == "torch"
    assert len(report["warnings"]) == 1
    assert "no C++ compiler found" in report["warnings"][0]
    assert report["warnings"][0].startswith("vleak runs in plain PyTorch on cpu: ")
    assert "install a C++ compiler" in report["remedy"]
    assert report["instruction_set"] is None
    assert report["loop"].startswith("Python: ")


def test_a_compile_error_is_reported_by_its_first_line(
    pure: tuple[Environment, Path], tmp_path: Path
) -> None:
    report = pure[0].report(tmp_path, CXX=str(write_broken_compiler(tmp_path)))
    assert report["state"] == "pure torch"
    assert report["reason"].endswith("x.cpp:3:1: error: the first of many")
    assert len(report["warnings"]) == 1
    assert not list((pure[0].cache / "vleak" / "extension").glob("cpu-*/"))


# ---------------------------------------------------------------------------------------------------------
# Sources, flags and tools


@needs_compiler
def test_without_python_headers_the_runner_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert HEADERS is not None
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(build.BuildError, match=f"no Python headers found .looked in {tmp_path}"):
        build.compile_library("loop", ROOT / "csrc", HEADERS, tmp_path / "library.so")


def test_library_info_is_read_without_loading(tmp_path: Path) -> None:
    for content in (b"", b"nothing", b"vleak-build-info:{broken\0", b'vleak-build-info:{"no end": 1}'):
        (tmp_path / "library").write_bytes(content)
        assert build.read_info(tmp_path / "library") == {}


def test_find_torch_looks_for_headers_not_for_a_name(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    assert build.find_torch([tmp_path]) is None
    headers = build.find_torch([tmp_path, SITE])
    assert headers is not None
    assert headers.version == torch.__version__
    assert headers.cuda == torch.version.cuda


@pytest.mark.parametrize(
    ("text", "version", "cuda"),
    [
        ("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n", "2.11.0+cu130", "13.0"),
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", "2.13.0+cpu", None),
    ],
)
def test_torch_is_described_by_its_file(tmp_path: Path, text: str, version: str, cuda: str | None) -> None:
    (tmp_path / "version.py").write_text(text)
    headers = build.describe_torch(tmp_path)
    assert headers is not None
    assert (headers.version, headers.cuda) == (version, cuda)
    assert headers.release >= build.OLDEST_TORCH


def test_an_old_torch_is_refused_before_compiling(tmp_path: Path) -> None:
    old = build.Torch(tmp_path, "2.9.1", None)
    with pytest.raises(build.BuildError, match=r"torch 2\.9\.1 is older than 2\.10"):
        build.compile_library("cpu", ROOT / "csrc", old, tmp_path / "library.so")


@needs_compiler
def test_the_key_changes_with_sources_torch_and_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert HEADERS is not None
    folder = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", folder)
    keys = [build.fingerprint("cpu", folder, HEADERS)]
    assert keys == [build.fingerprint("cpu", ROOT / "csrc", HEADERS)], "the folder's place is not in the key"
    keys.append(build.fingerprint("cpu", folder, build.Torch(HEADERS.root, "2.99.0", None)))
    (folder / "kernels" / "total_variation.h").write_text("// new\n")
    keys.append(build.fingerprint("cpu", folder, HEADERS))
    runner = build.fingerprint("loop", folder, HEADERS)
    assert runner == build.fingerprint("loop", ROOT / "csrc", HEADERS), "the runner does not see the kernels"
    (folder / "loop" / "new.h").write_text("// new\n")
    assert build.fingerprint("cpu", folder, HEADERS) == keys[-1], "nor they the runner"
    assert runner != build.fingerprint("loop", folder, HEADERS)
    monkeypatch.setenv("CXX", str(write_broken_compiler(tmp_path)))
    keys.append(build.fingerprint("cpu", folder, HEADERS))
    assert len(set(keys)) == len(keys)


def test_every_cpu_source_is_in_the_list() -> None:
    assert HEADERS is not None
    listed = {unit.source for kind in ("cpu", "cuda", "loop") for unit in build.units(kind, HEADERS)}
    there = {path.relative_to(ROOT / "csrc").as_posix() for path in (ROOT / "csrc").rglob("*.c[pu]*")}
    assert there == listed


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("kind", ["cpu", "loop"])
def test_sources_compile_without_warnings(kind: build.Kind, tmp_path: Path) -> None:
    assert HEADERS is not None
    for unit in build.units(kind, HEADERS):
        command = [*build.command(unit, kind, ROOT / "csrc", HEADERS, tmp_path), "-Werror"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "stem", ["gradient_match", "total_variation", "descend", "convolution", "product", "panel_product"]
)
def test_an_operator_has_one_stem_from_kernel_to_python(stem: str) -> None:
    kernels, bindings = ROOT / "csrc" / "kernels", ROOT / "csrc" / "bindings"
    for path in (kernels / f"{stem}.h", kernels / f"{stem}.cpp", bindings / f"{stem}.cpp"):
        assert path.is_file(), path
    assert (ROOT / "vleak" / "native" / f"{stem}.py").is_file()
    assert (kernels / f"{stem}.cu").is_file() == (bindings / f"{stem}_cuda.cpp").is_file()


def test_python_and_kernels_agree_on_the_order_of_the_step_settings() -> None:
    header = (ROOT / "csrc" / "kernels" / "descend.h").read_text()
    struct = header.split("struct StepNumbers {")[1].split("};")[0]
    assert re.findall(r"double (\w+);", struct) == list(StepSettings._fields)
