"""Rule of what may stand on a page: pictures of synthetic clips, of other clips where they are asked for."""

from __future__ import annotations

__all__ = ["pictures_wanted"]

_DRAWN = "synthetic"


def pictures_wanted(data: str, pictures: bool | None) -> bool:
    """Whether frames of private clips, and what was rebuilt of them, are embedded into a page.

    A page is made to be passed on, the folder of a run is not: that holds the pictures in any case.

    Args:
        data: source of the clips as the settings of a run have it, such as ``"synthetic"`` or a path.
        pictures: what the user said; None for pictures of synthetic clips alone, which show nobody.
    """
    return data.partition(":")[0] == _DRAWN if pictures is None else pictures
