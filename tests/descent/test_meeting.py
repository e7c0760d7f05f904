"""Cells that meet: their descents run as one batch, and none of them notices the others."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_engine import Smooth, make_settings
from test_scheduler import assert_alike, batch_of, problems, starts
from tiny import build

from vleak.attacks import Knowledge, Matching, Observation, Reconstruction
from vleak.descent.batch import Member
from vleak.descent.loop import Descent
from vleak.descent.meeting import Meeting, present
from vleak.descent.scheduler import run_descents
from vleak.federated import Client
from vleak.seeds import generator

PATIENT = 60.0  # seconds: in these tests nobody has to be given up


def cells(iterations: int = 6) -> list[Descent]:
    """Return the descents of three cells, each with a copy of the model."""
    made = []
    for problem, start in zip(problems(build(Smooth)), starts(), strict=True):
        own = replace(problem, model=copy.deepcopy(problem.model))
        made.append(Descent(own, make_settings(own, iterations), start))
    return made


def met(meeting: Meeting, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return what the calls returned or raised, each in a thread that attends the meeting."""
    all_here = threading.Barrier(len(calls))

    def attended(call: Callable[[], Any]) -> Any:
        with meeting.attend():
            all_here.wait()
            try:
                return call()
            except RuntimeError as raised:
                return raised

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(attended, calls))


def test_cells_are_one_batch_with_the_numbers_of_their_runs_alone() -> None:
    loops = cells()
    calls = [lambda loop=loop: run_descents([loop], 6)[0] for loop in loops]
    states = met(Meeting(batched=True, patience=PATIENT), calls)
    assert len({id(batch_of(loop)) for loop in loops}) == 1
    for state, alone in zip(states, cells(), strict=True):
        assert_alike(state, alone.run(6))


def test_on_a_cpu_nobody_waits() -> None:
    loops = cells()
    met(Meeting(patience=PATIENT), [lambda: run_descents(loops[:1], 2), lambda: None])
    assert not isinstance(loops[0].bound, Member)
    assert present() is None


def test_what_fails_in_one_cell_is_raised_there_only() -> None:
    def fail(done: int) -> None:
        raise RuntimeError(f"no room for {done}")

    loops = cells()
    calls = [
        lambda: run_descents(loops[:1], 6)[0],
        lambda: run_descents(loops[1:2], 6, progress=fail, every=2),
        lambda: run_descents(loops[2:], 6)[0],
    ]
    first, failed, third = met(Meeting(batched=True, patience=PATIENT), calls)
    assert str(failed) == "no room for 2"
    assert len(loops[1].state.history) == 2
    alone = cells()
    assert_alike(first, alone[0].run(6))
    assert_alike(third, alone[2].run(6))


def test_an_operator_that_fails_in_one_cell_ends_that_one(monkeypatch: Any) -> None:
    loops = cells()

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    loops[0].run(1)  # so that it goes on by itself
    monkeypatch.setattr(loops[0].bound, "run", fail)
    calls = [lambda loop=loop: run_descents([loop], 5)[0] for loop in loops]
    failed, *states = met(Meeting(batched=True, patience=PATIENT), calls)
    assert str(failed) == "out of luck"
    for state, alone in zip(states, cells()[1:], strict=True):
        assert_alike(state, alone.run(5))


def test_each_cell_is_stopped_by_its_own() -> None:
    loops, asked = cells(), []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    calls = [
        lambda: run_descents(loops[:1], 6)[0],
        lambda: run_descents(loops[1:2], 6, stop=stop, every=1)[0],
    ]
    finished, stopped = met(Meeting(batched=True, patience=PATIENT), calls)
    assert (len(finished.history), len(stopped.history)) == (6, 2)
    assert_alike(run_descents(loops[1:2], 4)[0], cells()[1].run(6))  # and taken up again


def test_who_leaves_or_is_late_holds_nobody_up() -> None:
    order: list[str] = []

    def run(works: Sequence[str]) -> None:
        order.extend(["and".join(sorted(works))])

    patient = Meeting(patience=PATIENT)
    met(patient, [lambda: patient.bring("a", run), lambda: None])
    hasty, late = Meeting(patience=0.05), threading.Event()

    def early() -> None:
        hasty.bring("b", run)
        late.set()

    def afterwards() -> None:
        assert late.wait(PATIENT)
        hasty.bring("c", run)

    met(hasty, [early, afterwards])
    both = Meeting(patience=PATIENT)
    met(both, [lambda: both.bring("d", run), lambda: (time.sleep(0.05), both.bring("e", run))])
    assert order == ["a", "b", "c", "dande"]


def test_what_ends_the_work_of_all_is_raised_by_all() -> None:
    def run(works: Sequence[int]) -> None:
        raise RuntimeError(f"all {len(works)}")

    meeting = Meeting(patience=PATIENT)
    raised = met(meeting, [lambda number=number: meeting.bring(number, run) for number in range(3)])
    assert [str(each) for each in raised] == ["all 3"] * 3


@pytest.mark.slow
def test_matching_in_a_meeting_answers_as_alone() -> None:
    model = build(Smooth)
    attack = Matching(iterations=8, restarts=2, coarse=1)

    def cell(number: int) -> Reconstruction:
        own = copy.deepcopy(model)
        clip = torch.rand(1, 3, 4, 8, 8, generator=generator("clip", number))
        label = torch.tensor([number])
        update = Client(own).update(clip, label, generator(number))
        knowledge = Knowledge(clip_shape=(3, 4, 8, 8), batch_size=1, classes=5, labels=label)
        return attack.reconstruct(Observation(own, update, knowledge), generator(number, "attack"))

    together = met(Meeting(batched=True, patience=PATIENT), [lambda n=n: cell(n) for n in range(3)])
    for number, answer in enumerate(together):
        alone = cell(number)
        torch.testing.assert_close(answer.clips, alone.clips, rtol=1e-3, atol=1e-3)
        assert answer.iterations == alone.iterations == 16
