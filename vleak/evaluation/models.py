"""Models of a run: by name, as objects, or as functions that make them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

from torch import nn

from vleak.evaluation.chosen import object_name
from vleak.models import build_head, build_model
from vleak.models.build import call_factory
from vleak.registry import Entry, Reference
from vleak.seeds import derive_seed

__all__ = ["Model", "classifier_of", "head_of", "model_name"]

Model = str | nn.Module | Callable[..., nn.Module]
"""A model by name, as an object, or as a function that makes it."""


def model_name(argument: str, model: Model) -> str:
    """Name of a model in ids and records.

    Raises:
        InputError: it is an object without a name of its own, as a lambda.
    """
    return model if isinstance(model, str) else object_name(argument, model)


def classifier_of(model: Model, *, frames: int, size: int, classes: int, seed: int) -> nn.Module:
    """Classifier of clips, in eval mode on the CPU; an object is copied, because it may be trained.

    Raises:
        InputError: as `vleak.models.build_model`.
    """
    if isinstance(model, str):
        return build_model(model, frames=frames, size=size, classes=classes, seed=seed)
    arguments = {"frames": frames, "size": size, "num_classes": classes, "classes": classes}
    return _from_object("model", model, arguments, derive_seed(seed, "weights", model_name("model", model)))


def head_of(head: Model, *, segments: int, features: int, outputs: int | None, seed: int) -> nn.Module:
    """Head on features, in eval mode on the CPU; an object is copied, because it may be trained.

    Raises:
        InputError: as `vleak.models.build_head`.
    """
    if isinstance(head, str):
        return build_head(head, segments=segments, features=features, outputs=outputs, seed=seed)
    arguments = {"segments": segments, "features": features, "outputs": outputs}
    return _from_object("head", head, arguments, derive_seed(seed, "head weights", model_name("head", head)))


def _from_object(
    kind: str, model: nn.Module | Callable[..., nn.Module], arguments: Mapping[str, object], seed: int
) -> nn.Module:
    if isinstance(model, nn.Module):
        return copy.deepcopy(model).to("cpu").eval()
    name = object_name(kind, model)
    entry: Entry[nn.Module] = Entry(name, model, name, kind)
    return call_factory(Reference(entry, {}), arguments, seed).eval()
