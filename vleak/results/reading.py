"""Validation of records from outside: errors that name the file, the field and what was expected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from vleak.errors import InputError
from vleak.files import read_regular, unique_keys
from vleak.results.base import JsonObject, Record

__all__ = ["parse_json", "read_json", "validate"]

R = TypeVar("R", bound=Record)
_DIGITS = 300  # of a whole number, which fits a float
_LONGEST = 60  # characters of a value in a message


def parse_json(text: bytes) -> Any:
    """Return the value of a JSON text in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is none, nested deeper than any record is, has a key twice, or has a whole number
            beyond every float.
    """
    try:
        return json.loads(text.decode("utf-8-sig"), parse_int=_whole, object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def read_json(path: Path, remedy: str = "give another run") -> JsonObject:
    """Read the JSON object that a file holds.

    Args:
        path: of the file.
        remedy: what to do where it cannot be read, for the message.

    Raises:
        InputError: no such file, no JSON, as in a truncated file, or no object.
    """
    try:
        content = parse_json(read_regular(path))
    except ValueError as error:
        raise InputError(
            f"{path} cannot be read as JSON, it is truncated or damaged: {error}; {remedy}"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; {remedy}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__}, expected the object that vleak writes; {remedy}"
        )
    return content


def validate(kind: type[R], content: Mapping[str, Any], source: str) -> R:
    """Return a record of a kind.

    Args:
        kind: class of the record.
        content: JSON object of the current schema version.
        source: file that it was read from, for messages.

    Raises:
        InputError: a field is missing, unknown, or of another type; names the first one.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first, *more = error.errors(include_url=False)
        rest = f" (and {len(more)} more fields)" if len(more) > 1 else " (and 1 more field)" if more else ""
        field = ".".join(map(str, first["loc"])) or "the record"
        raise InputError(f"{source}: {field} {_complaint(dict(first))}{rest}; restore the file") from error


def _complaint(error: JsonObject) -> str:
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "extra_forbidden":
        return "is no field that this vleak knows"
    value = json.dumps(error["input"], ensure_ascii=False, default=str)
    shown = value if len(value) <= _LONGEST else value[: _LONGEST - 1] + "…"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"is {shown}, expected {message.removeprefix('expected ')}"
