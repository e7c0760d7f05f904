"""The compiled iteration: the numbers of the captured graph, compiled once, no file that was changed.

Compiling takes many seconds, so the tests of what is divided and kept do not compile: there the part that
would be compiled is called as a graph. Those that do compile are marked slow.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_capture import MODELS_TAKEN, captured, made, make_step, make_values
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from vleak.descent import inductor
from vleak.descent.capture import Capture, capture
from vleak.descent.inductor import InductorError, compile_capture
from vleak.descent.passes import optimize
from vleak.descent.problem import DescentSettings, Problem
from vleak.descent.runner import Bound, Plateau, Program
from vleak.descent.steps import STATE, Step, Values, first_values, settings_table
from vleak.native import build, loader, operators
from vleak.seeds import generator

slow = pytest.mark.slow
needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler on this machine")
pytestmark = pytest.mark.skipif(
    operators.backend() != "native", reason=f"no native code here: {loader.status().reason}"
)

SHAPE = (2, 3, 4, 8, 8)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep compiled files apart, and forget what was loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(inductor, "_numbers", {})
    return tmp_path / "vleak" / "inductor"


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[GraphModule]:
    """Call what would be compiled as a graph; return what that is."""
    graphs: list[GraphModule] = []

    class Called:
        def __init__(self, graph: GraphModule) -> None:
            self.graph = graph

        def run(self, inputs: list[Tensor]) -> list[Tensor]:
            return list(self.graph(*inputs))

    def load(core: GraphModule, inputs: Any) -> int:
        assert len(core.graph.find_nodes(op="placeholder")) == len(inputs)
        graphs.append(core)
        inductor._models.append(Called(core))
        return len(inductor._models) - 1

    monkeypatch.setattr(inductor, "_load", load)
    return graphs


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(),
        nn.Linear(128, 5),
    )  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.Sigmoid(), nn.Linear(8, 5))


def descent_of(
    model: nn.Module, *, masked: bool = False, distance: Any = "cosine", **settings: Any
) -> tuple[Capture, Values, Tensor]:
    """Return the optimized iteration of a descent, its first values, and its table of settings."""
    numbers = generator("inductor", distance, masked)
    named = dict(model.named_parameters())
    target = {name: torch.randn(p.shape, generator=numbers).to(p) for name, p in named.items()}
    masks = {name: torch.rand(p.shape, generator=numbers) > 0.4 for name, p in named.items()}
    labels = torch.arange(SHAPE[0])
    problem = Problem(model, F.cross_entropy, labels, target, masks if masked else None, distance)
    weights = {"spatial": 0.02, "temporal": 0.01}
    descent = DescentSettings(**{"iterations": 8, "learning_rate": 0.05, **weights, **settings})
    start = torch.rand(SHAPE, generator=numbers).to(next(model.parameters()))
    values = first_values(problem, descent, start)
    table = settings_table(descent)
    values["settings"] = table[0].clone()
    step = Step(model, problem.loss, distance, descent)
    return optimize(capture(step, values, [n for n in values if n not in STATE])), values, table


def same_descents(given: Capture, other: Capture, values: Values, table: Tensor) -> None:
    one, two = (Program(each).bind(values) for each in (given, other))
    first, second = one.run(len(table), table), two.run(len(table), table)
    assert second.reason == first.reason == "done"
    exact = values["x"].dtype == torch.float64
    near: Any = {"rtol": 1e-8, "atol": 1e-10} if exact else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(second.history, first.history, **near)
    assert first.history[0] != first.history[-1]
    for name in STATE:
        if name in values:
            torch.testing.assert_close(two.values[name], one.values[name], **near)
    torch.testing.assert_close(two.outputs["gradient"], one.outputs["gradient"], **near)


def targets(graph: GraphModule) -> set[str]:
    return {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}


# ---------------------------------------------------------------------------------------------------------
# What is compiled


@pytest.mark.parametrize("name", ["max pool", "batch norm", "residual", "attention", "hidden tensor"])
def test_dividing_keeps_the_numbers(name: str, uncompiled: list[GraphModule]) -> None:
    model = made(MODELS_TAKEN[name], train=name == "batch norm").double()
    values = make_values(model)
    given = optimize(captured(model, values))
    kept = given.graph.code
    divided = compile_capture(given)
    assert given.graph.code == kept
    assert (divided.inputs, divided.outputs, divided.fixed) == (given.inputs, given.outputs, given.fixed)
    one, two = (Program(each).bind(values) for each in (given, divided))
    torch.testing.assert_close(two.run(3).history, one.run(3).history, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(two.outputs, one.outputs, rtol=1e-8, atol=1e-11)
    assert len(uncompiled) == 1


@pytest.mark.parametrize(
    ("rule", "distance", "masked"),
    [
        ("adam", "cosine", True),
        ("sign_adam", "l2", True),
        ("sign", "l2", False),
        ("lbfgs", "cosine", False),
        ("gauss_newton", "cosine", False),
    ],
)
def test_dividing_keeps_descents(
    rule: str, distance: str, masked: bool, uncompiled: list[GraphModule]
) -> None:
    model = made(perceptron if rule == "gauss_newton" else convolutional).double()
    given, values, table = descent_of(model, rule=rule, distance=distance, masked=masked)
    same_descents(given, compile_capture(given), values, table)
    assert len(uncompiled) == 1


def test_what_is_fixed_and_what_changes_inputs_is_left_to_the_runner(uncompiled: list[GraphModule]) -> None:
    given, *_ = descent_of(made(convolutional))
    divided = compile_capture(given)
    plan = Program(divided).plan
    assert [each.name for each in plan.body if each.name.startswith("vleak")] == [
        "vleak_inductor::run", "vleak::descend"
    ]  # fmt: skip
    assert not {t for t in targets(uncompiled[0]) if "gradient_match" in t or "descend" in t}
    assert "vleak.conv_output.default" in targets(uncompiled[0])
    # |t|^2 of the targets, which nothing changes.
    assert "aten::sum" in [each.name for each in plan.prologue]
    inputs = set(plan.inputs.values()) & plan.changed
    assert inputs == {plan.inputs[name] for name in ("m", "v", "best", "best_objective")}


def test_what_comes_after_a_change_is_not_computed_before_it(uncompiled: list[GraphModule]) -> None:
    def step(values: Values) -> Values:
        before = values["m"].sum()
        values["m"].add_(values["x"].exp())
        after = values["m"].view(4).sum()
        return {"x": values["x"].sin(), "objective": before + 10 * after + values["x"].cos().sum()}

    x, m = torch.rand(2, 2, generator=generator("x")), torch.rand(2, 2, generator=generator("m"))
    values = {"x": x, "m": m.clone()}
    divided = compile_capture(capture(step, values, []))
    bound = Program(divided).bind(values)
    expected = m.sum() + 10 * (m + x.exp()).sum() + x.cos().sum()
    assert bound.run(1).history == pytest.approx([float(expected)], rel=1e-6)
    torch.testing.assert_close(bound.values, {"x": x.sin(), "m": m + x.exp()})
    torch.testing.assert_close(values["m"], m)


def test_views_of_inputs_are_not_returned_by_what_is_compiled(uncompiled: list[GraphModule]) -> None:
    def step(values: Values) -> Values:
        row = values["x"].view(4)
        return {"objective": row.exp().sum(), "row": row, "next": row.exp()}

    values = {"x": torch.rand(2, 2, generator=generator("x"))}
    bound = Program(compile_capture(capture(step, values, []))).bind(values)
    bound.run(1)
    torch.testing.assert_close(bound.outputs["row"], values["x"].view(4))
    returned = uncompiled[0](values["x"].view(4))
    assert len(returned) == 2
    assert values["x"].data_ptr() not in {each.data_ptr() for each in returned}


def test_nothing_to_compile(folder: Path) -> None:
    values = {"x": torch.ones(2), "objective": torch.zeros(())}
    given = capture(lambda v: {"x": v["x"].view(2), "objective": v["objective"].view(())}, values, [])
    assert Program(compile_capture(given)).bind(values).run(2).history == [0.0, 0.0]
    assert not folder.exists()


def test_other_devices_are_refused() -> None:
    given, *_ = descent_of(made(perceptron))
    elsewhere = Capture(given.graph, given.inputs, given.outputs, given.fixed, torch.device("cuda"))
    with pytest.raises(InductorError, match="for the CPU only, and the step runs on cuda"):
        compile_capture(elsewhere)


# ---------------------------------------------------------------------------------------------------------
# What is kept


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write a few bytes in place of compiling; return the code of what would have been compiled."""
    codes: list[str] = []

    def write(core: GraphModule, inputs: list[Tensor], work: Path) -> Path:
        codes.append(core.code)
        (work / "a.wrapper.json").write_text("{}")
        (work / "a.wrapper_metadata.json").write_text("unwanted")
        (work / "step.so").write_text(core.code)
        return work / "step.so"

    monkeypatch.setattr(inductor, "_compile", write)
    return codes


def place_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Path:
    """Return where the library for a function is, after compiling it if need be."""
    given = capture(lambda values: {"objective": function(values["x"]).sum()}, {"x": x}, [])
    parts = inductor._divide(given)
    core = inductor._core(given, parts)
    return inductor._library(inductor._key(core, parts.inputs), core, parts.inputs).parent


X = torch.ones(2, 3)


def test_the_same_graph_is_compiled_once(written: list[str], folder: Path) -> None:
    place = place_of(torch.sin, X)
    assert place.parent == folder
    assert sorted(path.name for path in place.iterdir()) == ["sha256", "step.json", "step.so"]
    assert place_of(torch.sin, X + 1) == place
    assert len(written) == 1
    assert sorted(path.name for path in folder.iterdir()) == [place.name, f"{place.name}.lock"]


OTHERS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "operator": (torch.cos, X),
    "shape": (torch.sin, torch.ones(3, 2)),
    "strides": (torch.sin, torch.ones(3, 2).t()),
    "dtype": (torch.sin, X.double()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_graph_is_another_file(name: str, written: list[str]) -> None:
    assert place_of(torch.sin, X) != place_of(*OTHERS[name])
    assert len(written) == 2


@pytest.mark.parametrize("what", ["_processor", "__version__"])
def test_another_machine_or_torch_is_another_file(
    what: str, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = place_of(torch.sin, X)
    owner: Any = inductor if what == "_processor" else torch
    monkeypatch.setattr(owner, what, (lambda: "other") if what == "_processor" else "9.9")
    assert place_of(torch.sin, X) != before


def shorten(place: Path) -> None:
    library = place / "step.so"
    library.write_bytes(library.read_bytes()[:-1])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "shortened": shorten,
    "exchanged": lambda place: (place / "step.so").write_text("foreign"),
    "other calls": lambda place: (place / "step.json").write_text('{"nodes": []}'),
    "added": lambda place: (place / "more").write_text(""),
    "missing": lambda place: (place / "step.json").unlink(),
    "unsealed": lambda place: (place / "sha256").unlink(),
    "badly sealed": lambda place: (place / "sha256").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_changed_file_is_compiled_anew(damage: str, written: list[str]) -> None:
    place = place_of(torch.sin, X)
    DAMAGE[damage](place)
    assert place_of(torch.sin, X) == place
    assert len(written) == 2
    assert (place / "step.so").read_text() == written[0]
    place_of(torch.sin, X)
    assert len(written) == 2


def test_a_folder_that_others_can_open_is_refused(written: list[str], folder: Path) -> None:
    place_of(torch.sin, X)
    assert folder.stat().st_mode & 0o777 == 0o700
    for mode in (0o701, 0o720, 0o750):
        folder.chmod(mode)
        with pytest.raises(InductorError, match=f"expected {folder} to be a folder of yours"):
            place_of(torch.sin, X)
    folder.chmod(0o700)
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))
    with pytest.raises(InductorError, match="a folder of yours"):
        place_of(torch.sin, X)
    assert len(written) == 1


def test_a_failure_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(core: GraphModule, inputs: list[Tensor], work: Path) -> Path:
        (work / "half").write_text("")
        raise InductorError("no luck")

    monkeypatch.setattr(inductor, "_compile", fail)
    with pytest.raises(InductorError, match=r"^AOTInductor cannot be used: no luck$"):
        place_of(torch.sin, X)
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InductorError, match=r"AOTInductor cannot be used: .*file/vleak"):
        place_of(torch.sin, X)


@needs_compiler
def test_what_is_no_library_is_refused(written: list[str]) -> None:
    given, *_ = descent_of(made(perceptron))
    with pytest.raises(InductorError, match=r"AOTInductor cannot be used: .*step\.so cannot be loaded: "):
        compile_capture(given)


# ---------------------------------------------------------------------------------------------------------
# Compiled


def children() -> set[str]:
    return {
        each for task in Path("/proc/self/task").iterdir() for each in (task / "children").read_text().split()
    }


@slow
@needs_compiler
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: convolutional().double(), {"masked": True, "rule": "sign_adam"}),
        (perceptron, {"distance": "l2", "learning_rate": 0.01}),
        (MODELS_TAKEN["lstm"], {}),
        (lambda: perceptron().double(), {"rule": "lbfgs"}),
    ],
    ids=["convolutional", "perceptron", "lstm", "lbfgs"],
)
def test_compiled_numbers(
    make: Callable[[], nn.Module], settings: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    given, values, table = descent_of(made(make), **settings)
    environment, workers = dict(os.environ), children()
    compiled = compile_capture(given)
    assert dict(os.environ) == environment
    assert children() == workers
    assert capfd.readouterr() == ("", "")
    same_descents(given, compiled, values, table)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Capture, Capture, Values, Tensor, Path]:
    """Compile one graph for several tests: a capture, the same compiled, and where it is kept."""
    home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        given, values, table = descent_of(made(convolutional), iterations=40)
        return given, compile_capture(given), values, table, home


@slow
@needs_compiler
def test_compiled_once(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given, _, values, table, home = shared
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(inductor, "_compile", None)  # cannot be called
    same_descents(given, compile_capture(given), values, table[:8])


@slow
@needs_compiler
def test_nan_and_plateau_end_a_compiled_descent(shared: Any) -> None:
    given, compiled, values, table, _ = shared
    broken = {**values, "target:0.weight": values["target:0.weight"] * torch.nan}
    bound = Program(compiled).bind(broken)
    outcome = bound.run(5, table)
    assert outcome.reason == "nan"
    assert len(outcome.history) == 1
    torch.testing.assert_close(bound.values["x"], values["x"])
    assert bound.values["best_objective"] == torch.inf
    plateau = Plateau(patience=3, tolerance=0.5)
    ends = [Program(each).bind(values, plateau).run(40, table) for each in (given, compiled)]
    assert [end.reason for end in ends] == ["plateau", "plateau"]
    assert len(ends[0].history) == len(ends[1].history) < 40


@slow
@needs_compiler
def test_descents_side_by_side(shared: Any) -> None:
    _, compiled, values, table, _ = shared
    program = Program(compiled)
    starts = [torch.rand(SHAPE, generator=generator("start", i)) for i in range(4)]

    def bound(start: Tensor) -> Bound:
        return program.bind({**values, "x": start})

    alone = [bound(start).run(40, table).history for start in starts]
    together: dict[int, list[float]] = {}

    def run(place: int) -> None:
        together[place] = bound(starts[place]).run(40, table).history

    threads = [threading.Thread(target=run, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[place] for place in range(4)] == alone


@slow
def test_without_a_compiler() -> None:
    import torch._inductor.config

    values = make_values(made(perceptron))
    given = capture(make_step(made(perceptron)), values, set(values) - {"x"})
    # monkeypatch undoes by deleting, after which torch takes the setting for one that does not exist.
    nobody = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with nobody, pytest.raises(InductorError, match=r"^AOTInductor cannot be used: .*[Cc]ompiler") as found:
        compile_capture(given)
    assert "\n" not in str(found.value)
