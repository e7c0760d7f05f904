"""Attacks that a run was given, by name or as objects, ready to run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from vleak.attacks import ATTACKS, Attack
from vleak.errors import InputError
from vleak.registry import Setting, write_reference

__all__ = ["ChosenAttack", "choose_attack"]

_SETTING_TYPES = (int, float, str, bool)


@dataclass(frozen=True)
class ChosenAttack:
    """An attack of a run.

    Attributes:
        text: what stands for it in ids and settings: its name, and what was set for it alone.
        name: its name in records.
        attack: the attack itself.
        settings: what was set for it alone.
    """

    text: str
    name: str
    attack: Attack
    settings: Mapping[str, Setting]

    @property
    def counterpart(self) -> str | None:
        """Name of the adaptive attack that this is the non-adaptive form of; None where there is none."""
        if self.attack.adaptive or self.attack.baseline:
            return None
        parents = type(self.attack).__mro__[1:]
        return next((name for name, factory in ATTACKS.builtin.items() if factory in parents), None)


def choose_attack(chosen: str | Attack, shared: Mapping[str, Setting]) -> ChosenAttack:
    """Return the attack of a text or the object given.

    Args:
        chosen: ``NAME`` or ``NAME:key=value,...``, or an attack.
        shared: settings of the run that an attack from a text takes where it has them and its text does not
            set them.

    Raises:
        InputError: there is no such attack, a setting does not fit, or an object has settings that no record
            can keep.
    """
    if not isinstance(chosen, str | Attack):
        raise InputError(f"attacks: expected names or instances of vleak.Attack, got {type(chosen).__name__}")
    if isinstance(chosen, Attack):
        settings = _own_settings(chosen)
        name = _object_name(chosen)
        return ChosenAttack(write_reference(name, settings), name, chosen, settings)
    reference = ATTACKS.parse(chosen)
    known = reference.entry.settings
    more = {key: shared[key] for key in shared if key in known and key not in reference.settings}
    attack = reference.build(**more)
    settings = {key: value for key, value in reference.settings.items() if value != known[key]}
    return ChosenAttack(reference.text, reference.entry.name, attack, settings)


def _object_name(attack: Attack) -> str:
    """Name of an attack object: that of the registry for its class, otherwise the one of its class."""
    kind = type(attack)
    own = vars(kind).get("name", kind.__name__)
    name = own if isinstance(own, str) else kind.__name__
    if name in ATTACKS and ATTACKS.find(name).factory is not kind:
        raise InputError(
            f'attacks: {kind.__name__} has the name {name!r} of another attack; set name = "..." in the '
            "class to one of its own"
        )
    return name


def _own_settings(attack: Attack) -> dict[str, Setting]:
    """Settings of an attack that differ from the defaults of its class."""
    parameters = inspect.signature(type(attack)).parameters
    changed = {key: value for key, value in attack.settings().items() if value != parameters[key].default}
    for key, value in changed.items():
        if type(value) not in _SETTING_TYPES:
            raise InputError(
                f"attacks: setting {key} of {type(attack).__name__} is {type(value).__name__}, expected a "
                "number, a word, true or false, which a record can keep; make it of such settings"
            )
    return changed
