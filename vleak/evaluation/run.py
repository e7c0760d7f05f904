"""Run an evaluation: every clip through every defense, attacked, scored, stored."""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import torch

from vleak.data import ClipSet
from vleak.defenses import Defense, NoDefense, defense_text
from vleak.errors import InputError, VleakError, argument
from vleak.evaluation.bench import Bench, Progress, null_names, prepare
from vleak.evaluation.cell import Job, Result, StoppedError, run_cell
from vleak.evaluation.settings import Settings
from vleak.results.records import RunRecord
from vleak.results.store import FolderStore, MemoryStore, RunStore
from vleak.switches import exact_arithmetic, math_attention

__all__ = ["Progress", "StoppedError", "evaluate"]


def evaluate(
    settings: Settings,
    store: RunStore | Path | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> RunRecord:
    """Attack every clip behind every defense strength and store what comes out.

    Args:
        settings: what to run.
        store: store or folder of the run; a stopped run with the same settings is taken up where it was.
            None keeps it in memory.
        workers: cells that run side by side, a thread each with one thread inside; None is one for every
            core that this process may use. No score depends on it.
        progress: told about every finished cell.
        stop: when set, the run ends after storing the finished cells.

    Returns:
        the record of the run, the content of results.json.

    Raises:
        InputError: settings, data or model cannot be used, or the folder holds another run.
        StoppedError: ``stop`` was set before the end.
        VleakError: the folder cannot be written.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise InputError(f"{argument('workers', workers)}: expected at least 1")
    stop = stop or threading.Event()
    tell = progress or (lambda what, done, total: None)
    if store is None:
        store = MemoryStore()
    elif isinstance(store, str | Path):
        store = FolderStore(Path(store))
    store.check(settings.resolved())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that no sum depends on the number of cores
    try:
        with exact_arithmetic(), math_attention():
            benches, header = prepare(settings, tell)
            jobs = [job for index, bench in enumerate(benches) for job in _plan(settings, bench, index)]
            with store.open(header):
                if isinstance(benches[0].data, ClipSet):
                    store.add_clips(benches[0].data.clips)
                _run_and_write(jobs, benches, store, workers, tell, stop)
                return store.finish([job.id for job in jobs])
    finally:
        torch.set_num_threads(threads)


def _run_and_write(
    jobs: list[Job],
    benches: list[Bench],
    store: RunStore,
    workers: int,
    tell: Progress,
    stop: threading.Event,
) -> None:
    """Run the cells; where that ends early, leave results of those that are finished."""
    try:
        _run_jobs(jobs, benches, store, workers, tell, stop)
    except BaseException:
        with suppress(VleakError):  # why it ended is the news; the journal holds every cell
            store.finish([job.id for job in jobs])
        raise


def _plan(settings: Settings, bench: Bench, index: int) -> list[Job]:
    """List the cells: null attackers, then every defense and attack; a clip after the other within each."""
    nothing, known = NoDefense(), set[str]()
    rows: list[tuple[Defense, str, int, bool]] = []
    for count in settings.reference_frames:
        names = [name for name in null_names(bench, count) if name not in known]
        rows += [(nothing, name, count, True) for name in names]
        known |= {name for name in names if not name.startswith("reference")}
    rows += [
        (defense, name, count, False)
        for defense in settings.strengths()
        for name in settings.attacks_on(bench.pipeline)
        for count in settings.reference_frames
    ]
    return [
        Job(_id(bench, defense, attack, count, clip), index, place, defense, attack, count, null)
        for defense, attack, count, null in rows
        for place, clip in enumerate(bench.data.names)
    ]


def _id(bench: Bench, defense: Defense, attack: str, references: int, clip: str) -> str:
    granted = f"+{references}ref" if references else ""
    return f"{bench.place}/{defense_text(defense)}/{attack}{granted}/{clip}"


def _run_jobs(
    jobs: list[Job],
    benches: list[Bench],
    store: RunStore,
    workers: int,
    tell: Progress,
    stop: threading.Event,
) -> None:
    # A cell that failed in an earlier run is tried again: what it lacked, memory say, may be there now.
    waiting = [job for job in jobs if job.id not in store.cells or not store.cells[job.id].ok]
    done = len(jobs) - len(waiting)
    tell("attacking", done, len(jobs))
    ended = threading.Event()  # not `stop`, which is the caller's and may be used again
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    running: set[Future[Result]] = set()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                halt = lambda: stop.is_set() or ended.is_set()  # noqa: E731
                running.add(pool.submit(run_cell, job, benches[job.bench], halt))
            # The short wait lets Ctrl-C through.
            finished, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in finished:
                result = future.result()
                store.add(result.cell, result.picture, result.enhanced)
                done += 1
                tell("attacking", done, len(jobs))
            if stop.is_set():
                raise StoppedError(f"stopped with {done} of {len(jobs)} cells finished")
    finally:
        ended.set()
        pool.shutdown(wait=True, cancel_futures=True)
