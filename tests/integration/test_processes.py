"""Cells in processes of their own: the same numbers, and no cell harms another one or the run."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from costly_parts import Costly
from evaluations import timeless

from runs import journal_length, options, start, tiny
from vleak.errors import InputError
from vleak.evaluation import Limits, StoppedError, evaluate
from vleak.results import RunRecord, read_run

HOSTS: dict[str, Any] = {"defenses": ("none",), "enhance": "none"}


def costly(marks: Path, way: str, tries: int, limits: Limits | None = None) -> RunRecord:
    attacks = (Costly(way=way, marks=str(marks), tries=tries), "matching")
    return evaluate(tiny(**HOSTS, attacks=attacks), workers=2, limits=limits)


def statuses(record: RunRecord, attack: str) -> list[str]:
    return [cell.status for cell in record.cells if cell.attack.name == attack]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="clips"),
        pytest.param({"batch": (2,), "defenses": ("prune",)}, id="batches", marks=pytest.mark.slow),
    ],
)
def test_numbers_are_those_of_one_process(changes: dict[str, Any], tmp_path: Path) -> None:
    alone = evaluate(tiny(**changes), workers=1)
    apart = evaluate(tiny(**changes), tmp_path / "run", workers=2)
    assert timeless(apart) == {
        name: cell.model_copy(update={"media": timeless(apart)[name].media})
        for name, cell in timeless(alone).items()
    }
    assert read_run(tmp_path / "run") == apart


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    record = costly(tmp_path, "die", tries=2)
    assert {cell.status for cell in record.cells} == {"ok"}
    assert len(list(tmp_path.iterdir())) == 3 + 2


@pytest.mark.parametrize(
    ("way", "limits", "status"),
    [
        ("die", None, r"failed: ended its process (SIGKILL), 3 times"),
        ("leave", None, r"failed: ended its process (exit code 3), 3 times"),
        ("hang", Limits(seconds=1), "failed: took longer than cell_seconds=1, 3 times"),
    ],
)
def test_a_cell_that_fails_three_times_is_recorded_and_the_others_go_on(
    way: str, limits: Limits | None, status: str, tmp_path: Path
) -> None:
    record = costly(tmp_path, way, tries=10**6, limits=limits)
    assert statuses(record, "costly") == [status] * 3
    assert statuses(record, "matching") == ["ok"] * 3
    assert len(list(tmp_path.iterdir())) == 3 * 3


def test_memory_beyond_the_limit_fails_the_cell_only(tmp_path: Path) -> None:
    record = costly(tmp_path, "fill", tries=10**6, limits=Limits(gibibytes=4))
    for status in statuses(record, "costly"):
        assert status.startswith("failed: attack 'costly' ran out of memory; lower to ")
    assert statuses(record, "matching") == ["ok"] * 3


def test_a_stopped_run_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    stop = threading.Event()

    def halt(what: str, done: int, total: int) -> None:
        if what == "attacking" and done >= 7:  # two baselines of three clips, and one cell
            stop.set()

    with pytest.raises(StoppedError, match=r"stopped with \d+ of 12 cells finished"):
        evaluate(tiny(), tmp_path / "run", workers=2, stop=stop, progress=halt)
    finished = journal_length(tmp_path / "run")
    assert 7 <= finished < 12
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    whole = evaluate(tiny(), tmp_path / "run", workers=2)
    assert timeless(whole) == timeless(evaluate(tiny(), tmp_path / "other", workers=1))


def test_limits_are_numbers_above_zero() -> None:
    for wrong in (0, -1, float("nan"), float("inf"), True):
        with pytest.raises(InputError, match=r"cell_seconds=.*: expected a number above 0"):
            Limits(seconds=wrong)
        with pytest.raises(InputError, match=r"cell_memory=.*: expected a number above 0"):
            Limits(gibibytes=wrong)


def _killed(folder: Path, name: str, after: float, arguments: list[str]) -> int:
    """Start a run of two processes, kill it after some seconds, and return its finished cells."""
    process = start(["evaluate", *arguments, "--workers", "2", "--out", name], folder)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
    return journal_length(folder / name)


@pytest.mark.slow
def test_kill_at_any_moment_loses_at_most_the_cells_in_flight(tmp_path: Path) -> None:
    arguments = options(clips=6, iterations=20)
    expected = timeless(evaluate(tiny(clips=6, iterations=20), tmp_path / "whole", workers=1))
    began = time.monotonic()
    assert start(["evaluate", *arguments, "--workers", "2", "--out", "first"], tmp_path).wait() == 0
    whole = time.monotonic() - began
    kept = 0
    for number in range(200):
        before = kept if number % 10 else 0
        kept = _killed(tmp_path, f"run{number // 10}", whole * (0.3 + 0.7 * (number % 10) / 10), arguments)
        assert kept >= before, "a finished cell was lost"
    for number in range(20):
        record = evaluate(tiny(clips=6, iterations=20), tmp_path / f"run{number}", workers=1)
        assert timeless(record) == expected
