"""Base of all claims: its runs, its judgement and its pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from vleak.study.keys import RunKey
from vleak.study.measures import Comparison, Results, attacked_cells
from vleak.study.records import ClaimRecord, FeatureRow, PictureRecord, Point, Verdict
from vleak.study.settings import Study


@dataclass(frozen=True)
class Judgement:
    """Measurements behind a claim.

    Attributes:
        comparisons: measured differences; the first is the effect of the claim.
        remarks: sentences on how to read them.
        points: what plots show, by axis.
        grid: rows on the recovery of features.
    """

    comparisons: tuple[Comparison, ...]
    remarks: tuple[str, ...] = ()
    points: dict[str, tuple[Point, ...]] = field(default_factory=dict)
    grid: tuple[FeatureRow, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Holds if every comparison supports the claim, does not hold if none does, mixed otherwise."""
        supporting = sum(comparison.supports for comparison in self.comparisons)
        if supporting == len(self.comparisons) > 0:
            return "holds"
        return "mixed" if supporting else "does not hold"

    @property
    def cells(self) -> tuple[str, ...]:
        """Cells behind all comparisons, each once."""
        return tuple(dict.fromkeys(cell for comparison in self.comparisons for cell in comparison.cells))


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Picture that the page shows of a claim, for each of the first clips.

    Attributes:
        title: caption.
        run: key of the run.
        defense, reference_frames: as in `attacked_cells`.
        enhanced: whether the enhanced reconstruction is shown.
    """

    title: str
    run: RunKey
    defense: str | None = None
    reference_frames: int = 0
    enhanced: bool = False

    def exists(self, results: Results) -> bool:
        """Return whether the run has a scored cell to show."""
        run = results[self.run]
        return bool(attacked_cells(run, defense=self.defense, reference_frames=self.reference_frames))

    def record(self) -> PictureRecord:
        """Return the record of the picture."""
        return PictureRecord(
            title=self.title,
            run=self.run.folder,
            defense=self.defense,
            reference_frames=self.reference_frames,
            enhanced=self.enhanced,
        )


class Claim(ABC):
    """One claim about gradient inversion on video, judged on runs of its own.

    Attributes:
        key: short name, unique in the study.
        name: the claim in a sentence.
        unit_of_points: quantity and unit of its plots.
    """

    key: ClassVar[str]
    name: ClassVar[str]
    unit_of_points: ClassVar[str] = "PSNR gain in dB"

    @abstractmethod
    def runs(self, study: Study) -> Sequence[RunKey]:
        """Return the runs that the claim needs; claims share runs with equal keys."""

    @abstractmethod
    def judge(self, study: Study, results: Results) -> Judgement:
        """Return the measured differences.

        Args:
            study: settings of the study.
            results: records of all of `runs`.
        """

    def pictures(self, study: Study, results: Results) -> Sequence[Picture]:
        """Return the pictures to show; none by default."""
        return ()

    def record(self, study: Study, results: Results) -> ClaimRecord:
        """Return the judged claim as a record; pictures without a scored cell are left out."""
        judgement = self.judge(study, results)
        comparisons = tuple(comparison.record() for comparison in judgement.comparisons)
        shown = [picture for picture in self.pictures(study, results) if picture.exists(results)]
        return ClaimRecord(
            key=self.key,
            name=self.name,
            effect=comparisons[0].effect,
            interval=comparisons[0].interval,
            unit=comparisons[0].unit,
            verdict=judgement.verdict,
            comparisons=comparisons,
            remarks=judgement.remarks,
            unit_of_points=self.unit_of_points,
            points=judgement.points,
            grid=judgement.grid,
            pictures=tuple(picture.record() for picture in shown),
            cells=judgement.cells,
        )
