"""Figures of an entry, read off the record of a run."""

from __future__ import annotations

from collections.abc import Sequence

from vleak.defenses import Defense, NoDefense
from vleak.errors import VleakError
from vleak.pipelines.conditions import defense_record
from vleak.results import Cell, Row, RunRecord, mean_interval, summarise
from vleak.results.records import UtilityRecord
from vleak.suite.records import ClipFigures, Cost, Figures, Measured, SituationFigures, Unaware

__all__ = ["cost_of", "own_part", "situation_figures"]


def own_part(record: RunRecord, defense: Defense) -> RunRecord:
    """Part of a run that is about one defense: its cells and the undefended ones, its audit and utility.

    Args:
        record: of a run of one attack, which may hold further defenses.
        defense: one of them.
    """
    text = defense_record(defense, None).text
    return record.model_copy(
        update={
            "cells": tuple(c for c in record.cells if c.defense.undefended or c.defense.text == text),
            "audits": tuple(audit for audit in record.audits if audit.text == text),
            "utility": tuple(each for each in record.utility if each.undefended or each.text == text),
        }
    )


def situation_figures(name: str, part: RunRecord, defense: Defense) -> SituationFigures:
    """Figures of one situation.

    Args:
        name: of the situation.
        part: what `own_part` took of its run.
        defense: that the part is about.

    Raises:
        VleakError: the run has no cell of it.
    """
    rows = [row for row in summarise(part) if not row.baseline]
    undefended = next((row for row in rows if row.undefended), None)
    defended = next((row for row in rows if row.undefended == isinstance(defense, NoDefense)), None)
    if undefended is None or defended is None:
        raise VleakError(f"no cell of {defense.label} in the run of {name}; give another folder for the runs")
    (model,) = part.models
    return SituationFigures(
        name=name,
        data_sha256=part.data.sha256,
        weights_sha256=model.weights_sha256,
        undefended=_figures(undefended, part.cells),
        defended=_figures(defended, part.cells),
        unaware=_unaware(defended, part.cells),
        adaptive=defended.adaptive,
        knowledge=defended.defense_knowledge,
        bound=defended.bound,
        broken=defended.bound_broken,
        bytes=defended.bytes,
        bytes_ratio=defended.bytes_ratio,
        cosine=defended.cosine,
    )


def _figures(row: Row, cells: Sequence[Cell]) -> Figures:
    return Figures(
        clips=_clips(row, cells),
        failed=row.failed,
        failures=row.failures,
        recognised=Measured.of(row.identification),
        gain_db=Measured.of(row.psnr_gain_db),
        linked=Measured.of(row.linkage),
        verdict=row.verdict,
        flags=row.flags,
        flagged=row.flagged,
        method=row.methods,
        seconds=row.seconds,
    )


def _own_cells(row: Row, cells: Sequence[Cell]) -> list[Cell]:
    return [
        cell
        for cell in cells
        if not cell.attack.baseline and cell.defense.text == row.key.defense and cell.scores is not None
    ]


def _clips(row: Row, cells: Sequence[Cell]) -> tuple[ClipFigures, ...]:
    scored = [(cell.clip, cell.scores) for cell in _own_cells(row, cells) if cell.ok]
    return tuple(
        ClipFigures(
            clip=clip, recognised=scores.identified, gain_db=scores.psnr_gain_db, linked=scores.linked
        )
        for clip, scores in scored
        if scores is not None and scores.psnr_gain_db is not None
    )


def _unaware(row: Row, cells: Sequence[Cell]) -> Unaware | None:
    other = row.non_adaptive
    if other is None:
        return None
    clips = [
        ClipFigures(clip=cell.clip, recognised=found.identified, gain_db=found.psnr_gain_db)
        for cell in _own_cells(row, cells)
        if (found := cell.non_adaptive) is not None and found.ok and found.psnr_gain_db is not None
    ]
    return Unaware(
        clips=tuple(clips),
        recognised=Measured.of(other.identification),
        gain_db=Measured.of(other.psnr_gain_db),
        lead_db=Measured.of(other.lead_db),
        ahead="behind_non_adaptive" in row.caveats,
    )


def cost_of(part: RunRecord, defense: Defense) -> Cost | None:
    """Cost of training under the defense that a part of a run is about; None where it was not measured."""
    text = defense_record(defense, None).text
    own = next((each for each in part.utility if each.text == text), None)
    plain = next((each for each in part.utility if each.undefended), None)
    if own is None:
        return None
    return Cost(
        rounds=own.rounds,
        accuracy=Measured.of(mean_interval([float(right) for right in own.right])),
        change=None if own.undefended else _change(own, plain),
        seconds=own.seconds,
        seconds_ratio=own.seconds / plain.seconds if own.seconds and plain and plain.seconds else None,
        failure="" if own.ok else own.status.removeprefix("failed: "),
    )


def _change(own: UtilityRecord, plain: UtilityRecord | None) -> Measured | None:
    if plain is None or len(plain.right) != len(own.right):
        return None
    pairs = zip(own.right, plain.right, strict=True)
    return Measured.of(mean_interval([float(here) - float(there) for here, there in pairs]))
