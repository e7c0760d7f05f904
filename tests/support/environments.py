"""Fresh environments and compilers for the tests of installing and of compiling at first use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import venv
from pathlib import Path
from typing import Any

import torch

from vleak.native import build

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(torch.__file__).resolve().parents[1]

REPORT = """
import json, warnings
from dataclasses import asdict
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from vleak.native import operators
    from vleak.native import loader
    values = [operators.total_variation(torch.arange(4.0).view(1, 1, 1, 1, 4)).tolist() for _ in range(3)]
    answer = asdict(loader.status())
answer["library"] = answer["library"] and str(answer["library"])
answer |= {"values": values, "warnings": [str(w.message) for w in caught], "backend": operators.backend()}
import vleak
answer["home"] = vleak.__file__
print(json.dumps(answer))
"""


def copy_tree(target: Path) -> Path:
    """Copy what a checkout holds, so that building leaves nothing in the repository."""
    skip = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "build")
    for name in ("vleak", "csrc", "defenses", "cli", "tests"):
        shutil.copytree(ROOT / name, target / name, ignore=skip)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target / name)
    return target


class Environment:
    """A fresh virtual environment that borrows this interpreter's packages once vleak is in it."""

    def __init__(self, folder: Path, *, torch_visible: bool) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        self.cache = folder / "cache"
        code = "import sysconfig; print(sysconfig.get_path('platlib'))"
        self.site = Path(subprocess.check_output([self.python, "-c", code], text=True).strip())
        if torch_visible:
            (self.site / "torch").symlink_to(SITE / "torch")

    def build(self, tree: Path, hook: str, output: Path, **variables: str) -> Path:
        """Call a hook of the build backend as pip's build isolation does: no site-packages on the path."""
        tools = output / "tools"
        tools.mkdir(parents=True)
        for part in [*SITE.glob("setuptools*"), SITE / "_distutils_hack"]:
            (tools / part.name).symlink_to(part)
        hide = "import sys, sysconfig\nhidden = {sysconfig.get_path(n) for n in ('platlib', 'purelib')}\n"
        (tools / "sitecustomize.py").write_text(
            hide + "sys.path = [p for p in sys.path if p not in hidden]\n"
        )
        code = f"import setuptools.build_meta as b; print(b.{hook}({str(output)!r}))"
        done = subprocess.run(
            [self.python, "-c", code],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tools), **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return output / done.stdout.splitlines()[-1]

    def install(self, wheel: Path) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "-q", "--no-index"]
        subprocess.run([*command, "--no-deps", "--disable-pip-version-check", str(wheel)], check=True)
        # Only now: the build must not see them, and the packages of this environment come first.
        (self.site / "borrowed.pth").write_text(f"{SITE}\n")

    def popen(self, code: str, cwd: Path, **variables: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CXX")}
        environment |= {"XDG_CACHE_HOME": str(self.cache), "VLEAK_EXTENSION": "auto", **variables}
        return subprocess.Popen(
            [self.python, "-c", code],
            cwd=cwd,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, code: str, cwd: Path, **variables: str) -> str:
        process = self.popen(code, cwd, **variables)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert errors == "", "the extension must not print"
        return output

    def report(self, cwd: Path, **variables: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run(REPORT, cwd, **variables))
        assert answer["values"] == [[1.0]] * 3
        return answer


def write_quick_compiler(folder: Path) -> Path:
    """Write a compiler that does not optimise, logs every run, and compiles the same file only once.

    For tests of what is built when. The name of an object file contains its source and flags.
    """
    script = folder / "quick-c++"
    compiler = f'{build.find_compiler()} "$@" -O0'
    script.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        [ "$1" = --version ] || echo run >> {folder}/runs
        for output; do :; done
        kept={folder}/$(basename "$output")
        case $kept in *info-*|*[!o]) exec {compiler} ;; esac
        [ -f "$kept" ] || {{ {compiler} && cp "$output" "$kept.$$" && mv "$kept.$$" "$kept"; }}
        cp "$kept" "$output"
        """)
    )
    script.chmod(0o755)
    return script


def compiler_runs(compiler: Path) -> int:
    log = compiler.with_name("runs")
    return len(log.read_text().splitlines()) if log.exists() else 0


def write_broken_compiler(folder: Path) -> Path:
    script = folder / "broken-c++"
    script.write_text(
        textwrap.dedent("""\
        #!/bin/sh
        [ "$1" = --version ] && { echo broken 1.0; exit 0; }
        echo garbage on stdout
        echo "In file included from somewhere:" >&2
        echo "x.cpp:3:1: error: the first of many" >&2
        echo "x.cpp:4:1: error: the second" >&2
        exit 1
        """)
    )
    script.chmod(0o755)
    return script
