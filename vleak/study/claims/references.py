"""Claim: reference frames help the attacker."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from vleak.study.claim import Claim, Judgement, Picture
from vleak.study.keys import RunKey
from vleak.study.measures import (
    Measure,
    Measurements,
    Results,
    difference,
    leakage,
    motion_psnr,
    point,
    psnr,
    psnr_gain,
)
from vleak.study.runs import raw_run
from vleak.study.settings import Study


class References(Claim):
    """More reference frames against fewer."""

    key = "references"
    name = "The more frames of the scene an attacker holds, the more of the clip he rebuilds."
    unit_of_points = "PSNR where it moves, in dB"

    def runs(self, study: Study) -> Sequence[RunKey]:
        """Return the run on raw frames."""
        return [raw_run(study)]

    def judge(self, study: Study, results: Results) -> Judgement:
        """Compare every count of frames with the next lower one, and one frame with the frame itself."""
        moving = _by_count(study, results, motion_psnr)
        quantities = {"where it moves": moving, "the whole picture": _by_count(study, results, psnr)}
        comparisons = [
            difference(f"{_frames(more)} over {_frames(less)}, {what}", values[more], values[less], "dB")
            for what, values in quantities.items()
            for less, more in pairwise(values)
        ]
        gain = _by_count(study, results, psnr_gain)
        beyond = difference("one frame over none, beyond what the frame shows", gain[1], gain[0], "dB")
        return Judgement(
            (*comparisons, beyond),
            remarks=("Beyond what the frame shows: as gain over an attacker who holds the frame still.",),
            points={
                "reference frames": tuple(point(float(count), values) for count, values in moving.items())
            },
        )

    def pictures(self, study: Study, results: Results) -> Sequence[Picture]:
        """Return one picture a count of frames."""
        run = raw_run(study)
        return [
            Picture(title=_frames(count) if count else "no frame", run=run, reference_frames=count)
            for count in run.reference_frames
        ]


def _by_count(study: Study, results: Results, measure: Measure) -> dict[int, Measurements]:
    run = raw_run(study)
    return {
        count: leakage(results, run, measure, reference_frames=count)
        for count in sorted(run.reference_frames)
    }


def _frames(count: int) -> str:
    return {0: "none", 1: "one frame"}.get(count, f"{count} frames")
