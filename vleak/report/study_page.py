"""Page of a study: each claim with its verdict, what was measured, and pictures to judge by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vleak.files import write_atomic
from vleak.report.curve import draw_curve
from vleak.report.html import render_page
from vleak.report.numbers import plural
from vleak.report.panels import ClipPanel, Picture, PictureFiles
from vleak.report.sharing import pictures_wanted
from vleak.report.svg import Plot
from vleak.results import read_run
from vleak.results.records import RunRecord
from vleak.results.statistics import Interval
from vleak.study.measures import attacked_cells, psnr_gain, strongest_cells
from vleak.study.records import ClaimRecord, ComparisonRecord, PictureRecord, Verdict, read_study

MAX_PANELS = 4
_TONES: dict[Verdict, str] = {"holds": "safe", "does not hold": "leaks", "mixed": "unclear"}
_LOGARITHMIC = ("parameters", "width")


@dataclass(frozen=True)
class ComparisonView:
    """Row of the table of a claim.

    Attributes:
        record: what was measured.
        effect: the same as an interval.
        span: scale of its mark: lowest and highest end of all rows of the same unit.
    """

    record: ComparisonRecord
    effect: Interval
    span: tuple[float, float]


@dataclass(frozen=True)
class ClaimView:
    """Section of one claim."""

    record: ClaimRecord
    tone: str
    rows: tuple[ComparisonView, ...]
    plots: tuple[Plot, ...]
    panels: tuple[ClipPanel, ...]


def write_study(out: Path, *, pictures: bool | None = None) -> Path:
    """Write ``study.html`` into the folder of a finished study: one file that loads nothing.

    Args:
        out: folder of the study.
        pictures: whether private clips and what was rebuilt of them stand on the page; None for those of
            synthetic clips alone.

    Raises:
        InputError: no study, no JSON in its file, another schema version, or a field that is wrong.
        VleakError: the page cannot be written.
    """
    study, path = read_study(out), out / "study.html"
    wanted = pictures_wanted(study.settings.data, study.data, pictures)
    runs = {
        name: read_run(out / name)
        for name in dict.fromkeys(picture.run for claim in study.claims for picture in claim.pictures)
        if wanted
    }
    clips = study.data.names[:MAX_PANELS]
    claims = [
        _view(claim, _panels(out, runs, clips, claim.pictures) if wanted else []) for claim in study.claims
    ]
    settings, environment = vars(study.settings), study.environment.model_dump()
    keys = [claim.key for claim in study.claims]
    page = render_page(
        "study.html",
        study=study,
        claims=claims,
        answer=_answer(study.claims),
        counts=_counts(study.claims),
        sections=[(key, key.replace("_", " ").capitalize(), True) for key in (*keys, "setup")],
        moving=any(view.panels for view in claims),
        withheld=not wanted and any(claim.pictures for claim in study.claims),
        facts={"Settings": settings, "Environment": environment},
    )
    write_atomic(path, page)
    return path


def _answer(claims: Sequence[ClaimRecord]) -> str:
    holding = sum(claim.verdict == "holds" for claim in claims)
    return f"{holding} of {len(claims)} claim{plural(len(claims))} hold{'s' if holding == 1 else ''}"


def _counts(claims: Sequence[ClaimRecord]) -> list[tuple[str, str, int]]:
    counts = Counter(claim.verdict for claim in claims)
    return [(verdict, tone, counts[verdict]) for verdict, tone in _TONES.items() if counts[verdict]]


def _view(claim: ClaimRecord, panels: Sequence[ClipPanel]) -> ClaimView:
    return ClaimView(
        record=claim,
        tone=_TONES[claim.verdict],
        rows=tuple(_row(row, claim.comparisons) for row in claim.comparisons),
        plots=tuple(
            draw_curve(axis, points, claim.unit_of_points, logarithmic=axis in _LOGARITHMIC)
            for axis, points in claim.points.items()
        ),
        panels=tuple(panels),
    )


def _row(row: ComparisonRecord, rows: Sequence[ComparisonRecord]) -> ComparisonView:
    effect = Interval(row.effect, *row.interval, row.clips)
    return ComparisonView(row, effect, _span([other for other in rows if other.unit == row.unit]))


def _span(rows: Sequence[ComparisonRecord]) -> tuple[float, float]:
    """Return a scale that holds zero and all intervals."""
    ends = [end for row in rows for end in (row.effect, *row.interval) if end is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return (low, high) if high > low else (-1.0, 1.0)


def _panels(
    out: Path, runs: Mapping[str, RunRecord], clips: Sequence[str], pictures: Sequence[PictureRecord]
) -> list[ClipPanel]:
    """Return the first clips of the study, never chosen by scores, with every picture of a claim."""
    if not pictures:
        return []
    columns = [_column(out / picture.run, runs[picture.run], picture, clips) for picture in pictures]
    truths = PictureFiles(out / pictures[0].run)
    return [
        ClipPanel(clip, (truths.truth(index), *(column[index] for column in columns)))
        for index, clip in enumerate(clips)
    ]


def _column(folder: Path, run: RunRecord, picture: PictureRecord, clips: Sequence[str]) -> list[Picture]:
    """Return one picture for each clip, by the attack with the highest mean gain."""
    cells = attacked_cells(run, defense=picture.defense, reference_frames=picture.reference_frames)
    strongest, files = strongest_cells(cells, psnr_gain), PictureFiles(folder)
    column = []
    for clip in clips:
        cell = strongest.get(clip)
        if cell is None or cell.scores is None:
            column.append(Picture(title=picture.title, role="attack", missing="not run on this clip"))
            continue
        enhanced = cell.enhanced.after if picture.enhanced and cell.enhanced else None
        strip, missing = files.load(cell.media_enhanced if picture.enhanced else cell.media)
        column.append(
            Picture(
                title=picture.title,
                role="attack",
                strip=strip,
                missing=missing,
                gain_db=enhanced.psnr_gain_db if enhanced else cell.scores.psnr_gain_db,
                recognised=enhanced.identified if enhanced else cell.scores.identified,
            )
        )
    return column
