"""Settings as text: ``NAME:key=value,...``, the grammar of defenses, models, heads and extractors."""

from __future__ import annotations

from collections.abc import Mapping

from vleak.errors import InputError, unknown_name

Setting = int | float | str

_KINDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a word"}


def split(text: str) -> tuple[str, str]:
    """Return the name and the settings, which may be empty, of ``NAME:key=value,...``."""
    name, _, rest = text.partition(":")
    return name, rest


def read_settings(noun: str, text: str, defaults: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return the settings that ``NAME:key=value,...`` gives, each with the type of its default.

    Args:
        noun: what the text names, such as "defense"; its option on the command line is ``--noun``.
        text: the whole text.
        defaults: every setting that the named thing has.

    Raises:
        InputError: an unknown setting (the nearest are named), one given twice, or a value that does not fit.
    """
    name, rest = split(text)
    given: dict[str, Setting] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not defaults:
            raise InputError(f"{noun} {text!r}: {name} has no settings, got {part!r}; give {name} alone")
        if not equals:
            raise InputError(f"{noun} {text!r}: expected {name}:setting=value, got {part!r}")
        if key not in defaults:
            raise unknown_name(f"setting of {noun} {name}", key, defaults)
        if key in given:
            raise InputError(f"{noun} {text!r}: {key} is given twice; repeat --{noun} for more strengths")
        given[key] = _value(noun, text, key, value, type(defaults[key]))
    return given


def write_settings(name: str, settings: Mapping[str, Setting]) -> str:
    """Return the text that names a thing with settings; the name alone where there are none."""
    written = ",".join(f"{key}={value}" for key, value in settings.items())
    return f"{name}:{written}" if written else name


def _value(noun: str, text: str, key: str, value: str, kind: type) -> Setting:
    try:
        made: Setting = kind(value)
    except ValueError:
        raise InputError(f"{noun} {text!r}: {key} takes {_KINDS[kind]}, got {value!r}") from None
    return made
