"""Ranges of settings that defenses share."""

from __future__ import annotations

from vleak.errors import InputError

__all__ = ["check_number", "check_whole"]


def check_number(name: str, setting: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside its range.

    Args:
        name: of the defense. setting: that has the value.
        value: of the setting; low, high: ends of its range, which are allowed.

    Raises:
        InputError: it is outside, or NaN.
    """
    if not low <= value <= high:
        raise InputError(f"{name}: {setting} is {value}, expected a number from {low:g} to {high:g}")


def check_whole(name: str, setting: str, value: object, least: int, most: float = float("inf")) -> None:
    """Refuse what is no whole number in a range.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name}: {setting} is {value!r}, expected a whole number from {least}")
