"""AOTInductor, opt-in: most of a captured iteration becomes one compiled operator, kept on disk by its graph.

Compiling a graph takes 10-40 seconds, once a graph and machine. What depends on fixed inputs only, and what
changes inputs in place, stays in the graph for the runner; the rest is compiled.

A compiled file is machine code and is run as such. It is loaded from ``$XDG_CACHE_HOME/vleak/inductor`` (or
``~/.cache``) only if that folder belongs to the user and nobody else has any access to it, and only if the
file is, byte for byte, what was written there; otherwise it is compiled anew.
"""

from __future__ import annotations

import hashlib
import logging
import operator
import os
import platform
import re
import shutil
import stat
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node

from vleak.descent.capture import Capture, mutated, roots
from vleak.descent.capture import capture as record
from vleak.descent.passes.rewrite import changed_memory
from vleak.errors import CapabilityError
from vleak.native import operators
from vleak.native.loader import _file_lock

__all__ = ["InductorError", "compile_capture"]

_LIBRARY = "step.so"
_SEAL = "sha256"
#: One thread within generated loops: descents side by side are what fills a machine, and results do not
#: depend on how many threads there are.
_OPTIONS: dict[str, Any] = {"cpp.threads": 1, "compile_threads": 1}

# Inductor's settings are those of the process, so one graph is compiled at a time.
_lock = threading.RLock()
_models: list[Any] = []
_numbers: dict[str, int] = {}


class InductorError(CapabilityError):
    """A captured step cannot be compiled, or not be loaded; the message is one line that says why."""

    def __init__(self, why: str) -> None:
        """Take the reason."""
        super().__init__(f"AOTInductor cannot be used: {why}")


def compile_capture(capture: Capture) -> Capture:
    """Return a capture with the same numbers, whose iteration is a few operators and a compiled one.

    Compiles for 10-40 seconds, or loads what was compiled for the same graph, torch and processor before.

    Args:
        capture: of a step on the CPU, best after the graph passes; is left alone.

    Raises:
        InductorError: another device, no C++ compiler, compiling failed, or others can write to the cache.
        CaptureError: vleak's operators cannot be written out.
    """
    if capture.device.type != "cpu":
        raise InductorError(f"it is set up for the CPU only, and the step runs on {capture.device}")
    plain = _written_out(capture)
    parts = _divide(plain)
    if not parts.outputs:
        return plain
    return _assembled(plain, parts, _load(_core(plain, parts), parts.inputs))


# ---------------------------------------------------------------------------------------------------------
# Operators that fuse with their neighbors as formulas

_FORMULAS = {
    torch.ops.vleak.gradient_match.default: operators._match_kernel,
    torch.ops.vleak.gradient_match_partial.default: operators._match_partial_kernel,
}


class _WrittenOut(Interpreter):
    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _FORMULAS.get(target, target)(*args, **kwargs)


def _written_out(capture: Capture) -> Capture:
    """Record the step again with the gradient match as plain operators."""

    def step(values: dict[str, Tensor]) -> dict[str, Tensor]:
        returned = _WrittenOut(capture.graph).run(*values.values(), enable_io_processing=False)
        return dict(zip(capture.outputs, returned, strict=True))

    placeholders = capture.graph.graph.find_nodes(op="placeholder")
    values = {name: _empty(node) for name, node in zip(capture.inputs, placeholders, strict=True)}
    with torch.no_grad():
        return record(step, values, capture.fixed)


def _empty(node: Node) -> Tensor:
    """Return a tensor of a node's shape, strides and dtype; memory that nobody touches is not taken."""
    like = node.meta["val"]
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)


# ---------------------------------------------------------------------------------------------------------
# What is compiled, and what is left to the runner


@dataclass(frozen=True)
class _Parts:
    """The operators of a graph, sorted.

    Attributes:
        early: depend on fixed inputs only, or are views of inputs.
        compiled: the rest.
        late: change inputs in place, or come after such a change.
        inputs: what the compiled ones read of all else.
        outputs: what all else reads of the compiled ones.
    """

    early: list[Node]
    compiled: list[Node]
    late: list[Node]
    inputs: list[Node]
    outputs: list[Node]


def _divide(capture: Capture) -> _Parts:
    nodes = [node for node in capture.graph.graph.nodes if node.op == "call_function"]
    owner = roots(capture.graph.graph)
    once, late = _once(capture, owner), _late(nodes, owner)
    # A compiled operator returns memory of its own, so views of inputs are made by the runner.
    early = [n for n in nodes if n in once or (owner[n].op != "call_function" and n not in late)]
    outside = {*early, *late}
    compiled = [n for n in nodes if n not in outside]
    inside = set(compiled)
    inputs = dict.fromkeys(source for node in compiled for source in node.all_input_nodes)
    outputs = [n for n in compiled if not inside.issuperset(n.users)]
    return _Parts(
        early, compiled, [n for n in nodes if n in late], [n for n in inputs if n not in inside], outputs
    )


def _once(capture: Capture, owner: dict[Node, Node]) -> set[Node]:
    """Return what is the same in every iteration, fixed inputs and constants among it."""
    graph = capture.graph.graph
    changed = changed_memory(graph, owner)
    placeholders = zip(capture.inputs, graph.find_nodes(op="placeholder"), strict=True)
    once = {node for name, node in placeholders if name in capture.fixed}
    once.update(graph.find_nodes(op="get_attr"))
    for node in graph.nodes:
        sources = node.all_input_nodes
        # What reads nothing is a constant, which the compiler folds.
        if node.op == "call_function" and sources and once.issuperset(sources) and owner[node] not in changed:
            once.add(node)
    return once


def _late(nodes: Sequence[Node], owner: dict[Node, Node]) -> set[Node]:
    late: set[Node] = set()
    changed: set[Node] = set()
    for node in nodes:
        changes = {owner[each] for each in mutated(node) if owner[each].op != "call_function"}
        sources = node.all_input_nodes
        if changes or not late.isdisjoint(sources) or any(owner[each] in changed for each in sources):
            late.add(node)
            changed |= {owner[each] for each in mutated(node)}
    return late


def _core(capture: Capture, parts: _Parts) -> GraphModule:
    """Return the compiled operators as a function from `inputs` to a tuple of `outputs`."""
    graph, copies = Graph(), dict[Node, Node]()
    for node in parts.inputs:
        copies[node] = graph.placeholder(node.name)
    for node in parts.compiled:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].meta.clear()  # of tensors on no device
    graph.output(tuple(copies[node] for node in parts.outputs))
    return GraphModule(nn.Module(), graph)


def _assembled(capture: Capture, parts: _Parts, model: int) -> Capture:
    """Return the capture with a call of a loaded model in place of what it was compiled from."""
    graph, copies = Graph(), dict[Node, Node]()
    held = [node for node in capture.graph.graph.nodes if node.op in ("placeholder", "get_attr")]
    for node in (*held, *parts.early):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    inputs = [copies[node] for node in parts.inputs]
    call = graph.call_function(torch.ops.vleak_inductor.run.default, (inputs, model))
    call.meta["val"] = [node.meta["val"] for node in parts.outputs]
    for place, node in enumerate(parts.outputs):
        copies[node] = graph.call_function(operator.getitem, (call, place))
        copies[node].meta["val"] = node.meta["val"]
    for node in parts.late:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    (returned,) = capture.graph.graph.output_node().args
    graph.output([copies[node] for node in returned])  # type: ignore[union-attr,index]
    graph.eliminate_dead_code()
    return replace(capture, graph=GraphModule(capture.graph, graph))


# ---------------------------------------------------------------------------------------------------------
# Compiled models as an operator


def _run(inputs: list[Tensor], model: int) -> list[Tensor]:
    outputs: list[Tensor] = _models[model].run(inputs)
    return outputs


torch.library.define("vleak_inductor::run", "(Tensor[] inputs, int model) -> Tensor[]")
torch.library.impl("vleak_inductor::run", "CPU", _run)


def _load(core: GraphModule, inputs: Sequence[Node]) -> int:
    """Return the number of a compiled model, which is loaded once a process and stays."""
    key = _key(core, inputs)
    with _lock:
        if key not in _numbers:
            library = _library(key, core, inputs)
            try:
                # So many calls may run at once; others wait.
                runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), os.cpu_count() or 1)
            except (RuntimeError, OSError) as error:
                raise InductorError(f"{library} cannot be loaded: {_line(error)}") from error
            _models.append(runner)
            _numbers[key] = len(_models) - 1
        return _numbers[key]


def _key(core: GraphModule, inputs: Sequence[Node]) -> str:
    """Return what two graphs share only if one's machine code does for the other, on this machine."""
    targets = {node.target for node in core.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    layouts = [(v.shape, v.stride(), v.dtype) for v in (node.meta["val"] for node in inputs)]
    schemas = sorted(str(target._schema) for target in targets)
    facts = core.code, layouts, schemas, torch.__version__, torch.version.git_version, _processor(), _OPTIONS
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:40]


def _processor() -> str:
    """Return what the compiler's -march=native goes by."""
    try:
        found = re.search(r"^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return f"{platform.machine()} {platform.processor()} {found[0] if found else ''}"


# ---------------------------------------------------------------------------------------------------------
# On disk


def _library(key: str, core: GraphModule, inputs: Sequence[Node]) -> Path:
    """Return the library for a graph, from the cache or freshly compiled into it."""
    try:
        place = _cache_folder() / key
        with _file_lock(place.with_suffix(".lock")):
            if not _intact(place):
                _fill(place, core, inputs)
    except OSError as error:
        raise InductorError(_line(error)) from error
    return place / _LIBRARY


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "vleak" / "inductor"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise InductorError(
            f"expected {folder} to be a folder of yours that nobody else can open, since code in it is run; "
            "remove it"
        )
    return folder


def _intact(place: Path) -> bool:
    """Tell whether an entry's content is what was written, byte for byte."""
    try:
        return (place / _SEAL).read_text(encoding="ascii") == _digest(place)
    except (OSError, ValueError):
        return False


def _digest(place: Path) -> str:
    """Return a hash over the files of an entry but its seal."""
    files = sorted(path for path in place.iterdir() if path.name != _SEAL)
    digests = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    return hashlib.sha256(repr(digests).encode()).hexdigest()


def _fill(place: Path, core: GraphModule, inputs: Sequence[Node]) -> None:
    shutil.rmtree(place, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    entry = work / "entry"
    entry.mkdir()
    try:
        library = _compile(core, [_empty(node) for node in inputs], work)
        shutil.move(library, entry / _LIBRARY)
        # Which operators of ours it calls, and how; the loader looks for it beside the library.
        for table in work.glob("*.wrapper.json"):
            shutil.move(table, entry / Path(_LIBRARY).with_suffix(".json"))
        (entry / _SEAL).write_text(_digest(entry), encoding="ascii")
        entry.replace(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _compile(core: GraphModule, inputs: list[Tensor], folder: Path) -> Path:
    """Compile into a folder of one's own, which afterwards holds much more than the library."""
    with _own_settings(folder), torch.no_grad():
        try:
            import torch._inductor as inductor  # takes seconds, and few need it

            options = {**_OPTIONS, "aot_inductor.output_path": str(folder / _LIBRARY)}
            return Path(str(inductor.aot_compile(core, tuple(inputs), options=options)))
        except Exception as error:
            raise InductorError(_line(error)) from error


@contextmanager
def _own_settings(folder: Path) -> Iterator[None]:
    """Keep Inductor's temporary files in a folder, its workers away, and its remarks to itself."""
    own = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    before = {name: os.environ.get(name) for name in own}
    remarks = logging.getLogger("torch._inductor")
    level = remarks.level
    os.environ.update(own)
    remarks.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        remarks.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
