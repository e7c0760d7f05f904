"""Runs of nights with planted figures, as `vleak.regression` takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from records import make_cell, make_header

from vleak.results.records import RunRecord, UtilityRecord

DEFENSES = ("none", "dp")
Change = Callable[[str, dict[str, Any]], None]
"""Changes the fields of a cell behind a defense, before the cell is made."""


def run_of(
    draw: int,
    change: Change | None = None,
    *,
    clips: int = 20,
    utility: float | None = None,
    environment: dict[str, Any] | None = None,
    **settings: Any,
) -> RunRecord:
    """A run of one draw: two defenses under one attack.

    Args:
        draw: number of the draw, which the noise of its figures is seeded by.
        change: of cells.
        utility: share of held-out clips that are right behind "dp"; None without utility.
        environment, settings: changes of those.
    """
    numbers, cells = np.random.default_rng(draw), []
    for defense in DEFENSES:
        for clip in range(clips):
            fields = _fields(defense, clip, numbers)
            if change is not None:
                change(defense, fields)
            cells.append(make_cell(clip, **fields))
    header = make_header(settings={"draw": draw, **settings}, environment=environment or {})
    record = dict(header) | {"planned_cells": len(cells), "cells": cells}
    if utility is not None:
        record["utility"] = [_utility("none", 0.9), _utility("dp", utility)]
    return RunRecord.model_validate(record)


def shifted(**changes: float) -> Change:
    """Change that adds to scores behind "dp"."""

    def change(defense: str, fields: dict[str, Any]) -> None:
        if defense == "dp":
            for name, value in changes.items():
                fields["scores"][name] += value

    return change


def _fields(defense: str, clip: int, numbers: np.random.Generator) -> dict[str, Any]:
    """Fields of a cell: of each clip a level of its own, and noise from draw to draw."""
    level = 6.0 + clip % 5 if defense == "none" else clip % 5 * 0.5
    noise = 0.5 * float(numbers.normal())
    known = {} if defense == "none" else {"epsilon": 8.0, "delta": 1e-5}
    return {
        "id": f"{defense}/{clip}",
        "gain": level + noise,
        "identified": defense == "none" or bool(numbers.random() < 0.2),
        "defense": {"name": defense, "label": defense, **known},
        "attack": {"defense_knowledge": "channel"},
        "scores": {
            "psnr_gain_db": level + noise,
            "motion_psnr_gain_db": level / 2 + noise,
            "linked": defense == "none",
            "link_rank": 1,
        },
        "certificate": None if defense == "none" else {"kind": "identification", "bound": 0.4},
        "update": {"bytes": 1000, "cosine_to_undefended": 1.0 if defense == "none" else 0.5},
        "seed": 0,
    }


def _utility(defense: str, share: float) -> UtilityRecord:
    right = tuple(place < round(80 * share) for place in range(80))
    return UtilityRecord(
        pipeline="raw", model="c3d", defense=defense, text=defense, undefended=defense == "none", rounds=1,
        clients=2, batch=1, clips=10, right=right, bytes=1000.0, seconds=0.1,
    )  # fmt: skip
