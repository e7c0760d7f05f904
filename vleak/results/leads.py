"""What knowing the defense is worth: adaptive and non-adaptive attacker, clip by clip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vleak.results.non_adaptive import NonAdaptiveRecord
from vleak.results.records import Cell, Scores
from vleak.results.statistics import Interval, binomial_interval, mean_interval

__all__ = ["NonAdaptive", "non_adaptive_of"]

_Pair = tuple[Scores, NonAdaptiveRecord]


@dataclass(frozen=True)
class NonAdaptive:
    """Attacker of a row who does not know the defense, on the clips on which both attackers were scored.

    Attributes:
        n: those clips.
        psnr_gain_db: gain over the best baseline of each clip.
        identified: clips that the reconstruction picked out among the candidates.
        identification: share of those, of clips that have others to be told from, with its exact interval.
        labels_correct: clips whose label was right.
        lead_db: by how many dB the attacker who knows the defense is ahead, clip by clip.
        lead_identified: by what share of the clips, likewise, from -1 to 1.
    """

    n: int
    psnr_gain_db: Interval
    identified: int
    identification: Interval
    labels_correct: int
    lead_db: Interval
    lead_identified: Interval


def non_adaptive_of(cells: Sequence[Cell]) -> NonAdaptive | None:
    """Non-adaptive attacker of the cells of one row; None where it was not asked for, or always failed."""
    pairs = [
        (cell.scores, cell.non_adaptive)
        for cell in cells
        if cell.ok and cell.scores is not None and cell.non_adaptive is not None and cell.non_adaptive.ok
    ]
    if not pairs:
        return None
    others = [without for _, without in pairs]
    told_apart = [pair for pair in pairs if pair[0].candidates is None or pair[0].candidates > 1]
    found = sum(without.identified for _, without in told_apart)
    return NonAdaptive(
        n=len(pairs),
        psnr_gain_db=mean_interval([g for without in others if (g := without.psnr_gain_db) is not None]),
        identified=sum(without.identified for without in others),
        identification=binomial_interval(found, len(told_apart)),
        labels_correct=sum(without.label_correct is True for without in others),
        lead_db=mean_interval(list(_leads_db(pairs))),
        lead_identified=mean_interval(
            [float(ours.identified) - without.identified for ours, without in told_apart]
        ),
    )


def _leads_db(pairs: Iterable[_Pair]) -> Iterable[float]:
    for ours, without in pairs:
        if ours.psnr_gain_db is not None and without.psnr_gain_db is not None:
            yield ours.psnr_gain_db - without.psnr_gain_db
