"""`vleak bench`, and the clock behind it and the benchmarks: figures that can be computed by hand."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import VLEAK
from vleak.cli import run
from vleak.descent import timing
from vleak.descent.timing import Measured, interleaved, iterations_needed
from vleak.errors import InputError

SMALL = ("bench", "--model", "lrcn", "--frames", "2", "--size", "8")


class Clock:
    """CPU time that passes only in calls of known cost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.order = 0.0, list[tuple[str, int]]()
        monkeypatch.setattr(timing.time, "process_time", lambda: self.now)

    def call(self, name: str, cost: Callable[[], float]) -> timing.Call:
        def call(count: int) -> None:
            self.order.append((name, count))
            self.now += cost() * count

        return call


# --- the clock --------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = {"a": clock.call("a", lambda: 0.5), "b": clock.call("b", lambda: 0.125)}
    ticks: list[int] = []
    found = interleaved(calls, rounds=3, seconds=1.0, progress=lambda: ticks.append(1))
    assert found == {"a": Measured((0.5,) * 3), "b": Measured((0.125,) * 3)}
    assert len(ticks) == 6


def test_calls_take_turns_in_an_order_that_moves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = {name: clock.call(name, lambda: 0.25) for name in "abc"}
    interleaved(calls, rounds=4, seconds=1.0)
    assert "".join(name for name, _ in clock.order[-12:]) == "abc" + "bca" + "cab" + "abc"
    assert {count for _, count in clock.order[-12:]} == {4}  # 4 x 0.25 s fill a block of 1 s


def test_the_first_call_counts_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, costs = Clock(monkeypatch), iter([100.0])
    found = interleaved({"a": clock.call("a", lambda: next(costs, 0.5))}, rounds=2, seconds=1.0)
    assert found["a"].rounds == (0.5, 0.5)


@pytest.mark.parametrize("cost", [0.0, 1e-9, 1e-4, 3e-4, 0.02, 5.0])
def test_no_more_iterations_than_announced(monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
    clock = Clock(monkeypatch)
    interleaved({"a": clock.call("a", lambda: cost)}, rounds=3, seconds=0.2)
    assert 5 <= sum(count for _, count in clock.order) <= iterations_needed(3)
    assert max(count for _, count in clock.order) <= 1_000


@pytest.mark.parametrize(("calls", "rounds"), [({}, 3), ({"a": lambda count: None}, 0)])
def test_nothing_to_measure_is_refused(calls: dict[str, timing.Call], rounds: int) -> None:
    with pytest.raises(InputError, match="expected at least 1 round and 1 call, got"):
        interleaved(calls, rounds=rounds)


def test_median_and_quantiles() -> None:
    few = Measured((3.0, 1.0, 2.0))
    assert (few.median, few.low, few.high) == (2.0, 1.0, 3.0)
    many = Measured(tuple(float(i) for i in range(20, 0, -1)))
    assert (many.median, many.low, many.high) == (10.5, 3.0, 18.0)


def test_ratios_are_taken_round_by_round() -> None:
    ratio = Measured((2.0, 8.0, 18.0)).divided_by(Measured((1.0, 2.0, 3.0)))
    assert ratio.rounds == (2.0, 4.0, 6.0)
    assert Measured((2.0, 8.0)).divided_by(8).rounds == (0.25, 1.0)
    with pytest.raises(ValueError, match="zip"):
        Measured((1.0, 2.0)).divided_by(Measured((1.0,)))


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run every call twice instead of measuring it, and return figures that a test can know."""
    seen: dict[str, Any] = {}
    costs = {"forward_backward": (0.001, 0.001), "reference": (0.006, 0.009), "native": (0.002, 0.003)}

    def fake(calls: dict[str, timing.Call], **_: Any) -> dict[str, Measured]:
        seen["threads"], seen["calls"] = torch.get_num_threads(), list(calls)
        seen["states"] = {name: call(2) for name, call in calls.items()}
        return {name: Measured(costs[name]) for name in calls}

    monkeypatch.setattr(timing, "interleaved", fake)
    monkeypatch.setattr("warnings.showwarning", None)
    return seen


def test_json_alone_on_stdout(quick: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SMALL, "--json"]) == 0
    out, err = capsys.readouterr()
    results = json.loads(out)
    assert err == ""
    assert results["clip"] == [1, 3, 2, 8, 8]
    assert results["environment"]["torch"] == torch.__version__
    (row,) = results["models"]
    assert row["model"] == "lrcn"
    assert row["forward_backward"] == {"cpu_s": 0.001, "cpu_s_low": 0.001, "cpu_s_high": 0.001}
    assert row["reference"]["cpu_s"] == pytest.approx(0.0075)
    assert row["reference"]["engine"] == "reference"
    assert row["native"]["over_forward_backward"] == pytest.approx(2.5)
    assert row["reference_over_native"] == pytest.approx({"median": 3.0, "low": 3.0, "high": 3.0})


def test_both_engines_do_the_same_work_on_one_thread(quick: dict[str, Any]) -> None:
    before = torch.get_num_threads()
    assert run(list(SMALL)) == 0
    assert quick["threads"] == 1
    assert torch.get_num_threads() == before
    assert quick["calls"] == ["forward_backward", "reference", "native"]
    histories = [quick["states"][engine].history for engine in ("reference", "native")]
    assert len(histories[0]) == 2
    assert histories[1] == pytest.approx(histories[0], rel=1e-4)


def test_the_table_says_it_all(quick: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(list(SMALL)) == 0
    out = capsys.readouterr().out
    assert "clip 1x3x2x8x8" in out
    (line,) = [line for line in out.splitlines() if line.strip().startswith("lrcn ")]
    assert line.split() == ["lrcn", "1.00", "7.50", "2.50", "3.00", "3.00", "..", "3.00", "2.5"]


def test_all_built_in_models_by_default(quick: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    from vleak.models import SMALL_MODELS

    assert run(["bench", "--frames", "2", "--size", "8", "--json"]) == 0
    assert [row["model"] for row in json.loads(capsys.readouterr().out)["models"]] == list(SMALL_MODELS)


@pytest.mark.slow
def test_without_native_code_it_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "VLEAK_EXTENSION": "off", "COLUMNS": "200"}
    done = subprocess.run(
        [*VLEAK, *SMALL], capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "no native code here (VLEAK_EXTENSION=off): both columns ran plain PyTorch." in done.stdout
    assert "what to do: unset VLEAK_EXTENSION." in done.stdout
    assert "kernels" not in done.stdout


def test_a_model_that_cannot_be_captured_is_named(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vleak import descent

    class Fallen(descent.Descent):
        def __init__(self, *given: Any, engine: str) -> None:
            super().__init__(*given, engine="reference")

    monkeypatch.setattr(descent, "Descent", Fallen)
    monkeypatch.setenv("COLUMNS", "200")
    assert run(list(SMALL)) == 0
    out = capsys.readouterr().out
    assert "not captured, so the reference ran in its place: lrcn." in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "nope"), "unknown model 'nope'; known: c3d_tiny"),
        (("--frames", "1"), "--frames 1: expected a whole number from 2 to 1024"),
        (("--size", "4"), "--size 4: expected a whole number from 8 to 1024"),
    ],
)
def test_wrong_input_is_one_line(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"vleak: {message}")
    assert err.count("\n") == 1
