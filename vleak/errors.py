"""Errors that a person reads: what was given, what was expected, what to do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["CapabilityError", "ContractError", "InputError", "VleakError", "argument", "unknown_name"]


class VleakError(Exception):
    """A failure with one clear line for the user; the command line prints it and exits with 2."""


class InputError(VleakError, ValueError):
    """Something the user gave cannot be used."""


class CapabilityError(VleakError, RuntimeError):
    """A model, machine or installation cannot do what was asked."""


class ContractError(CapabilityError):
    """A part, such as a plug-in, raised or returned what its kind must not."""


def argument(name: str, value: object) -> str:
    """Text of an argument as messages have it: ``clips=0``; the command line shows it as its option."""
    return f"{name}={value}"


def require(what: str, value: object, kind: type, expected: str) -> None:
    """Refuse a value of another type than is expected.

    Args:
        what: name of the argument.
        value: as it was given.
        kind: class that it has to be of.
        expected: that class in words, such as ``"a torch.Tensor"``.

    Raises:
        InputError: it is of another class.
    """
    if not isinstance(value, kind):
        raise InputError(f"{what} is {type(value).__name__}, expected {expected}")


def first_line(error: BaseException) -> str:
    """First line of an error's text, as UTF-8 can hold it; empty where it says nothing."""
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001  of a plug-in's own class
        text = f"its text raises {type(failure).__name__}"
    return utf8_text(text).strip().partition("\n")[0]


def utf8_text(text: str) -> str:
    """Text with what UTF-8 cannot hold, such as bytes of a file name that are no text, written as escapes."""
    return text.encode(errors="backslashreplace").decode()


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is not enough memory, of the machine or of a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    text = str(error) if isinstance(error, RuntimeError) else ""
    return "can't allocate memory" in text or "not enough memory" in text or "out of memory" in text


def process_ending(code: int) -> str:
    """Return how a process ended, of its exit code as `multiprocessing` has it: negative for a signal."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def interrupts(error: BaseException) -> bool:
    """Return whether an exception is Ctrl-C of the user: it reaches the main thread alone.

    Anything else that is no `Exception`, such as SystemExit, is of the code that was called.
    """
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def unknown_name(kind: str, given: str, known: Iterable[str], *, also: str = "") -> InputError:
    """Build the error for a name that does not exist, with the nearest names that do.

    Args:
        kind: what the name stands for, such as ``"defense"``.
        given: the name as the user typed it.
        known: the names that exist.
        also: one more accepted form, such as ``"package.module:factory"``.
    """
    names = sorted(known)
    near = get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return InputError(f"unknown {kind} {given!r}; {hint}{f' (or {also})' if also else ''}")
