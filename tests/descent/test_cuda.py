"""Iterations as CUDA graphs: the bookkeeping with a graph that is none, and on a GPU the real one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from descents import built_in, draw, make_problem, make_settings, models
from scripted import FakeGraph, script, scripted, scripted_capture, scripted_values
from torch import Tensor

from vleak.descent import Descent, Problem, batch, cuda, run_descents
from vleak.descent.batch import TrialRunner
from vleak.descent.capture import Capture, as_step, capture
from vleak.descent.cuda import CudaGraphWarning, CudaProgram, CudaRunner
from vleak.descent.graph import GraphProgram
from vleak.descent.passes import optimize
from vleak.descent.runner import End, EndRule, never, undo_beyond_end
from vleak.descent.step import STATE, Step, first_values
from vleak.descent.step_settings import settings_table
from vleak.errors import InputError

Values = dict[str, Tensor]


def run(runner: Any, settings: Tensor) -> list[float]:
    return runner.run(settings, never).objectives.tolist()


def test_a_graph_is_recorded_once_leaves_no_trace_and_reads_and_writes_in_place() -> None:
    graph, given = FakeGraph(), scripted_values()
    bound = CudaProgram(scripted_capture(), record=graph.record).start(given)
    assert graph.recorded == 0
    assert bound.outputs == {}
    places = {name: value.data_ptr() for name, value in bound.values.items()}
    run(bound, script(5.0, 4.0))
    assert bound.outputs["objective"] == 4.0
    run(bound, script(3.0, 2.0, 1.0))
    assert (graph.recorded, graph.replays) == (1, 5)
    assert {name: value.data_ptr() for name, value in bound.values.items()} == places
    assert all(torch.equal(value, scripted_values()[name]) for name, value in given.items())
    assert bound.values["scale"].data_ptr() == given["scale"].data_ptr()
    assert bound.values["x"].data_ptr() != given["x"].data_ptr()


def test_what_cannot_be_recorded_is_launched_one_by_one_and_told_once(monkeypatch: Any) -> None:
    monkeypatch.setattr(cuda, "_warned", cuda.threading.Event())

    def refuse(iterate: Callable[[], None]) -> Callable[[], None]:
        iterate()
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    table = script(3.0, 2.0, 1.0)
    expected = CudaProgram(scripted_capture(), record=FakeGraph().record).start(scripted_values())
    run(expected, table)
    runners = [CudaProgram(scripted_capture(), record=refuse).start(scripted_values()) for _ in range(2)]
    with pytest.warns(CudaGraphWarning, match="not permitted when stream is capturing$"):
        assert run(runners[0], table) == [3.0, 2.0, 1.0]
    assert torch.equal(runners[0].values["x"], expected.values["x"])
    assert run(runners[1], table) == [3.0, 2.0, 1.0]


def test_values_must_be_there() -> None:
    program = CudaProgram(scripted_capture(), record=FakeGraph().record)
    with pytest.raises(InputError, match="'scale' is missing"):
        program.start({name: value for name, value in scripted_values().items() if name != "scale"})


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
    runner = GraphProgram(made).start(values)
    bound = CudaProgram(made, record=FakeGraph().record).start(values)
    assert run(bound, table) == run(runner, table)
    for each in ("x", "best", "best_objective", "m", "v"):
        assert torch.equal(bound.values[each], runner.values[each])
    assert torch.equal(bound.outputs["gradient"], runner.outputs["gradient"])


def test_a_batch_is_replayed(monkeypatch: Any) -> None:
    def start(program: Capture, values: Values) -> CudaRunner:
        return CudaRunner(as_step(program), values, program.fixed, record=graph.record)

    graph, problem = FakeGraph(), make_problem(built_in("c3d_tiny"))
    replayed, plain = (
        [Descent(problem, make_settings(problem, 8), draw(1, "start", trial)) for trial in range(2)]
        for _ in range(2)
    )
    expected = run_descents(plain, 8, batched=True)
    monkeypatch.setattr(batch, "_start", start)
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

    replayed = CudaRunner(lambda own: dict(zip(made.outputs, made.graph(*own.values()), strict=True)), values,
                        made.fixed, record=record)  # fmt: skip
    replayed.run(values["settings"][None], never)
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
    graphed, plain = CudaProgram(made).start(values), GraphProgram(made).start(values)
    torch.testing.assert_close(run(graphed, table), run(plain, table), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(graphed.values["x"], plain.values["x"], rtol=1e-3, atol=1e-4)


@gpu
@needs_cuda
def test_no_kernel_waits_in_a_recording(recwarn: pytest.WarningsRecorder) -> None:
    made, values, table = descent_of("", on_gpu(make_problem(built_in("lrcn"))), draw(1, "start").cuda())
    run(CudaProgram(made).start(values), table[:3])
    assert not [each for each in recwarn if each.category is CudaGraphWarning]


@gpu
@needs_cuda
def test_a_recording_that_fails_leaves_the_device_as_it_was() -> None:
    number, stream = torch.ones((), device="cuda"), torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        cuda.record(lambda: read(number))
    assert torch.cuda.current_stream() == stream
    number.fill_(1.0)
    replay = cuda.record(lambda: doubled_in_place(number))
    number.fill_(1.0)
    replay()
    replay()
    assert number.item() == 4.0


@gpu
@needs_cuda
def test_nan_ends_a_graphed_descent_at_its_iteration() -> None:
    values = {name: value.cuda() for name, value in scripted_values().items()}
    runner = CudaProgram(capture(scripted, values, ["scale"])).start(values)
    rows, rule, before = script(3.0, 2.0, math.nan, 1.0, 0.5).cuda(), EndRule(5), runner.state()
    undo_beyond_end(runner, rule, before, rows, runner.run(rows, never))
    assert rule.end == End(3, 2, "nan")
    assert torch.equal(runner.values["x"].cpu(), torch.full((2, 3), 2.5, dtype=torch.float64))


@gpu
@needs_cuda
def test_trials_on_a_gpu_run_batched_and_as_alone() -> None:
    problem = on_gpu(make_problem(built_in("c3d_tiny")))
    together, alone = (
        [Descent(problem, make_settings(problem), draw(1, "start", i).cuda()) for i in range(3)]
        for _ in range(2)
    )
    states = run_descents(together, 20)
    assert all(isinstance(loop.runner, TrialRunner) for loop in together)
    for state, loop in zip(states, alone, strict=True):
        torch.testing.assert_close(state.history, loop.run(20).history, rtol=1e-3, atol=1e-4)
