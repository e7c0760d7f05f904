"""Objects in the settings of a run: their names in records, and what is built of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

from torch import Tensor, nn

from vleak.attacks import Attack
from vleak.data import ClipSet, FeatureSet, clip_set
from vleak.defenses import Defense
from vleak.errors import InputError
from vleak.metrics import METRICS, Metric
from vleak.models import call_factory, plain_module, unwrapped_module
from vleak.objects import Named, object_name, unwrapped
from vleak.registry import Entry, Reference
from vleak.seeds import derive_seed

__all__ = [
    "AttackLike",
    "DataLike",
    "DefenseLike",
    "MetricLike",
    "ModuleLike",
    "build_module",
    "data_name",
    "data_set",
    "is_finished",
    "make_module",
    "metric_of",
    "module_name",
]

DataLike: TypeAlias = "str | Path | ClipSet | FeatureSet | Tensor | tuple[Tensor, Tensor] | Named[Any]"
"""Name or path, a data set, clips (N, 3, T, H, H) in [0, 1], or (clips, labels)."""
ModuleLike: TypeAlias = "str | nn.Module | Callable[..., nn.Module] | Named[Any]"
"""Name, module, or a factory that is called with the arguments that it names."""
DefenseLike: TypeAlias = "str | Defense"
AttackLike: TypeAlias = "str | Attack"
MetricLike: TypeAlias = "str | Metric | Callable[[Tensor, Tensor], float | None] | Named[Any]"
"""Name, object with ``name`` and ``score``, or a function (reconstruction, truth) -> score."""


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
    """Name of a model, extractor or head in records; of a wrapped module that of the module inside.

    Raises:
        InputError: it has none; says how to give it one.
    """
    if isinstance(module, str):
        return module
    return object_name(argument, unwrapped_module(module)[0] if isinstance(module, nn.Module) else module)


def build_module(argument: str, module: ModuleLike, facts: Mapping[str, object], seed: int) -> nn.Module:
    """Build a module that was handed over as an object, in float32 on the CPU; the caller's own is copied.

    Args:
        argument, module, facts, seed: as for `make_module`.

    Raises:
        InputError: as `make_module` and `vleak.models.plain_module`.
    """
    return plain_module(make_module(argument, module, facts, seed)).module


def is_finished(module: ModuleLike) -> bool:
    """Whether a module comes with its weights: an object of a module, and not a name or a factory."""
    return isinstance(unwrapped(module), nn.Module)


def make_module(argument: str, module: ModuleLike, facts: Mapping[str, object], seed: int) -> nn.Module:
    """Return a module that was handed over, the caller's own object, or what a factory makes.

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
        return thing
    if not callable(thing):
        raise InputError(
            f"{argument}: expected a name, a torch.nn.Module or a factory, got {type(thing).__name__}"
        )
    entry: Entry[nn.Module] = Entry(name, thing, name, argument)
    return call_factory(Reference(entry, {}), facts, derive_seed(seed, f"{argument} weights", name))


def metric_of(metric: MetricLike) -> tuple[str, Metric]:
    """Name and object of a metric.

    Raises:
        InputError: there is none of that name, or it has no name or no ``score``.
    """
    if isinstance(metric, str):
        reference = METRICS.parse(metric)
        return reference.text, reference.build()
    thing, own = unwrapped(metric), getattr(unwrapped(metric), "name", None)
    name = own if isinstance(own, str) and not isinstance(metric, Named) else object_name("metrics", metric)
    if callable(getattr(thing, "score", None)):
        return name, cast("Metric", thing)
    if not callable(thing):
        raise InputError(f"metrics: {name} has no score(reconstruction, truth); give it that method")
    return name, _FunctionMetric(name, thing)


class _FunctionMetric(Metric):
    """Metric of a plain function."""

    def __init__(self, name: str, function: Callable[[Tensor, Tensor], float | None]) -> None:
        self.name = name  # type: ignore[misc]  # a name for each function
        self._function = function

    def score(self, reconstruction: Tensor, truth: Tensor) -> float | None:
        return self._function(reconstruction, truth)
