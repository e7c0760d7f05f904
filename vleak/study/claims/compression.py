"""Claim: compressed gradients leak less."""

from __future__ import annotations

from collections.abc import Sequence

from vleak.study.claim import Claim, Judgement, Picture
from vleak.study.keys import RawRun, RunKey
from vleak.study.measures import Results, difference, leakage, psnr_gain
from vleak.study.settings import Study

COMPRESSIONS = (
    "compress:codec=int8",
    "compress:codec=qsgd,bits=4",
    "compress:codec=qsgd,bits=2",
    "prune:fraction=0.9",
    "prune:fraction=0.99",
)


class Compression(Claim):
    """Plain against compressed gradients; an open question of the paper."""

    key = "compression"
    name = "A compressed gradient leaks less than a plain one."

    def runs(self, study: Study) -> Sequence[RunKey]:
        """Return the run of all compressions."""
        return [compressed_run(study)]

    def judge(self, study: Study, results: Results) -> Judgement:
        """Compare the plain gradient with every compression."""
        run = compressed_run(study)
        plain = leakage(results, run, psnr_gain)
        comparisons = tuple(
            difference(f"plain over {label}", plain, leakage(results, run, psnr_gain, defense=label), "dB")
            for label in _labels(run, results)
        )
        return Judgement(
            comparisons, remarks=("The attacker knows the codec. The question is open in the paper.",)
        )

    def pictures(self, study: Study, results: Results) -> Sequence[Picture]:
        """Return the plain gradient beside every compression."""
        run = compressed_run(study)
        return [
            Picture(title="plain", run=run),
            *(Picture(title=label, run=run, defense=label) for label in _labels(run, results)),
        ]


def compressed_run(study: Study) -> RawRun:
    """Return the run of all compressions."""
    return RawRun(compressions=COMPRESSIONS[1:4:2] if study.quick else COMPRESSIONS)


def _labels(run: RawRun, results: Results) -> list[str]:
    cells = results[run].cells
    return list(dict.fromkeys(cell.defense.label for cell in cells if not cell.defense.undefended))
