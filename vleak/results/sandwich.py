"""Figures between a baseline and a ceiling: what guessing gives, what was measured, and what is proven.

One rule says what a run holds against a defense: a measured share is above what is proven where so many
successes, or more, have a probability below the level by an exact binomial test. The level is that of all
figures of the run together (Bonferroni), so that an honest run is accused at most at the stated rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vleak.certificates import psnr_ceiling, van_trees_floor
from vleak.results.audit import AuditRecord
from vleak.results.records import Cell
from vleak.results.rows import Ceilings, Figure, FigureName, Row
from vleak.results.statistics import binomial_excess

__all__ = ["ACCUSED", "ceilings_of", "figures_of", "with_audits", "with_broken"]

ACCUSED = 0.001
"""Rate of honest runs that are accused: half of it by shares above what is proven, half by audits."""


def figures_of(cells: Sequence[Cell], baseline: float | None, guess: float | None) -> tuple[Figure, ...]:
    """Return the figures of the cells of a row, those that were measured, not yet compared.

    Args:
        cells: all of the row, also those that failed.
        baseline: what recognition has to beat. guess: what linkage has to.
    """
    figures = [
        _figure("recognised", cells, baseline, _recognised(cells)),
        _figure("linked", cells, guess, _linked(cells)),
        _figure("told", cells, guess, _told(cells)),
    ]
    return tuple(figure for figure in figures if figure.trials)


def with_broken(rows: Sequence[Row], error: float = ACCUSED / 2) -> list[Row]:
    """Return the rows with their figures compared with what is proven.

    Args:
        rows: of a run.
        error: probability with which any figure of an honest run is above its ceiling.
    """
    tests = sum((figure.ceiling or 1.0) < 1 for row in rows for figure in row.figures)

    def judged(figure: Figure) -> Figure:
        if figure.ceiling is None or figure.ceiling >= 1:
            return figure
        tail = binomial_excess(figure.successes, figure.trials, figure.ceiling)
        return replace(figure, tail=tail, broken=tail < error / tests)

    return [replace(row, figures=tuple(judged(figure) for figure in row.figures)) for row in rows]


def ceilings_of(cells: Sequence[Cell]) -> Ceilings | None:
    """Return the further ceilings of scored cells, means over the clips.

    The Fisher information of the clips stands for its mean over the prior of van Trees' inequality.
    """
    found = [cell.ceilings for cell in cells if cell.ceilings is not None]
    if not found:
        return None
    information = _mean([each.information for each in found])
    variance = _mean([each.prior_variance for each in found])
    van_trees = None
    if information is not None and variance is not None:
        van_trees = psnr_ceiling(van_trees_floor(information, variance))
    return Ceilings(
        math.fsum(each.bits for each in found) / len(found),
        math.fsum(each.fano for each in found) / len(found),
        _mean([each.no_prior_psnr_db for each in found]),
        _mean([each.unbiased_psnr_db for each in found]),
        van_trees,
        variance,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def with_audits(rows: Sequence[Row], audits: Iterable[AuditRecord]) -> list[Row]:
    """Return the rows with the audits of their defenses."""
    found = {(each.pipeline, each.model, each.text): each for each in audits}
    return [
        row if row.baseline else replace(row, audit=found.get((row.pipeline, row.model, row.key.defense)))
        for row in rows
    ]


# Successes and trials of each cell that was asked.
_Counts = list[tuple[Cell, int, int]]


def _figure(name: FigureName, cells: Sequence[Cell], baseline: float | None, counts: _Counts) -> Figure:
    """Return a figure with what certificates and bits allow of it.

    What is proven is a mean over all candidates, one of which is easy to pick where another is hard. So what
    is allowed of cells that failed, or that a stopped run has not, is allowed of the others besides.
    """
    successes, trials = sum(each[1] for each in counts), sum(each[2] for each in counts)
    asked = {cell.id for cell, _, _ in counts}
    allowed = [_allowed(cell) for cell in cells if cell.id in asked or not cell.ok]
    candidates = max((cell.scores.candidates or 0 for cell, _, _ in counts if cell.scores), default=0)
    whole = max(1.0, candidates / max(1, len(allowed)))
    ceiling: float | None = min(1.0, whole * math.fsum(allowed) / len(counts)) if counts else 1.0
    if ceiling == 1.0 and not any(cell.certificate for cell in cells):
        ceiling = None
    return Figure(name, successes, trials, baseline, ceiling)


def _allowed(cell: Cell) -> float:
    """Return the share that certificate and bits allow any attacker; 1 where neither says anything."""
    certificate = 1.0 if cell.certificate is None else cell.certificate.bound
    return min(certificate, 1.0 if cell.ceilings is None else cell.ceilings.fano)


def _recognised(cells: Sequence[Cell]) -> _Counts:
    """Clips that have others to be told from."""
    return [
        (cell, int(cell.scores.identified), 1)
        for cell in cells
        if cell.ok
        and cell.scores is not None
        and (cell.scores.candidates is None or cell.scores.candidates > 1)
    ]


def _linked(cells: Sequence[Cell]) -> _Counts:
    return [
        (cell, int(cell.scores.linked), 1)
        for cell in cells
        if cell.ok and cell.scores is not None and cell.scores.linked is not None
    ]


def _told(cells: Sequence[Cell]) -> _Counts:
    """Draws of the noise, of cells that say how many there were."""
    counts = []
    for cell in cells:
        scores = cell.scores
        if cell.ok and scores is not None and scores.link_chance is not None and scores.link_draws:
            counts.append((cell, round(scores.link_chance * scores.link_draws), scores.link_draws))
    return counts
