"""One registry for every kind of thing that a name, a plug-in or an object can stand for.

A thing is found by a built-in name, by ``package.module:Class``, by an entry point in the group
``vleak.<kind>``, or is given as an object. Settings follow the name: ``name:key=value,key=value``.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from vleak.errors import InputError, VleakError, unknown_name

T = TypeVar("T")
Setting = int | float | str | bool
_TYPES: dict[type, str] = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One thing of a registry.

    Attributes:
        name: name that finds it.
        factory: class or function that makes it.
        origin: "built in", "package.module:Class", or "entry point of PACKAGE VERSION".
    """

    name: str
    factory: Callable[..., T]
    origin: str

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (inspect.getdoc(getattr(self.factory, "func", self.factory)) or "").partition("\n")[0]

    @property
    def settings(self) -> dict[str, Setting]:
        """Settings with their defaults: keyword-only arguments that are numbers, words or switches."""
        parameters = inspect.signature(self.factory).parameters.values()
        return {
            p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and type(p.default) in _TYPES
        }


@dataclass(frozen=True)
class Reference(Generic[T]):
    """A thing with the settings that were given for it.

    Attributes:
        entry: the thing.
        settings: given settings, each with the type of its default.
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
            InputError: a plug-in raised while it was made; names the plug-in.
        """
        try:
            return self.entry.factory(*arguments, **{**self.settings, **more})
        except VleakError:
            raise
        except Exception as error:
            if self.entry.origin == "built in":
                raise
            raise InputError(
                f"{self.entry.name} ({self.entry.origin}) cannot be made: "
                f"{type(error).__name__}: {_line(error)}"
            ) from error


class Registry(Generic[T]):
    """Things of one kind by name."""

    def __init__(self, kind: str, builtin: Mapping[str, Callable[..., T]], base: type | None = None) -> None:
        """Take the kind and the built-in things.

        Args:
            kind: singular noun, such as "defense"; the entry points are in the group ``vleak.defense``.
            builtin: class or factory by name.
            base: class that every thing of this kind inherits from; None where any callable will do.
        """
        self.kind, self.base = kind, base
        self._builtin = {name: Entry(name, factory, "built in") for name, factory in builtin.items()}

    @property
    def group(self) -> str:
        """Group of the entry points."""
        return f"vleak.{self.kind}"

    def names(self) -> list[str]:
        """Names of the built-in things and of the installed plug-ins."""
        return [*self._builtin, *(name for name in self._points() if name not in self._builtin)]

    def entries(self) -> list[Entry[T]]:
        """Built-in things and installed plug-ins, as `find` returns them."""
        return [self.find(name) for name in self.names()]

    def find(self, name: str) -> Entry[T]:
        """Return the thing of a name without settings.

        Raises:
            InputError: there is none (the nearest names are given), or the plug-in cannot be used.
        """
        points = self._points()
        if name in self._builtin:
            if name in points:
                raise InputError(
                    f"{_origin(points[name])} registers {self.kind} {name!r}, "
                    "which is built in; rename it there"
                )
            return self._builtin[name]
        if name in points:
            origin = _origin(points[name])
            return self._checked(Entry(name, _load_point(self.kind, points[name]), origin))
        if ":" in name:
            return self._checked(Entry(name, load_object(self.kind, name), name))
        raise unknown_name(self.kind, name, self.names(), also="package.module:Class")

    def parse(self, text: str) -> Reference[T]:
        """Return what ``NAME`` or ``NAME:key=value,...`` stands for; NAME may be ``package.module:Class``.

        Raises:
            InputError: as `find`; an unknown setting, one given twice, or a value of another type.
        """
        name, settings = split_reference(text)
        entry = self.find(name)
        return Reference(entry, read_settings(self.kind, text, settings, entry.settings))

    def build(self, text: str, *arguments: object, **more: object) -> T:
        """Make the thing that a text stands for.

        Raises:
            InputError: as `parse` and `Reference.build`.
        """
        return self.parse(text).build(*arguments, **more)

    def _points(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in points and points[point.name].value != point.value:
                raise InputError(
                    f"{_origin(points[point.name])} and {_origin(point)} both register {self.kind} "
                    f"{point.name!r}; uninstall one of them"
                )
            points[point.name] = point
        return points

    def _checked(self, entry: Entry[T]) -> Entry[T]:
        if not callable(entry.factory):
            raise InputError(
                f"{self.kind} {entry.name!r} ({entry.origin}) is {type(entry.factory).__name__}, expected a "
                "class or a function that makes one"
            )
        if (
            self.base is not None
            and inspect.isclass(entry.factory)
            and not issubclass(entry.factory, self.base)
        ):
            raise InputError(
                f"{self.kind} {entry.name!r} ({entry.origin}) does not inherit from "
                f"vleak.{self.base.__name__}; derive it from that class"
            )
        return entry


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


def read_settings(kind: str, text: str, settings: str, defaults: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return the settings of ``key=value,...``, each with the type of its default.

    Args:
        kind: what the text stands for, such as "defense".
        text: the whole text, for messages.
        settings: the part after the name.
        defaults: settings of the thing with their defaults.

    Raises:
        InputError: an unknown setting (the nearest are named), one given twice, or a value of another type.
    """
    name = split_reference(text)[0]
    values: dict[str, Setting] = {}
    for part in filter(None, settings.split(",")):
        key, equals, value = part.partition("=")
        if not defaults:
            raise InputError(f"{kind} {text!r}: {name} has no settings, got {part!r}; give {name} alone")
        if not equals:
            raise InputError(f"{kind} {text!r}: expected {name}:setting=value, got {part!r}")
        if key not in defaults:
            raise unknown_name(f"setting of {kind} {name}", key, defaults)
        if key in values:
            raise InputError(f"{kind} {text!r}: {key} is given twice; give it once")
        values[key] = _convert(kind, text, key, value, type(defaults[key]))
    return values


def load_object(kind: str, path: str) -> Any:
    """Import ``package.module:name``, the current directory included.

    Raises:
        InputError: the module cannot be imported or has no such name; names the plug-in.
    """
    module_name, _, name = path.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{kind} {path!r}: module {module_name!r} cannot be imported: "
            f"{type(error).__name__}: {_line(error)}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    thing = getattr(module, name, None)
    if thing is None:
        raise unknown_name(f"name in module {module_name}", name, [n for n in vars(module) if n[0] != "_"])
    return thing


def _load_point(kind: str, point: EntryPoint) -> Any:
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{kind} {point.name!r} ({_origin(point)}) cannot be imported: {type(error).__name__}: "
            f"{_line(error)}; mend or uninstall that package"
        ) from error


def _origin(point: EntryPoint) -> str:
    package = point.dist
    return f"entry point of {package.name} {package.version}" if package is not None else "entry point"


def _convert(kind: str, text: str, key: str, value: str, wanted: type) -> Setting:
    if wanted is bool:
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
    else:
        try:
            converted: Setting = wanted(value)
            return converted
        except ValueError:
            pass
    raise InputError(f"{kind} {text!r}: {key} takes {_TYPES[wanted]}, got {value!r}")


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
