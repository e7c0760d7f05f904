"""Choice of the clips and pictures of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vleak.report.numbers import plural
from vleak.report.panels import ClipPanel, Picture, PictureFiles
from vleak.results.records import Cell, RunRecord, Scores
from vleak.results.rows import Row, row_key
from vleak.results.summary import leak_order

MAX_CLIPS = 12
MAX_DEFENSES = 11
MAX_BYTES = 12_000_000
_LEAST_PER_MODEL = 2
_UNDEFENDED = "no defense"


@dataclass
class Gallery:
    """Pictures of one model.

    Attributes:
        title: model and training state.
        attack: attacks that made the pictures.
        panels: the clips, in the order of the run.
        note: what is not shown; empty where nothing is left out.
    """

    title: str
    attack: str
    panels: list[ClipPanel] = field(default_factory=list)
    note: str = ""

    @property
    def shown(self) -> int:
        """Reconstructions on the page, baselines among them."""
        return sum(p.strip is not None and p.role != "truth" for panel in self.panels for p in panel.pictures)

    @property
    def example(self) -> ClipPanel | None:
        """First clip with its best baseline and its undefended reconstruction; None where one is missing."""
        first = self.panels[0]
        pictures = [p for p in first.pictures if p.role != "attack" or p.title == _UNDEFENDED]
        complete = len(pictures) == 3 and all(picture.strip for picture in pictures)
        return ClipPanel(first.clip, tuple(pictures)) if complete else None


def build_galleries(folder: Path, run: RunRecord, rows: Sequence[Row]) -> list[Gallery]:
    """Choose and load the pictures of a run.

    Clips come in the order of the run, never chosen by their scores. For each defense the attack that got
    most out of it on the whole is shown.

    Args:
        folder: folder of the run.
        run: its record.
        rows: its rows.

    Returns:
        One gallery for each model and training state that an attack was run on, those that leak most first,
        with at most ``MAX_CLIPS`` clips and ``MAX_BYTES`` of pictures in all.
    """
    models: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted((row for row in rows if not row.baseline), key=leak_order):
        models.setdefault((row.pipeline, row.model, row.training_state), []).append(row)
    shown = list(models.values())[: MAX_CLIPS // _LEAST_PER_MODEL]
    pictures = _RunPictures(folder, run)
    galleries = [_gallery(pictures, attacked, rows, MAX_CLIPS // len(shown)) for attacked in shown]
    return [gallery for gallery in galleries if gallery.panels]


class _RunPictures:
    """Pictures of the cells of a run."""

    def __init__(self, folder: Path, run: RunRecord) -> None:
        self.files = PictureFiles(folder)
        self.clips = list({cell.clip: cell.clip_index for cell in run.cells}.items())
        self._cells = {(row_key(cell), cell.clip): cell for cell in run.cells}
        self._baselines = {(cell.clip, cell.attack.name): cell for cell in run.cells if cell.attack.baseline}

    def panel(self, columns: Sequence[Row], clip: str, index: int) -> ClipPanel:
        """Return a clip with its best baseline and the reconstruction of every row."""
        cells = [self._cells.get((row.key, clip)) for row in columns]
        pictures = [self.files.truth(index)]
        best = next(
            (c.scores.best_baseline for c in cells if c and c.scores and c.scores.best_baseline), None
        )
        if best is not None:
            pictures.append(self._baseline(self._baselines.get((clip, best)), best))
        pictures += [self._attack(cell, row) for cell, row in zip(cells, columns, strict=True)]
        return ClipPanel(clip, tuple(pictures))

    def _baseline(self, cell: Cell | None, name: str) -> Picture:
        if cell is None or cell.scores is None:
            return Picture(title=name, role="baseline", missing=_why_missing(cell))
        strip, missing = self.files.load(cell.media)
        return Picture(
            title=name,
            role="baseline",
            strip=strip,
            missing=missing,
            psnr_db=cell.scores.psnr_db,
            flags=cell.flags,
            cell=cell.id,
        )

    def _attack(self, cell: Cell | None, row: Row) -> Picture:
        title = _UNDEFENDED if row.undefended else row.defense
        if cell is None or cell.scores is None:
            return Picture(title=title, role="attack", missing=_why_missing(cell))
        strip, missing = self.files.load(cell.media)
        return Picture(
            title=title,
            role="attack",
            strip=strip,
            missing=missing,
            gain_db=cell.scores.psnr_gain_db,
            psnr_db=cell.scores.psnr_db,
            recognised=_recognised(cell.scores),
            flags=cell.flags,
            cell=cell.id,
        )


def _why_missing(cell: Cell | None) -> str:
    return "not run on this clip" if cell is None else f"failed: {cell.failure}"


def _recognised(scores: Scores) -> bool | None:
    return scores.identified if (scores.candidates or 0) > 1 else None


def _gallery(pictures: _RunPictures, attacked: list[Row], rows: Sequence[Row], limit: int) -> Gallery:
    """Return the pictures of one model.

    Args:
        pictures: pictures of the run.
        attacked: rows of the model, those that leak most first.
        rows: all rows, in the order of the table.
        limit: largest number of clips.
    """
    strongest = {row.defense: row for row in reversed(attacked)}
    order = list(dict.fromkeys(row.defense for row in rows if row.defense in strongest))
    columns = [strongest[label] for label in order[:MAX_DEFENSES]]
    gallery = Gallery(
        f"{attacked[0].model}, {attacked[0].training_state}",
        ", ".join(dict.fromkeys(row.attack for row in columns)),
    )
    largest = 0
    for clip, index in pictures.clips[:limit]:
        before = pictures.files.bytes
        if before + largest > MAX_BYTES:
            break
        gallery.panels.append(pictures.panel(columns, clip, index))
        largest = max(largest, pictures.files.bytes - before)
    gallery.note = _note(len(gallery.panels), len(pictures.clips), len(columns), len(order))
    return gallery


def _note(panels: int, clips: int, columns: int, labels: int) -> str:
    parts = [f"the first {panels} of {clips} clip{plural(clips)}"] if panels < clips else []
    parts += [f"the first {columns} of {labels} defenses"] if columns < labels else []
    return f"Shown: {' and '.join(parts)}, in the order of the run." if parts else ""
