"""Defenses as text: ``dp`` is a sweep, ``dp:noise_multiplier=0.5,max_grad_norm=2`` is one strength."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vleak.errors import InputError, unknown_name
from vleak.federated.defense import Defense

_KINDS = {int: "a whole number", float: "a number", str: "a word"}


def spell(defense: Defense) -> str:
    """Return the text that makes this defense again: its name and every setting that is not the default.

    A defense with settings always shows one, because its name alone asks for a sweep.
    """
    default = type(defense)()
    values = {f.name: getattr(defense, f.name) for f in fields(defense)}
    shown = [name for name in values if values[name] != getattr(default, name)] or list(values)[:1]
    settings = ",".join(f"{name}={values[name]}" for name in shown)
    return f"{defense.name}:{settings}" if settings else defense.name


def parse(text: str, kinds: dict[str, type[Defense]]) -> Defense:
    """Return the defense that ``NAME:key=value,...`` spells; what is not given has its default.

    Raises:
        InputError: unknown name or setting (the nearest are named), or a value that does not fit.
    """
    name, _, rest = text.partition(":")
    if name not in kinds:
        raise unknown_name("defense", name, kinds)
    kind = kinds[name]
    defaults = {f.name: getattr(kind(), f.name) for f in fields(kind)}
    given: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not defaults:
            raise InputError(f"defense {text!r}: {name} has no settings, got {part!r}; give {name} alone")
        if not equals:
            raise InputError(f"defense {text!r}: expected {name}:setting=value, got {part!r}")
        if key not in defaults:
            raise unknown_name(f"setting of defense {name}", key, defaults)
        if key in given:
            raise InputError(f"defense {text!r}: {key} is given twice; repeat --defense for more strengths")
        given[key] = _value(text, key, value, type(defaults[key]))
    return kind(**given)


def _value(text: str, key: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise InputError(f"defense {text!r}: {key} takes {_KINDS[kind]}, got {value!r}") from None
