"""Rule of what may stand on a page: pictures of synthetic clips, of other clips where they are asked for."""

from __future__ import annotations

from vleak.data.synthetic import OTHER_SEEDS
from vleak.results.records import DataRecord, RunRecord

__all__ = ["pictures_wanted", "withheld_text"]

_DRAWN = "synthetic"


def pictures_wanted(source: str, data: DataRecord, pictures: bool | None) -> bool:
    """Whether frames of private clips, and what was rebuilt of them, are embedded into a page.

    A page is made to be passed on, the folder of a run is not: that holds the pictures in any case.

    Args:
        source: of the clips, as the settings of a run have it, such as ``"synthetic"`` or a path.
        data: what was loaded from it. A folder may be called synthetic, and clips be handed over under that
            name; only what vleak draws has public clips of other seeds.
        pictures: what the user said; None for pictures of synthetic clips alone, which show nobody.
    """
    if pictures is not None:
        return pictures
    return source.partition(":")[0] == _DRAWN and data.public_source == OTHER_SEEDS


def withheld_text(run: RunRecord, pictures: bool | None) -> str:
    """What to say of a page beside its path: that pictures are left out of it; empty where none are.

    Args:
        run: record behind the page.
        pictures: as for `pictures_wanted`.
    """
    if pictures is not None or pictures_wanted(run.settings.data, run.data, None):
        return ""
    if all(cell.media is None for cell in run.cells):
        return ""
    return " (without pictures, as the clips are not synthetic; `vleak report RUN --pictures` shows them)"
