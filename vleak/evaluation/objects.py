"""Objects in the settings of a run: their names in records, and what is built of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from vleak.attacks import ATTACKS, Attack
from vleak.data import ClipSet, FeatureSet, clip_set
from vleak.defenses import DEFENSES, Defense, spell
from vleak.errors import InputError
from vleak.models import run_factory
from vleak.objects import Named, object_name, unwrapped
from vleak.registry import Registry, write_reference
from vleak.seeds import derive_seed

__all__ = [
    "METRICS",
    "AttackLike",
    "DataLike",
    "DefenseLike",
    "Metric",
    "MetricLike",
    "ModuleLike",
    "attack_text",
    "build_module",
    "data_name",
    "data_set",
    "defense_text",
    "metric_of",
    "module_name",
    "score_metric",
]


class Metric(Protocol):
    """A further score of a reconstruction."""

    name: str

    def score(self, reconstruction: Tensor, truth: Tensor) -> float | None:
        """Score (C, T, H, W) against (C, T, H, W), both in [0, 1]; None where it says nothing."""


DataLike: TypeAlias = "str | Path | ClipSet | FeatureSet | Tensor | tuple[Tensor, Tensor] | Named[Any]"
"""Name or path, a data set, clips (N, 3, T, H, H) in [0, 1], or (clips, labels)."""
ModuleLike: TypeAlias = "str | nn.Module | Callable[..., nn.Module] | Named[Any]"
"""Name, module, or a factory that is called with the arguments that it names."""
DefenseLike: TypeAlias = "str | Defense"
AttackLike: TypeAlias = "str | Attack"
MetricLike: TypeAlias = "str | Metric | Callable[[Tensor, Tensor], float | None] | Named[Any]"
"""Name, object with ``name`` and ``score``, or a function (reconstruction, truth) -> score."""

METRICS: Registry[Any] = Registry("metric", {})
"""Further metrics; those that are always measured are in `vleak.metrics`."""


def data_name(data: DataLike) -> str:
    """Name of data in records; of a path the path as it was given."""
    if isinstance(data, str | Path):
        return str(data)
    if isinstance(data, ClipSet | FeatureSet):
        return data.name
    return data.name if isinstance(data, Named) else "tensors"


def data_set(data: DataLike) -> ClipSet | FeatureSet | None:
    """Data set that was handed over; None for a name or path.

    Raises:
        InputError: it is nothing that clips can be taken from.
    """
    thing = unwrapped(data)
    if isinstance(thing, str | Path):
        return None
    if isinstance(thing, ClipSet | FeatureSet):
        return thing
    if isinstance(thing, Tensor):
        return clip_set(thing, name=data_name(data))
    if isinstance(thing, tuple) and len(thing) == 2 and all(isinstance(part, Tensor) for part in thing):
        return clip_set(*thing, name=data_name(data))
    raise InputError(
        f"data: expected a path, a ClipSet, a FeatureSet, clips, or (clips, labels), got "
        f"{type(thing).__name__}"
    )


def module_name(argument: str, module: ModuleLike) -> str:
    """Name of a model, extractor or head in records.

    Raises:
        InputError: it has none; says how to give it one.
    """
    return module if isinstance(module, str) else object_name(argument, module)


def build_module(argument: str, module: ModuleLike, facts: Mapping[str, object], seed: int) -> nn.Module:
    """Build a module that was handed over as an object; the caller's own is copied, never changed.

    Args:
        argument: "model", "extractor" or "head".
        module: a module or a factory.
        facts: arguments that a factory may name.
        seed: of the weights that a factory draws.

    Raises:
        InputError: it is neither, or the factory raises or returns no module.
    """
    name, thing = module_name(argument, module), unwrapped(module)
    if isinstance(thing, nn.Module):
        return copy.deepcopy(thing).to("cpu").float()
    if not callable(thing):
        raise InputError(
            f"{argument}: expected a name, a torch.nn.Module or a factory, got {type(thing).__name__}"
        )
    return run_factory(argument, name, thing, facts, derive_seed(seed, f"{argument} weights", name))


def defense_text(defense: Defense) -> str:
    """Text that a defense has in records and seeds: its name, and settings that are not the defaults.

    Raises:
        InputError: it has no name of its own, or a setting that a record cannot hold; says what to do.
    """
    kind, known = type(defense), DEFENSES.get(defense.name)
    if known is not None and known is not kind:
        raise InputError(
            f'defenses: {kind.__name__} has the name {defense.name!r} of another defense; set name = "..." '
            "in the class to one of its own"
        )
    for key, value in defense.settings().items():
        _check_setting(f"defenses: {kind.__name__}", key, value)
    return spell(defense)


def attack_text(attack: AttackLike) -> str:
    """Text that an attack has in records: its name, and settings that are not the defaults.

    Raises:
        InputError: as `defense_text`.
    """
    if isinstance(attack, str):
        return attack
    kind, known = type(attack), ATTACKS.get(attack.name)
    if "name" not in vars(kind) or (known is not None and known is not kind):
        raise InputError(f'attacks: {kind.__name__} has no name of its own; set name = "..." in the class')
    describe = getattr(attack, "settings", None)
    settings = describe() if callable(describe) else {}
    for key, value in settings.items():
        _check_setting(f"attacks: {kind.__name__}", key, value)
    return write_reference(attack.name, settings)


def metric_of(metric: MetricLike) -> tuple[str, Metric]:
    """Name and object of a metric.

    Raises:
        InputError: there is none of that name, or it has no name or no ``score``.
    """
    if isinstance(metric, str):
        reference = METRICS.parse(metric)
        metric, name = reference.build(), reference.text
    else:
        own = getattr(unwrapped(metric), "name", None)
        name = (
            own if isinstance(own, str) and not isinstance(metric, Named) else object_name("metrics", metric)
        )
    thing: Any = unwrapped(metric)
    if not callable(getattr(thing, "score", None)):
        if not callable(thing):
            raise InputError(f"metrics: {name} has no score(reconstruction, truth); give it that method")
        thing = _Function(name, thing)
    return name, thing


def score_metric(name: str, metric: Metric, reconstruction: Tensor, truth: Tensor) -> float | None:
    """Score by a metric from outside, on copies of its own.

    Raises:
        InputError: it raised, or gave no finite number; names the metric.
    """
    try:
        score = metric.score(reconstruction.clone(), truth.clone())
        score = None if score is None else float(score)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise InputError(f"metric {name}: {type(error).__name__}: {first}") from error
    if score is not None and not math.isfinite(score):
        raise InputError(f"metric {name} gave {score}; expected a finite number or None")
    return score


class _Function:
    """Metric of a plain function."""

    def __init__(self, name: str, function: Callable[[Tensor, Tensor], float | None]) -> None:
        self.name, self.score = name, function


def _check_setting(owner: str, key: str, value: object) -> None:
    if (
        value is None
        or isinstance(value, bool | int | str)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return
    raise InputError(
        f"{owner}: setting {key} is {type(value).__name__} {str(value)[:40]!r}, which a record cannot hold; "
        "make settings() give numbers, words and switches alone"
    )
