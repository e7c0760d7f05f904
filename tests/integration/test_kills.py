"""`kill -9` at random moments: nothing is lost but the cells under way, and the end is as of a quiet run."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from evaluations import timeless
from killing import CELLS, Run, server, small

from vleak.evaluation import evaluate
from vleak.results import RunRecord, read_run
from vleak.results.folder import HEADER, read_journal
from vleak.results.records import Cell

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quiet() -> dict[str, Cell]:
    """Cells of a run that nobody disturbs."""
    return timeless(evaluate(small(), workers=1))


def seconds_of_a_run(folder: Path, workers: int) -> tuple[float, float]:
    """Seconds that a run takes, where it is not the first one, until its cells begin and from then on."""
    for name in ("first", "second"):
        begin = time.monotonic()
        run = Run(server(), folder / name, workers)
        run.wait_for_cells()
        begun = time.monotonic()
        run.process.join()
        assert run.process.exitcode == 0
    return begun - begin, time.monotonic() - begun


def read_killed(folder: Path) -> RunRecord | None:
    """Record of a killed run, readable at whatever moment it was; None where it had not begun."""
    return read_run(folder) if (folder / HEADER).exists() else None


@pytest.mark.parametrize(("workers", "kills"), [(1, 100), (2, 100)])
def test_kills_of_the_run(workers: int, kills: int, quiet: dict[str, Cell], tmp_path: Path) -> None:
    moments, killed, finished, within = random.Random(f"kills {workers}"), 0, 0, 0
    before, cells = seconds_of_a_run(tmp_path, workers)
    folder, kept = tmp_path / "run0", dict[str, Cell]()
    while killed < kills:
        run = Run(server(), folder, workers)
        moment = moments.uniform(0, before)
        if moments.random() < 0.8:  # most within the cells, the others anywhere before them
            run.wait_for_cells(moments.randint(min(len(kept), CELLS), CELLS))
            moment = moments.uniform(0, 0.3 * cells)
        was_killed = run.kill(moment)
        run.wait_until_gone()
        now = read_journal(folder)
        assert kept.items() <= now.items(), "a finished cell was lost, or is another"
        assert len(now) >= run.told.value, "a cell that was said to be stored is not"
        record = read_killed(folder)
        assert record is None or {cell.id for cell in record.cells} == set(now)
        within += kept.keys() < now.keys()
        killed, kept = killed + was_killed, now
        if not was_killed:
            assert run.process.exitcode == 0
            assert timeless(read_run(folder)) == quiet
            finished += 1
            folder, kept = tmp_path / f"run{finished}", {}
    assert timeless(evaluate(small(), folder, workers=workers)) == quiet
    assert finished >= kills // 50, "the moments of the kills reach to the end of a run"
    assert within >= kills // 20, "and into its cells"


def test_kills_of_workers(quiet: dict[str, Cell], tmp_path: Path) -> None:
    moments, kills = random.Random("kills of workers"), 0
    _, cells = seconds_of_a_run(tmp_path, 2)
    for number in range(20):
        run = Run(server(), tmp_path / f"run{number}", 2)
        run.wait_for_cells()
        for _ in range(2):  # a third one might be the third of a cell
            time.sleep(moments.uniform(0, cells / 3))
            kills += run.kill_worker()
        run.process.join(60)
        assert run.process.exitcode == 0
        run.wait_until_gone()
        assert timeless(read_run(tmp_path / f"run{number}")) == quiet
    assert kills >= 5
