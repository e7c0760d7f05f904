"""How the native extension is compiled: one list of sources and flags for installing and for first use.

``setup.py`` loads this file by its path, before torch or vleak can be imported, so it imports neither.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Kind = Literal["cpu", "cuda", "loop"]
"""Kernels for a device, or the runner of captured steps."""

# The oldest torch whose stable ABI the bindings use: a library built on any later one runs on all of them.
OLDEST_TORCH = (2, 10)

_COMMON = (
    "-std=c++20",
    "-O3",
    # Results must not depend on the instruction set, so a*b+c is never fused.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    # Wide vectors never cross a function that is not inlined.
    "-Wno-psabi",
)
_STABLE_ABI = ("-DTORCH_TARGET_VERSION=0x020a000000000000ULL", "-DTORCH_STABLE_ONLY")
# Kernels are compiled once an instruction set; the best one is chosen when the library is loaded.
_VARIANTS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "avx2": ("-mavx2",),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
}
_CPU_KERNELS = ("kernels/gradient_match.cpp", "kernels/tv.cpp", "kernels/descend.cpp", "kernels/product.cpp")
# Sums of products: promised to float tolerance only, not bit for bit on every instruction set, so they fuse.
_FUSED = {"kernels/product.cpp": {"avx2": ("-mfma",), "avx512": ("-mfma",)}}
_CPU_SOURCES = (
    "kernels/dispatch.cpp",
    "kernels/conv.cpp",
    "kernels/conv_weight.cpp",
    "bindings/cpu.cpp",
    "bindings/convolution.cpp",
    "bindings/product.cpp",
    "bindings/info.cpp",
)
_CUDA_KERNELS = ("kernels/gradient_match.cu", "kernels/tv.cu", "kernels/descend.cu")
_CUDA_SOURCES = ("bindings/cuda.cpp", "bindings/info.cpp")
_LOOP_SOURCES = ("loop/program.cpp", "loop/module.cpp", "bindings/info.cpp")
# Real code for the data-centre cards in use; newer ones compile the PTX at load.
_CUDA_ARCHITECTURES = (
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
)
_NVCC = ("-std=c++20", "-O3", "--fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden", *_CUDA_ARCHITECTURES)
_INFO_MARK = b"vleak-build-info:"


class BuildError(Exception):
    """The extension cannot be compiled here; the message is the one line that says why."""


@dataclass(frozen=True)
class Torch:
    """An installed torch, found without importing it."""

    root: Path
    version: str
    cuda: str | None

    @property
    def include(self) -> tuple[Path, Path]:
        """Folders of the headers."""
        return self.root / "include", self.root / "include" / "torch" / "csrc" / "api" / "include"

    @property
    def release(self) -> tuple[int, ...]:
        """The version's leading numbers, such as ``(2, 13, 0)``."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version.split("+")[0])[:3])


@dataclass(frozen=True)
class Unit:
    """One run of a compiler: a source below csrc, and the command without input, output and tools."""

    source: str
    compiler: str
    flags: tuple[str, ...]

    @property
    def object_name(self) -> str:
        """A file name that differs between the variants of a source."""
        digest = hashlib.sha256(repr((self.source, self.flags)).encode()).hexdigest()[:8]
        return f"{Path(self.source).stem}-{digest}.o"


# ---------------------------------------------------------------------------------------------------------
# What is there


def source_folder() -> Path | None:
    """Return the folder of the C++ sources: beside the package, or installed inside it; None if absent."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "bindings" / "cpu.cpp").is_file():
            return folder
    return None


def library_name(kind: Kind) -> str:
    """Return the file name of a library; that of the runner names the interpreter it is for."""
    return f"libvleak_{kind}{_interpreter() if kind == 'loop' else '.so'}"


def _interpreter() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def find_torch(folders: Iterable[Path] | None = None) -> Torch | None:
    """Find torch's headers without importing it, for the interpreter that is being installed into.

    Inside pip's build isolation torch cannot be imported, but ``sysconfig`` still names the site-packages
    of the target environment.

    Args:
        folders: site-packages folders to search; None for the importable torch, then this interpreter's.
    """
    if folders is None:
        spec = importlib.util.find_spec("torch")
        importable = [Path(place).parent for place in (spec.submodule_search_locations or [])] if spec else []
        folders = [*importable, Path(sysconfig.get_path("platlib")), Path(sysconfig.get_path("purelib"))]
    for folder in folders:
        root = folder / "torch"
        if (root / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            return describe_torch(root)
    return None


def describe_torch(root: Path) -> Torch | None:
    """Read ``torch/version.py``; None if it does not say a version."""
    text = (root / "version.py").read_text(encoding="utf-8")
    version = re.search(r"^__version__ = ['\"](.+?)['\"]", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b[^=\n]*= ['\"](.+?)['\"]", text, re.MULTILINE)
    return Torch(root.resolve(), version[1], cuda[1] if cuda else None) if version else None


def find_compiler() -> str | None:
    """Return the C++ compiler: ``$CXX``, or the first of c++, g++ and clang++ on the path."""
    named = os.environ.get("CXX")
    return next(
        (path for name in (named, "c++", "g++", "clang++") if name and (path := shutil.which(name))), None
    )


def find_nvcc() -> str | None:
    """Return CUDA's compiler: on the path, or below ``$CUDA_HOME``, or in CUDA's usual place."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


@cache
def _compiler_version(path: str) -> str:
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=60)
    return answer.stdout.strip()


# ---------------------------------------------------------------------------------------------------------
# The list


def units(kind: Kind, torch: Torch) -> list[Unit]:
    """Return every compiler run that makes the library: the one list of sources and flags."""
    includes = tuple(f"-isystem{folder}" for folder in torch.include)
    bindings = (*_COMMON, *_STABLE_ABI, *includes)
    if kind == "loop":
        # It moves tensors about and computes nothing, so it needs no instruction set.
        python = f"-isystem{sysconfig.get_path('include')}"
        return [Unit(source, "c++", (*_COMMON, "-O2", *includes, python)) for source in _LOOP_SOURCES]
    if kind == "cuda":
        bindings = (*bindings, "-DUSE_CUDA", f"-isystem{_cuda_home() / 'include'}")
        kernels = [Unit(source, "nvcc", _NVCC) for source in _CUDA_KERNELS]
        return kernels + [Unit(source, "c++", bindings) for source in _CUDA_SOURCES]
    variants = _VARIANTS if platform.machine() in ("x86_64", "AMD64") else {"baseline": ()}
    several = () if len(variants) > 1 else ("-DVLEAK_BASELINE_ONLY",)
    kernels = [
        Unit(source, "c++", (*_COMMON, f"-DVLEAK_VARIANT={name}", *flags, *_fused_flags(source, name)))
        for source in _CPU_KERNELS
        for name, flags in variants.items()
    ]
    return kernels + [Unit(source, "c++", (*bindings, *several)) for source in _CPU_SOURCES]


def _fused_flags(source: str, variant: str) -> tuple[str, ...]:
    """Return the flags that let a kernel fuse a*b+c; they come after, and so undo, the ban in _COMMON."""
    return ("-ffp-contract=fast", *_FUSED[source].get(variant, ())) if source in _FUSED else ()


def _link_flags(kind: Kind, torch: Torch) -> list[str]:
    libraries = {
        "cpu": ["-ltorch_cpu"],
        "cuda": ["-ltorch_cpu", "-ltorch_cuda", "-lcudart"],
        "loop": ["-ltorch_python", "-ltorch_cpu", "-lc10"],
    }[kind]
    folders = [f"-L{torch.root / 'lib'}"]
    if kind == "cuda":
        folders += [f"-L{_cuda_home() / folder}" for folder in ("lib64", "targets/x86_64-linux/lib")]
    return ["-shared", "-Wl,--no-as-needed", *folders, *libraries]


def _cuda_home() -> Path:
    """Return the toolkit's folder; the nvcc on the path may be a wrapper that lies elsewhere."""
    nvcc = find_nvcc()
    beside = [Path(nvcc).resolve().parents[1]] if nvcc else []
    named = [Path(home)] if (home := os.environ.get("CUDA_HOME")) else []
    folders = [*named, *beside, Path("/usr/local/cuda")]
    return next(
        (folder for folder in folders if (folder / "include" / "cuda_runtime_api.h").is_file()), folders[0]
    )


def source_hash(kind: Kind, folder: Path) -> str:
    """Hash every source and header of a library, so that a changed tree never meets an old one."""
    digest = hashlib.sha256()
    # The runner and the kernels share no file but the one that says what they were built from.
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".h", ".cpp", ".cu")):
        if path.name != "info.cpp" and (path.parent.name == "loop") != (kind == "loop"):
            continue
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def fingerprint(kind: Kind, folder: Path, torch: Torch) -> str:
    """Return the key of a compiled library: sources, torch, flags and compilers."""
    tools = _tools(kind)
    flags = [library_name(kind), *((unit.source, unit.flags) for unit in units(kind, torch))]
    parts = (
        source_hash(kind, folder),
        torch.version,
        flags,
        [_compiler_version(tool) for tool in tools.values()],
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


# ---------------------------------------------------------------------------------------------------------
# Compiling


def _tools(kind: Kind) -> dict[str, str]:
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler found (looked for $CXX, c++, g++, clang++)")
    tools = {"c++": compiler}
    if kind == "cuda":
        nvcc = find_nvcc()
        if nvcc is None:
            raise BuildError("no nvcc found (looked on PATH, in $CUDA_HOME and /usr/local/cuda)")
        tools["nvcc"] = nvcc
    if kind == "loop" and not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise BuildError(f"no Python headers found (looked in {sysconfig.get_path('include')})")
    return tools


def compile_library(kind: Kind, folder: Path, torch: Torch, output: Path) -> None:
    """Compile the library into ``output``, replacing it in one step; nothing is printed.

    Args:
        kind: which library.
        folder: the csrc folder.
        torch: whose headers and libraries to build against.
        output: the library's path; its folder must exist.

    Raises:
        BuildError: torch is too old, a tool is missing, or a compiler failed (with its first error line).
    """
    if torch.release < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise BuildError(f"torch {torch.version} is older than {oldest}, which the extension needs")
    compiler = _tools(kind)["c++"]
    with tempfile.TemporaryDirectory(prefix=".vleak-build-", dir=output.parent) as scratch:
        work = Path(scratch)
        jobs = [command(unit, kind, folder, torch, work) for unit in units(kind, torch)]
        with ThreadPoolExecutor(max_workers=_parallel_jobs()) as pool:
            list(pool.map(_run, jobs))
        objects = [str(work / unit.object_name) for unit in units(kind, torch)]
        linked = work / output.name
        _run([compiler, *objects, "-o", str(linked), *_link_flags(kind, torch)])
        os.replace(linked, output)


def _parallel_jobs() -> int:
    return min(8, len(os.sched_getaffinity(0)))


def command(unit: Unit, kind: Kind, folder: Path, torch: Torch, work: Path) -> list[str]:
    """Return the command line that compiles a unit into ``work``; raises BuildError without the tool."""
    extra = [_info_flag(kind, folder, torch)] if unit.source == "bindings/info.cpp" else []
    source, target = str(folder / unit.source), str(work / unit.object_name)
    return [_tools(kind)[unit.compiler], *unit.flags, *extra, f"-I{folder}", "-c", source, "-o", target]


def _run(command: Sequence[str]) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=environment,
            timeout=900,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{Path(command[0]).name}: {error}") from error
    if done.returncode:
        raise BuildError(
            _first_error(done.stderr or done.stdout) or f"{command[0]} exited with {done.returncode}"
        )


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next(
        (line for line in lines if re.search(r"\berror\b|cannot find", line)), lines[0] if lines else ""
    )


# ---------------------------------------------------------------------------------------------------------
# What a library says about itself


def _info_flag(kind: Kind, folder: Path, torch: Torch) -> str:
    info = {
        "kind": kind,
        "torch": torch.version,
        "cuda": torch.cuda,
        "python": _interpreter() if kind == "loop" else None,
        "sources": source_hash(kind, folder),
        "compiler": _compiler_version(_tools(kind)["c++"]).splitlines()[0],
    }
    return f"-DVLEAK_BUILD_INFO={json.dumps(json.dumps(info))}"


def read_info(library: Path) -> dict[str, str | None]:
    """Read what a library was built from, without loading it; empty if the file says nothing."""
    content = library.read_bytes()
    start = content.find(_INFO_MARK)
    if start < 0:
        return {}
    start += len(_INFO_MARK)
    try:
        info: dict[str, str | None] = json.loads(content[start : content.index(b"\0", start)])
    except ValueError:
        return {}
    return info
