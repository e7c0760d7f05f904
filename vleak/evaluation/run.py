"""Run of an evaluation: every clip through every defense, attacked, scored, stored."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vleak.errors import InputError, VleakError, argument
from vleak.evaluation.audits import check_audits, measure_audits
from vleak.evaluation.cluster import Cluster
from vleak.evaluation.groups import Result, StoppedError
from vleak.evaluation.plan import PlannedCell, by_client, plan
from vleak.evaluation.processes import Processes
from vleak.evaluation.settings import Settings
from vleak.evaluation.setup import PreparedRun, prepare
from vleak.evaluation.threads import run_in_threads
from vleak.evaluation.utility import measure_utility
from vleak.evaluation.workers import ClientCells, Crew, Limits, run_clients
from vleak.pipelines import Progress, private_clips
from vleak.results.records import RunRecord
from vleak.results.store import FolderStore, MemoryStore, RunStore
from vleak.switches import exact_arithmetic, math_attention, one_thread

__all__ = ["Progress", "StoppedError", "count_workers", "evaluate"]

_MOST_WORKERS = 1_024
"""More threads than that are a mistake of typing, and more than most systems let a process have."""
_BATCH = 8
"""Cells of a group on a CUDA device, where nobody says how many run side by side: at least so many."""


def evaluate(
    settings: Settings,
    store: RunStore | Path | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    batched: bool | None = None,
    limits: Limits | None = None,
    ray: str | None = None,
) -> RunRecord:
    """Attack every clip behind every defense strength and store what comes out.

    Args:
        settings: what to run.
        store: where the cells are kept, or the folder; a stopped run with the same settings is taken up
            where it was. None keeps everything in memory.
        workers: cells that run side by side: on a CPU a process each, batched in one group. None: in this
            process, a thread for every core that it may use, and of a quick run a process for each. No score
            depends on it.
        progress: called after every finished cell.
        stop: when set, the run ends after storing the finished cells.
        batched: whether descents of several cells share a batch, which changes the order of sums; None on a
            CUDA device only.
        limits: of the cells of a client in a process of its own; with limits, one worker is a process too.
        ray: address of a Ray cluster whose CPUs work at the cells, or "local" for a Ray of this run; in place
            of ``workers``.

    Returns:
        the record of the run.

    Raises:
        InputError: settings, data or model cannot be used, or the folder holds another run.
        StoppedError: ``stop`` was set before the end.
        CapabilityError: Ray was asked for and is not installed.
        VleakError: the folder cannot be written, or Ray does not answer.
    """
    target = _store(store)
    if batched is None:
        batched = settings.torch_device().type == "cuda"
    if workers is None and ray is None and settings.quick and not batched:
        workers = count_workers(None)  # many defenses, few clips: what each one learns is not shared anyway
    lanes = _lanes(workers, ray, limits, batched=batched)
    stop, progress = stop or threading.Event(), progress or _silent
    target.check(settings.resolved())
    with one_thread(), exact_arithmetic(), math_attention():
        run = prepare(settings, progress)
        check_audits(settings, run)
        progress("planning the cells", 0, 0)
        cells = plan(run.settings, run.pipelines)
        progress("opening the folder of the run", 0, 0)
        with target.open(run.header) as opened:
            clips = private_clips(run.data)
            if clips is not None:
                opened.add_clips(clips)
            runner = _Runner(cells, opened, progress, stop)
            with _finished(opened, cells):
                runner.run(lanes)
                audits = measure_audits(
                    run.settings,
                    run,
                    opened.audits.keys(),
                    progress,
                    stop,
                    count=1 if batched else lanes.count,
                )
                for audit in audits:
                    opened.add_audit(audit)
                _train(run.settings, run, opened, progress, stop)
            return opened.finish([cell.case.id for cell in cells])


def _train(
    settings: Settings, run: PreparedRun, store: RunStore, progress: Progress, stop: threading.Event
) -> None:
    """Measure the utility under every defense, where it is asked for and not yet in the store.

    Raises:
        StoppedError: the caller's event was set.
    """
    if settings.utility:
        done = {text for text, each in store.utility.items() if each.ok}
        for record in measure_utility(settings, run, done, progress, stop):
            store.add_utility(record)


def _silent(what: str, done: int, total: int) -> None:
    """Nobody is told."""


def _store(store: RunStore | Path | None) -> RunStore:
    if store is None:
        return MemoryStore()
    return FolderStore(Path(store)) if isinstance(store, str | Path) else store


def count_workers(workers: int | None, least: int = 1) -> int:
    """Return how many cells run side by side: what is asked, or one for every core and at least so many.

    Raises:
        InputError: it is no whole number from 1 to 1024.
    """
    if workers is None:
        return max(len(os.sched_getaffinity(0)), least)
    whole = isinstance(workers, int) and not isinstance(workers, bool)
    if not whole or not 1 <= workers <= _MOST_WORKERS:
        given = argument("workers", repr(workers))
        raise InputError(f"{given}: expected a whole number from 1 to {_MOST_WORKERS}")
    return workers


@dataclass(frozen=True)
class _Lanes:
    """How cells run side by side: by a crew of workers with limits, or ``count`` of them in this process."""

    count: int
    batched: bool
    crew: Crew | None = None
    limits: Limits = field(default_factory=Limits)

    def run(self, clients: Sequence[ClientCells], stop: Callable[[], bool]) -> Generator[list[Result]]:
        """Run the cells of clients; raises StoppedError if ``stop`` says so."""
        if self.crew is None:
            return run_in_threads(clients, self.count, stop, batched=self.batched)
        return run_clients(clients, self.crew, self.limits, stop)


def _lanes(workers: int | None, ray: str | None, limits: Limits | None, *, batched: bool) -> _Lanes:
    """Return how cells run side by side.

    Raises:
        InputError: the number is none, or limits or Ray were asked for where cells share a process.
        VleakError: Ray is not there.
    """
    count = count_workers(workers, _BATCH if batched else 1)
    if batched and (limits is not None or ray is not None):
        what = "has no limits; leave them out" if ray is None else "is none of Ray's; leave out `ray`"
        raise InputError(f"cells on a CUDA device share a process, which {what}, or take the CPU")
    crew: Crew | None = None
    if ray is not None:
        if workers is not None:
            raise InputError(
                f"{argument('ray', ray)}: Ray has a worker for every CPU of its own, beside which "
                f"{argument('workers', workers)} has no meaning; leave out one of them"
            )
        crew = Cluster(ray)
    elif not batched and (limits is not None or (workers or 1) > 1):
        crew = Processes(count)
    return _Lanes(count, batched, crew, limits or Limits())


@contextmanager
def _finished(store: RunStore, cells: Sequence[PlannedCell]) -> Iterator[None]:
    """Leave the results of the finished cells where the block ends early."""
    try:
        yield
    except BaseException:
        with suppress(VleakError):  # why it ended is the news; the store holds every cell
            store.finish([cell.case.id for cell in cells])
        raise


class _Runner:
    """Cells on their way into a store."""

    def __init__(
        self, cells: Sequence[PlannedCell], store: RunStore, progress: Progress, stop: threading.Event
    ) -> None:
        self._store, self._progress, self._stop = store, progress, stop
        self._total, self._doing = len(cells), ""
        self._pipelines = {cell.pipeline for cell in cells}
        # A cell that failed in an earlier run is tried again: what it lacked, memory say, may be there now.
        done = {name for name, cell in store.cells.items() if cell.ok}
        self._waiting = [c for c in by_client(cells) if not done.issuperset(cell.case.id for cell in c)]
        self._done = self._total - sum(len(client) for client in self._waiting)

    def run(self, lanes: _Lanes) -> None:
        """Run the waiting cells; this process alone writes to the store.

        Raises:
            StoppedError: the caller's event was set.
        """
        self._tell(lanes.crew.starting if lanes.crew else "attacking")
        with closing(lanes.run(self._waiting, self._stop.is_set)) as running:
            try:
                for results in running:
                    self._keep(results)
                    self._tell_others()
            except StoppedError:
                raise self._early() from None

    def _early(self) -> StoppedError:
        return StoppedError(f"stopped with {self._done} of {self._total} cells finished")

    def _keep(self, results: Sequence[Result]) -> None:
        for result in results:
            self._store.add(result.cell, result.picture, result.enhanced)
            self._done += 1
            self._tell("attacking")

    def _tell_others(self) -> None:
        """Tell what cells compute beside their attack, and where it is done, that they go on."""
        doing = next((pipeline.doing for pipeline in self._pipelines if pipeline.doing), "attacking")
        if doing != self._doing:
            self._tell(doing)

    def _tell(self, doing: str) -> None:
        self._doing = doing
        self._progress(doing, self._done, self._total)
