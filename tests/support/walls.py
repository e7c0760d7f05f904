"""Walls of the design: functions from the sources to what violates them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"vleak": "vleak", "defenses": "vleak.defenses", "cli": "vleak.cli"}

FLOORS = (
    {"errors", "defaults", "seeds", "files", "forks", "switches", "cache", "registry", "objects"},
    {"native"},
    {"data", "models"},
    {"federated"},
    {"descent", "defenses", "metrics", "certificates"},
    {"conformance"},
    {"enhance", "attacks", "auditing"},
    {"results", "guarding"},
    {"pipelines"},
    {"evaluation"},
    {"update_audit"},
    {"study", "regression", "suite", "report", "frameworks"},
    {"api"},
    {"cli"},
)
"""Packages from the ground up; a package imports from its own floor and from those below."""

FORBIDDEN = {
    "data": {"native", "models"},
    "models": {"native", "data"},
    "federated": {"native", "data", "models"},
    "descent": {"data", "models"},
    "defenses": {"data", "metrics", "descent"},
    "metrics": {"data", "defenses"},
    "certificates": {"data", "metrics", "defenses"},
    "conformance": {"native", "data", "models", "descent", "defenses", "metrics"},
    "attacks": {"data", "metrics", "defenses", "certificates", "enhance", "auditing"},
    "auditing": {"native", "data", "metrics", "descent", "defenses", "enhance", "attacks"},
    "enhance": {"data", "metrics", "defenses", "certificates", "attacks"},
    "guarding": {"native", "data", "models", "descent", "certificates", "enhance", "results"},
    "results": {
        "native",
        "data",
        "models",
        "federated",
        "descent",
        "defenses",
        "attacks",
        "enhance",
        "guarding",
    },
}
"""What a package must not know although it lies below."""

DRAWS = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli", "poisson"}
DRAWS_IN_PLACE = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "trunc_normal_"}
DYNAMIC_IMPORTS = {"vleak": 1, "vleak.registry": 1}
"""Lazy names of the package, and things that users name."""

FORKED_SEEDS = "vleak.models.build"
"""Where a user's factory draws from the generator of the process, forked and put back."""

TYPED_PACKAGES = {"results", "evaluation", "federated", "attacks", "regression"}
"""Packages with no dict[str, Any] on a public signature."""


@cache
def sources() -> dict[str, str]:
    """Return the text of every module by its dotted name as installed; packages end in ``.__init__``."""
    modules = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            modules[".".join([package, *parts])] = path.read_text(encoding="utf-8")
    return modules


def package_of(module: str) -> str:
    """Return the package below vleak that a module belongs to; "" for vleak itself."""
    part = module.removesuffix(".__init__").partition(".")[2].partition(".")[0]
    return "" if part == "__init__" else part


# --- imports ------------------------------------------------------------------------------------------------


def import_violations(modules: Mapping[str, str]) -> list[str]:
    """Return imports that go up, run in a circle between packages, or take a private name."""
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    tops = {name: text for name, text in modules.items() if name.count(".") == 2 and _is_package(name)}
    exports = {package_of(name): exported_names(text) for name, text in tops.items()}
    violations, arrows = [], set()
    for name, text in modules.items():
        own = package_of(name)
        for module, imported in imports(text):
            other = _package_of_import(module, imported, floor_of)
            where = f"{name} imports {module} {imported}".rstrip()
            if module.startswith("vleak.."):
                violations.append(f"{where}: a relative import")
            if module.partition(".")[0] == "vleak" and imported.startswith("_") and imported != "__version__":
                violations.append(f"{where}: a private name")
            if not own or not other or own == other:
                continue
            arrows.add((own, other))
            if own not in floor_of or other not in floor_of:
                violations.append(f"{where}: a package without a floor")
            elif floor_of[other] > floor_of[own]:
                violations.append(f"{where}: an arrow up")
            if other in FORBIDDEN.get(own, ()):
                violations.append(f"{where}: {own} must not know {other}")
            if own == "cli":
                violations += _not_public(where, module, imported, exports)
    violations += [f"{a} and {b} import each other" for a, b in sorted(arrows) if a < b and (b, a) in arrows]
    dynamic = {
        name: sum(called.endswith(("import_module", "__import__")) for _, called in calls(parsed(text)))
        for name, text in modules.items()
    }
    violations += [
        f"{name} imports {count} names put together at run time"
        for name, count in dynamic.items()
        if count > DYNAMIC_IMPORTS.get(name.removesuffix(".__init__"), 0)
    ]
    return violations


def _not_public(where: str, module: str, imported: str, exports: Mapping[str, set[str]]) -> list[str]:
    """Return what is wrong with an import of the command line, which uses the public API alone."""
    package = package_of(module) or package_of(f"{module}.{imported}")
    if module.count(".") > 1:
        return [f"{where}: the command line reaches into {package}"]
    if package in exports and module.count(".") == 1 and imported not in exports[package]:
        return [f"{where}: {package} does not export it"]
    return []


def _package_of_import(module: str, imported: str, floor_of: Mapping[str, int]) -> str:
    if module.partition(".")[0] != "vleak":
        return ""
    return imported if module == "vleak" and imported in floor_of else package_of(module)


def exports_violations(modules: Mapping[str, str]) -> list[str]:
    """Return packages without an ``__all__``, and names in it that the package does not define."""
    violations = []
    for name, text in modules.items():
        if not _is_package(name):
            continue
        tree = parsed(text)
        names = exported_names(text)
        if not names:
            violations.append(f"{name} has no __all__")
        defined = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom | ast.Import)
            for alias in node.names
        }
        defined |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        defined |= {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in _targets(node)
        }
        violations += [
            f"{name} exports {missing}, which it does not define" for missing in sorted(names - defined)
        ]
    return violations


def exported_names(text: str) -> set[str]:
    """Return the names in ``__all__``; empty where there is none."""
    for node in parsed(text).body:
        if isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.Name]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target for target in targets if isinstance(target, ast.Name)]


def _is_package(name: str) -> bool:
    return name.endswith(".__init__")


# --- randomness ---------------------------------------------------------------------------------------------


def randomness_violations(modules: Mapping[str, str]) -> list[str]:
    """Return draws from, and seeds of, the generators of the process."""
    violations = []
    for name, text in modules.items():
        for module, _ in imports(text):
            if module.partition(".")[0] == "random" or module.startswith("numpy.random"):
                violations.append(f"{name} imports {module}")
        for call, called in calls(parsed(text)):
            if _draws(name, call, called):
                violations.append(f"{name}:{call.lineno} calls {called}")
    return violations


def _draws(name: str, call: ast.Call, called: str) -> bool:
    last = called.rpartition(".")[2]
    if re.match(r"(np|numpy)\.random\.", called):
        return True
    if called in ("torch.seed", "torch.random.seed", "torch.cuda.seed", "torch.cuda.seed_all"):
        return True
    if last.startswith("manual_seed") and not _own_generator(call):
        return name != FORKED_SEEDS
    draws = (called.startswith("torch.") and last in DRAWS) or last in DRAWS_IN_PLACE
    return draws and "generator" not in {keyword.arg for keyword in call.keywords}


def _own_generator(call: ast.Call) -> bool:
    """Tell whether it is ``torch.Generator(...).manual_seed(...)``."""
    value = call.func.value if isinstance(call.func, ast.Attribute) else None
    return isinstance(value, ast.Call) and dotted(value.func) == "torch.Generator"


def fork_violations(modules: Mapping[str, str]) -> list[str]:
    """Return seeds of the process that are set outside a fork of its generators."""
    tree = parsed(modules[FORKED_SEEDS])
    forks = [node for node in ast.walk(tree) if isinstance(node, ast.With) and _forks(node)]
    forked = {id(call) for fork in forks for call, _ in calls(fork)}
    return [
        f"{FORKED_SEEDS}:{call.lineno} calls {called} outside a fork"
        for call, called in calls(tree)
        if called.rpartition(".")[2].startswith("manual_seed") and id(call) not in forked
    ]


def _forks(node: ast.With) -> bool:
    items = [item.context_expr for item in node.items]
    return any(isinstance(i, ast.Call) and dotted(i.func) == "torch.random.fork_rng" for i in items)


# --- errors -------------------------------------------------------------------------------------------------


def swallowed_errors(modules: Mapping[str, str]) -> list[str]:
    """Return handlers that take every error and do nothing about it."""
    violations = []
    for name, text in modules.items():
        for node in nodes(parsed(text)):
            if isinstance(node, ast.ExceptHandler) and _blind(node) and _silent(node):
                violations.append(f"{name}:{node.lineno} swallows every error")
            if isinstance(node, ast.Call) and _suppresses_all(node):
                violations.append(f"{name}:{node.lineno} suppresses every error")
    return violations


def _suppresses_all(node: ast.Call) -> bool:
    kinds = {dotted(kind) for kind in node.args}
    return dotted(node.func).endswith("suppress") and bool(kinds & {"Exception", "BaseException"})


def _blind(node: ast.ExceptHandler) -> bool:
    kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(kind is None or dotted(kind) in ("Exception", "BaseException") for kind in kinds)


def _silent(node: ast.ExceptHandler) -> bool:
    return all(
        isinstance(step, ast.Pass | ast.Continue)
        or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
        for step in node.body
    )


# --- size ---------------------------------------------------------------------------------------------------


def size_violations(modules: Mapping[str, str]) -> list[str]:
    """Return files, functions and signatures that are too long, and untyped public records."""
    violations, lengths = [], []
    for name, text in modules.items():
        if (lines := len(text.splitlines())) > 400:
            violations.append(f"{name} has {lines} lines, expected at most 400")
        for node in nodes(parsed(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append(_length(node))
                violations += _signature_violations(name, node)
    if lengths and median(lengths) > 8:
        violations.append(f"the median function has {median(lengths)} lines, expected at most 8")
    return violations


def _signature_violations(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    where, violations = f"{name}:{node.lineno} {node.name}", []
    if (length := _length(node)) > 60:
        violations.append(f"{where} has {length} lines, expected at most 60")
    positional = [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
    # A command of the command line is called by Typer, by keyword.
    if len(positional) > 7 and package_of(name) != "cli":
        violations.append(f"{where} has {len(positional)} positional parameters, expected at most 7")
    if package_of(name) in TYPED_PACKAGES and not node.name.startswith("_"):
        hints = [a.annotation for a in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
        if any(hint is not None and "dict[str, Any]" in ast.unparse(hint) for hint in hints):
            violations.append(f"{where} has dict[str, Any] on its signature")
    return violations


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its docstring."""
    first = node.body[0]
    is_text = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    docstring = (first.end_lineno or 0) - first.lineno + 1 if is_text else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


# --- syntax -------------------------------------------------------------------------------------------------


@cache
def parsed(text: str) -> ast.Module:
    """Return the syntax of a text, which several walls look at."""
    return ast.parse(text)


@cache
def nodes(tree: ast.AST) -> list[ast.AST]:
    """Return all nodes of a tree, which every wall would else walk again."""
    return list(ast.walk(tree))


def imports(text: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of every import, wherever it stands; the name is "" for a whole module."""
    for node in nodes(parsed(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module) if node.level == 0 else f"vleak..{node.module or ''}"
            yield from ((module, alias.name) for alias in node.names)


def dotted(node: ast.expr) -> str:
    """Return a name such as ``torch.Generator``; "" for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Yield every call with the name that is called."""
    for node in nodes(tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func)
