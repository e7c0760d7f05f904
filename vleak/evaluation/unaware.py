"""Attacker who does not know the defense: the same attack, on the message as if it were undefended."""

from __future__ import annotations

from dataclasses import replace

from vleak.defenses import NoDefense
from vleak.pipelines import Answer, Case, Pipeline
from vleak.results.records import NonAdaptiveRecord

__all__ = ["non_adaptive_record", "unaware"]


def unaware(case: Case) -> Case:
    """The case as that attacker sees it: a client without a defense.

    So he infers labels, tries attacks and weighs noise as behind no defense, whose trials he shares.
    """
    return replace(case, defense=NoDefense(), non_adaptive=False)


def non_adaptive_record(pipeline: Pipeline, case: Case, answer: Answer) -> NonAdaptiveRecord:
    """Record of that attacker's answer.

    Args:
        pipeline, case: of the cell.
        answer: to its clip.

    Raises:
        InputError: the answer is not finite or has another shape than the truth.
        CapabilityError: a metric from outside failed; names it.
    """
    scores, reconstruction = pipeline.scores(case, answer), answer.reconstruction
    correct = bool(reconstruction.labels[0] == pipeline.samples.labels[case.clip])
    return NonAdaptiveRecord(
        psnr_db=scores.psnr_db,
        psnr_gain_db=scores.psnr_gain_db,
        ssim=scores.ssim,
        identified=scores.identified,
        label_correct=None if pipeline.loss == "ranking" else correct,
        method=reconstruction.method or None,
        iterations=reconstruction.iterations,
        seconds=round(answer.seconds, 3),
    )
