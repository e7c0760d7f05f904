"""Journal of a benchmark: every finished cell is stored, and the same command goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.progress import Progress

from vleak.errors import InputError

Cell = dict[str, Any]


class Journal:
    """Cells of one part in a file of lines of JSON; a torn last line is dropped."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed = path, seed
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        self.cells: dict[str, Cell] = {cell["key"]: cell for cell in map(json.loads, whole)}
        if any(cell["seed"] != seed for cell in self.cells.values()):
            raise InputError(f"{path} holds cells of another seed; give another folder")
        if len(whole) < len(lines):
            path.write_text("".join(whole), "utf-8")

    def add(self, key: str, cell: Cell) -> None:
        """Store a cell."""
        self.cells[key] = {"key": key, "seed": self.seed, **cell}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.cells[key]) + "\n")


def run_part(part: str, works: Mapping[str, Callable[[], Cell]], journal: Journal, bar: Progress) -> None:
    """Compute the cells of a part that its journal does not hold."""
    task = bar.add_task(part, total=len(works))
    for key, compute in works.items():
        if key not in journal.cells:
            bar.update(task, description=f"{part}: {key}")
            journal.add(key, compute())
        bar.advance(task)
