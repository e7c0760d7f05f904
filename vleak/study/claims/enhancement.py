"""Claim: super-resolution improves reconstructions."""

from __future__ import annotations

from collections.abc import Sequence

from vleak.study.claim import Claim, Judgement, Picture
from vleak.study.keys import RawRun, RunKey
from vleak.study.measures import (
    Comparison,
    Measurement,
    Measurements,
    Results,
    attacked_cells,
    difference,
    reference,
)
from vleak.study.runs import raw_run
from vleak.study.settings import Study


class Enhancement(Claim):
    """Classical and learned super-resolution against bicubic interpolation."""

    key = "enhancement"
    name = "Super-resolution improves what was rebuilt."

    def runs(self, study: Study) -> Sequence[RunKey]:
        """Return a run a method."""
        return list(_methods(study).values())

    def judge(self, study: Study, results: Results) -> Judgement:
        """Compare every method with bicubic interpolation of the same reconstruction."""
        methods = _methods(study).items()
        return Judgement(
            tuple(_over_bicubic(method, _changes(results, key)) for method, key in methods),
            remarks=tuple(_remark(method, results, key) for method, key in methods),
        )

    def pictures(self, study: Study, results: Results) -> Sequence[Picture]:
        """Return the reconstruction before and after every method."""
        return [
            Picture(title="as rebuilt", run=raw_run(study)),
            *(Picture(title=method, run=key, enhanced=True) for method, key in _methods(study).items()),
        ]


def _methods(study: Study) -> dict[str, RawRun]:
    """Return the run of every method; a quick study trains no network."""
    network = {} if study.quick else {"network": RawRun(enhancement="network")}
    return {"classical": raw_run(study), **network}


def _changes(results: Results, key: RawRun) -> Measurements:
    return {
        cell.clip: Measurement(cell.enhanced.psnr_change_db, reference(key, cell))
        for cell in attacked_cells(results[key])
        if cell.enhanced is not None
    }


def _over_bicubic(method: str, changes: Measurements) -> Comparison:
    unchanged = dict.fromkeys(changes, Measurement(0.0, ""))
    return difference(f"{method} over bicubic", changes, unchanged, "dB")


def _remark(method: str, results: Results, key: RawRun) -> str:
    moved = [cell.enhanced and cell.enhanced.identification_moved for cell in attacked_cells(results[key])]
    return (
        f"{method}: {moved.count('gained')} clips are recognised only after it, {moved.count('lost')} "
        f"only before it, of {len(moved)}."
    )
