"""Page of two runs side by side: where the second leaks more, where less, and what they differ in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vleak.files import write_atomic
from vleak.report.filters import plain
from vleak.report.html import render_page
from vleak.report.numbers import decibel, plural
from vleak.report.pair_plot import draw_pairs
from vleak.report.panels import ClipPanel, Picture, PictureFiles
from vleak.report.sharing import pictures_wanted
from vleak.results import Cell, Comparison, Row, RowPair, RunRecord, compare_runs, row_key
from vleak.results.comparison import Change

__all__ = ["comparison_sentences", "write_comparison"]

_WORDS: dict[Change, str] = {
    "more": "B leaks more",
    "less": "B leaks less",
    "both": "more by one figure, less by the other",
    "same": "no difference told",
    "first_only": "in A alone",
    "second_only": "in B alone",
}
_TONES: dict[Change, str] = {"more": "leaks", "less": "safe", "both": "unclear"}
_MAX_CLIPS, _MAX_ROWS = 3, 6  # of the pictures
_NAMED = 6  # labels in one sentence before "and n more"


def write_comparison(
    folders: tuple[Path, Path],
    runs: tuple[RunRecord, RunRecord],
    path: Path | None = None,
    *,
    pictures: bool | None = None,
) -> Path:
    """Write the page of two runs side by side, one file that loads nothing; return its path.

    Args:
        folders: of the runs, A and B on the page, with their pictures.
        runs: their records.
        path: of the page; None for ``comparison.html`` in the folder of the second run.
        pictures: as for `write_report`.

    Raises:
        InputError: both runs are the same.
        VleakError: the page cannot be written.
    """
    path = folders[1] / "comparison.html" if path is None else path
    found = compare_runs(*runs)
    panels, wanted = _panels(folders, runs, found, pictures)
    page = render_page(
        "compare.html",
        answer=_answer(found.pairs),
        counts=_counts(found.pairs),
        names=_names(*folders),
        runs=runs,
        found=found,
        sentences=comparison_sentences(found),
        span=_span(found.pairs),
        trained=any(row.accuracy.n for pair in found.pairs for row in (pair.first, pair.second) if row),
        words=_WORDS,
        tones=_TONES,
        plots=draw_pairs(found.pairs),
        panels=panels,
        withheld=not wanted,
        differing={
            name: [plain(value) or "none" for value in pair] for name, pair in found.differing.items()
        },
    )
    write_atomic(path, page)
    return path


def comparison_sentences(found: Comparison) -> list[str]:
    """What a person reads first: where the second run, B, leaks more, where less, and what was not compared.

    Args:
        found: from `vleak.results.compare_runs`.
    """
    openings: dict[Change, str] = {
        "more": "B leaks more than A",
        "less": "B leaks less than A",
        "both": "B leaks more than A by one figure and less by the other",
        "same": "No difference is told",
        "first_only": "In A alone",
        "second_only": "In B alone",
    }
    sentences = []
    for change, opening in openings.items():
        rows = [_described(pair) for pair in found.pairs if pair.change == change]
        more = f"; and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        if rows:
            sentences.append(f"{opening}: {'; '.join(rows[:_NAMED])}{more}.")
    if not found.same_clips:
        sentences.append("The clips differ: differences are of two samples, not clip by clip.")
    return sentences


def _described(pair: RowPair) -> str:
    row, gain = pair.row, pair.gain_change
    label = f"{row.defense} by {row.attack}"
    if pair.first is None or pair.second is None or gain.mean is None:
        return label
    counts = f"{pair.first.identified} of {pair.first.n} → {pair.second.identified} of {pair.second.n}"
    return f"{label} ({decibel(gain.mean)}; recognised {counts})"


def _answer(pairs: Sequence[RowPair]) -> str:
    shared = sum(pair.first is not None and pair.second is not None for pair in pairs)
    counts = Counter(pair.change for pair in pairs)
    if not shared:
        return "The runs share no row"
    rows = f"{shared} shared row{plural(shared)}"
    if not counts["more"] and not counts["less"] and not counts["both"]:
        return f"No difference is told in {rows}"
    more, less = counts["more"] + counts["both"], counts["less"]
    if not more:
        return f"B leaks less in {less} of {rows}"
    return f"B leaks more in {more} of {rows}" + (f", less in {less}" if less else "")


def _counts(pairs: Sequence[RowPair]) -> list[tuple[str, str, int]]:
    counts = Counter(pair.change for pair in pairs)
    return [
        (text, _TONES.get(change, "plain"), counts[change])
        for change, text in _WORDS.items()
        if counts[change]
    ]


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Return the names of the folders, never a full path; with the folder above where they agree."""
    names = [folder.resolve() for folder in (first, second)]
    if names[0].name != names[1].name:
        return names[0].name, names[1].name
    return f"{names[0].parent.name}/{names[0].name}", f"{names[1].parent.name}/{names[1].name}"


def _span(pairs: Sequence[RowPair]) -> tuple[float, float]:
    changes = [pair.gain_change for pair in pairs]
    ends = [end for each in changes for end in (each.mean, each.low, each.high) if end is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return (low, high) if high > low else (-1.0, 1.0)


def _panels(
    folders: Sequence[Path], runs: Sequence[RunRecord], found: Comparison, pictures: bool | None
) -> tuple[list[ClipPanel], bool]:
    """Return the first clips with the pictures of both runs, and whether pictures are wanted at all."""
    wanted = all(pictures_wanted(run.settings.data, run.data, pictures) for run in runs)
    both = [pair for pair in found.pairs if pair.first and pair.second][:_MAX_ROWS]
    if not (wanted and found.same_clips and both):
        return [], wanted
    files = [PictureFiles(folder) for folder in folders]
    cells = [{(row_key(cell), cell.clip): cell for cell in run.cells} for run in runs]
    panels = []
    for index, clip in enumerate(runs[0].data.names[:_MAX_CLIPS]):
        shown = [files[0].truth(index)]
        for pair in both:
            for side, row in enumerate((pair.first, pair.second)):
                assert row is not None, "both runs have the row"
                shown.append(_picture("AB"[side], row, cells[side].get((row.key, clip)), files[side]))
        panels.append(ClipPanel(clip, tuple(shown)))
    return panels, wanted


def _picture(side: str, row: Row, cell: Cell | None, files: PictureFiles) -> Picture:
    title = f"{side}: {row.defense}"
    if cell is None or cell.scores is None:
        return Picture(title=title, role="attack", missing="not scored on this clip")
    strip, missing = files.load(cell.media)
    return Picture(
        title=title,
        role="attack",
        strip=strip,
        missing=missing,
        gain_db=cell.scores.psnr_gain_db,
        recognised=cell.scores.identified if (cell.scores.candidates or 0) > 1 else None,
    )
