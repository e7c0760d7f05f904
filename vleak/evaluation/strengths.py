"""Strengths of the defenses of a run, and which of them its clients can use."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from vleak.defenses import DEFENSES, Defense, NoDefense, defense_text, parse_defenses
from vleak.errors import InputError
from vleak.evaluation.objects import DefenseLike

__all__ = ["ALL", "strengths_of"]

ALL = "all"
"""Word that stands for every built-in defense."""


def strengths_of(defenses: Sequence[DefenseLike], *, ends: bool = False) -> list[Defense]:
    """Every defense strength to run, "none" first, each once.

    Args:
        defenses: instances, or as on the command line; ``all`` stands for every built-in one.
        ends: whether of every sweep the weakest and the strongest alone are taken.

    Raises:
        InputError: a defense or a setting of it is unknown, or a value does not fit.
    """
    strengths: list[Defense] = [NoDefense()]
    for defense in _expanded(defenses):
        if not isinstance(defense, str | Defense):
            raise InputError(
                f"defenses: expected names or instances of vleak.Defense, got {type(defense).__name__}"
            )
        sweep = parse_defenses(defense)
        strengths += [sweep[0], sweep[-1]] if ends else sweep
    for strength in strengths:
        _check_own_name(strength)
    return list({defense_text(defense): defense for defense in strengths}.values())


def _expanded(defenses: Sequence[DefenseLike]) -> list[DefenseLike]:
    return [name for given in defenses for name in (DEFENSES.builtin if given == ALL else (given,))]


def _check_own_name(defense: Defense) -> None:
    """Refuse a defense with the name of another one, which no table could tell from it."""
    kind, name = type(defense), defense.name
    known = DEFENSES.find(name).factory if name in DEFENSES else kind
    if inspect.isclass(known) and known is not kind:
        raise InputError(
            f'defenses: {kind.__name__} has the name {name!r} of another defense; set name = "..." in the '
            "class to one of its own"
        )
