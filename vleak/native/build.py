"""Build of the native extension: one list of sources and flags, for installing and for first use.

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
"""Kernels for a device, or the runner of captured iterations."""

# The oldest torch whose stable ABI the bindings use: the library runs on this and every later one.
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
    # Wide vectors are never passed to a function that is not inlined.
    "-Wno-psabi",
)
_STABLE_ABI = ("-DTORCH_TARGET_VERSION=0x020a000000000000ULL", "-DTORCH_STABLE_ONLY")
# Compiled once per instruction set; the best one is chosen when the library is loaded.
_SIMD_SOURCES = tuple(
    f"kernels/{stem}_simd.cpp"
    for stem in (
        *("gradient_match", "total_variation", "descend", "tile", "winograd", "max_pool"),
        *("batch_norm", "layer_norm", "activation"),
    )
)
_VARIANTS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "avx2": ("-mavx2",),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
}
# Sums of products and polynomials are promised to float tolerance, not bit for bit on every instruction set:
# they may fuse.
_FUSED_SOURCES = ("kernels/tile_simd.cpp", "kernels/activation_simd.cpp")
_FUSED = {"avx2": ("-mfma",), "avx512": ("-mfma",)}
_CPU_STEMS = (
    *("gradient_match", "total_variation", "descend", "product", "panel_product"),
    *("convolution", "convolution_plan", "convolution_weight", "sparse_convolution", "max_pool"),
    *("batch_norm", "layer_norm", "activation", "blocking", "dispatch"),
)
_CPU_BINDINGS = (
    *("gradient_match", "total_variation", "descend"),
    *("convolution", "sparse_convolution", "max_pool", "product", "panel_product"),
    *("batch_norm", "layer_norm", "activation", "parallel", "info"),
)
_CUDA_STEMS = ("gradient_match", "total_variation", "descend")
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
    """The extension cannot be compiled here; the message is one line."""


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
    """One compiler run: a source below csrc, and the flags without input and output."""

    source: str
    compiler: str
    flags: tuple[str, ...]

    @property
    def object_name(self) -> str:
        """File name that differs between the variants of a source."""
        digest = hashlib.sha256(repr((self.source, self.flags)).encode()).hexdigest()[:8]
        return f"{Path(self.source).stem}-{digest}.o"


# ---------------------------------------------------------------------------------------------------------
# Sources and tools


def source_folder() -> Path | None:
    """Folder of the C++ sources: beside the package, or installed inside it; None if absent."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "bindings" / "info.cpp").is_file():
            return folder
    return None


def library_name(kind: Kind) -> str:
    """File name of a library; that of the runner names the interpreter it is for."""
    return f"libvleak_{kind}{extension_suffix() if kind == 'loop' else '.so'}"


def extension_suffix() -> str:
    """End of the file names of extension modules, which names the interpreter."""
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def find_torch(folders: Iterable[Path] | None = None) -> Torch | None:
    """The torch to build against, found without importing it; None if there is none.

    Inside pip's build isolation torch cannot be imported, but ``sysconfig`` still names the site-packages
    of the target environment.

    Args:
        folders: site-packages folders to search; None for the importable torch, then this interpreter's.
    """
    if folders is None:
        spec = importlib.util.find_spec("torch")
        locations = (spec.submodule_search_locations or []) if spec else []
        importable = [Path(location).parent for location in locations]
        folders = [*importable, Path(sysconfig.get_path("platlib")), Path(sysconfig.get_path("purelib"))]
    for folder in folders:
        root = folder / "torch"
        if (root / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            return describe_torch(root)
    return None


def describe_torch(root: Path) -> Torch | None:
    """The torch in a folder, from its ``version.py``; None if that states no version."""
    text = (root / "version.py").read_text(encoding="utf-8")
    version = re.search(r"^__version__ = ['\"](.+?)['\"]", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b[^=\n]*= ['\"](.+?)['\"]", text, re.MULTILINE)
    return Torch(root.resolve(), version[1], cuda[1] if cuda else None) if version else None


def find_compiler() -> str | None:
    """C++ compiler: ``$CXX``, or the first of c++, g++ and clang++ on the path; None if absent."""
    named = os.environ.get("CXX")
    return next(
        (path for name in (named, "c++", "g++", "clang++") if name and (path := shutil.which(name))), None
    )


def find_nvcc() -> str | None:
    """CUDA compiler: on the path, below ``$CUDA_HOME``, or below /usr/local/cuda; None if absent."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


@cache
def _compiler_version(path: str) -> str:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip()


# ---------------------------------------------------------------------------------------------------------
# Sources and flags


def units(kind: Kind, torch: Torch) -> list[Unit]:
    """Every compiler run of a library."""
    includes = tuple(f"-isystem{folder}" for folder in torch.include)
    if kind == "loop":
        # It calls operators and computes nothing itself, so it needs no instruction set.
        python = f"-isystem{sysconfig.get_path('include')}"
        return [Unit(source, "c++", (*_COMMON, "-O2", *includes, python)) for source in _LOOP_SOURCES]
    bindings = (*_COMMON, *_STABLE_ABI, *includes)
    if kind == "cuda":
        cuda = (*bindings, "-DUSE_CUDA", f"-isystem{_cuda_home() / 'include'}")
        kernels = [Unit(f"kernels/{stem}.cu", "nvcc", _NVCC) for stem in _CUDA_STEMS]
        names = [*(f"{stem}_cuda" for stem in _CUDA_STEMS), "info"]
        return kernels + [Unit(f"bindings/{name}.cpp", "c++", cuda) for name in names]
    return _cpu_kernel_units() + [Unit(f"bindings/{name}.cpp", "c++", bindings) for name in _CPU_BINDINGS]


def _cpu_kernel_units() -> list[Unit]:
    """Compiler runs of the CPU kernels, which need no header of torch."""
    variants = _VARIANTS if platform.machine() in ("x86_64", "AMD64") else {"baseline": ()}
    several = () if len(variants) > 1 else ("-DVLEAK_BASELINE_ONLY",)
    simd = [
        Unit(source, "c++", (*_COMMON, f"-DVLEAK_VARIANT={name}", *flags, *_fused_flags(source, name)))
        for source in _SIMD_SOURCES
        for name, flags in variants.items()
    ]
    return simd + [Unit(f"kernels/{stem}.cpp", "c++", (*_COMMON, *several)) for stem in _CPU_STEMS]


def _fused_flags(source: str, variant: str) -> tuple[str, ...]:
    """Flags that let a kernel fuse a*b+c; they follow _COMMON and so override it."""
    return ("-ffp-contract=fast", *_FUSED.get(variant, ())) if source in _FUSED_SOURCES else ()


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
    """Folder of the CUDA toolkit; the nvcc on the path may be a wrapper outside it."""
    nvcc = find_nvcc()
    beside = [Path(nvcc).resolve().parents[1]] if nvcc else []
    named = [Path(home)] if (home := os.environ.get("CUDA_HOME")) else []
    folders = [*named, *beside, Path("/usr/local/cuda")]
    return next(
        (folder for folder in folders if (folder / "include" / "cuda_runtime_api.h").is_file()), folders[0]
    )


def source_hash(kind: Kind, folder: Path) -> str:
    """Hash of every source and header of a library: it tells a library that was built from other sources."""
    digest = hashlib.sha256()
    # The runner and the kernels share only the file that holds the build information.
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".h", ".cpp", ".cu")):
        if path.name != "info.cpp" and (path.parent.name == "loop") != (kind == "loop"):
            continue
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def fingerprint(kind: Kind, folder: Path, torch: Torch) -> str:
    """Key of a compiled library: sources, torch, flags and compilers."""
    compilers = [_compiler_version(tool) for tool in _tools(kind).values()]
    flags = [library_name(kind), *((unit.source, unit.flags) for unit in units(kind, torch))]
    parts = (source_hash(kind, folder), torch.version, flags, compilers)
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
    """Compile a library into ``output``, replacing it atomically; nothing is printed.

    Args:
        kind, folder, torch: which library, the csrc folder, and the torch to build against.
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
        with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
            list(pool.map(_run, jobs))
        objects = [str(work / unit.object_name) for unit in units(kind, torch)]
        linked = work / output.name
        _run([compiler, *objects, "-o", str(linked), *_link_flags(kind, torch)])
        os.replace(linked, output)


def command(unit: Unit, kind: Kind, folder: Path, torch: Torch, work: Path) -> list[str]:
    """Command line that compiles a unit into ``work``; BuildError where the compiler is missing."""
    extra = [_info_flag(kind, folder, torch)] if unit.source == "bindings/info.cpp" else []
    source, target = str(folder / unit.source), str(work / unit.object_name)
    return [_tools(kind)[unit.compiler], *unit.flags, *extra, f"-I{folder}", "-c", source, "-o", target]


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=900,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
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
# Build information inside a library


def _info_flag(kind: Kind, folder: Path, torch: Torch) -> str:
    info = {
        "kind": kind,
        "torch": torch.version,
        "cuda": torch.cuda,
        "python": extension_suffix() if kind == "loop" else None,
        "sources": source_hash(kind, folder),
        "compiler": _compiler_version(_tools(kind)["c++"]).splitlines()[0],
    }
    return f"-DVLEAK_BUILD_INFO={json.dumps(json.dumps(info))}"


def read_info(library: Path) -> dict[str, str | None]:
    """Build information of a library, read without loading it; empty if the file holds none."""
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
