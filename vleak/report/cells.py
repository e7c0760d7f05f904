"""Cells of a run as compact data for the script of a page, and as the first rows of its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vleak.report.words import client_text, knowledge_text
from vleak.results.records import Cell, Scores
from vleak.results.rows import RowKey, row_key

__all__ = ["FIRST", "Column", "cell_table"]

FIRST = 50
"""Rows that stand in the page itself, for readers without scripts."""
_NO_SCORES = Scores()
_DIGITS = 4  # significant digits of a number in the page


Pick = Callable[[Cell, str], Any]


@dataclass(frozen=True)
class Column:
    """Column of the table of cells.

    Attributes:
        name: in links and in the data.
        title: heading, with its unit.
        pick: returns the value of a cell, given the label of its defense.
        digits: of a number; None for text. signed: whether its sign is shown.
        detail: whether it stands in the opened cell alone.
    """

    name: str
    title: str
    pick: Pick
    digits: int | None = None
    signed: bool = False
    detail: bool = False


def outcome(cell: Cell) -> str:
    """What became of a cell, in one or two words."""
    if not cell.ok or cell.scores is None:
        return "failed"
    if (cell.scores.candidates or 0) < 2:
        return "scored"
    return "recognised" if cell.scores.identified else "not recognised"


def _score(name: str) -> Pick:
    return lambda cell, _: getattr(cell.scores or _NO_SCORES, name)


def _update(name: str) -> Pick:
    return lambda cell, _: None if cell.update is None else getattr(cell.update, name)


def _told(name: str) -> Pick:
    words = {True: "yes", False: "no", None: None}
    return lambda cell, _: words[getattr(cell.scores or _NO_SCORES, name)]


def _without(cell: Cell, _: str) -> float | None:
    return None if cell.non_adaptive is None else cell.non_adaptive.psnr_gain_db


_COLUMNS = (
    Column("defense", "Defense", lambda cell, label: label),
    Column("attack", "Attack", lambda cell, _: cell.attack.text),
    Column("clip", "Clip", lambda cell, _: cell.clip),
    Column("outcome", "Outcome", lambda cell, _: outcome(cell)),
    Column("gain", "Gain, dB", _score("psnr_gain_db"), 1, signed=True),
    Column("psnr", "PSNR, dB", _score("psnr_db"), 1),
    Column("moving", "Moving, dB", _score("motion_psnr_db"), 1),
    Column("ssim", "SSIM", _score("ssim"), 2),
    Column("rank", "Rank", _score("rank"), 0),
    Column("linked", "Linked", _told("linked")),
    Column("seconds", "Time, s", lambda cell, _: cell.attack.seconds, 1),
    Column("flags", "Flags, failure", lambda cell, _: "; ".join(cell.flags) or cell.failure),
    Column("model", "Model", lambda cell, _: f"{cell.model}, {cell.training_state}", detail=True),
    Column("granted", "Granted", lambda cell, _: knowledge_text(cell.knowledge), detail=True),
    Column("client", "Client", lambda cell, _: client_text(cell.client) or "one clip", detail=True),
    Column("method", "Method", lambda cell, _: cell.attack.method, detail=True),
    Column("guess", "Best baseline", _score("best_baseline"), detail=True),
    Column("candidates", "Candidates", _score("candidates"), 0, detail=True),
    Column("linkrank", "Rank by the update", _score("link_rank"), 0, detail=True),
    Column("label", "Label right", _told("label_correct"), detail=True),
    Column("ssimgain", "SSIM gain", _score("ssim_gain"), 2, signed=True, detail=True),
    Column("residual", "Correlation beyond the prior", _score("residual_correlation"), 2, detail=True),
    Column("unaware", "Gain of who does not know the defense, dB", _without, 1, signed=True, detail=True),
    Column("epsilon", "ε", lambda cell, _: cell.defense.epsilon, 2, detail=True),
    Column("replaced", "ε of a replaced clip", lambda cell, _: cell.defense.replaced_epsilon, 2, detail=True),
    Column("bound", "Certificate allows, share", lambda cell, _: cell.certificate and cell.certificate.bound,
           2, detail=True),
    Column("bytes", "Update, bytes", _update("bytes"), 0, detail=True),
    Column("cosine", "Cosine to the undefended update", _update("cosine_to_undefended"), 2, detail=True),
    Column("iterations", "Iterations", lambda cell, _: cell.attack.iterations, 0, detail=True),
    Column("seed", "Seed", lambda cell, _: str(cell.seed), detail=True),
    Column("id", "Cell", lambda cell, _: cell.id, detail=True),
)  # fmt: skip


def cell_table(cells: Sequence[Cell], labels: Mapping[RowKey, str]) -> dict[str, Any]:
    """Return the table of all cells, as JSON values.

    Args:
        cells: of the run.
        labels: label of the defense, by row.

    Returns:
        ``columns``: of each its name, title, digits, sign, and whether it is a detail; ``texts``: every text
        once; ``cells``: a list of values each, texts as their position; ``first``: rows of a page of the
        table. A detail that no cell has is left out.
    """
    texts: dict[str, int] = {}
    rows = [
        [column.pick(cell, label) for column in _COLUMNS]
        for cell, label in ((cell, labels[row_key(cell)]) for cell in cells)
    ]
    kept = [
        place
        for place, column in enumerate(_COLUMNS)
        if not column.detail or any(row[place] is not None for row in rows)
    ]
    columns = [_COLUMNS[place] for place in kept]
    return {
        "columns": [
            {"name": c.name, "title": c.title, "digits": c.digits, "signed": c.signed, "detail": c.detail}
            for c in columns
        ],
        "cells": [
            [_packed(row[place], texts, text=_COLUMNS[place].digits is None) for place in kept]
            for row in rows
        ],
        "texts": list(texts),
        "first": FIRST,
    }


def _packed(value: Any, texts: dict[str, int], *, text: bool) -> float | None:
    """Return a number with few digits, or the position of a text."""
    if value is None:
        return None
    if text:
        return texts.setdefault(str(value), len(texts))
    return value if isinstance(value, int) else float(f"{value:.{_DIGITS}g}")
