"""Generated part of a page: what stands between two marks."""

from __future__ import annotations

from vleak.errors import InputError


def between_marks(text: str, begin: str, end: str, content: str) -> str:
    """Return a page with other content between its marks.

    Raises:
        InputError: the page has no marks.
    """
    before, opening, rest = text.partition(begin)
    _, closing, after = rest.partition(end)
    if not opening or not closing:
        raise InputError(
            f"page: expected the lines {begin} and {end}, between which what is generated goes; add them"
        )
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"
