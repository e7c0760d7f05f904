"""Explanations of the flags that attacks and the comparison of cells raise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from vleak.attacks import flags as attack_flags
from vleak.results import flags
from vleak.results.records import Cell

_MEANINGS: dict[str, str] = {
    attack_flags.NEAR_ZERO: "the update carried almost nothing; failing here is not the defense's merit",
    attack_flags.NOT_FALLING: "the attack never got going; try more restarts or another step size",
    flags.NO_BETTER: "the answer scores no better than one made without the update",
    flags.FAILS_UNDEFENDED: "the attack does not work here at all, so it cannot judge a defense",
    flags.WEAKER_BEATS: "the strong attack is badly tuned here; believe the higher figure",
    flags.OTHER_SETTINGS: "these settings do not suit the model; believe the higher figure",
    attack_flags.STILL_FALLING: "more iterations would leak more; the figure is a lower bound",
    flags.BEATS_UNDEFENDED: "the attack is uneven from cell to cell; run more restarts",
    attack_flags.NOT_A_NUMBER: "numbers ran out of range; the answer is of the last sound step",
    attack_flags.NO_EVIDENCE: "the answer is the one made without the update",
    attack_flags.NEGATED: "give the gradient +dL/dw, or say kind=fedavg and how the client trained",
    attack_flags.REVERSED: "give weights after local training less those before it",
}


@dataclass(frozen=True)
class FlagCount:
    """One flag of a run.

    Attributes:
        text: the flag.
        cells: number of cells that carry it.
        meaning: what it says about the figures.
    """

    text: str
    cells: int
    meaning: str


def count_flags(cells: Iterable[Cell]) -> list[FlagCount]:
    """Return the flags of a run, the most frequent first."""
    counts = Counter(flag for cell in cells for flag in cell.flags)
    return [FlagCount(flag, count, flag_meaning(flag)) for flag, count in counts.most_common()]


def flag_meaning(flag: str) -> str:
    """Return what a flag says about the figures."""
    return next((text for start, text in _MEANINGS.items() if flag.startswith(start)), "raised by the attack")
