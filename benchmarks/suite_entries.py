"""Entries of the suite by this repository, and the table of docs/leaderboard.md.

    python benchmarks/suite_entries.py [--lanes 2] [--folder docs/suite] [--runs build/suite] [--only TEXT]

An entry that is there is not made again. Defenses are measured a few together, which share the undefended
cells of their run; each lane is a process with one thread. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, as_completed
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import torch
from marked import between_marks, rewrite

from vleak.errors import VleakError
from vleak.report import board_markdown, plural
from vleak.suite import (
    NEWEST,
    entry_name,
    find_protocol,
    leaderboard,
    make_entries,
    read_entries,
    read_entry,
    write_entry,
)

BEGIN, END = "<!-- leaderboard: begin -->", "<!-- leaderboard: end -->"
TOGETHER = 4
"""Defenses that share a run, at most."""
DEFENSES = (
    "none",
    "dp:noise_multiplier=0.1",
    "dp:noise_multiplier=1.0",
    "prune:fraction=0.99",
    "compress:codec=qsgd,bits=2",
    "compress:codec=sign",
    "soteria:fraction=0.4",
    "lookalikes:source=label",
    "secure_sum:clients=2",
    "precode:width=32",
    "powersgd:rank=2",
    "nvflare_percentile:percentile=10.0",
    "dp_client:noise_multiplier=0.1",
    "dp:noise_multiplier=0.1+prune:fraction=0.9",
    "prune:fraction=0.9",
    "compress:codec=int8",
    "dp:noise_multiplier=0.01",
    "compress:codec=qsgd,bits=4",
)
_TOP = Path(__file__).resolve().parents[1]
_EVERY = 20.0  # seconds between two lines of a lane


def missing(folder: Path, defenses: Sequence[str]) -> list[str]:
    """Return the defenses without an entry; one that cannot be read is made again."""
    left = []
    for text in defenses:
        try:
            read_entry(folder / entry_name(text))
        except VleakError:
            left.append(text)
    return left


def groups(defenses: Sequence[str], lanes: int) -> list[tuple[str, ...]]:
    """Return which defenses are measured together: as many groups for every lane, of nearly equal sizes."""
    count = lanes * -(-len(defenses) // (lanes * TOGETHER))
    dealt = [tuple(defenses[place::count]) for place in range(count)]
    return [group for group in dealt if group]


def make(defenses: tuple[str, ...], folder: Path, runs: Path) -> list[str]:
    """Make the entries of some defenses in this process; return a line for each."""
    torch.set_num_threads(1)
    last = [0.0]

    def tell(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > _EVERY:
            last[0] = time.monotonic()
            count = f" {done}/{total}" if total else ""
            print(f"  {defenses[0]} and {len(defenses) - 1} more: {what}{count}", file=sys.stderr, flush=True)

    own = runs / sha256(repr(defenses).encode()).hexdigest()[:12]
    lines = []
    for entry in make_entries(find_protocol(NEWEST), defenses, runs=own, workers=1, progress=tell):
        path = write_entry(entry, folder / entry_name(entry.defense.text))
        why = "" if entry.admitted else f": {entry.refusals[0].reason}"
        lines.append(f"{'admitted' if entry.admitted else 'refused'}: {path.name}{why}")
    return lines


def page(text: str, folder: Path) -> str:
    """Return a page with the table between its marks written anew.

    Raises:
        InputError: the page has no marks, or an entry cannot be read.
    """
    protocol = find_protocol(NEWEST)
    board = leaderboard(read_entries(folder, protocol), protocol)
    made = sorted(
        {
            f"vleak {e.environment.vleak}, torch {e.environment.torch}"
            for e in (standing.entry for standing in board.standings)
        }
    )
    count = len(board.standings)
    head = (
        f"{count} defense{plural(count)} ranked, by `python benchmarks/suite_entries.py` with "
        f"{' and '.join(made)}; protocol {protocol.name}, digest {protocol.sha256[:16]}."
    )
    return between_marks(text, BEGIN, END, f"{head}\n\n{board_markdown(board)}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lanes", type=int, default=2, help="processes side by side")
    parser.add_argument("--folder", type=Path, default=_TOP / "docs" / "suite", help="folder of the entries")
    parser.add_argument("--runs", type=Path, default=_TOP / "build" / "suite", help="folder of their runs")
    parser.add_argument("--page", type=Path, default=_TOP / "docs" / "leaderboard.md")
    parser.add_argument("--only", action="append", help="defense to make in place of all; repeat for more")
    arguments = parser.parse_args()
    begun, failed = time.monotonic(), 0
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        left = groups(missing(arguments.folder, arguments.only or DEFENSES), arguments.lanes)
        with ProcessPoolExecutor(arguments.lanes, get_context("spawn")) as pool:
            waiting = {pool.submit(make, each, arguments.folder, arguments.runs): each for each in left}
            for number, finished in enumerate(as_completed(waiting), 1):
                failed += not _told(finished, waiting[finished])
                minutes = (time.monotonic() - begun) / 60
                print(
                    f"{number} of {len(left)} groups after {minutes:.1f} minutes", file=sys.stderr, flush=True
                )
        rewrite(arguments.page, lambda text: page(text, arguments.folder))
    except (VleakError, OSError) as error:
        print(f"suite_entries: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("suite_entries: stopped; the same command goes on from there", file=sys.stderr)
        return 130
    print(f"table in {arguments.page}", file=sys.stderr)
    return 2 if failed else 0


def _told(finished: Future[list[str]], defenses: tuple[str, ...]) -> bool:
    """Print what came of a group; return whether its entries were made. The others go on without it."""
    try:
        print(*finished.result(), sep="\n", flush=True)
    except (VleakError, BrokenExecutor) as error:
        print(f"suite_entries: {', '.join(defenses)}: {error}", file=sys.stderr, flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
