"""End of a descent: the rule by itself, and that every backend stands where the rule says."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable

import pytest
import torch
from scripted import FakeGraph, script, scripted, scripted_capture, scripted_values

from vleak.descent.cuda import CudaProgram
from vleak.descent.eager import EagerRunner
from vleak.descent.graph import GraphProgram
from vleak.descent.runner import BLOCK, End, EndRule, HeldInterrupt, Runner, never, undo_beyond_end

# ---- the rule


@pytest.mark.parametrize(
    ("objectives", "patience", "tolerance", "length"),
    [
        ([5, 4, 4, 4, 4, 4], 3, 0.0, 5),
        ([5, 4, 4, 4, 3, 3, 3, 3], 4, 0.0, None),
        ([10, 9.5, 9.1, 8.99, 8.5, 8.2, 7], 3, 0.1, None),
        ([10, 9.5, 9.1, 9.0, 8.9, 8.2], 3, 0.1, 4),
        ([-10, -10.5, -10.9, -11], 3, 0.1, 4),
        ([-10, -10.5, -10.9, -11.1], 3, 0.1, None),
        ([math.inf, math.inf, 1], 2, 0.1, 2),
        ([5, 5, 5, 5, 5], 0, 0.1, None),
        ([5, 6, 7], 1, 0.0, 2),
    ],
)
def test_a_plateau_ends_a_descent_however_it_is_cut(
    objectives: list[float], patience: int, tolerance: float, length: int | None
) -> None:
    whole = EndRule(100, patience, tolerance)
    expected = None if length is None else End(length, length, "plateau")
    assert whole.observe(objectives) == whole.end == expected
    assert whole.done == (length or len(objectives))
    cut = EndRule(100, patience, tolerance)
    ends = [cut.observe([objective]) for objective in objectives[:length]]
    assert ends[:-1] == [None] * (len(ends) - 1)
    assert ends[-1] == (None if length is None else End(1, 1, "plateau"))


def test_the_schedule_ends_a_descent_and_nan_comes_before_its_step() -> None:
    assert EndRule(3).observe([3, 2, 1]) == End(3, 3, "schedule")
    assert EndRule(4).observe([3, 2, 1]) is None
    assert EndRule(0).end == End(0, 0, "schedule")
    assert EndRule(3).observe([3, 2, math.nan, 1]) == End(3, 2, "nan")


# ---- every backend


NAN = math.nan
SCRIPTS: dict[str, tuple[list[float], tuple[int, float]]] = {
    "to the end of the schedule": ([3.0, 2.0, 2.5], (0, 0.0)),
    "nan": ([3.0, 2.0, NAN, 1.0, 0.5], (0, 0.0)),
    "nan at once": ([NAN, 1.0], (0, 0.0)),
    "infinite": ([math.inf, 1.0, -math.inf, 0.0], (2, 0.1)),
    "plateau": ([4.0, 3.0, 2.99, 2.98, 1.0, 0.5], (2, 0.01)),
    "slow but steady": ([4.0, 3.9, 3.8, 3.7, 3.6, 3.5], (2, 0.01)),
    "from below zero": ([-1.0, -1.005, -1.2, -1.201, -1.202], (2, 0.01)),
    "nan before the plateau": ([1.0, 1.0, NAN, 1.0], (3, 0.0)),
    "longer than a block": ([1.0 / i for i in range(1, 151)], (0, 0.0)),
    "nan late": ([1.0] * 70 + [NAN] + [0.5] * 80, (0, 0.0)),
    "plateau late": ([1.0 / min(i, 66) for i in range(1, 151)], (4, 1e-6)),
}

BACKENDS: dict[str, Callable[[], Runner]] = {
    "eager": lambda: EagerRunner(scripted, scripted_values(), ("x", "m")),
    "graph": lambda: GraphProgram(scripted_capture()).start(scripted_values()),
    "cuda": lambda: CudaProgram(scripted_capture(), record=FakeGraph().record).start(scripted_values()),
}


def state_after(moves: int) -> tuple[float, float]:
    """Return x and m after so many moves, computed one after the other."""
    x, m = 1.0, 0.0
    for move in range(1, moves + 1):
        x, m = x + 0.5 * move, m + x
    return x, m


@pytest.mark.parametrize("cut", [1, 2, 150])
@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_descent_stands_where_the_rule_ends_it(backend: str, name: str, cut: int) -> None:
    objectives, plateau = SCRIPTS[name]
    table, runner = script(*objectives), BACKENDS[backend]()
    rule, history = EndRule(len(objectives), *plateau), list[float]()
    while rule.end is None:
        rows, before = table[rule.done :][:cut], runner.state()
        history += undo_beyond_end(runner, rule, before, rows, runner.run(rows, never))
    expected = EndRule(len(objectives), *plateau)
    end = expected.observe(objectives)
    assert end is not None
    assert rule.end.reason == end.reason
    torch.testing.assert_close(history, objectives[: end.counted], rtol=0, atol=0, equal_nan=True)
    x, m = state_after(end.kept)
    assert torch.equal(runner.values["x"], torch.full((2, 3), x, dtype=torch.float64))
    assert torch.equal(runner.values["m"], torch.full((2, 3), m, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_runner_is_interrupted_between_iterations_or_blocks(backend: str) -> None:
    runner, asked = BACKENDS[backend](), list[int]()

    def interrupted() -> bool:
        asked.append(1)
        return len(asked) > 1

    count = 2 if backend == "eager" else BLOCK + 1
    done = len(runner.run(script(*[1.0] * count), interrupted).objectives)
    # C++ asks ten times a second, the CUDA backend once a block.
    assert done == {"eager": 1, "graph": BLOCK + 1, "cuda": BLOCK}[backend]
    assert runner.values["x"][0, 0] == state_after(done)[0]


def test_ctrl_c_is_held_back_once() -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread receives signals")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with HeldInterrupt() as interrupt:
            assert not interrupt.requested()
            signal.raise_signal(signal.SIGINT)
            assert interrupt.requested()
        with pytest.raises(KeyboardInterrupt):
            interrupt.deliver()
        with HeldInterrupt():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
