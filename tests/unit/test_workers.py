"""Attempts of clients at workers that die, are late or never begin, for all kinds of workers."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from vleak.errors import CapabilityError, InputError, VleakError
from vleak.evaluation import StoppedError, workers
from vleak.evaluation.cluster import Cluster
from vleak.evaluation.workers import ATTEMPTS, Crew, Limits, Outcome, Worker, run_clients


class _Blank:
    def model_copy(self, update: dict[str, str]) -> str:
        return update["status"]


def clients(*kinds: str) -> list[list[Any]]:
    """One cell a client, of these kinds; what is recorded of a failed one is its status."""
    pipeline = SimpleNamespace(blank=lambda case: _Blank())
    return [[SimpleNamespace(kind=kind, case=None, pipeline=pipeline)] for kind in kinds]


@dataclass
class Scripted(Crew):
    """Workers that answer at once, or as the script of a client says: "die", "hang" or "raise"."""

    scripts: dict[int, list[str]]
    count: int = 2
    begin: str = ""
    started: list[ScriptedWorker] = field(default_factory=list)
    remedy = "do something"

    @contextmanager
    def open(self, clients: Sequence[Any], limits: Limits) -> Iterator[int]:
        yield self.count

    def start(self) -> Worker:
        self.started.append(ScriptedWorker(self))
        return self.started[-1]

    def heard(self, workers: Sequence[Worker]) -> list[Worker]:
        return [worker for worker in workers if isinstance(worker, ScriptedWorker) and worker.says]


class ScriptedWorker(Worker):
    """Worker of a script."""

    def __init__(self, crew: Scripted) -> None:
        self.crew, self.given, self.ended = crew, list[int](), False
        self.says: list[Outcome] = [crew.begin] if crew.begin else []
        self.ready = not crew.begin

    def _send(self, client: int) -> None:
        self.given.append(client)
        script = self.crew.scripts.get(client, [])
        way = script.pop(0) if script else "answer"
        told = {"die": "ended its process", "raise": ValueError("a defect"), "answer": [client]}
        if way != "hang":
            self.says.append(told[way])  # type: ignore[arg-type]

    def _receive(self) -> Outcome:
        return self.says.pop(0)

    def end(self) -> None:
        self.ended = True


def run(crew: Scripted, *kinds: str, limits: Limits | None = None) -> list[Any]:
    finished = run_clients(clients(*kinds), crew, limits or Limits(), lambda: False)
    return [each for results in finished for each in results]


def statuses(results: Sequence[Any]) -> list[str]:
    return [each.cell for each in results if not isinstance(each, int)]


def test_a_client_is_tried_three_times_and_the_others_go_on() -> None:
    crew = Scripted({1: ["die"] * (ATTEMPTS - 1), 2: ["die"] * ATTEMPTS})
    results = run(crew, *"abcd")
    assert sorted(each for each in results if isinstance(each, int)) == [0, 1, 3]
    assert statuses(results) == ["failed: ended its process, 3 times"]
    assert len(crew.started) == 2 + (ATTEMPTS - 1) + (ATTEMPTS - 1)
    assert all(worker.ended for worker in crew.started)


def test_a_late_client_fails_and_costs_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(workers.time, "monotonic", lambda: next(clock))
    results = run(Scripted({0: ["hang"] * ATTEMPTS}), *"ab", limits=Limits(seconds=10))
    assert statuses(results) == ["failed: took longer than cell_seconds=10, 3 times"]


def test_a_worker_keeps_to_the_kind_that_it_has_learned() -> None:
    crew = Scripted({})
    run(crew, *"abababab")
    assert [{number % 2 for number in worker.given} for worker in crew.started] == [{0}, {1}]


@pytest.mark.parametrize(("first", "client"), [(5.0, None), (3.0, 0), (None, 0)])
def test_a_worker_joins_another_only_where_what_it_must_learn_pays(
    first: float | None, client: int | None
) -> None:
    queue = workers._Queue(clients(*"aaaa"))
    queue.took = {("a", False): 1.0} | ({} if first is None else {("a", True): first})
    assert queue.next("b", {"a"}) == client
    assert queue.next("a", {"a"}) is not None, "one that has learned goes on"


def test_what_clients_took_is_noted() -> None:
    queue = workers._Queue(clients(*"aa"))
    worker = Scripted({}).start()
    for client in (0, 1):
        worker.give(client, "a")
        queue.finished(worker)
    assert set(queue.took) == {("a", True), ("a", False)}


def test_workers_that_die_before_their_first_client_end_the_run() -> None:
    crew = Scripted({}, begin="lost its node")
    with pytest.raises(VleakError, match=r"^no worker stays alive \(lost its node, 3 times\); do something$"):
        run(crew, *"ab")
    assert all(worker.ended for worker in crew.started)


def test_what_is_no_part_of_a_plug_in_is_raised_and_no_worker_is_left() -> None:
    crew = Scripted({0: ["raise"], 1: ["hang"]})
    with pytest.raises(ValueError, match="a defect"):
        run(crew, *"ab")
    assert [worker.ended for worker in crew.started] == [True, True]


def test_a_stop_ends_the_workers() -> None:
    crew = Scripted({0: ["hang"]}, count=1)
    with pytest.raises(StoppedError):
        list(run_clients(clients("a"), crew, Limits(), lambda: True))
    assert [worker.ended for worker in crew.started] == [True]


def test_a_finished_run_starts_nothing() -> None:
    crew = Scripted({})
    assert run(crew) == []
    assert not crew.started


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, MemoryError])
def test_the_end_that_a_plug_in_asks_for_is_told_and_not_raised(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise kind

    monkeypatch.setattr(workers, "run_group", end)
    assert isinstance(workers.outcome([]), str)


def test_a_defect_travels_between_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    class OddError(Exception):
        """Of a class that no other process has."""

    def fail(*_: object) -> None:
        raise OddError("no luck")

    monkeypatch.setattr(workers, "run_group", fail)
    told = pickle.loads(pickle.dumps(workers.outcome([])))
    assert (type(told), str(told)) == (RuntimeError, "OddError: no luck")


# --- Ray that is not there --------------------------------------------------------------------------------


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(CapabilityError, match=r"pip install 'vleak\[ray\]'"):
        Cluster("local")


def test_an_address_at_which_nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = SimpleNamespace(is_initialized=lambda: False)
    monkeypatch.setitem(__import__("sys").modules, "ray", ray)
    with pytest.raises(
        VleakError, match=r"^ray=127\.0\.0\.1:1 does not answer: Connection refused; start Ray"
    ):
        Cluster("127.0.0.1:1")
    with pytest.raises(InputError, match=r"^ray='': expected HOST:PORT"):
        Cluster("")
