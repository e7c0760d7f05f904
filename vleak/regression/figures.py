"""Figures of a run that nights are compared by, and their table: by row, sample and figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vleak.results import Cell, RowKey, RunRecord, row_key
from vleak.results.records import Scores

__all__ = ["FIGURES", "Figure", "RowFigures", "figures_of"]

Value = float | None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Figure of a cell.

    Attributes:
        unit: "dB", "share", "cosine" or "bytes".
        read: its value in a cell; None where it was not measured.
        step: smallest difference that counts from night to night; 0 for any. Of bytes a part of them.
        replay: difference that a replay may have, of equal randomness and versions.
        leaks: whether more of it is more leakage; None for what is not compared from night to night.
        of_message: whether it belongs to the message, so that one attack of a setting stands for all.
    """

    unit: str
    read: Callable[[Cell], Value]
    step: float = 0.0
    replay: float = 0.0
    leaks: bool | None = None
    of_message: bool = False


def _score(read: Callable[[Scores], float | bool | None]) -> Callable[[Cell], Value]:
    def of_cell(cell: Cell) -> Value:
        value = None if cell.scores is None else read(cell.scores)
        return None if value is None else float(value)

    return of_cell


def _identified(scores: Scores) -> Value:
    return None if scores.candidates is not None and scores.candidates < 2 else float(scores.identified)


def _sent(name: str) -> Callable[[Cell], Value]:
    return lambda cell: None if cell.update is None else float(getattr(cell.update, name))


FIGURES: Mapping[str, Figure] = {
    "identified": Figure(unit="share", read=_score(_identified), leaks=True),
    "gain": Figure(
        unit="dB", read=_score(lambda scores: scores.psnr_gain_db), step=0.05, replay=0.01, leaks=True
    ),
    "motion gain": Figure(
        unit="dB", read=_score(lambda scores: scores.motion_psnr_gain_db), step=0.05, replay=0.01, leaks=True
    ),
    "feature gain": Figure(
        unit="cosine",
        read=_score(lambda scores: None if scores.segments is None else scores.segments.cosine_gain),
        step=0.005,
        replay=1e-3,
        leaks=True,
    ),
    "linked": Figure(unit="share", read=_score(lambda scores: scores.linked), leaks=True, of_message=True),
    "link chance": Figure(
        unit="share",
        read=_score(lambda scores: scores.link_chance),
        step=0.01,
        replay=1e-3,
        leaks=True,
        of_message=True,
    ),
    "bytes": Figure(unit="bytes", read=_sent("bytes"), step=0.001, leaks=False, of_message=True),
    "PSNR": Figure(unit="dB", read=_score(lambda scores: scores.psnr_db), replay=0.01),
    "SSIM": Figure(unit="share", read=_score(lambda scores: scores.ssim), replay=1e-3),
    "label": Figure(unit="share", read=_score(lambda scores: scores.label_correct)),
    "cosine": Figure(
        unit="cosine",
        read=_sent("cosine_to_undefended"),
        step=0.005,
        replay=1e-4,
        leaks=True,
        of_message=True,
    ),
}
"""Figures by name."""


@dataclass
class RowFigures:
    """Figures of the cells of one row.

    Attributes:
        cell: one of them, for what they share.
        values: by sample, which is a clip or all clips of one client, the figures by name. Clips of one
            client share its randomness, so that their mean is one sample.
        failed: reasons why cells failed, by sample.
        bounds: shares that certificates allow.
    """

    cell: Cell
    values: dict[str, dict[str, Value]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    bounds: list[float] = field(default_factory=list)


def figures_of(run: RunRecord) -> dict[RowKey, RowFigures]:
    """Figures of a run by row, without attackers who never see an update: no defense acts on them."""
    clients: dict[RowKey, dict[tuple[int, ...], list[Cell]]] = {}
    for cell in run.cells:
        if not cell.attack.baseline:
            of_row = clients.setdefault(row_key(cell), {})
            of_row.setdefault(cell.batch or (cell.clip_index,), []).append(cell)
    return {key: _row([*of_row.values()]) for key, of_row in clients.items()}


def _row(clients: list[list[Cell]]) -> RowFigures:
    every = [cell for cells in clients for cell in cells]
    row = RowFigures(next((cell for cell in every if cell.ok), every[0]))
    row.bounds = [cell.certificate.bound for cell in every if cell.certificate is not None]
    for cells in clients:
        name = " + ".join(cell.clip for cell in cells)
        reasons = [cell.failure for cell in cells if cell.failure is not None]
        if reasons:
            row.failed[name] = reasons[0]
        row.values[name] = {} if reasons else _means(cells)
    return row


def _means(cells: list[Cell]) -> dict[str, Value]:
    """Means over the clips of one client, by figure; of those that have it."""
    values = {
        name: [value for cell in cells if (value := figure.read(cell)) is not None]
        for name, figure in FIGURES.items()
    }
    return {name: sum(known) / len(known) for name, known in values.items() if known}
