"""Defenses as text: ``dp`` is a sweep, ``dp:noise_multiplier=0.5,max_grad_norm=2`` is one strength."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vleak.errors import InputError, unknown_name
from vleak.federated.defense import Defense


def spell(defense: Defense) -> str:
    """Return the text that makes this defense again: its name and every setting that is not the default."""
    default = type(defense)()
    values = {f.name: getattr(defense, f.name) for f in fields(defense)}
    changed = ",".join(f"{name}={value}" for name, value in values.items() if value != getattr(default, name))
    return f"{defense.name}:{changed}" if changed else defense.name


def parse(text: str, kinds: dict[str, type[Defense]]) -> Defense:
    """Return the defense that ``NAME:key=value,...`` spells; a bare name has its default settings.

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
        if not equals:
            raise InputError(f"defense {text!r}: expected {name}:setting=value, got {part!r}")
        if key not in defaults:
            raise unknown_name(f"setting of defense {name}", key, defaults)
        given[key] = _value(text, key, value, type(defaults[key]))
    return kind(**given)


def _value(text: str, key: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise InputError(f"defense {text!r}: {key} takes a {kind.__name__}, got {value!r}") from None
