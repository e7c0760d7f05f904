"""The walls of the design hold, and each of them falls when it is pushed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import walls

from vleak.attacks import Observation

Wall = Callable[[Mapping[str, str]], list[str]]


def test_imports_go_down_and_take_public_names() -> None:
    assert walls.import_violations(walls.sources()) == []
    assert walls.exports_violations(walls.sources()) == []


def test_randomness_comes_from_generators_of_the_cell() -> None:
    assert walls.randomness_violations(walls.sources()) == []
    assert walls.fork_violations(walls.sources()) == []


def test_no_error_is_swallowed() -> None:
    assert walls.swallowed_errors(walls.sources()) == []


def test_files_functions_and_signatures_are_short() -> None:
    assert walls.size_violations(walls.sources()) == []


def test_kernels_know_no_torch() -> None:
    kernels = sorted((walls.ROOT / "csrc" / "kernels").iterdir())
    assert len(kernels) > 5
    for path in kernels:
        included = re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(encoding="utf-8"))
        foreign = [h for h in included if re.match(r"(torch|ATen|c10|caffe2|pybind11|Python)\b", h)]
        assert foreign == [], path.name


def test_an_observation_has_no_place_for_the_truth() -> None:
    fields = {"model", "update", "knowledge", "channel", "earlier"}
    assert set(Observation.__dataclass_fields__) == fields
    assert Observation.__dataclass_fields__["earlier"].type == "tuple[Observation, ...]"


@pytest.mark.parametrize(
    ("module", "text", "wall"),
    [
        ("vleak.data.x", "from vleak.evaluation import Settings", walls.import_violations),
        ("vleak.models.x", "from vleak.federated import Client", walls.import_violations),
        ("vleak.descent.x", "def f():\n    import vleak.attacks.base", walls.import_violations),
        ("vleak.attacks.x", "from vleak import data", walls.import_violations),
        ("vleak.attacks.x", "from vleak.defenses import DpSgd", walls.import_violations),
        ("vleak.evaluation.x", "from vleak.report import write_report", walls.import_violations),
        ("vleak.native.x", "from .attacks import base", walls.import_violations),
        ("vleak.report.x", "import vleak.cli", walls.import_violations),
        ("vleak.data.x", "from vleak.files import _name", walls.import_violations),
        ("vleak.data.x", "importlib.import_module('vleak.report')", walls.import_violations),
        ("vleak.cli.x", "from vleak.descent.loop import Descent", walls.import_violations),
        ("vleak.cli.x", "from vleak.descent import anything", walls.import_violations),
        ("vleak.data.__init__", "from vleak.errors import InputError", walls.exports_violations),
        ("vleak.data.__init__", "__all__ = ['nothing']", walls.exports_violations),
        ("vleak.data.x", "torch.manual_seed(0)", walls.randomness_violations),
        ("vleak.data.x", "np.random.seed(0)", walls.randomness_violations),
        ("vleak.data.x", "import random", walls.randomness_violations),
        ("vleak.data.x", "from numpy.random import rand", walls.randomness_violations),
        ("vleak.data.x", "torch.randn(3)", walls.randomness_violations),
        ("vleak.data.x", "x.normal_()", walls.randomness_violations),
        ("vleak.models.build", "torch.manual_seed(0)", walls.fork_violations),
        ("vleak.data.x", "try:\n    f()\nexcept Exception:\n    pass", walls.swallowed_errors),
        ("vleak.data.x", "try:\n    f()\nexcept:\n    ...", walls.swallowed_errors),
        ("vleak.data.x", "with suppress(Exception):\n    f()", walls.swallowed_errors),
        ("vleak.data.x", "x = 0\n" * 401, walls.size_violations),
        ("vleak.data.x", "def f():\n" + "    x = 0\n" * 60, walls.size_violations),
        ("vleak.data.x", "def f(a, b, c, d, e, f, g, h): ...", walls.size_violations),
        ("vleak.attacks.x", "def f(a) -> dict[str, Any]: ...", walls.size_violations),
    ],
)
def test_each_wall_falls_when_pushed(module: str, text: str, wall: Wall) -> None:
    descent = {"vleak.descent.__init__": walls.sources()["vleak.descent.__init__"]}
    assert wall({**descent, module: text}) != []


# --- the repository as a whole ------------------------------------------------------------------------------


def repository() -> dict[str, str]:
    """Return the text files that are, or would be, in the repository, by their path in it."""
    if shutil.which("git") is None or not (walls.ROOT / ".git").exists():
        pytest.skip("needs git and a checkout: an installed copy has no list of its files")
    command = ["git", "-C", str(walls.ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    contents = {name: walls.ROOT / name for name in listed if name and (walls.ROOT / name).is_file()}
    return {
        name: path.read_text(encoding="utf-8")
        for name, path in contents.items()
        if b"\0" not in path.read_bytes()
    }


FOLDERS = "|".join(["home", "root", "work", "Users", "workspace"])
HOSTS = "|".join(["pypi", "pythonhosted", "anaconda", "npmjs", r"crates\.io", r"download\.pytorch", "golang"])
NEVER = (
    rf"(?<![\w.\-/])/({FOLDERS})/\w",
    rf"https?://[^\s\"')>]*({HOSTS})",
    r"--(extra-)?" + "index" + "-url|--" + "find-links",
)
"""Paths of somebody's machine, and addresses of package registries."""


def matches(contents: Mapping[str, str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in contents.items()
        for number, line in enumerate(text.splitlines(), 1)
        if any(re.search(pattern, line) for pattern in NEVER)
    ]


def test_nothing_of_a_machine_gets_into_the_repository() -> None:
    assert matches(repository()) == []


@pytest.mark.parametrize(
    "line",
    [
        "open('/" + "home/me/x')",
        "cd /" + "work/main",
        "see https://" + "pypi.org/simple",
        "pip install --" + "index-url x",
    ],
)
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    assert len(matches({str(Path("a.py")): line})) == 1
