"""What several processes gain: cells an hour with --workers 1 and with more, of the same evaluation.

    python benchmarks/workers.py [--workers 1 2] [--rounds 3] [--clips 8] [--defense dp] [--attack strongest]
        [--iterations 150] [--budget 800] [--out FILE]

Every round runs `vleak evaluate` once with each number of workers, in turn, each in a process and a folder
of its own. --workers 1 is one process with one thread; each of N workers computes with one thread too.
Measured by the wall clock, from the start of the process to its end (imports, set-up, cells, report), and
from the begin of the first cell to the end of the last one ("cells alone"). Audits of defenses, which the
parent does by itself, are left out. The scores of all runs must be equal. Other programs on the same cores
make every figure worthless.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def run_child(given: argparse.Namespace) -> None:
    """Run one evaluation in this process, and print the seconds of its cells and how many there were."""
    import vleak

    moments: list[float] = []

    def tell(what: str, done: int, total: int) -> None:
        if total:
            moments.append(time.perf_counter())

    run = vleak.evaluate(
        defenses=tuple(given.defense), attacks=tuple(given.attack), clips=given.clips,
        iterations=given.iterations, budget=given.budget, audit_draws=0, out=given.child,
        workers=given.workers[0], progress=tell,
    )  # fmt: skip
    run.report()
    scores = {cell.id: None if cell.scores is None else cell.scores.psnr_db for cell in run.cells}
    print(json.dumps({"seconds": moments[-1] - moments[0], "cells": len(run.cells), "scores": scores}))


def measure(workers: int, arguments: list[str]) -> dict[str, Any]:
    """Return the seconds of a whole command and of its cells, with what came out."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            __file__,
            *arguments,
            "--workers",
            str(workers),
            "--child",
            folder + "/run",
        ]
        begin = time.perf_counter()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=one_thread())
        whole = time.perf_counter() - begin
    return json.loads(done.stdout.splitlines()[-1]) | {"whole": whole}


def one_thread() -> dict[str, str]:
    """Return the environment in which also NumPy and BLAS compute with one thread."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def table(rounds: list[dict[int, dict[str, Any]]], numbers: list[int]) -> str:
    """Return the medians over the rounds as a Markdown table, each beside the first number of workers."""
    lines = [
        "| workers | cells | whole command, s | cells an hour | gain | cells alone, s | gain |",
        "|---|---|---|---|---|---|---|",
    ]
    for number in numbers:
        whole, alone, cells = (
            statistics.median(each[number][name] for each in rounds) for name in ("whole", "seconds", "cells")
        )
        gain, gain_alone = (
            statistics.median(each[numbers[0]][name] / each[number][name] for each in rounds)
            for name in ("whole", "seconds")
        )
        lines.append(
            f"| {number} | {cells:.0f} | {whole:.1f} | {3600 * cells / whole:.0f} | {gain:.2f}x "
            f"| {alone:.1f} | {gain_alone:.2f}x |"
        )
    return "\n".join(lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--defense", nargs="+", default=["dp"])
    parser.add_argument("--attack", nargs="+", default=["strongest"])
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--budget", type=int, default=800)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    given = parse(sys.argv[1:])
    if given.child:
        run_child(given)
        return
    rounds: list[dict[int, dict[str, Any]]] = []
    for number in range(given.rounds):
        order = given.workers if number % 2 == 0 else given.workers[::-1]
        rounds.append({workers: measure(workers, sys.argv[1:]) for workers in order})
        scores = [each["scores"] for each in rounds[-1].values()]
        if any(other != scores[0] for other in scores):
            sys.exit("the runs differ in their scores; no figure is worth anything")
        seconds = ", ".join(f"{each} workers {rounds[-1][each]['whole']:.1f} s" for each in given.workers)
        print(f"round {number + 1}: {seconds}", flush=True)
    text = table(rounds, given.workers)
    print(text)
    if given.out:
        given.out.write_text(f"{' '.join(['benchmarks/workers.py', *sys.argv[1:]])}\n\n{text}\n")


if __name__ == "__main__":
    main()
