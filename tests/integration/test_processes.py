"""Cells in processes of their own: the same numbers, and no cell harms another one or the run."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from costly_parts import Costly
from evaluations import timeless

from runs import journal_length, tiny
from vleak.errors import InputError
from vleak.evaluation import Limits, StoppedError, evaluate
from vleak.results import RunRecord, read_run

NARROW = "c3d_tiny:width=4,depth=1"
HOSTS: dict[str, Any] = {"model": NARROW, "defenses": ("none",), "enhance": "none"}


def costly(marks: Path, way: str, tries: int, limits: Limits | None = None) -> RunRecord:
    attacks = (Costly(way=way, marks=str(marks), tries=tries), "matching")
    return evaluate(tiny(**HOSTS, attacks=attacks), workers=2, limits=limits)


def runs(stat: Path) -> bool:
    """Whether a process of /proc is there and has not ended."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:  # it ended before, or while it was read
        return False


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
    settings = tiny(**{"model": NARROW} | changes)
    alone = evaluate(settings, workers=1)
    apart = evaluate(settings, tmp_path / "run", workers=2)
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
        pytest.param(
            "leave", None, r"failed: ended its process (exit code 3), 3 times", marks=pytest.mark.slow
        ),
        ("hang", Limits(seconds=1), "failed: took longer than cell_seconds=1, 3 times"),
        pytest.param("interrupt", None, "failed: raised KeyboardInterrupt, 3 times", marks=pytest.mark.slow),
    ],
)
def test_a_cell_that_fails_three_times_is_recorded_and_the_others_go_on(
    way: str, limits: Limits | None, status: str, tmp_path: Path
) -> None:
    attack = Costly(way=way, marks=str(tmp_path), tries=10**6)
    record = evaluate(tiny(**HOSTS, attacks=(attack,), clips=1), workers=2, limits=limits)
    assert statuses(record, "costly") == [status]
    assert statuses(record, "grey") == statuses(record, "public_mean") == ["ok"]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fork", "print"])
def test_plug_ins_that_fork_or_print_change_nothing(
    way: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert {cell.status for cell in costly(tmp_path, way, tries=10**6).cells} == {"ok"}
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_what_a_plug_in_left_running_ends_with_its_cell(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    record = costly(tmp_path / "marks", "leave behind", tries=10**6)
    assert statuses(record, "costly") == ["failed: ended its process (SIGKILL), 3 times"] * 3
    left = [Path("/proc", path.name.removeprefix("left-"), "stat") for path in tmp_path.glob("left-*")]
    assert len(left) == 9
    end = time.monotonic() + 10  # a process that is killed ends when the kernel comes to it
    while any(map(runs, left)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(runs, left))


def test_memory_beyond_the_limit_fails_the_cell_only(tmp_path: Path) -> None:
    record = costly(tmp_path, "fill", tries=10**6, limits=Limits(gibibytes=4))
    for status in statuses(record, "costly"):
        assert status.startswith("failed: attack 'costly' ran out of memory; lower to ")
    assert statuses(record, "matching") == ["ok"] * 3


def test_a_stopped_run_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    stop, settings = threading.Event(), tiny(model=NARROW, engine="reference", enhance="none")

    def halt(what: str, done: int, total: int) -> None:
        if what == "attacking" and done >= 7:  # two baselines of three clips, and one cell
            stop.set()

    with pytest.raises(StoppedError, match=r"stopped with \d+ of 12 cells finished"):
        evaluate(settings, tmp_path / "run", workers=2, stop=stop, progress=halt)
    finished = journal_length(tmp_path / "run")
    assert 7 <= finished < 12
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    whole = evaluate(settings, tmp_path / "run", workers=2)
    assert timeless(whole) == timeless(evaluate(settings, tmp_path / "other", workers=1))


def test_limits_are_numbers_above_zero() -> None:
    for wrong in (0, -1, float("nan"), float("inf"), True):
        with pytest.raises(InputError, match=r"cell_seconds=.*: expected a number above 0"):
            Limits(seconds=wrong)
        with pytest.raises(InputError, match=r"cell_memory=.*: expected a number above 0"):
            Limits(gibibytes=wrong)
