"""Iterations as CUDA graphs: the bookkeeping with a graph that is none, and on a GPU the real one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_engine import built_in, draw, make_problem, make_settings, models
from torch import Tensor

from vleak.descent import batch, cuda_graph
from vleak.descent.batch import Member
from vleak.descent.capture import Capture, capture
from vleak.descent.cuda_graph import CudaGraphWarning, CudaProgram, Replayed
from vleak.descent.loop import Descent
from vleak.descent.passes import optimize
from vleak.descent.problem import Problem
from vleak.descent.runner import Plateau, Program
from vleak.descent.scheduler import run_descents
from vleak.descent.steps import STATE, Step, first_values, settings_table
from vleak.descent.watch import as_step
from vleak.errors import InputError

Values = dict[str, Tensor]


def scripted(values: Values) -> Values:
    """Move x by one number of the row; the other is the objective."""
    move, objective = values["settings"]
    values["m"].add_(values["x"])
    return {"x": values["x"] + move * values["scale"], "objective": objective + 0 * values["x"].sum()}


def script(*objectives: float) -> Tensor:
    moves = torch.arange(1.0, len(objectives) + 1, dtype=torch.float64)
    return torch.stack([moves, torch.tensor(objectives, dtype=torch.float64)], 1)


def scripted_values() -> Values:
    ones = torch.ones(2, 3, dtype=torch.float64)
    return {"x": ones, "m": 0 * ones, "scale": 0.5 * ones, "settings": torch.zeros(2, dtype=torch.float64)}


def scripted_capture() -> Capture:
    return capture(scripted, scripted_values(), ["scale"])


class Graph:
    """Stands in for a CUDA graph: replays by calling."""

    def __init__(self) -> None:
        self.recorded = self.replays = 0

    def record(self, iterate: Callable[[], None]) -> Callable[[], None]:
        for _ in range(3):
            iterate()
        self.recorded += 1

        def replay() -> None:
            self.replays += 1
            iterate()

        return replay


NAN = math.nan
SCRIPTS: dict[str, tuple[list[float], Plateau]] = {
    "done": ([3.0, 2.0, 2.5], Plateau()),
    "nan": ([3.0, 2.0, NAN, 1.0, 0.5], Plateau()),
    "nan at once": ([NAN, 1.0], Plateau()),
    "infinite": ([math.inf, 1.0, -math.inf, 0.0], Plateau(2, 0.1)),
    "plateau": ([4.0, 3.0, 2.99, 2.98, 1.0, 0.5], Plateau(2, 0.01)),
    "slow but steady": ([4.0, 3.9, 3.8, 3.7, 3.6, 3.5], Plateau(2, 0.01)),
    "from below zero": ([-1.0, -1.005, -1.2, -1.201, -1.202], Plateau(2, 0.01)),
    "nan before the plateau": ([1.0, 1.0, NAN, 1.0], Plateau(3, 0.0)),
    "longer than the books": ([1.0 / i for i in range(1, 151)], Plateau()),
    "nan late": ([1.0] * 70 + [NAN] + [0.5] * 80, Plateau()),
    "plateau late": ([1.0 / min(i, 66) for i in range(1, 151)], Plateau(4, 1e-6)),
}


@pytest.mark.parametrize("cut", [1, 2, 150])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_descent_ends_as_the_runner_ends_it(name: str, cut: int) -> None:
    objectives, plateau = SCRIPTS[name]
    table, made = script(*objectives), scripted_capture()
    runner = Program(made, executor="python").bind(scripted_values(), plateau)
    expected = runner.run(len(table), table)
    bound = CudaProgram(made, record=Graph().record).bind(scripted_values(), plateau)
    history: list[float] = []
    reason = "done"
    while reason == "done" and len(history) < len(table):
        outcome = bound.run(min(cut, len(table) - len(history)), table[len(history) :])
        history, reason = history + outcome.history, outcome.reason
    assert reason == expected.reason
    torch.testing.assert_close(history, expected.history, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(bound.values["x"], runner.values["x"])


def test_what_a_step_changes_in_place_stands_before_nan() -> None:
    bound = CudaProgram(scripted_capture(), record=Graph().record).bind(scripted_values())
    assert bound.run(4, script(1.0, 1.0, NAN, 1.0)).reason == "nan"
    # x was 1, then 1.5; it moves by 0.5 and by 1.
    assert torch.equal(bound.values["x"], torch.full((2, 3), 2.5, dtype=torch.float64))
    assert torch.equal(bound.values["m"], torch.full((2, 3), 2.5, dtype=torch.float64))


def test_a_graph_is_recorded_once_leaves_no_trace_and_reads_and_writes_in_place() -> None:
    graph, given = Graph(), scripted_values()
    bound = CudaProgram(scripted_capture(), record=graph.record).bind(given)
    assert graph.recorded == 0
    assert bound.outputs == {}
    places = {name: value.data_ptr() for name, value in bound.values.items()}
    assert bound.run(0, script()).history == []
    bound.run(2, script(5.0, 4.0))
    assert bound.outputs["objective"] == 4.0
    bound.run(3, script(3.0, 2.0, 1.0))
    assert (graph.recorded, graph.replays) == (1, 5)
    assert {name: value.data_ptr() for name, value in bound.values.items()} == places
    assert all(torch.equal(value, scripted_values()[name]) for name, value in given.items())
    assert bound.values["scale"].data_ptr() == given["scale"].data_ptr()
    assert bound.values["x"].data_ptr() != given["x"].data_ptr()


def test_what_cannot_be_recorded_is_launched_one_by_one_and_told_once(monkeypatch: Any) -> None:
    monkeypatch.setattr(cuda_graph, "_told", cuda_graph.threading.Event())

    def refuse(iterate: Callable[[], None]) -> Callable[[], None]:
        iterate()
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    table = script(3.0, 2.0, NAN, 1.0)
    expected = CudaProgram(scripted_capture(), record=Graph().record).bind(scripted_values())
    expected.run(4, table)
    bounds = [CudaProgram(scripted_capture(), record=refuse).bind(scripted_values()) for _ in range(2)]
    with pytest.warns(CudaGraphWarning, match="not permitted when stream is capturing$"):
        outcome = bounds[0].run(4, table)
    assert (outcome.history[:2], outcome.reason) == ([3.0, 2.0], "nan")
    assert torch.equal(bounds[0].values["x"], expected.values["x"])
    assert bounds[1].run(2, table).history == [3.0, 2.0]


def test_an_interrupt_ends_the_next_run_only() -> None:
    bound = CudaProgram(scripted_capture(), record=Graph().record).bind(scripted_values())
    bound.interrupt()
    assert bound.run(2, script(2.0, 1.0)).reason == "interrupted"
    assert bound.run(2, script(2.0, 1.0)).history == [2.0, 1.0]


def test_values_and_rows_must_be_there() -> None:
    program = CudaProgram(scripted_capture(), record=Graph().record)
    with pytest.raises(InputError, match="'scale' is missing"):
        program.bind({name: value for name, value in scripted_values().items() if name != "scale"})
    with pytest.raises(InputError, match="2 rows"):
        program.bind(scripted_values()).run(3, script(2.0, 1.0))


def descent_of(name: str, problem: Problem, start: Tensor, **changes: Any) -> tuple[Capture, Values, Tensor]:
    """Return the captured iteration, its first values and the table."""
    descent = make_settings(problem, **changes)
    table = settings_table(descent).to(start.device)
    values = first_values(problem, descent, start) | {"settings": table[0]}
    step = Step(problem.model, problem.loss, problem.distance, descent)
    fixed = [each for each in values if each not in STATE]
    return optimize(capture(step, values, fixed)), values, table


@models
def test_a_replayed_descent_is_the_runners(name: str) -> None:
    made, values, table = descent_of(name, make_problem(built_in(name)), draw(1, "start"), iterations=5)
    runner, bound = Program(made).bind(values), CudaProgram(made, record=Graph().record).bind(values)
    assert bound.run(5, table) == runner.run(5, table)
    for each in ("x", "best", "best_objective", "m", "v"):
        assert torch.equal(bound.values[each], runner.values[each])
    assert torch.equal(bound.outputs["gradient"], runner.outputs["gradient"])


def test_a_batch_is_replayed(monkeypatch: Any) -> None:
    def bound(many: Capture, values: Values) -> Replayed:
        return Replayed(as_step(many), values, many.fixed, record=graph.record)

    graph, problem = Graph(), make_problem(built_in("c3d_tiny"))
    replayed, plain = (
        [Descent(problem, make_settings(problem, 8), draw(1, "start", trial)) for trial in range(2)]
        for _ in range(2)
    )
    expected = run_descents(plain, 8, batched=True)
    monkeypatch.setattr(batch, "_bound", bound)
    states = run_descents(replayed, 8, batched=True, every=3)
    assert (graph.recorded, graph.replays) == (1, 8)
    for state, other in zip(states, expected, strict=True):
        assert state.history == other.history
        assert torch.equal(state.x, other.x)


def test_buffers_are_as_they_were_after_the_warm_up() -> None:
    made, values, _ = descent_of("", make_problem(built_in("c3d_tiny")), draw(1, "start"))
    seen: list[Values] = []

    def record(iterate: Callable[[], None]) -> Callable[[], None]:
        iterate()
        return lambda: seen.append({name: value.clone() for name, value in replayed.values.items()})

    replayed = Replayed(lambda own: dict(zip(made.outputs, made.graph(*own.values()), strict=True)), values,
                        made.fixed, record=record)  # fmt: skip
    replayed.run(1, values["settings"][None])
    assert all(torch.equal(seen[0][name], value) for name, value in values.items())


# ---- on a GPU


def read(number: Tensor) -> None:
    number.add_(number.item())


def doubled_in_place(number: Tensor) -> None:
    number.mul_(2.0)


gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(problem: Problem) -> Problem:
    def there(tensors: Any) -> Any:
        return tensors and {name: tensor.cuda() for name, tensor in tensors.items()}

    return replace(
        problem, model=problem.model.cuda(), labels=problem.labels.cuda(), target=there(problem.target),
        masks=there(problem.masks),
    )  # fmt: skip


@gpu
@needs_cuda
@models
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("clips", [1, 2])
def test_replays_equal_the_ungraphed_run(name: str, masked: bool, clips: int) -> None:
    problem = on_gpu(make_problem(built_in(name), clips, masked=masked))
    made, values, table = descent_of(name, problem, draw(clips, "start").cuda())
    graphed, plain = CudaProgram(made).bind(values), Program(made).bind(values)
    expected = plain.run(20, table)
    outcome = graphed.run(20, table)
    assert outcome.reason == expected.reason
    torch.testing.assert_close(outcome.history, expected.history, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(graphed.values["x"], plain.values["x"], rtol=1e-3, atol=1e-4)


@gpu
@needs_cuda
def test_no_kernel_waits_in_a_recording(recwarn: pytest.WarningsRecorder) -> None:
    made, values, table = descent_of("", on_gpu(make_problem(built_in("lrcn"))), draw(1, "start").cuda())
    CudaProgram(made).bind(values).run(3, table)
    assert not [each for each in recwarn if each.category is CudaGraphWarning]


@gpu
@needs_cuda
def test_a_recording_that_fails_leaves_the_device_as_it_was() -> None:
    number, stream = torch.ones((), device="cuda"), torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        cuda_graph.record(lambda: read(number))
    assert torch.cuda.current_stream() == stream
    number.fill_(1.0)
    replay = cuda_graph.record(lambda: doubled_in_place(number))
    number.fill_(1.0)
    replay()
    replay()
    assert number.item() == 4.0


@gpu
@needs_cuda
def test_nan_ends_a_graphed_descent_at_its_iteration() -> None:
    values = {name: value.cuda() for name, value in scripted_values().items()}
    made = capture(scripted, values, ["scale"])
    bound = CudaProgram(made).bind(values)
    assert bound.run(5, script(3.0, 2.0, NAN, 1.0, 0.5).cuda()).reason == "nan"
    assert torch.equal(bound.values["x"].cpu(), torch.full((2, 3), 2.5, dtype=torch.float64))


@gpu
@needs_cuda
def test_trials_on_a_gpu_run_batched_and_as_alone() -> None:
    problem = on_gpu(make_problem(built_in("c3d_tiny")))
    together, alone = (
        [Descent(problem, make_settings(problem), draw(1, "start", i).cuda()) for i in range(3)]
        for _ in range(2)
    )
    states = run_descents(together, 20)
    assert all(isinstance(loop.bound, Member) for loop in together)
    for state, loop in zip(states, alone, strict=True):
        torch.testing.assert_close(state.history, loop.run(20).history, rtol=1e-3, atol=1e-4)
