"""Installation of vleak, with its native libraries where torch's headers and a compiler are present.

torch is not a build requirement: pip would download gigabytes of the newest torch, and the libraries would
not match the one that is installed. The C++ sources are always installed: a library that cannot be compiled
now is compiled at first use.
"""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Distribution, find_namespace_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Folders at the top of the tree that are installed inside the package.
INSIDE = ("defenses", "cli", "csrc")


def load_build() -> Any:
    """Load vleak/native/build.py by its path: the package itself needs torch."""
    spec = importlib.util.spec_from_file_location("vleak_build", ROOT / "vleak" / "native" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def packages() -> list[str]:
    names = find_namespace_packages(str(ROOT), include=["vleak", "vleak.*"], exclude=["*.__pycache__"])
    for folder in INSIDE:
        names.append(f"vleak.{folder}")
        names += [f"vleak.{folder}.{inner}" for inner in find_namespace_packages(str(ROOT / folder))]
    return [name for name in names if "__pycache__" not in name]


class NativeDistribution(Distribution):
    """A distribution that is platform-specific once a library was compiled into it."""

    native = False

    def has_ext_modules(self) -> bool:
        return self.native


class BuildWithLibrary(build_py):
    """Compile the native libraries into vleak/native; where that fails, warn and go on."""

    def run(self) -> None:
        super().run()
        build = load_build()
        folder = ROOT if self.editable_mode else Path(self.build_lib)
        if not self.editable_mode:
            # A library from an earlier build does not belong into this wheel.
            for stale in (folder / "vleak" / "native").glob("libvleak_*.so"):
                stale.unlink()
        torch = build.find_torch()
        if torch is None:
            self.warn("vleak: torch is not visible to this build: native code will be compiled at first use")
            return
        kinds = ("cpu", "loop", "cuda") if torch.cuda and build.find_nvcc() else ("cpu", "loop")
        native = folder / "vleak" / "native"
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda kind: self.compile_kind(build, kind, torch, native), kinds))

    def compile_kind(self, build: Any, kind: str, torch: Any, native: Path) -> None:
        output = native / build.library_name(kind)
        self.announce(f"vleak: compiling {output.name} for torch {torch.version}", level=2)
        try:
            build.compile_library(kind, ROOT / "csrc", torch, output)
        except (build.BuildError, OSError) as error:
            self.warn(f"vleak: no native {kind} code now, tried again at first use: {error}")
        else:
            self.distribution.native = True

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        native = Path(self.build_lib) / "vleak" / "native"
        return [*super().get_outputs(include_bytecode), *map(str, native.glob("libvleak_*.so"))]


class TaggedWheel(bdist_wheel):
    """Tag a wheel by its contents.

    The kernels use no Python API, so the wheel fits every Python. The runner does use it, but its file is
    named for one Python: any other ignores it, and compiles its own at first use.
    """

    def run(self) -> None:
        self.run_command("build_py")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2] if self.distribution.has_ext_modules() else "any"
        return "py3", "none", platform


if __name__ == "__main__":
    setup(
        distclass=NativeDistribution,
        packages=packages(),
        package_dir={f"vleak.{name}": name for name in INSIDE},
        package_data={
            "": ["*.h", "*.cpp", "*.cu", "*.html", "*.css", "*.js", "py.typed"],
            "vleak.report": ["**/*.html", "**/*.css", "**/*.js"],
        },
        include_package_data=False,
        cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": TaggedWheel},
    )
