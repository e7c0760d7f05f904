"""How good the guard is: rates of its checks and scores, behind docs/detection.md.

    python benchmarks/detection.py --out FOLDER [--data FOLDER] [--part PART] [--seed 0] [--page FILE]

Two parts. "models" inspects honest models and planted ones; "scores" computes the warning scores of updates
behind several defenses, and lets the default attack loose on the same updates. Every cell is stored in
``--out`` as soon as it is there; the same command goes on where it was stopped, and writes the tables of what
is finished. The thresholds were chosen with ``--seed 1000``, which no table uses.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from detection_models import model_cells
from detection_page import write_table
from detection_scores import score_cells
from inner_loop import console
from journal import Cell, Journal, run_part
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vleak.errors import VleakError

_PAGE = Path(__file__).resolve().parent / "results" / "detection.md"
PARTS = ("models", "scores")


def planned(part: str, arguments: argparse.Namespace) -> dict[str, Callable[[], Cell]]:
    """Return what computes each cell of a part, by its key."""
    if part == "models":
        return dict(model_cells(arguments.seed))
    sources = ["synthetic", *([arguments.data] if arguments.data else [])]
    return dict(work for source in sources for work in score_cells(source, arguments.seed))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of what was measured")
    parser.add_argument("--data", help="folder of videos, beside the synthetic clips")
    parser.add_argument("--part", choices=PARTS, help="one part alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, default=_PAGE, help="file of the tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        works = {part: planned(part, arguments) for part in PARTS}
        journals = {part: Journal(arguments.out / f"{part}.jsonl", arguments.seed) for part in PARTS}
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            for part in [arguments.part] if arguments.part else PARTS:
                run_part(part, works[part], journals[part], bar)
        finished = {
            part: [cell for key, cell in journals[part].cells.items() if key in works[part]] for part in PARTS
        }
        write_table(arguments.page, finished)
    except VleakError as error:
        print(f"detection: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("detection: stopped; the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
