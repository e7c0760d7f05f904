"""Cells of a run as tests compare them."""

from __future__ import annotations

from vleak.results.records import Cell, RunRecord, Scores


def cells_of(record: RunRecord, attack: str = "matching", defense: str | None = None) -> list[Cell]:
    """Cells of one attack, and of one defense where it is named."""
    return [
        cell for cell in record.cells if cell.attack.name == attack and defense in (None, cell.defense.name)
    ]


def timeless(cells: RunRecord | list[Cell]) -> dict[str, Cell]:
    """Cells by id without the times, which differ from run to run."""
    found = list(cells.cells) if isinstance(cells, RunRecord) else cells
    assert len({cell.id for cell in found}) == len(found)
    return {cell.id: without_seconds(cell) for cell in found}


def without_seconds(cell: Cell) -> Cell:
    """Cell without the times of its attackers."""
    other = cell.non_adaptive
    changes = {
        "attack": cell.attack.model_copy(update={"seconds": 0.0}),
        "non_adaptive": None if other is None else other.model_copy(update={"seconds": 0.0}),
    }
    return cell.model_copy(update=changes)


def scores_of(cell: Cell) -> Scores:
    """Scores of a cell that has some."""
    assert cell.scores is not None, cell.status
    return cell.scores
