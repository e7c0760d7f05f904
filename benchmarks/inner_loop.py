"""Benchmark of the inner loop: bare PyTorch, vleak's two engines, and breaching if it is installed.

All contestants of a case take turns in one process with one thread; the figures are medians of CPU time over
the rounds. Before the timing, all must compute the same objective. Peak memory is measured in a separate
process for every contestant, relative to the memory before the contestant is built.

    python benchmarks/inner_loop.py [--case A ...] [--cases A,B] [--rounds 7] [--no-memory] [--json]

A 3-D LeNet; B MLP head on 32 rows; C 3-D CNN; D CNN on frames and LSTM; E eight trials of A that share
weights, whose figures are those of one trial; F R3D-18; G X3D-S; H tubelet transformer; I narrow R3D-18 in
train mode on a batch of four; K four local steps of A, unrolled. Every iteration is the same work: gradient,
1 - cosine, total variation in space and time (clips only), signed Adam, box. See bare_loop.py and
breaching_loop.py; breaching runs A to E. Attention runs on the one backend that has a second derivative.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import breaching_loop
import torch
from bare_loop import BareLoop
from cases import CASES, Case, Trial, build, sent_update
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from vleak.descent.loop import Descent, DescentSettings, Problem
from vleak.descent.scheduler import run_descents
from vleak.descent.timing import Call, Measured, interleaved, iterations_needed
from vleak.errors import VleakError
from vleak.native import loader
from vleak.switches import math_attention

console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 124)
_MEMORY_ITERATIONS = 5
_SCHEDULE = 2_400  # iterations of the schedule when memory is measured, as in time_to_quality.py
# The freed memory that glibc retains differs from run to run, in case D by tens of percent, and is up to four
# times the memory in use. With all but the smallest blocks returned at once, peaks repeat to a few percent.
_FRUGAL_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "16384",
    "MALLOC_TRIM_THRESHOLD_": "16384",
    "OMP_NUM_THREADS": "1",
}
_SAME = 2e-5  # relative; float32 sums of up to a million terms in different orders


class InTurn:
    """Contestant without vleak: one loop a trial, one after the other."""

    def __init__(self, make: Callable[..., Any], case: Case, _: int) -> None:
        self.loops = [
            make(case.model, each.labels, list(each.target.values()), each.start, case.spatial, case.temporal)
            for each in case.trials
        ]
        if case.local:
            for loop in self.loops:
                loop.update = partial(_update, case, loop)

    def run(self, iterations: int) -> None:
        with math_attention():
            for loop in self.loops:
                loop.run(iterations)

    def histories(self) -> list[list[float]]:
        return [loop.history for loop in self.loops]

    def positions(self) -> list[Tensor]:
        return [loop.x for loop in self.loops]


def _update(case: Case, loop: BareLoop) -> list[Tensor]:
    weights = dict(case.model.named_parameters())
    return sent_update(case, weights, loop.x, loop.labels, differentiable=True)


class Vleak:
    """Contestant vleak: the trials of a case, run as by the library's attacks."""

    def __init__(self, engine: str, case: Case, schedule: int) -> None:
        descent = DescentSettings(
            iterations=schedule, learning_rate=0.1, rule="sign_adam", schedule="steps",
            spatial=case.spatial, temporal=case.temporal,
        )  # fmt: skip
        self.loops = [
            Descent(
                Problem(case.model, F.cross_entropy, t.labels, t.target, local=case.local),
                *(descent, t.start),
                engine=engine,
            )
            for t in case.trials
        ]

    def run(self, iterations: int) -> None:
        run_descents(self.loops, iterations)

    def histories(self) -> list[list[float]]:
        return [loop.state.history for loop in self.loops]

    def positions(self) -> list[Tensor]:
        return [loop.state.x for loop in self.loops]


Contestant = InTurn | Vleak
#: name -> function (case, length of the schedule, at least the iterations run) -> contestant
CONTESTANTS: dict[str, Callable[[Case, int], Contestant]] = {
    "bare": partial(InTurn, BareLoop),
    "reference": partial(Vleak, "reference"),
    "native": partial(Vleak, "native"),
    "breaching": partial(InTurn, breaching_loop.BreachingLoop),
}


def forward_backward(case: Case) -> Callable[[int], None]:
    """Return the minimal work of an iteration: what a client sends, for every trial."""
    weights = dict(case.model.named_parameters())

    def run(iterations: int) -> None:
        with math_attention():
            for _ in range(iterations):
                for trial in case.trials:
                    sent_update(case, weights, trial.start, trial.labels, differentiable=False)

    return run


def in_full(contestant: Contestant) -> Callable[[int], None]:
    """Return a contestant's `run`, checked to do all requested iterations."""

    def run(iterations: int) -> None:
        before = [len(history) for history in contestant.histories()]
        contestant.run(iterations)
        if [len(history) for history in contestant.histories()] != [done + iterations for done in before]:
            raise SystemExit(f"{type(contestant).__name__} ended before {iterations} iterations were done")

    return run


# ---------------------------------------------------------------------------------------------------------
# Check that all contestants do the same work


def check_same_work(case: Case, contestants: dict[str, Contestant]) -> None:
    """Run one iteration of every trial, and check that objectives and positions afterwards agree."""
    for each in contestants.values():
        in_full(each)(1)
    expected, moved = contestants["bare"].histories(), contestants["bare"].positions()
    for name, each in contestants.items():
        for index, trial in enumerate(case.trials):
            wanted, found = expected[index][0], each.histories()[index][0]
            if name == "breaching":
                wanted = _in_breachings_words(case, trial, wanted)
            if not math.isclose(found, wanted, rel_tol=_SAME):
                raise SystemExit(f"case {case.name}: {name} computes {found!r}, expected {wanted!r}")
            # The sign of a derivative near 0 is rounding; breaching's total variation differs at borders.
            apart = float(((each.positions()[index] - moved[index]).abs() > 1e-4).float().mean())
            if apart > (0.05 if name == "breaching" else 0.005):
                raise SystemExit(f"case {case.name}: the step of {name} leads elsewhere in {apart:.1%} of x")


def _in_breachings_words(case: Case, trial: Trial, objective: float) -> float:
    if not case.spatial:
        return objective
    x = trial.start
    frame, row, column = (float(x.diff(dim=axis).abs().mean()) for axis in (2, 3, 4))
    distance = objective - case.spatial * (row + column) - case.temporal * frame
    return distance + breaching_loop.clip_variation(x, case.spatial, case.temporal)


# ---------------------------------------------------------------------------------------------------------
# Time


def measure(case: Case, names: list[str], rounds: int, tell: Callable[[], None]) -> dict[str, Any]:
    """Return the record of a case without its peaks."""
    schedule = 1 + iterations_needed(rounds)
    contestants, prepared = {}, {}
    for name in names:
        started = time.process_time()
        contestants[name] = CONTESTANTS[name](case, schedule)
        prepared[name] = time.process_time() - started
    check_same_work(case, contestants)
    calls: dict[str, Call] = {"forward_backward": forward_backward(case)}
    calls |= {name: in_full(contestant) for name, contestant in contestants.items()}
    measured = interleaved(calls, rounds=rounds, progress=tell)
    each = {name: value.divided_by(len(case.trials)) for name, value in measured.items()}
    record: dict[str, Any] = {"case": case.name, "title": case.title, "trials": len(case.trials)}
    record |= dict.fromkeys(CONTESTANTS)
    for name, value in each.items():
        record[name] = _figures(value) | {
            "over_forward_backward": _spread(value.divided_by(each["forward_backward"])),
            "faster_than_bare": _spread(each["bare"].divided_by(value)),
            "faster_than_breaching": _spread(each["breaching"].divided_by(value))
            if "breaching" in each
            else None,
        }
    for name in ("reference", "native"):
        record[name]["engine"] = contestants[name].loops[0].engine
        record[name]["prepare_cpu_s"] = prepared[name]
    return record


def _figures(value: Measured) -> dict[str, float]:
    return {"cpu_s": value.median, "cpu_s_low": value.low, "cpu_s_high": value.high}


def _spread(value: Measured) -> dict[str, float]:
    return {"median": value.median, "low": value.low, "high": value.high}


# ---------------------------------------------------------------------------------------------------------
# Memory


def peaks_in_own_process(case: str, contestant: str) -> dict[str, int]:
    """Return the memory peaks of a contestant in a new process, see `peaks_here`."""
    command = [sys.executable, __file__, "--case", case, "--peaks-of", contestant]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **_FRUGAL_MALLOC}
    )
    if done.returncode:
        raise SystemExit(f"case {case}, memory of {contestant}: {done.stderr.strip().splitlines()[-1]}")
    peaks: dict[str, int] = json.loads(done.stdout)
    return peaks


def peaks_here(name: str, contestant: str) -> dict[str, int]:
    """Return two memory peaks of a contestant in bytes, measured over some iterations.

    ``peak_bytes`` is the peak of iterating, ``prepare_peak_bytes`` that of building the contestant and of its
    first iteration. Both count everything that the contestant holds: they are relative to the memory of the
    process before it was built, which has the case (weights, update, start) and all code, loaded by a tiny
    case of the same kind.
    """
    CONTESTANTS[contestant](build(name, tiny=True), _SCHEDULE).run(2)
    case = build(name)
    before = _start_over()
    built = CONTESTANTS[contestant](case, _SCHEDULE)
    built.run(1)
    prepare = _status("VmHWM") - before
    _start_over()
    built.run(_MEMORY_ITERATIONS)
    return {"peak_bytes": _status("VmHWM") - before, "prepare_peak_bytes": prepare}


def _start_over() -> int:
    """Return freed memory to the system, reset the peak, and return the memory in use in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory freed by the capture would otherwise hide the loop's own
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


# ---------------------------------------------------------------------------------------------------------
# Records and tables


def environment(rounds: int) -> dict[str, Any]:
    status = loader.status()
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {
        "vleak": version("vleak"),
        "torch": torch.__version__,
        "breaching": version("breaching") if breaching_loop.load() else None,
        "python": platform.python_version(),
        "processor": cpu[1] if cpu else platform.processor(),
        "extension": status.state,
        "instruction_set": status.instruction_set,
        "runner": status.loop,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
    }


def show(record: dict[str, Any]) -> None:
    ratios = ("bare / this", "10 .. 90 %", "breaching")
    columns = ("", "ms", "10 .. 90 %", "x fwd+bwd", *ratios, "peak MiB", "start MiB", "start s")
    table = Table(*columns, title=f"{record['case']}: {record['title']}")
    for index, column in enumerate(table.columns):
        column.justify, column.no_wrap = ("right" if index else "left"), True
    for name in ("forward_backward", *CONTESTANTS):
        row = record[name]
        if row is None:
            table.add_row(name, "did not run")
            continue
        faster, over_breaching = row["faster_than_bare"], row["faster_than_breaching"]
        peaks = [row.get(key) for key in ("peak_bytes", "prepare_peak_bytes")]
        table.add_row(
            name.replace("forward_backward", "fwd+bwd"),
            f"{1e3 * row['cpu_s']:.2f}",
            f"{1e3 * row['cpu_s_low']:.2f} .. {1e3 * row['cpu_s_high']:.2f}",
            f"{row['over_forward_backward']['median']:.1f}",
            f"{faster['median']:.2f}",
            f"{faster['low']:.2f} .. {faster['high']:.2f}",
            "" if over_breaching is None else f"{over_breaching['median']:.2f}",
            *("" if peak is None else f"{peak / 2**20:.1f}" for peak in peaks),
            f"{row['prepare_cpu_s']:.1f}" if "prepare_cpu_s" in row else "",
        )
    if record["native"]["engine"] != "native":
        table.caption = f"native: the {record['native']['engine']} engine ran in its place"
    console.print(table)


def run(names: list[str], rounds: int, memory: bool) -> list[dict[str, Any]]:
    known = [name for name in CONTESTANTS if name != "breaching" or breaching_loop.load()]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    records = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        for name in names:
            contestants = [each for each in known if each != "breaching" or name in "ABCDE"]
            task = bar.add_task(f"case {name}, time", total=rounds * (1 + len(contestants)))
            record = measure(build(name), contestants, rounds, lambda task=task: bar.advance(task))
            for contestant in contestants if memory else ():
                bar.update(task, description=f"case {name}, memory of {contestant}")
                record[contestant] |= peaks_in_own_process(name, contestant)
            bar.remove_task(task)
            show(record)
            records.append(record)
    return records


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = set(names) - set(CASES)
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown case {min(unknown)}, expected some of {','.join(CASES)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), help="cases to run")
    parser.add_argument("--cases", type=_names, dest="case", help="the same as one word: A,F,G")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds a case")
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks out")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on stdout")
    parser.add_argument("--peaks-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peaks_of:
        breaching_loop.load()
        print(json.dumps(peaks_here(arguments.case[0], arguments.peaks_of)))
        return
    try:
        records = run(arguments.case, arguments.rounds, not arguments.no_memory)
    except VleakError as error:
        raise SystemExit(f"inner_loop: {error}") from error
    if arguments.json:
        json.dump({"environment": environment(arguments.rounds), "cases": records}, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
