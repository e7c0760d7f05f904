"""Generated part of a page, which stands between two marks, and the outcomes that it is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vleak.errors import InputError
from vleak.files import write_atomic

_Read = TypeVar("_Read")


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


def rewrite(path: Path, page: Callable[[str], str]) -> None:
    """Write a page anew, which ``page`` makes of its text.

    Raises:
        InputError: the page has no marks, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"page {path}: {error.strerror}; give the page with the marks") from error
    write_atomic(path, page(text))


def kept_outcomes(path: Path, read: Callable[[dict[str, Any]], dict[_Read, Any]]) -> dict[_Read, Any]:
    """Return what ``read`` makes of the outcomes in a file; none where there is no file yet.

    Raises:
        InputError: the file is not what the command that keeps it writes.
    """
    if not path.exists():
        return {}
    try:
        return read(dict(json.loads(path.read_text(encoding="utf-8")).items()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: expected what this command writes ({error}); delete it to begin anew"
        ) from error
