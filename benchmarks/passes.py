"""Benchmark of the graph passes: the native iteration without each of them, beside the one with all.

For every case of the inner-loop benchmark and every model of the raw pipeline, one native program is made
with all passes and one without each pass. They take turns in one process with one thread; the figures are
medians of the ratio of CPU times, round by round. Above 1 the pass pays.

    python benchmarks/passes.py [--case A c3d_tiny ...] [--pass stack ...] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cases import CASES, SPATIAL, TEMPORAL, Case, Trial, build
from inner_loop import CONTESTANTS
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from vleak.descent import programs
from vleak.descent.passes import PASSES, optimize
from vleak.descent.timing import Measured, interleaved, iterations_needed
from vleak.federated import mean_gradient
from vleak.models import build_model
from vleak.seeds import generator

ALL = "all"
MODELS = ("c3d_tiny", "c3d_tiny_pool", "lrcn")


def build_case(name: str) -> Case:
    """Return a case of the inner loop, or one of a model of the raw pipeline on 1x3x8x32x32."""
    if name in CASES:
        return build(name)
    model = build_model(name, frames=8, size=32, classes=6, seed=0)
    draws = generator("passes", name)
    private, start = (
        torch.rand(1, 3, 8, 32, 32, generator=draws),
        torch.rand(1, 3, 8, 32, 32, generator=draws),
    )
    labels = torch.zeros(1, dtype=torch.int64)
    gradient = mean_gradient(model, F.cross_entropy, private, labels)
    return Case(name, name, model, (Trial(start, labels, gradient),), SPATIAL, TEMPORAL)


def contestant(case: Case, left_out: str, rounds: int) -> Callable[[int], None]:
    """Return the native loop of a case, captured without one pass.

    Raises:
        SystemExit: nothing was captured.
    """
    kept = [name for name in PASSES if name != left_out]
    programs._programs.clear()  # a program is shared by all problems of a kind, whatever its passes
    programs.optimize = partial(optimize, passes=kept)  # type: ignore[assignment]
    try:
        loop = CONTESTANTS["native"](case, 1 + iterations_needed(rounds))
        loop.run(1)
    finally:
        programs.optimize = optimize
    if loop.loops[0].engine != "native":  # type: ignore[union-attr]
        raise SystemExit(f"case {case.name} without {left_out}: the reference engine ran")
    return loop.run


def measure(case: Case, passes: list[str], rounds: int) -> dict[str, Any]:
    """Return, by pass, how much longer an iteration takes without it."""
    calls = {name: contestant(case, name, rounds) for name in (ALL, *passes)}
    measured = interleaved(calls, rounds=rounds)
    without = {name: _spread(measured[name].divided_by(measured[ALL])) for name in passes}
    return {"case": case.name, "title": case.title, "cpu_s": measured[ALL].median, "without": without}


def _spread(value: Measured) -> dict[str, float]:
    return {"median": value.median, "low": value.low, "high": value.high}


def show(records: list[dict[str, Any]]) -> None:
    """Print the table: a row a case, a column a pass."""
    passes = list(records[0]["without"])
    table = Table("case", "ms", *passes, title="time without a pass / time with all")
    for record in records:
        ratios = [f"{record['without'][name]['median']:.2f}" for name in passes]
        table.add_row(record["case"], f"{1e3 * record['cpu_s']:.2f}", *ratios)
    Console(stderr=True, highlight=False, width=100).print(table)


def main() -> None:
    """Measure the cases that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="+", choices=[*CASES, *MODELS], default=[*CASES, *MODELS])
    parser.add_argument("--pass", nargs="+", choices=PASSES, default=list(PASSES), dest="passes")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds a case")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = [measure(build_case(name), arguments.passes, arguments.rounds) for name in arguments.case]
    show(records)
    if arguments.json:
        json.dump({"cases": records}, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
