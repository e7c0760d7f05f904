"""Keys of problems that may share a captured iteration: equal keys differ in the numbers of tensors only."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from vleak.descent.problem import Values
from vleak.descent.step import Step

__all__ = ["program_key"]


def program_key(step: Step, values: Values) -> Hashable:
    """Return what a step and its values must share to be run by one captured iteration.

    Raises:
        RecursionError: the model or the loss holds itself.
    """
    tensors = tuple((name, v.shape, v.stride(), v.dtype, v.device) for name, v in values.items())
    settings = step.settings
    written_into_the_graph = (
        settings.rule, settings.isotropic, settings.smoothing, step.distance, step.local, step.unknown,
        step.per_clip,
    )  # fmt: skip
    return _structure(step.model), tensors, written_into_the_graph, _comparable(step.loss)


def _structure(model: nn.Module) -> Hashable:
    """Return all of a model but the numbers in its tensors, so that copies of a model are alike."""
    modules = tuple((name, type(m), _attributes(m)) for name, m in model.named_modules())
    named = (model.named_modules, model.named_parameters, model.named_buffers)
    return modules, *(_sharing(listing(remove_duplicate=False)) for listing in named)


def _sharing(named: Iterable[tuple[str, object]]) -> Hashable:
    """Return for every name the first name of the same object: what a model uses in several places."""
    first: dict[int, str] = {}
    return tuple((name, first.setdefault(id(held), name)) for name, held in named)


def _attributes(module: nn.Module) -> Hashable:
    kept = {
        name: value for name, value in vars(module).items() if name not in _OF_NN_MODULE or "hook" in name
    }
    return tuple(
        (name, _comparable(_hooks(value) if "hook" in name else value))
        for name, value in sorted(kept.items())
    )


def _hooks(value: object) -> object:
    """Return hooks without the numbers under which PyTorch keeps them, which differ between equal models."""
    return list(value.values()) if isinstance(value, Mapping) else value


#: What nn.Module itself keeps: tensors, which come with the values, modules, which are visited, and hooks.
_OF_NN_MODULE = frozenset(vars(nn.Module())) - {"training"}


@dataclass(frozen=True)
class _Identity:
    """An object that only itself is equal to; as long as the key lives, no other object takes its id."""

    held: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.held is self.held

    def __hash__(self) -> int:
        return id(self.held)


def _comparable(value: object) -> Hashable:
    """Return what two values share only if they are alike; an object that is not plain equals only itself."""
    if value is None or isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, tuple | list):
        return type(value), tuple(_comparable(item) for item in value)
    if isinstance(value, Mapping):
        return type(value), tuple((_comparable(k), _comparable(v)) for k, v in value.items())
    return _Identity(value)


_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
