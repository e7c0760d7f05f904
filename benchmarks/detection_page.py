"""Tables of detection.py: rates with exact intervals, rank correlations with bootstrap intervals."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

import vleak
from vleak.files import write_atomic
from vleak.guarding import CHECKS, Thresholds
from vleak.results.statistics import binomial_interval

Cell = dict[str, Any]

LEAK_DB = 1.0
"""Gain of the default attack from which an update counts as leaking, in dB; so does a recognised clip."""
RESAMPLES = 200
SCORES = (
    "attack_gain_db",
    "attack_correlation",
    "attack_recognised",
    "jacobian_energy",
    "alignment",
    "layer_share",
    "gradient_norm",
    "effective_rank",
    "frame_d_snr",
    "d_snr",
)


def write_table(path: Path, cells: dict[str, list[Cell]]) -> None:
    """Write the tables of what there is."""
    parts = [f"Written by `python benchmarks/detection.py` on {datetime.date.today()}: vleak "
             f"{vleak.__version__}, torch {torch.__version__}, Python {platform.python_version()}, seed "
             f"{(cells['models'] or cells['scores'])[0]['seed']}. Intervals are 95 %."]  # fmt: skip
    if cells["models"]:
        parts += ["## Honest models", honest_table(cells["models"]), check_table(cells["models"])]
        parts += ["## Planted models", planted_table(cells["models"])]
    if cells["scores"]:
        parts += ["## What the guard did", guard_table(cells["scores"]), rate_table(cells["scores"])]
        parts += ["## Rank correlation of scores and leakage", correlation_table(cells["scores"])]
    write_atomic(path, "# Detection\n\n" + "\n\n".join(parts) + "\n")


# ---------------------------------------------------------------------------------------------------------
# Models


def honest_table(cells: Iterable[Cell]) -> str:
    """Return how many honest models raise any alarm, by network and state."""
    honest = [cell for cell in cells if cell["plant"] is None]
    states = sorted({cell["state"] for cell in honest}, key=["untrained", "early", "late"].index)
    rows = []
    for name in dict.fromkeys(cell["network"] for cell in honest):
        of_name = [cell for cell in honest if cell["network"] == name]
        counts = [_alarms([c for c in of_name if c["state"] == state]) for state in states]
        cpu = sum(cell["cpu_s"] for cell in of_name) / len(of_name)
        rows.append([f"`{name}`" if ":" in name or " " not in name else name, *counts, f"{cpu:.1f}"])
    total = _rate(sum(bool(alarms(cell)) for cell in honest), len(honest))
    rows.append(["all", *[_rate_of(c for c in honest if c["state"] == s) for s in states], ""])
    head = ["network", *(f"{state}, alarms" for state in states), "CPU s an inspection"]
    return f"Any alarm: {total}.\n\n{_table(head, rows)}"


def check_table(cells: Iterable[Cell]) -> str:
    """Return for every check its false alarms and the largest figure of an honest model."""
    honest, limits = [cell for cell in cells if cell["plant"] is None], Thresholds()
    rows = []
    for check in CHECKS:
        seen = [cell for cell in honest if check in cell["figures"]]
        if not seen:
            continue
        false = sum(check in alarms(cell) for cell in seen)
        worst = max(seen, key=lambda cell: cell["figures"][check])
        rows.append([
            f"`{check}`", _rate(false, len(seen)), f"{worst['figures'][check]:.3g}",
            f"{worst['network']}, {worst['state']}", f"{getattr(limits, check):g}",
        ])  # fmt: skip
    return _table(["check", "false alarms", "largest figure", "of", "threshold"], rows)


def planted_table(cells: Iterable[Cell]) -> str:
    """Return for every plant how often it is caught, and the smallest figure of its check."""
    planted = [cell for cell in cells if cell["plant"] is not None]
    rows = []
    for plant in dict.fromkeys(cell["plant"] for cell in planted):
        mine = [cell for cell in planted if cell["plant"] == plant]
        check = mine[0]["check"]
        rows.append([
            plant, f"`{check}`", _rate(sum(check in alarms(cell) for cell in mine), len(mine)),
            _rate(sum(bool(alarms(cell)) for cell in mine), len(mine)),
            f"{min(cell['figures'].get(check, 0.0) for cell in mine):.3g}",
        ])  # fmt: skip
    return _table(["plant", "check", "caught by it", "caught by any", "smallest figure"], rows)


def alarms(cell: Cell) -> list[str]:
    """Return the checks whose figure is above the threshold, or no number."""
    limits = Thresholds()
    return [check for check, figure in cell["figures"].items() if not figure <= getattr(limits, check)]


def _alarms(cells: Sequence[Cell]) -> str:
    return f"{sum(bool(alarms(cell)) for cell in cells)}/{len(cells)}" if cells else ""


def _rate_of(cells: Iterable[Cell]) -> str:
    kept = list(cells)
    return _rate(sum(bool(alarms(cell)) for cell in kept), len(kept))


# ---------------------------------------------------------------------------------------------------------
# Scores


def leaked(cell: Cell) -> bool:
    """Return whether the default attack got something of the clip."""
    return bool(cell["gain_db"] > LEAK_DB or cell["recognised"])


def alarmed(cell: Cell, limits: Thresholds) -> bool:
    """Return whether the guard would not have sent the update."""
    scores = cell["scores"]
    return bool(
        scores["attack_gain_db"] > limits.gain_db
        or scores["attack_correlation"] > limits.correlation
        or scores["jacobian_energy"] > limits.jacobian_energy
    )


def guard_table(cells: Sequence[Cell]) -> str:
    """Return for every defense what the default attack got, and how many updates the guard held back."""
    limits, rows = Thresholds(), []
    for data, defense in dict.fromkeys((cell["data"], cell["defense"]) for cell in cells):
        mine = [cell for cell in cells if (cell["data"], cell["defense"]) == (data, defense)]
        short = np.mean([cell["scores"]["attack_gain_db"] for cell in mine])
        rows.append([
            data, f"`{defense}`", f"{np.mean([cell['gain_db'] for cell in mine]):+.1f}", f"{short:+.1f}",
            f"{sum(cell['recognised'] for cell in mine)}/{len(mine)}",
            f"{sum(map(leaked, mine))}/{len(mine)}",
            f"{sum(alarmed(cell, limits) for cell in mine)}/{len(mine)}",
        ])  # fmt: skip
    head = ["clips", "defense", "gain in dB", "short attack's", "recognised", "leaked", "held back"]
    return _table(head, rows)


def rate_table(cells: Sequence[Cell]) -> str:
    """Return how often the guard holds back what leaks, and what does not."""
    limits, rows = Thresholds(), []
    for data in dict.fromkeys(cell["data"] for cell in cells):
        mine = [cell for cell in cells if cell["data"] == data]
        hits = [alarmed(cell, limits) for cell in mine if leaked(cell)]
        false = [alarmed(cell, limits) for cell in mine if not leaked(cell)]
        cpu = np.mean([cell["cpu_s"] for cell in mine])
        rows.append([data, _rate(sum(hits), len(hits)), _rate(sum(false), len(false)), f"{cpu:.1f}"])
    return _table(["clips", "leaks held back", "held back without a leak", "CPU s an update"], rows)


def correlation_table(cells: Sequence[Cell]) -> str:
    """Return Spearman's rank correlation of every score with the gain and with being recognised."""
    sets = list(dict.fromkeys(cell["data"] for cell in cells))
    rows = []
    for score in SCORES:
        by_set = [_correlations([cell for cell in cells if cell["data"] == data], score) for data in sets]
        rows.append([f"`{score}`", *(text for texts in by_set for text in texts)])
    what = ("gain", "recognised", "gain, one defense")
    return _table(["score", *(f"{data}: {each}" for data in sets for each in what)], rows)


def _correlations(cells: Sequence[Cell], score: str) -> list[str]:
    def with_target(target: str) -> Callable[[list[Cell]], float]:
        return lambda part: spearman(
            [cell["scores"][score] for cell in part], [float(cell[target]) for cell in part]
        )

    statistics = (with_target("gain_db"), with_target("recognised"), lambda part: within(part, score))
    return [_interval(cells, statistic) for statistic in statistics]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the rank correlation, ties at their mean rank; NaN where a side is constant."""
    ranks = [rankdata(np.asarray(side, dtype=float)) for side in (a, b)]
    if any(np.ptp(side) == 0 for side in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def within(cells: Sequence[Cell], score: str) -> float:
    """Return the mean over defenses of the rank correlation over the clips behind one of them."""
    by_defense: dict[str, list[Cell]] = {}
    for cell in cells:
        by_defense.setdefault(cell["defense"], []).append(cell)
    found = [
        spearman([cell["scores"][score] for cell in mine], [cell["gain_db"] for cell in mine])
        for mine in by_defense.values()
    ]
    known = [value for value in found if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _interval(cells: Sequence[Cell], statistic: Callable[[list[Cell]], float]) -> str:
    """Return a statistic with its percentile interval over resampled clips, each with all its defenses."""
    value = statistic(list(cells))
    if not np.isfinite(value):
        return "constant"
    by_clip: dict[int, list[Cell]] = {}
    for cell in cells:
        by_clip.setdefault(cell["clip"], []).append(cell)
    clips, numbers = list(by_clip.values()), np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = numbers.integers(len(clips), size=len(clips))
        drawn.append(statistic([cell for index in chosen for cell in clips[index]]))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


# ---------------------------------------------------------------------------------------------------------


def _rate(count: int, n: int) -> str:
    if not n:
        return "none"
    found = binomial_interval(count, n)
    return f"{count}/{n} [{100 * (found.low or 0.0):.0f}, {100 * (found.high or 1.0):.0f}] %"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
