"""Registry: finds a class or function by name, whatever kind it is of.

A thing is found by a built-in name, by ``package.module:Class``, by an entry point in the group
``vleak.<kind>``, or is given as an object. Settings follow the name: ``name:key=value,key=value``.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any, Generic, TypeVar

from vleak.errors import InputError, VleakError, first_line, interrupts, unknown_name
from vleak.forks import one_process

T = TypeVar("T")
Setting = int | float | str | bool
BUILT_IN = "built in"
"""Origin of what vleak itself brings."""

_TYPES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "a word",
    bool: "true or false",
}


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One thing of a registry.

    Attributes:
        name: name that finds it.
        factory: class or function that makes it.
        origin: "built in", "package.module:Class", or "entry point of PACKAGE VERSION".
        kind: what it is, such as "defense".
        base: class that what the factory makes inherits from; None for anything.
    """

    name: str
    factory: Callable[..., T]
    origin: str
    kind: str = "thing"
    base: type | None = None

    @property
    def built_in(self) -> bool:
        """Whether vleak itself brings it."""
        return self.origin == BUILT_IN

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (inspect.getdoc(getattr(self.factory, "func", self.factory)) or "").partition("\n")[0]

    @property
    def settings(self) -> dict[str, Setting]:
        """Settings with their defaults: keyword-only arguments that are numbers, words or switches."""
        try:
            parameters = inspect.signature(self.factory).parameters.values()
        except (TypeError, ValueError):  # a class written in C says nothing of its arguments
            return {}
        return {
            p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and type(p.default) in _TYPES
        }


@dataclass(frozen=True)
class Reference(Generic[T]):
    """An entry with the settings of a text.

    Attributes:
        entry: the thing.
        settings: settings in the text, each with the type of its default.
    """

    entry: Entry[T]
    settings: Mapping[str, Setting]

    @property
    def text(self) -> str:
        """Canonical text: the name, and the settings that differ from the defaults, in their own order."""
        defaults = self.entry.settings
        changed = {
            k: self.settings[k] for k in defaults if k in self.settings and self.settings[k] != defaults[k]
        }
        return write_reference(self.entry.name, changed)

    def build(self, *arguments: object, **more: object) -> T:
        """Make the thing with its settings and further arguments.

        Raises:
            InputError: a plug-in raised while it was made, or made something else; names the plug-in.
        """
        entry = self.entry
        try:
            with one_process():
                result = entry.factory(*arguments, **{**self.settings, **more})
        except VleakError:
            raise
        except BaseException as error:
            if entry.built_in or interrupts(error):
                raise
            raise InputError(
                f"{entry.kind} {entry.name!r} ({entry.origin}) cannot be made: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        if entry.base is not None and not isinstance(result, entry.base):
            raise InputError(
                f"{entry.kind} {entry.name!r} ({entry.origin}) made {type(result).__name__}, expected "
                f"{_path(entry.base)}"
            )
        return result


class Registry(Generic[T]):
    """Things of one kind by name.

    Iterating gives the names, ``name in registry`` asks for one, ``registry[name]`` is its class or function.

    Attributes:
        kind: singular noun, such as "defense".
        base: class that every thing of this kind inherits from; None where any callable will do.
        builtin: class or factory of the built-in things by name.
    """

    def __init__(self, kind: str, builtin: Mapping[str, Callable[..., T]], base: type | None = None) -> None:
        """Take the kind, the built-in things and their base class."""
        self.kind, self.base, self.builtin = kind, base, dict(builtin)

    @property
    def group(self) -> str:
        """Group of the entry points."""
        return f"vleak.{self.kind}"

    def __iter__(self) -> Iterator[str]:
        """Iterate over `names`."""
        return iter(self.names())

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        """Return whether a name is built in or registered by an installed package."""
        return name in self.names()

    def __getitem__(self, name: str) -> Any:
        """Return the class or function of a name, as `find` does."""
        return self.find(name).factory

    def names(self) -> list[str]:
        """Names of the built-in things and of the installed plug-ins; nothing is imported for them."""
        return [*self.builtin, *(name for name in self._points() if name not in self.builtin)]

    def find(self, name: str) -> Entry[T]:
        """Return the thing of a name without settings.

        A plug-in that registers a built-in name is not used; a warning names it.

        Raises:
            InputError: there is none (the nearest names are given), or the plug-in cannot be used.
        """
        points = self._points().get(name, [])
        if name in self.builtin:
            for point in points:
                _warn_taken(self.kind, name, _origin(point))
            return Entry(name, self.builtin[name], BUILT_IN, self.kind, self.base)
        if len(points) > 1:
            raise InputError(
                f"{' and '.join(map(_origin, points))} register {self.kind} {name!r}; uninstall all but one"
            )
        if points:
            return self._checked(name, _load_point(self.kind, points[0]), _origin(points[0]))
        if ":" in name:
            return self._checked(name, load_object(self.kind, name), name)
        also = "package.module:" + ("factory" if self.base is None else "Class")
        raise unknown_name(self.kind, name, self.names(), also=also)

    def parse(self, text: str) -> Reference[T]:
        """Return what ``NAME`` or ``NAME:key=value,...`` stands for; NAME may be ``package.module:Class``.

        Raises:
            InputError: as `find`; an unknown setting, one given twice, or a value of another type.
        """
        name, settings = split_reference(text)
        first, _, rest = text.partition(":")
        if first in self:  # "dp:0.5" is a setting without a name, not a module
            name, settings = first, rest
        entry = self.find(name)
        return Reference(entry, read_settings(self.kind, name, settings, entry.settings))

    def build(self, text: str, *arguments: object, **more: object) -> T:
        """Make the thing that a text stands for.

        Raises:
            InputError: as `parse` and `Reference.build`.
        """
        return self.parse(text).build(*arguments, **more)

    def _points(self) -> dict[str, list[EntryPoint]]:
        """Entry points by name, those of several packages under one name included."""
        points: dict[str, list[EntryPoint]] = {}
        for point in _installed(self.group, tuple(sys.path)):
            others = points.setdefault(point.name, [])
            if all(point.value != other.value for other in others):  # a package may lie on the path twice
                others.append(point)
        return points

    def _checked(self, name: str, factory: Any, origin: str) -> Entry[T]:
        where = f"{self.kind} {name!r} ({origin})" if origin != name else f"{self.kind} {name!r}"
        if not callable(factory):
            raise InputError(
                f"{where} is {type(factory).__name__}, expected a class or a function that makes one"
            )
        if self.base is not None and inspect.isclass(factory):
            if not issubclass(factory, self.base):
                raise InputError(
                    f"{where} does not inherit from {_path(self.base)}; derive it from that class"
                )
            if abstract := sorted(getattr(factory, "__abstractmethods__", ())):
                raise InputError(
                    f"{where} lacks {', '.join(abstract)}; write what {_path(self.base)} asks for"
                )
        return Entry(name, factory, origin, self.kind, self.base)


def split_reference(text: str) -> tuple[str, str]:
    """Split ``NAME:key=value,...`` into name and settings; the name may itself hold one colon."""
    parts = text.split(":", 2)
    if len(parts) == 1:
        return text, ""
    if len(parts) == 3:
        return f"{parts[0]}:{parts[1]}", parts[2]
    return (parts[0], parts[1]) if "=" in parts[1] or not parts[1] else (text, "")


def write_reference(name: str, settings: Mapping[str, Setting]) -> str:
    """Return the text that stands for a thing with settings; the name alone where there are none."""
    written = ",".join(f"{key}={value}" for key, value in settings.items())
    return f"{name}:{written}" if written else name


def read_settings(kind: str, name: str, settings: str, defaults: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return the settings of ``key=value,...``, each with the type of its default.

    Args:
        kind: what the name stands for, such as "defense".
        name: name of the thing.
        settings: the part after the name.
        defaults: settings of the thing with their defaults.

    Raises:
        InputError: an unknown setting (the nearest are named), one given twice, or a value of another type.
    """
    text = f"{name}:{settings}"
    values: dict[str, Setting] = {}
    for part in filter(None, settings.split(",")):
        key, equals, value = part.partition("=")
        if not defaults:
            raise InputError(f"{kind} {text!r}: {name} has no settings, got {part!r}; give {name} alone")
        if not equals:
            raise InputError(f"{kind} {text!r}: expected {name}:setting=value, got {part!r}")
        if key not in defaults:
            raise unknown_name(f"setting of {kind} {name}", key, defaults)
        if not value and defaults[key] != "":
            raise InputError(
                f"{kind} {text!r}: {key} is given no value; its default is {key}={defaults[key]}"
            )
        if key in values:
            raise InputError(f"{kind} {text!r}: {key} is given twice; give it once")
        values[key] = _convert(kind, text, key, value, type(defaults[key]))
    return values


def load_object(kind: str, path: str) -> Any:
    """Import ``package.module:name``, from the working folder or as it is installed.

    Raises:
        InputError: the module cannot be imported or has no such name; names the plug-in.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise InputError(f"{kind} {path!r}: expected package.module:name")
    what, remedy = f"{kind} {path!r}", "; mend it, or give something installed or in this folder"
    module = _called(partial(_imported, module_name), f"{what}: cannot import {module_name!r}", remedy)
    thing: Any = module
    for part in name.split("."):
        if not _called(partial(hasattr, thing, part), f"{what}: {module_name!r} looks for {part!r}"):
            raise InputError(f"{what}: {module_name!r} has no {part!r}; {_nearest(part, module)}")
        thing = getattr(thing, part)
    return thing


def _called(call: Callable[[], Any], what: str, remedy: str = "") -> Any:
    """Return what code from outside returns; what it raises becomes an InputError that begins with `what`."""
    try:
        return one_process()(call)()
    except BaseException as error:
        if interrupts(error):
            raise
        raise InputError(f"{what}: {type(error).__name__}: {first_line(error)}{remedy}") from error


def _imported(name: str) -> ModuleType:
    """Import a module; one of the working folder goes before an installed one of its name, as with `python`.

    The folder itself goes to the end of the path: whatever else lies there, such as a ``torch.py``, must not
    take the place of what is imported later.
    """
    try:
        folder = os.getcwd()
    except OSError:  # it is gone
        folder = ""
    if folder not in sys.path:  # a console script does not see the user's own folder otherwise
        sys.path.append(folder)
    package = name.partition(".")[0]
    spec = PathFinder.find_spec(package, [folder]) if package not in sys.modules else None
    if spec is not None and spec.loader is not None:
        module = sys.modules[package] = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(package, None)
            raise
    return importlib.import_module(name)


def _nearest(name: str, module: ModuleType) -> str:
    """Return what to write instead: the nearest classes and functions that a module defines itself."""
    own = [
        key
        for key, value in vars(module).items()
        if key[0] != "_" and callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    near = get_close_matches(name, own, n=3, cutoff=0.5)
    return (
        f"did you mean {' or '.join(near)}?" if near else f"it defines {', '.join(sorted(own)[:9]) or 'none'}"
    )


@lru_cache(maxsize=64)
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group that the packages on a path register."""
    return tuple(entry_points(group=group))


@lru_cache(maxsize=64)
def _warn_taken(kind: str, name: str, origin: str) -> None:
    """Warn once that a plug-in registers a built-in name."""
    warnings.warn(
        f"{origin} registers {kind} {name!r}, which is built in and stays so; rename it there", stacklevel=4
    )


def _path(base: type) -> str:
    return f"{'.'.join(base.__module__.split('.')[:2])}.{base.__name__}"


def _load_point(kind: str, point: EntryPoint) -> Any:
    what = f"{kind} {point.name!r} ({_origin(point)}) cannot be imported"
    return _called(point.load, what, "; mend or uninstall that package")


def _origin(point: EntryPoint) -> str:
    package = point.dist
    return f"entry point of {package.name} {package.version}" if package is not None else "entry point"


def _convert(kind: str, text: str, key: str, value: str, wanted: type) -> Setting:
    converted = _as(wanted, value)
    if converted is None:
        raise InputError(f"{kind} {text!r}: {key} takes {_TYPES[wanted]}, got {value!r}")
    if isinstance(converted, float) and not math.isfinite(converted):
        raise InputError(f"{kind} {text!r}: {key} takes a finite number, got {value!r}")
    return converted


def _as(wanted: type, value: str) -> Setting | None:
    """Value of a text as the type of its setting; None where it is no such value."""
    if wanted is bool:
        return {"true": True, "false": False}.get(value.lower())
    try:
        converted: Setting = wanted(value)
    except ValueError:
        return None
    return converted
