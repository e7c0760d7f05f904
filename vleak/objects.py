"""Names of objects that are handed to the library, so that a record can say what ran."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Generic, TypeVar

from vleak.errors import InputError

__all__ = ["Named", "named", "object_name", "unwrapped"]

T = TypeVar("T")
_NAME = re.compile(r"[^\s/]+")


@dataclass(frozen=True)
class Named(Generic[T]):
    """An object with the name that records give it.

    Attributes:
        name: without blanks and slashes.
        value: the object.
    """

    name: str
    value: T


def named(name: str, value: T) -> Named[T]:
    """Give an object a name for the record: ``vleak.evaluate(model=vleak.named("my_model", module))``.

    Args:
        name: any characters but blanks and slashes. Two objects of one run need two names.
        value: a module, a factory, data or a metric.

    Raises:
        InputError: the name is empty, or has a blank or a slash in it.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"named: name is {name!r}, expected a text without blanks and slashes")
    return Named(name, value)


def object_name(argument: str, thing: object) -> str:
    """Name of an object in records: that of `named`, of a function, or of the class.

    Args:
        argument: argument that the object was given for, such as "model", for messages.
        thing: the object.

    Raises:
        InputError: it has none that says anything, as a lambda or a container of PyTorch; says how to give
            it one.
    """
    if isinstance(thing, Named):
        return thing.name
    owner = thing if isinstance(thing, type) or hasattr(thing, "__code__") else type(thing)
    name = str(getattr(owner, "__name__", ""))
    foreign = str(getattr(owner, "__module__", "")).partition(".")[0] in ("torch", "builtins", "functools")
    if foreign or not name.isidentifier():
        raise InputError(
            f"{argument}: {name or type(thing).__name__} is no name that a record could tell it by; give one "
            f'with {argument}=vleak.named("my_{argument}", ...)'
        )
    return name


def unwrapped(thing: object) -> object:
    """Object itself, without its `named` wrapping."""
    return thing.value if isinstance(thing, Named) else thing
