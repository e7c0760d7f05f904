"""Which clips are shown, and what stands beside each: the truth, the null attacker, one picture a defense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vleak.errors import InputError
from vleak.report.media import Strip, film_strip, read_array
from vleak.report.numbers import plural
from vleak.results.records import Cell, RunRecord, Scores
from vleak.results.rows import Row, row_key
from vleak.results.summary import leak_order

MAX_CLIPS = 12
MAX_DEFENSES = 11
MAX_BYTES = 12_000_000
_LEAST_PER_MODEL = 2


@dataclass(frozen=True)
class Tile:
    """One moving picture with what is said under it.

    Attributes:
        title: "private clip", the null attacker's name, or the defense's label.
        role: "truth", "null" or "attack".
        strip: the picture, None when it cannot be shown.
        missing: why it cannot be shown.
        gain_db: gain over the best null attacker, None where it means nothing.
        psnr_db: PSNR of this very answer.
        recognised: whether the right clip was picked out, None where it means nothing.
        flags: the attack's health flags on this clip.
    """

    title: str
    role: str
    strip: Strip | None
    missing: str = ""
    gain_db: float | None = None
    psnr_db: float | None = None
    recognised: bool | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """One clip under every defense."""

    clip: str
    tiles: tuple[Tile, ...]


@dataclass
class Gallery:
    """The pictures of one model.

    Attributes:
        title: model and training state.
        attack: which attacks made the pictures.
        scenes: the clips, in the order of the run.
        note: what is not shown, empty when nothing is left out.
    """

    title: str
    attack: str
    scenes: list[Scene] = field(default_factory=list)
    note: str = ""


def build_galleries(folder: Path, results: RunRecord, rows: Sequence[Row]) -> list[Gallery]:
    """Choose and load the pictures of a run.

    Clips come in the order of the run, never chosen by their scores. For each defense the attack that got
    most out of it on the whole is shown.

    Args:
        folder: the run folder.
        results: the record of the run.
        rows: what `summarise` made of it.

    Returns:
        One gallery for each model and training state that an attack was run on, those that leak most first,
        with at most ``MAX_CLIPS`` clips and ``MAX_BYTES`` of pictures in all.
    """
    models: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted((row for row in rows if not row.baseline), key=leak_order):
        models.setdefault((row.pipeline, row.model, row.training_state), []).append(row)
    shown = list(models.items())[: MAX_CLIPS // _LEAST_PER_MODEL]
    shelf = _Shelf(folder, results.cells)
    galleries = [_gallery(shelf, chosen, rows, MAX_CLIPS // len(shown)) for _, chosen in shown]
    return [gallery for gallery in galleries if gallery.scenes]


class _Shelf:
    """Finds cells and loads their pictures, and keeps count of the bytes."""

    def __init__(self, folder: Path, cells: Sequence[Cell]) -> None:
        self.folder, self.spent = folder, 0
        self.cells = {(row_key(cell), cell.clip): cell for cell in cells}
        self.baselines = {(cell.clip, cell.attack.name): cell for cell in cells if cell.attack.baseline}
        self.clips = list({cell.clip: cell.clip_index for cell in cells}.items())

    def truth(self, index: int) -> Tile:
        try:
            clips = read_array(self.folder, "clips.npy")
            if index >= len(clips):
                raise InputError(f"clip {index!r} is not among the {len(clips)} of 'clips.npy'")
            return Tile("private clip", "truth", self._keep(film_strip(clips[index])))
        except InputError as error:
            return Tile("private clip", "truth", None, missing=str(error))

    def answer(self, cell: Cell | None, title: str, role: str) -> Tile:
        if cell is None:
            return Tile(title, role, None, missing="not run on this clip")
        scores = cell.scores
        if scores is None:
            return Tile(title, role, None, missing=f"failed: {cell.failure}")
        strip, missing = self._strip(cell.media)
        return Tile(
            title,
            role,
            strip,
            missing,
            gain_db=scores.psnr_gain_db if role == "attack" else None,
            psnr_db=scores.psnr_db,
            recognised=_recognised(scores) if role == "attack" else None,
            flags=cell.flags,
        )

    def _strip(self, media: str | None) -> tuple[Strip | None, str]:
        if media is None:
            return None, "no picture was stored"
        try:
            return self._keep(film_strip(read_array(self.folder, media))), ""
        except InputError as error:
            return None, str(error)

    def _keep(self, strip: Strip) -> Strip:
        self.spent += len(strip.uri)
        return strip


def _gallery(shelf: _Shelf, chosen: list[Row], rows: Sequence[Row], limit: int) -> Gallery:
    best = {row.defense: row for row in reversed(chosen)}  # sorted by leakage: the first of a label is kept
    order = list(dict.fromkeys(row.defense for row in rows if row.defense in best))
    columns = [best[label] for label in order[:MAX_DEFENSES]]
    attacks = ", ".join(dict.fromkeys(row.attack for row in columns))
    gallery = Gallery(f"{chosen[0].model}, {chosen[0].training_state}", attacks)
    for clip, index in shelf.clips[:limit]:
        if shelf.spent > MAX_BYTES:
            break
        gallery.scenes.append(_scene(shelf, columns, clip, index))
    gallery.note = _note(len(gallery.scenes), len(shelf.clips), len(columns), len(order))
    return gallery


def _scene(shelf: _Shelf, columns: list[Row], clip: str, index: int) -> Scene:
    cells = [shelf.cells.get((row.key, clip)) for row in columns]
    best = [cell.scores.best_baseline for cell in cells if cell is not None and cell.scores is not None]
    tiles = [shelf.truth(index)]
    if best:
        baseline = shelf.baselines.get((clip, str(best[0])))
        tiles.append(shelf.answer(baseline, str(best[0]), "null"))
    tiles += [shelf.answer(cell, row.defense, "attack") for cell, row in zip(cells, columns, strict=True)]
    return Scene(clip, tuple(tiles))


def _recognised(scores: Scores) -> bool | None:
    return scores.identified if (scores.candidates or 0) > 1 else None


def _note(scenes: int, clips: int, columns: int, labels: int) -> str:
    parts = [f"the first {scenes} of {clips} clip{plural(clips)}"] if scenes < clips else []
    parts += [f"the first {columns} of {labels} defenses"] if columns < labels else []
    return f"Shown: {' and '.join(parts)}, in the order of the run." if parts else ""
