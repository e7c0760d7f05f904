"""Attacks and metrics that a run was given, by name or as objects, ready to use."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from vleak.attacks import ATTACKS, Attack
from vleak.errors import InputError
from vleak.metrics import METRICS, Metric
from vleak.registry import Setting, write_reference

__all__ = ["ChosenAttack", "choose_attack", "choose_metric", "object_name"]

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
        return next((name for name in ATTACKS.names() if ATTACKS.find(name).factory in parents), None)


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
    if isinstance(chosen, Attack):
        settings = _own_settings(chosen)
        name = object_name("attacks", chosen)
        return ChosenAttack(write_reference(name, settings), name, chosen, settings)
    reference = ATTACKS.parse(chosen)
    known = reference.entry.settings
    more = {key: shared[key] for key in shared if key in known and key not in reference.settings}
    attack = reference.build(**more)
    settings = {key: value for key, value in reference.settings.items() if value != known[key]}
    return ChosenAttack(reference.text, reference.entry.name, attack, settings)


def choose_metric(chosen: str | Metric) -> tuple[str, Metric]:
    """Return a metric and what stands for it in records.

    Args:
        chosen: ``NAME`` or ``NAME:key=value,...``, or a metric.

    Raises:
        InputError: there is no such metric, or a setting does not fit.
    """
    if isinstance(chosen, Metric):
        return chosen.name, chosen
    reference = METRICS.parse(chosen)
    return reference.text, reference.build()


def object_name(argument: str, thing: object) -> str:
    """Return the name of an object in records: that of the registry for attacks, otherwise ``module:Class``.

    Args:
        argument: what the object was given as, for messages.
        thing: an object, a class or a function.

    Raises:
        InputError: it has no name of its own, as a lambda.
    """
    kind = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    for name in ATTACKS.names() if isinstance(thing, Attack) else ():
        if ATTACKS.find(name).factory is kind:
            return name
    name = getattr(kind, "__qualname__", "<none>")
    if name.rpartition(".")[2].startswith("<"):
        raise InputError(
            f"{argument}: {thing!r:.80} has no name that a record can keep; give a class, an instance "
            "of one, or a function made by def"
        )
    return f"{kind.__module__}:{name}"


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
