"""The walls of the design: who may import whom, where randomness is from, what never gets in here."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = (
    {"errors", "seeds", "files", "switches", "cache", "objects", "registry"},
    {"native", "descent", "data", "models", "federated"},
    {"defenses", "attacks", "metrics", "certificates", "enhance"},
    {"results"},
    {"pipelines"},
    {"evaluation"},
    {"study"},
    {"report"},
    {"api"},
    {"cli"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FORBIDDEN = {
    "data": {"models", "federated", "descent", "native"},
    "models": {"data", "federated", "descent", "native"},
    "federated": {"data", "models", "descent", "native"},
    "descent": {"data", "models", "federated"},
    "native": {"data", "models", "federated"},
    "attacks": {"data", "metrics", "defenses", "certificates", "enhance"},
    "enhance": {"data", "metrics", "defenses", "certificates", "attacks"},
    "defenses": {"attacks", "data", "metrics"},
    "metrics": {"attacks", "defenses", "data"},
    "certificates": {"attacks", "defenses", "data", "metrics"},
}
CLI_MAY_USE = {
    "api",
    "attacks",
    "data",
    "defenses",
    "descent",
    "native",
    "enhance",
    "errors",
    "evaluation",
    "metrics",
    "models",
    "report",
    "results",
    "study",
}
Wall = Callable[[str, Path], None]
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli", "poisson"}
DRAWS_IN_PLACE = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "trunc_normal_"}


def modules() -> list[tuple[str, Path]]:
    """Return (dotted name as installed, file) of every module."""
    homes = {"vleak": "vleak", "defenses": "vleak.defenses", "cli": "vleak.cli"}
    found = []
    for folder, package in homes.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [
                part for part in path.relative_to(ROOT / folder).with_suffix("").parts if part != "__init__"
            ]
            found.append((".".join([package, *parts]), path))
    return found


MODULES = modules()
EVERY_MODULE = pytest.mark.parametrize(("name", "path"), MODULES, ids=[name for name, _ in MODULES])


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of every import, wherever it stands; the name is "" for a whole module."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write relative imports out"
            yield from ((str(node.module), alias.name) for alias in node.names)


def part(module: str, name: str = "") -> str:
    """Return the part of vleak that an import is of, "" for vleak itself."""
    whole = f"{module}.{name}" if module == "vleak" and name in FLOOR_OF else module
    return whole.partition(".")[2].partition(".")[0]


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def calls(node: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for child in ast.walk(node):
        if isinstance(child, ast.Call):
            yield child, dotted(child.func)


def test_the_parts_are_known() -> None:
    assert {part(name) for name, _ in MODULES} - {""} <= set(FLOOR_OF)
    assert len(MODULES) > 50


@EVERY_MODULE
def test_nothing_reaches_up(name: str, path: Path) -> None:
    own = part(name)
    if not own:
        return  # vleak/__init__.py names everything and imports it when asked
    for module, imported in imports(path):
        if module.partition(".")[0] != "vleak":
            continue
        other = part(module, imported)
        if not other:
            assert FLOOR_OF[own] >= FLOOR_OF["evaluation"], f"{name} imports all of vleak"
            continue
        assert FLOOR_OF[other] <= FLOOR_OF[own], f"{name} reaches up to {other}"
        assert other not in FORBIDDEN.get(own, ()), f"{name} must not know {other}"


@EVERY_MODULE
def test_imports_can_be_read(name: str, path: Path) -> None:
    """A name put together at run time would pass under the other walls."""
    dynamic = [called for _, called in calls(tree(path)) if called.endswith(("import_module", "__import__"))]
    allowed = {"vleak": 1, "vleak.registry": 1}  # lazy names; plug-ins
    assert len(dynamic) == allowed.get(name, 0)


def test_the_package_itself_imports_nothing_slow() -> None:
    top = [
        node
        for node in tree(ROOT / "vleak/__init__.py").body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    found = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in top}
    assert found == {"__future__", "importlib", "typing"}


def test_cli_uses_the_public_api() -> None:
    for name, path in MODULES:
        if part(name) != "cli":
            continue
        for module, imported in imports(path):
            if not module.startswith("vleak.") or part(module) == "cli":
                continue
            assert module.count(".") == 1, f"{name} reaches into {module}"
            assert part(module) in CLI_MAY_USE, f"{name} uses {module}"
            assert not imported.startswith("_")
            public = exported(
                ROOT / part(module) / "__init__.py", ROOT / "vleak" / part(module) / "__init__.py"
            )
            assert public is None or imported in public, f"{name}: {module} does not export {imported}"


def exported(*places: Path) -> set[str] | None:
    """Return the __all__ of the first file that exists, None where there is none."""
    for path in places:
        for node in tree(path).body if path.exists() else []:
            if isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__":
                return set(ast.literal_eval(node.value))
    return None


@EVERY_MODULE
def test_nothing_imports_tests(name: str, path: Path) -> None:
    stems = {file.stem for file in (ROOT / "tests").rglob("*.py")} | {"tests", "conftest", "pytest"}
    assert not {module.partition(".")[0] for module, _ in imports(path)} & stems


@EVERY_MODULE
def test_nobody_touches_the_generators_of_the_process(name: str, path: Path) -> None:
    assert not {module.partition(".")[0] for module, _ in imports(path)} & {"random"}
    assert not {module for module, _ in imports(path) if module.startswith("numpy.random")}
    for call, called in calls(tree(path)):
        where = f"{name}:{call.lineno} calls {called}"
        last = called.rpartition(".")[2]
        assert not re.match(r"(np|numpy)\.random\.", called), where
        assert called not in ("torch.seed", "torch.random.seed", "torch.cuda.seed", "torch.cuda.seed_all"), (
            where
        )
        if last.startswith("manual_seed") and not is_own_generator(call):
            assert name == "vleak.models.build", where
        if (called.startswith("torch.") and last in DRAWS) or last in DRAWS_IN_PLACE:
            assert "generator" in {keyword.arg for keyword in call.keywords}, f"{where} without a generator"


def is_own_generator(call: ast.Call) -> bool:
    """Tell whether it is ``torch.Generator(...).manual_seed(...)``."""
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Call)
        and dotted(function.value.func) == "torch.Generator"
    )


def test_the_one_exception_is_forked() -> None:
    whole = tree(ROOT / "vleak/models/build.py")
    forks = [
        node
        for node in ast.walk(whole)
        if isinstance(node, ast.With)
        and any(
            isinstance(item.context_expr, ast.Call)
            and dotted(item.context_expr.func) == "torch.random.fork_rng"
            for item in node.items
        )
    ]
    seeds = [call for call, called in calls(whole) if called.rpartition(".")[2].startswith("manual_seed")]
    forked = [call for fork in forks for call, called in calls(fork) if call in seeds]
    assert len(seeds) == 1
    assert forked == seeds


@EVERY_MODULE
def test_no_error_is_swallowed_blindly(name: str, path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            blind = any(kind is None or dotted(kind) in ("Exception", "BaseException") for kind in kinds)
            silent = all(
                isinstance(step, ast.Pass | ast.Continue)
                or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
                for step in node.body
            )
            assert not (blind and silent), f"{name}:{node.lineno} swallows every error"
        if isinstance(node, ast.Call) and dotted(node.func).endswith("suppress"):
            assert not {dotted(kind) for kind in node.args} & {"Exception", "BaseException"}, name


def test_kernels_know_no_torch() -> None:
    kernels = sorted((ROOT / "csrc" / "kernels").iterdir())
    assert len(kernels) > 5
    for path in kernels:
        included = re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(encoding="utf-8"))
        assert not [
            header for header in included if re.match(r"(torch|ATen|c10|caffe2|pybind11|Python)\b", header)
        ]


@pytest.mark.parametrize(
    ("name", "line", "wall"),
    [
        ("vleak.data.x", "from vleak.evaluation import Settings", test_nothing_reaches_up),
        ("vleak.models.x", "from vleak.federated import Client", test_nothing_reaches_up),
        ("vleak.descent.x", "def f():\n    import vleak.attacks.matching", test_nothing_reaches_up),
        ("vleak.attacks.x", "from vleak import data", test_nothing_reaches_up),
        ("vleak.attacks.x", "from vleak.metrics import psnr", test_nothing_reaches_up),
        ("vleak.defenses.x", "from vleak.attacks.base import Attack", test_nothing_reaches_up),
        ("vleak.evaluation.x", "from vleak.report import write_report", test_nothing_reaches_up),
        ("vleak.report.x", "import vleak.cli", test_nothing_reaches_up),
        ("vleak.federated.x", "import vleak", test_nothing_reaches_up),
        ("vleak.native.operators", "from .attacks import base", test_nothing_reaches_up),
        ("vleak.native.operators", "importlib.import_module('vleak.report')", test_imports_can_be_read),
        ("vleak.data.x", "import pytest", test_nothing_imports_tests),
        ("vleak.data.x", "from tiny import build", test_nothing_imports_tests),
        ("vleak.data.x", "torch.manual_seed(0)", test_nobody_touches_the_generators_of_the_process),
        ("vleak.data.x", "torch.random.manual_seed(0)", test_nobody_touches_the_generators_of_the_process),
        ("vleak.data.x", "np.random.seed(0)", test_nobody_touches_the_generators_of_the_process),
        ("vleak.data.x", "import random", test_nobody_touches_the_generators_of_the_process),
        ("vleak.data.x", "from numpy.random import rand", test_nobody_touches_the_generators_of_the_process),
        ("vleak.data.x", "torch.randn(3)", test_nobody_touches_the_generators_of_the_process),
        ("vleak.data.x", "x.normal_()", test_nobody_touches_the_generators_of_the_process),
        ("vleak.data.x", "try:\n    f()\nexcept Exception:\n    pass", test_no_error_is_swallowed_blindly),
        ("vleak.data.x", "try:\n    f()\nexcept:\n    ...", test_no_error_is_swallowed_blindly),
        ("vleak.data.x", "with suppress(Exception):\n    f()", test_no_error_is_swallowed_blindly),
    ],
)
def test_the_walls_hold_when_pushed(name: str, line: str, wall: Wall, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(line)
    with pytest.raises(AssertionError):
        wall(name, tmp_path / "x.py")


# --- the repository as a whole ----------------------------------------------------------------------------


def repository() -> list[Path]:
    """Return the text files that are, or would be, in the repository."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout: an installed copy has no list of its files")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    paths = [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    return [path for path in paths if b"\0" not in path.read_bytes()]


def found(pattern: str) -> list[str]:
    expression = re.compile(pattern)
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in repository()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if expression.search(line)
    ]


def test_no_paths_of_somebodys_machine() -> None:
    folders = "|".join(["home", "root", "work", "Users", "workspace"])
    assert found(rf"(?<![\w.\-/])/({folders})/\w") == []


def test_no_addresses_of_package_registries() -> None:
    hosts = "|".join(
        ["pypi", "pythonhosted", "anaconda", "npmjs", r"crates\.io", r"download\.pytorch", "golang"]
    )
    assert found(rf"https?://[^\s\"')>]*({hosts})") == []
    assert found(r"--(extra-)?" + "index" + "-url|--" + "find-links") == []


@pytest.mark.parametrize(
    ("line", "wall"),
    [
        ("open('/" + "home/me/x')", test_no_paths_of_somebodys_machine),
        ("cd /" + "work/main", test_no_paths_of_somebodys_machine),
        ("see https://" + "pypi.org/simple", test_no_addresses_of_package_registries),
        ("pip install --" + "index-url x", test_no_addresses_of_package_registries),
    ],
)
def test_the_search_finds_what_it_looks_for(
    line: str, wall: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.py").write_text(line)
    monkeypatch.setattr("test_walls.repository", lambda: [tmp_path / "a.py"])
    monkeypatch.setattr("test_walls.ROOT", tmp_path)
    with pytest.raises(AssertionError):
        wall()
