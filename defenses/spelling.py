"""Defenses as text: ``dp`` is a sweep, ``dp:noise_multiplier=0.5,max_grad_norm=2`` is one strength."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vleak.errors import unknown_name
from vleak.federated.defense import Defense
from vleak.spelling import read_settings, split, write_settings


def spell(defense: Defense) -> str:
    """Return the text that makes this defense again: its name and every setting that is not the default.

    A defense with settings always shows one, because its name alone asks for a sweep.
    """
    values = {f.name: getattr(defense, f.name) for f in fields(defense)}
    shown = [f.name for f in fields(defense) if values[f.name] != f.default] or list(values)[:1]
    return write_settings(defense.name, {name: values[name] for name in shown})


def parse(text: str, kinds: dict[str, type[Defense]]) -> Defense:
    """Return the defense that ``NAME:key=value,...`` spells; what is not given has its default.

    Raises:
        InputError: unknown name or setting (the nearest are named), or a value that does not fit.
    """
    name, _ = split(text)
    if name not in kinds:
        raise unknown_name("defense", name, kinds)
    kind = kinds[name]
    defaults = {f.name: getattr(kind(), f.name) for f in fields(kind)}
    given: dict[str, Any] = read_settings("defense", text, defaults)
    return kind(**given)
