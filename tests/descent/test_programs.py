"""The captured iteration: who shares it, who does not, and what happens where there can be none."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.descent import Descent, DescentSettings, Problem, memory, programs
from vleak.descent.programs import EngineWarning
from vleak.federated import Client
from vleak.native import loader, operators
from vleak.seeds import generator

SHAPE = (1, 3, 4, 8, 8)

pytestmark = pytest.mark.skipif(
    operators.backend() != "native", reason=f"no native code here: {loader.status().reason}"
)


class Net(nn.Module):
    """Hides a number and a function that decide what it computes."""

    def __init__(self, scale: float = 1.0, activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.scale, self.activation = scale, activation
        self.conv = nn.Conv3d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4 * 2 * 4 * 4, 6)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.activation(self.scale * self.conv(clips)).flatten(1))


class Branching(Net):
    def forward(self, clips: Tensor) -> Tensor:
        return super().forward(clips) if clips.mean() > 0.5 else 2 * super().forward(clips)


class Dropping(Net):
    def forward(self, clips: Tensor) -> Tensor:
        return F.dropout(super().forward(clips), 0.5, training=True)


@pytest.fixture(autouse=True)
def _no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_programs", type(programs._programs)())
    monkeypatch.setattr(programs, "_warned", set())


def build(make: Callable[[], nn.Module] = Net, seed: int = 0) -> nn.Module:
    model = make()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator("net", seed, i)) / 5)
    return model


def problem(model: nn.Module, **changes: Any) -> Problem:
    clip = torch.rand(SHAPE, generator=generator("truth"))
    labels = torch.tensor([2])
    update = Client(model).update(clip, labels, generator(0)).tensors
    return replace(Problem(model, F.cross_entropy, labels, update), **changes)


def loop(of: Problem, engine: str = "native", **settings: Any) -> Descent:
    start = torch.rand(SHAPE, generator=generator("start"))
    return Descent(
        of, DescentSettings(**{"iterations": 20, "spatial": 0.03, **settings}), start, engine=engine
    )


def program_count() -> int:
    return len(programs._programs)


def test_copies_of_a_model_and_other_weights_share_one_program() -> None:
    model = build()
    for each in (model, copy.deepcopy(model), build(seed=1)):
        assert loop(problem(each)).engine == "native"
    assert program_count() == 1


def test_a_shared_program_gives_each_its_own_numbers() -> None:
    histories = []
    for seed in (0, 1):
        made = problem(build(seed=seed))
        histories.append(loop(made).run(5).history)
        assert histories[-1] == pytest.approx(loop(made, "reference").run(5).history, rel=1e-4)
    assert program_count() == 1
    assert histories[0] != histories[1]


def test_numbers_of_the_descent_are_no_part_of_the_program() -> None:
    made = problem(build())
    runs = [loop(made, **s).run(5).history for s in ({}, {"spatial": 0.3}, {"learning_rate": 0.01})]
    assert program_count() == 1
    assert runs[0][0] != runs[1][0]
    assert runs[0][0] == runs[2][0]
    assert runs[0][1] != runs[2][1]


@pytest.mark.parametrize(
    "other",
    [
        lambda: problem(build(lambda: Net(2.0))),
        lambda: problem(build(lambda: Net(activation=torch.sin))),
        lambda: problem(build(lambda: Net(activation=lambda x: torch.tanh(x)))),
        lambda: problem(build().eval()),
        lambda: problem(build(), distance="l2"),
        lambda: problem(build(), loss=lambda a, b: F.cross_entropy(a, b)),
        lambda: problem(
            build(), masks={n: torch.ones_like(p, dtype=torch.bool) for n, p in Net().named_parameters()}
        ),
    ],
    ids=["number", "function", "lambda", "mode", "distance", "loss", "masks"],
)
def test_what_is_not_alike_shares_nothing(other: Callable[[], Problem]) -> None:
    loop(problem(build()))
    made = other()
    got, expected = (loop(made, engine).run(3).history for engine in ("native", "reference"))
    assert program_count() == 2
    assert got == pytest.approx(expected, rel=1e-4)


class Tied(Net):
    """Uses one of two layers twice."""

    def __init__(self, which: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.c = (self.a, self.b)[which]

    def forward(self, clips: Tensor) -> Tensor:
        return self.c(self.b(self.a(super().forward(clips)).tanh()).tanh())


class Configured(Net):
    """Reads a number from an object that may change."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(power=1.0)

    def forward(self, clips: Tensor) -> Tensor:
        return super().forward(clips) * 3**self.config.power


def test_what_a_model_uses_twice_is_part_of_its_kind() -> None:
    for which in (0, 1):
        made = problem(build(lambda which=which: Tied(which)))
        got, expected = (loop(made, engine).run(3).history for engine in ("native", "reference"))
        assert got == pytest.approx(expected, rel=1e-4)
    assert program_count() == 2


def test_what_has_changed_since_the_capture_is_captured_anew() -> None:
    model = build(Configured)
    loss = nn.CrossEntropyLoss()
    made = problem(model, loss=loss)
    for change in (lambda: None, lambda: vars(model.config).update(power=2.0),
                   lambda: setattr(loss, "label_smoothing", 0.5)):  # fmt: skip
        change()
        native_loop = loop(made)
        assert native_loop.engine == "native"
        expected = loop(made, "reference").run(3).history
        assert native_loop.run(3).history == pytest.approx(expected, rel=1e-4)


def test_an_unhashable_loss_and_a_model_that_holds_itself_are_taken() -> None:
    @dataclass
    class Loss:
        weight: float = 1.0

        def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
            return self.weight * F.cross_entropy(logits, labels)

    model = build()
    model.own = [model]
    model.own.append(model.own)
    made = problem(model, loss=Loss())
    assert loop(made).run(2).history == pytest.approx(loop(made, "reference").run(2).history, rel=1e-4)


def test_a_start_that_is_the_answer_does_not_cost_the_engine() -> None:
    made = problem(build())
    truth = torch.rand(SHAPE, generator=generator("truth"))
    assert Descent(made, DescentSettings(iterations=3), truth).engine == "native"
    assert loop(made).engine == "native"


def test_a_start_in_another_layout_runs_on() -> None:
    class Last(Net):
        def forward(self, clips: Tensor) -> Tensor:
            return super().forward(
                clips.permute(0, 2, 3, 4, 1).contiguous().view(1, 4, 8, 8, 3).movedim(-1, 1)
            )

    made = problem(build(Last))
    start = torch.rand(SHAPE, generator=generator("start")).to(memory_format=torch.channels_last_3d)
    native_loop, reference = (
        Descent(made, DescentSettings(iterations=9), start, engine=e) for e in ("native", "reference")
    )
    assert native_loop.engine == "native"
    assert native_loop.run(5).history == pytest.approx(reference.run(5).history, rel=1e-4)


def test_loops_on_one_model_can_be_made_in_many_threads() -> None:
    made = problem(build())
    expected = loop(made).run(5).history
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda index: loop(made, ("native", "reference")[index % 2]).run(5), range(12)))
    assert all(state.history == pytest.approx(expected, rel=1e-4) for state in found)


def test_the_cache_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_KEPT", 2)
    for scale in (1.0, 2.0, 3.0):
        loop(problem(build(lambda scale=scale: Net(scale))))
    assert program_count() == 2


@pytest.mark.parametrize(("make", "word"), [(Branching, "captured"), (Dropping, "random")])
def test_what_cannot_be_captured_runs_on_the_reference_and_says_so_once(make: Any, word: str) -> None:
    made = replace(problem(build()), model=build(make))
    with pytest.warns(EngineWarning, match=word) as told:
        assert loop(made).engine == "reference"
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = loop(made)
    assert again.engine == "reference"
    if make is Branching:
        assert again.run(5).history == loop(made, "reference").run(5).history


def test_a_graph_that_computes_something_else_is_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made = problem(build())
    right = programs.optimize

    def wrong(capture: Any) -> Any:
        optimized = right(capture)
        for node in optimized.graph.graph.nodes:
            if node.target is torch.ops.aten.tanh.default:
                node.target = torch.ops.aten.sin.default
        optimized.graph.recompile()
        return optimized

    monkeypatch.setattr(programs, "optimize", wrong)
    with pytest.warns(EngineWarning, match="other numbers"):
        assert loop(made).engine == "reference"


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3 * 8 * 8, 8, batch_first=True), nn.Linear(8, 6)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.gru(clips.transpose(1, 2).flatten(2))[0][:, -1])


def test_a_graph_that_is_right_once_is_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made = problem(build(Gated))
    assert loop(made).engine == "native"
    monkeypatch.setattr(programs, "_programs", type(programs._programs)())
    # Nobody knows then that a GRU writes into what was made of its weights, once.
    monkeypatch.setattr(memory, "SILENT_VIEWS", ())
    with pytest.warns(EngineWarning, match="other numbers"):
        assert loop(made).engine == "reference"


def test_nothing_of_the_model_changes() -> None:
    model = build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    loop(problem(model)).run(3)
    assert torch.equal(state, torch.get_rng_state())
    assert [p.requires_grad for p in model.parameters()] == [True] * 4
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
