"""Records of a study: the content of study.json, validated on reading and on writing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import field_validator

from vleak.errors import InputError
from vleak.files import read_regular
from vleak.results.reading import parse_json, validate
from vleak.results.records import DataRecord, EnvironmentRecord, Finite, Record
from vleak.study.settings import Study

STUDY_VERSION = 2
"""Version of the records of a study."""
STUDY_FILE = "study.json"

Verdict = Literal["holds", "does not hold", "mixed"]
Ends = tuple[Finite | None, Finite | None]
"""Lower and upper end of a 95 % interval; None where there is none."""


class Point(NamedTuple):
    """Point of a plot: a mean over clips with the ends of its interval; a list of four numbers in JSON."""

    x: Finite
    mean: Finite | None
    low: Finite | None
    high: Finite | None


class ComparisonRecord(Record):
    """One measured difference, paired by clip.

    Attributes:
        name: what is compared with what.
        effect: mean over clips in ``unit``; above zero is what the claim says. None without clips.
        interval: its 95 % interval.
        clips: number of clips that both sides scored.
        supports: whether the whole interval lies above zero.
    """

    name: str
    effect: Finite | None
    interval: Ends
    unit: str
    clips: int
    supports: bool


class FeatureRow(Record):
    """Recovery of features in one run, by the attack that recovered most.

    Attributes:
        extractor, head, loss: settings of the run.
        recovered: segments with a cosine above 0.99. carrying: segments that carry a gradient.
        segments: segments of all clips.
        cosine_gain: mean gain in cosine over the best baseline; None without clips.
        recognised: clips that were recognised in the reconstruction. clips: clips that were scored.
        chance: share of clips that a guess recognises.
    """

    extractor: str
    head: str
    loss: str
    recovered: int
    carrying: int
    segments: int
    cosine_gain: Finite | None
    clips: int
    chance: Finite
    recognised: int


class PictureRecord(Record):
    """Picture that the page shows of a claim, for each of the first clips.

    Attributes:
        title: caption.
        run: folder of the run below that of the study.
        defense: label of the defense; None for no defense.
        reference_frames: frames of the scene that the attacker holds.
        enhanced: whether the enhanced reconstruction is shown.
    """

    title: str
    run: str
    defense: str | None = None
    reference_frames: int = 0
    enhanced: bool = False


class ClaimRecord(Record):
    """Claim with its verdict.

    Attributes:
        key: short name, unique in the study.
        name: the claim in a sentence.
        effect, interval, unit: those of the first comparison.
        verdict: "holds" if every comparison supports the claim, "does not hold" if none does, else "mixed".
        comparisons: all measured differences.
        remarks: sentences on how to read them.
        points: what plots show, by axis. unit_of_points: quantity and unit of the plots.
        grid: rows on the recovery of features.
        pictures: pictures that the page shows.
        cells: ids of the cells behind the comparisons, as "run: cell".
    """

    key: str
    name: str
    effect: Finite | None
    interval: Ends
    unit: str
    verdict: Verdict
    comparisons: tuple[ComparisonRecord, ...]
    remarks: tuple[str, ...]
    unit_of_points: str
    points: dict[str, tuple[Point, ...]]
    grid: tuple[FeatureRow, ...]
    pictures: tuple[PictureRecord, ...]
    cells: tuple[str, ...]


class StudyRecord(Record):
    """Whole content of study.json.

    Attributes:
        schema_version: version of these records.
        settings: settings of the study.
        environment, data: those of the first run.
        runs: names of the runs.
        claims: the claims.
    """

    schema_version: int = STUDY_VERSION
    settings: Study
    environment: EnvironmentRecord
    data: DataRecord
    runs: tuple[str, ...]
    claims: tuple[ClaimRecord, ...]

    @field_validator("schema_version")
    @classmethod
    def _current(cls, version: int) -> int:
        if version != STUDY_VERSION:
            raise ValueError(f"expected schema version {STUDY_VERSION}")
        return version


def read_study(folder: Path) -> StudyRecord:
    """Read the record of a finished study.

    Args:
        folder: folder of the study.

    Raises:
        InputError: no study, no JSON, another schema version, or a field that is missing or wrong.
    """
    path = folder / STUDY_FILE
    try:
        content = parse_json(read_regular(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a study: {error}; run `vleak study` first") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != STUDY_VERSION:
        raise InputError(
            f"{path} holds schema version {version!r}, expected {STUDY_VERSION}; run `vleak study` again "
            "with the same `out`, which keeps its finished cells"
        )
    return validate(StudyRecord, content, str(path))
