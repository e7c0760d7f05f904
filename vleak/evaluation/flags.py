"""Health flags that only a look at other cells of the run can raise."""

from __future__ import annotations

import json
from typing import Any

from vleak.attacks import NULL_ATTACKS, Matching, MatchingBlind

NO_BETTER = "no better than the prior"
FAILS_UNDEFENDED = "fails even undefended"
BEATS_UNDEFENDED = "leaks more than undefended"
WEAKER_BEATS = "weaker attack beats stronger"

Cell = dict[str, Any]
_NOTICED_DB = 1.0  # attacks are uneven; a smaller lead says nothing


def mark(cells: list[Cell]) -> None:
    """Add the flags that only a look at other cells can raise."""
    scored = [cell for cell in cells if cell["status"] == "ok" and cell["attack"]["name"] not in NULL_ATTACKS]
    plain = {(c["attack"]["name"], c["clip"]): c["scores"] for c in scored if c["defense"]["name"] == "none"}
    blind = {_place(c): c["scores"] for c in scored if c["attack"]["name"] == MatchingBlind.name}
    for cell in scored:
        base = plain.get((cell["attack"]["name"], cell["clip"]))
        weaker = blind.get(_place(cell)) if cell["attack"]["name"] == Matching.name else None
        raised = [_against_undefended(cell, base), WEAKER_BEATS if _beaten(cell["scores"], weaker) else None]
        cell["flags"] = [*cell["flags"], *(flag for flag in raised if flag and flag not in cell["flags"])]


def _place(cell: Cell) -> tuple[str, str]:
    defense = [cell["defense"]["name"], cell["defense"].get("settings")]
    return json.dumps(defense, sort_keys=True), cell["clip"]


def _against_undefended(cell: Cell, base: Cell | None) -> str | None:
    if base is None:
        return None
    if base["psnr_gain_db"] <= 0 and not base["identified"]:
        return NO_BETTER if cell["defense"]["name"] == "none" else FAILS_UNDEFENDED
    leads = cell["scores"]["psnr_gain_db"] > base["psnr_gain_db"] + _NOTICED_DB
    return BEATS_UNDEFENDED if leads else None


def _beaten(own: Cell, weaker: Cell | None) -> bool:
    """Return whether the attack that does not know the defense got clearly more than the one that does."""
    if weaker is None:
        return False
    recognised = bool(weaker["identified"]) and not own["identified"]
    return recognised or weaker["psnr_gain_db"] > own["psnr_gain_db"] + _NOTICED_DB
