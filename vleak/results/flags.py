"""Health flags that only a look at other cells of the run can raise."""

from __future__ import annotations

import json
from typing import Any

from vleak.attacks import BASELINES, Matching, NonAdaptiveMatching

NO_BETTER = "no better than the prior"
FAILS_UNDEFENDED = "fails even undefended"
BEATS_UNDEFENDED = "leaks more than undefended"
WEAKER_BEATS = "weaker attack beats stronger"

Cell = dict[str, Any]
_NOTICED_DB, _NOTICED_COSINE = 1.0, 0.1  # attacks are uneven; a smaller lead says nothing


def mark(cells: list[Cell]) -> None:
    """Add the flags that only a look at other cells can raise."""
    scored = [cell for cell in cells if cell["status"] == "ok" and cell["attack"]["name"] not in BASELINES]
    plain = {_attacked(c): c["scores"] for c in scored if c["defense"]["name"] == "none"}
    blind = {_place(c): c["scores"] for c in scored if c["attack"]["name"] == NonAdaptiveMatching.name}
    for cell in scored:
        base = plain.get(_attacked(cell))
        weaker = blind.get(_place(cell)) if cell["attack"]["name"] == Matching.name else None
        raised = [_against_undefended(cell, base), WEAKER_BEATS if _beaten(cell["scores"], weaker) else None]
        cell["flags"] = [*cell["flags"], *(flag for flag in raised if flag and flag not in cell["flags"])]


def _attacked(cell: Cell) -> tuple[Any, ...]:
    """Return what cells share that differ in the defense alone."""
    grant = cell.get("knowledge") or {}
    asked = (cell["attack"]["name"], grant.get("reference_frames") or 0, cell["clip"])
    return (cell.get("pipeline"), cell.get("model"), *asked)


def _place(cell: Cell) -> tuple[Any, ...]:
    """Return what cells share that differ in the attack alone."""
    defense = [cell["defense"]["name"], cell["defense"].get("settings")]
    return (*_attacked(cell)[:2], *_attacked(cell)[3:], json.dumps(defense, sort_keys=True))


def _lead(scores: Cell) -> float | None:
    """Return what is won over the best null attacker: of a picture in dB, of features alone the cosine."""
    if scores.get("psnr_gain_db") is not None:
        return float(scores["psnr_gain_db"])
    gain = (scores.get("segments") or {}).get("cosine_gain")
    return None if gain is None else float(gain)


def _against_undefended(cell: Cell, base: Cell | None) -> str | None:
    if base is None:
        return None
    before, after = _lead(base), _lead(cell["scores"])
    if before is None or after is None:
        return None
    if before <= 0 and not base["identified"]:
        return NO_BETTER if cell["defense"]["name"] == "none" else FAILS_UNDEFENDED
    return BEATS_UNDEFENDED if after > before + _noticed(base) else None


def _noticed(scores: Cell) -> float:
    return _NOTICED_DB if scores.get("psnr_gain_db") is not None else _NOTICED_COSINE


def _beaten(own: Cell, weaker: Cell | None) -> bool:
    """Return whether the attack that does not know the defense got clearly more than the one that does."""
    if weaker is None:
        return False
    recognised = bool(weaker["identified"]) and not own["identified"]
    ours, theirs = _lead(own), _lead(weaker)
    return recognised or (ours is not None and theirs is not None and theirs > ours + _noticed(own))
