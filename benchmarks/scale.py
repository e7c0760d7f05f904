"""What a stored cell costs: bytes on the disk, seconds to write and to read it, and memory, by their number.

    python benchmarks/scale.py [--cells 1000 10000 100000] [--clips 8] [--frames 8] [--size 32]

One small evaluation is run; its cells are stored over and over under other ids, clips and defenses, in a
folder and a process of their own for every number, without their pictures, whose bytes are those of the
small run. CPU seconds of one process, and its peak memory; the imports alone take about 550 MiB of it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vleak.evaluation import Settings, evaluate
from vleak.results import FolderStore, RunHeader, RunRecord, read_run, summarise

CLIPS_A_ROW = 50
"""Clips behind one defense and attack; more cells are more rows, as in a sweep."""


def small_run(folder: Path, given: argparse.Namespace) -> RunRecord:
    settings = Settings(
        clips=given.clips, frames=given.frames, size=given.size, defenses=("dp:noise_multiplier=0.1",),
        attacks=("matching",), iterations=5, audit_draws=0,
    )  # fmt: skip
    return evaluate(settings, folder, workers=1)


def bytes_of(folder: Path, cells: int) -> dict[str, float]:
    """Return the bytes of a cell by what they are."""
    pictures = sum(path.stat().st_size for path in (folder / "reconstructions").iterdir())
    files = sum(1 for _ in (folder / "reconstructions").iterdir())
    named = {name: (folder / name).stat().st_size / cells for name in ("cells.jsonl", "results.json")}
    return {"pictures": pictures / cells, "files": files / cells, **named}


def store(source: Path, folder: Path, count: int) -> list[str]:
    """Store so many cells; returns the ids."""
    record = read_run(source)
    attacked = [cell for cell in record.cells if not cell.attack.baseline]
    header = RunHeader(**{name: getattr(record, name) for name in RunHeader.model_fields})
    names = []
    with FolderStore(folder).open(header) as opened:
        for number in range(count):
            cell, row, clip = attacked[number % len(attacked)], number // CLIPS_A_ROW, number % CLIPS_A_ROW
            settings = {**cell.defense.settings, "row": row}
            defense = cell.defense.model_copy(update={"label": f"row {row}", "settings": settings})
            name = f"{row}/{clip}"
            opened.add(cell.model_copy(update={"id": name, "clip": str(clip), "defense": defense}))
            names.append(name)
        opened.finish(names)
    return names


def run_child(given: argparse.Namespace) -> None:
    """Do one thing with so many cells, and print its CPU seconds and the peak memory."""
    source, folder, count = Path(given.child[1]), Path(given.child[2]), given.cells[0]
    begin = time.process_time()
    if given.child[0] == "write":
        store(source, folder, count)
    elif given.child[0] == "read":
        read_run(folder)
    elif given.child[0] == "rows":
        record = read_run(folder)
        begin = time.process_time()
        summarise(record)
    seconds = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"seconds": seconds, "mebibytes": peak}))


def measure(what: str, source: Path, folder: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--cells", str(count), "--child", what, str(source), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    failed = {"seconds": float("nan"), "mebibytes": float("nan")}
    return json.loads(done.stdout) if done.returncode == 0 else failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        run_child(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        sizes = bytes_of(source, len(small_run(source, given).cells))
        print(", ".join(f"{name} {value:,.1f}" for name, value in sizes.items()), "a cell")
        print("| cells | journal, MB | write, s | read, s | rows, s | peak of reading, MiB |")
        print("|---|---|---|---|---|---|")
        for count in given.cells:
            target = Path(folder) / str(count)
            written, read, rows = (measure(what, source, target, count) for what in ("write", "read", "rows"))
            journal = (target / "cells.jsonl").stat().st_size / 1e6
            seconds = " | ".join(f"{each['seconds']:.1f}" for each in (written, read, rows))
            print(f"| {count:,} | {journal:.0f} | {seconds} | {read['mebibytes']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
