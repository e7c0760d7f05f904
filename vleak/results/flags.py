"""Health flags that only a comparison with other cells of the run can raise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from vleak.results.records import Cell, Scores

__all__ = [
    "BEATS_UNDEFENDED",
    "FAILS_UNDEFENDED",
    "NO_BETTER",
    "OTHER_SETTINGS",
    "WEAKER_BEATS",
    "with_flags",
]

NO_BETTER = "no better than the best baseline"
FAILS_UNDEFENDED = "fails even undefended"
BEATS_UNDEFENDED = "leaks more than undefended"
WEAKER_BEATS = "weaker attack beats stronger"
OTHER_SETTINGS = "other settings of the attack beat these"

# Attacks are uneven from cell to cell; a smaller lead says nothing.
_NOTICEABLE_DB, _NOTICEABLE_COSINE = 1.0, 0.1


def with_flags(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Cells with the flags that only other cells of the run can raise; of the same order."""
    attacks = [cell for cell in cells if cell.ok and not cell.attack.baseline]
    undefended = {_attack_key(cell): cell.scores for cell in attacks if cell.defense.undefended}
    weaker, own = defaultdict[object, list[Cell]](list), defaultdict[object, list[Cell]](list)
    for cell in attacks:
        own[cell.attack.name, *_defense_key(cell)].append(cell)
        if cell.attack.counterpart is not None:
            weaker[cell.attack.counterpart, *_defense_key(cell)].append(cell)
    return tuple(
        _with(
            cell,
            _against_undefended(cell, undefended.get(_attack_key(cell))),
            _if_beaten(cell, weaker[cell.attack.name, *_defense_key(cell)], WEAKER_BEATS),
            _if_beaten(cell, own[cell.attack.name, *_defense_key(cell)], OTHER_SETTINGS),
        )
        if cell.ok and not cell.attack.baseline
        else cell
        for cell in cells
    )


def _with(cell: Cell, *flags: str | None) -> Cell:
    added = [flag for flag in flags if flag is not None and flag not in cell.flags]
    return cell.model_copy(update={"flags": (*cell.flags, *added)}) if added else cell


def _attack_key(cell: Cell) -> tuple[object, ...]:
    """Fields shared by cells that differ in the defense alone."""
    return (*_client_key(cell), cell.attack.text)


def _defense_key(cell: Cell) -> tuple[object, ...]:
    """Fields shared by cells that differ in the attack alone."""
    return (*_client_key(cell), cell.defense.text)


def _client_key(cell: Cell) -> tuple[object, ...]:
    """Fields that say which client of which model was attacked, with which reference frames."""
    return cell.pipeline, cell.model, cell.clip, cell.client, cell.batch, cell.knowledge.reference_frames


def _lead(scores: Scores) -> float | None:
    """Gain over the best baseline: of a picture in dB, of features alone the cosine."""
    if scores.psnr_gain_db is not None:
        return scores.psnr_gain_db
    return None if scores.segments is None else scores.segments.cosine_gain


def _noticeable(scores: Scores) -> float:
    return _NOTICEABLE_DB if scores.psnr_gain_db is not None else _NOTICEABLE_COSINE


def _against_undefended(cell: Cell, undefended: Scores | None) -> str | None:
    if undefended is None or cell.scores is None:
        return None
    without, behind = _lead(undefended), _lead(cell.scores)
    if without is None or behind is None:
        return None
    if without <= 0 and not undefended.identified:
        return NO_BETTER if cell.defense.undefended else FAILS_UNDEFENDED
    return BEATS_UNDEFENDED if behind > without + _noticeable(undefended) else None


def _if_beaten(cell: Cell, others: Sequence[Cell], flag: str) -> str | None:
    """Flag of an attack that got clearly less than one of some others, out of the same message."""
    return flag if any(_beats(other.scores, cell.scores) for other in others) else None


def _beats(theirs: Scores | None, ours: Scores | None) -> bool:
    if theirs is None or ours is None:
        return False
    if theirs.identified != ours.identified:
        return theirs.identified
    more, less = _lead(theirs), _lead(ours)
    return more is not None and less is not None and more > less + _noticeable(ours)
