"""Build a classifier by name, with weights that depend on the seed alone."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from vleak.errors import InputError, unknown_name
from vleak.models.classifiers import LRCN, C3DTiny, initialise
from vleak.seeds import derive_seed, generator
from vleak.spelling import Setting, read_settings, split, write_settings

#: name -> factory(frames, size, classes); the first line of each docstring is shown by `vleak list models`.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "c3d_tiny": C3DTiny,
    "c3d_tiny_pool": partial(C3DTiny, pool=True),
    "lrcn": LRCN,
}


def build_model(name: str, *, frames: int, size: int, classes: int, seed: int) -> nn.Module:
    """Return a classifier with freshly drawn weights, in eval mode on the CPU.

    Args:
        name: a key of ``MODELS``, with settings where others than the default ones are wanted, such as
            ``c3d_tiny:width=16,depth=2``; or ``package.module:factory``. A factory is called without
            arguments, or with those of ``frames``, ``size``, ``num_classes`` and ``classes`` (the same
            number) that it names.
        frames: T of the clips (N, 3, T, size, size) that it will see.
        size: height and width of the clips.
        classes: number of logits.
        seed: the weights depend on this number and on the name alone.

    Raises:
        InputError: the name or a setting is unknown, or the factory cannot be imported, raises, or returns
            no module.
    """
    if is_built_in("model", name, MODELS):
        return build_named("model", name, MODELS, (frames, size, classes), seed, "weights").eval()
    arguments = {"frames": frames, "size": size, "num_classes": classes, "classes": classes}
    return call_factory("model", name, arguments, derive_seed(seed, "weights", name)).eval()


def is_built_in(noun: str, text: str, kinds: Mapping[str, object]) -> bool:
    """Tell whether a text names a built-in thing, with or without settings, or a factory of the user.

    Raises:
        InputError: it is neither.
    """
    name, rest = split(text)
    if name in kinds:
        return True
    if ":" in text and "=" not in rest:
        return False
    raise unknown_name(noun, name if rest else text, kinds, also="package.module:factory")


def canonical(noun: str, text: str, kinds: Mapping[str, Callable[..., nn.Module]]) -> str:
    """Return the one spelling of a built-in thing: settings that are not the default, in their own order.

    Raises:
        InputError: the name or a setting is unknown, or a value does not fit.
    """
    if not is_built_in(noun, text, kinds):
        return text
    name, _ = split(text)
    return write_settings(name, settings_of(noun, text, kinds[name]))


def build_named(
    noun: str,
    text: str,
    kinds: Mapping[str, Callable[..., nn.Module]],
    sizes: tuple[object, ...],
    seed: int,
    stream: str,
) -> nn.Module:
    """Build ``NAME:key=value,...`` with PyTorch's default weights, drawn from the seed and the spelling.

    Args:
        noun: what is built, for messages.
        text: the name, with settings or without.
        kinds: factories by name; each keyword-only number or word of a factory is a setting.
        sizes: positional arguments of the factory.
        seed, stream: what the weights depend on, beside the canonical spelling.

    Raises:
        InputError: a setting is unknown or out of range.
    """
    factory = kinds[split(text)[0]]
    settings = settings_of(noun, text, factory)
    with torch.device("meta"):  # allocating weights there draws no random numbers
        made = factory(*sizes, **settings)
    made = made.to_empty(device="cpu")
    initialise(made, generator(seed, stream, canonical(noun, text, kinds)))
    return made


def settings_of(noun: str, text: str, factory: Callable[..., object]) -> dict[str, Setting]:
    """Return the settings that a text gives and that differ from the default.

    A setting is a keyword-only argument of the factory whose default is a number or a word.

    Raises:
        InputError: a setting is unknown, or its value does not fit.
    """
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and type(parameter.default) in (int, float, str)
    }
    given = read_settings(noun, text, defaults)
    return {name: given[name] for name in defaults if given.get(name, defaults[name]) != defaults[name]}


def call_factory(noun: str, name: str, arguments: Mapping[str, object], seed: int) -> nn.Module:
    """Call ``package.module:factory`` with those of the arguments that it names.

    Args:
        noun: what it makes, for messages.
        name: the text that the user gave.
        arguments: what it may ask for.
        seed: of the random numbers that it draws.

    Returns:
        the module in float32 on the CPU.

    Raises:
        InputError: the factory cannot be imported, raises, or returns no module.
    """
    return run_factory(noun, name, _import_factory(noun, name), arguments, seed)


def run_factory(
    noun: str, name: str, factory: Callable[..., Any], arguments: Mapping[str, object], seed: int
) -> nn.Module:
    """Call a factory from outside with those of the arguments that it names.

    Args:
        noun: what it makes, for messages.
        name: its name, for messages.
        factory: the function or class.
        arguments: what it may ask for.
        seed: of the random numbers that it draws.

    Returns:
        the module in float32 on the CPU.

    Raises:
        InputError: the factory raises, or returns no module.
    """
    # A stranger's factory draws from the process-wide generator; it is forked and put back, so that
    # the weights follow the seed and nothing else in the process notices.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            model = factory(
                **{k: v for k, v in arguments.items() if k in inspect.signature(factory).parameters}
            )
        except Exception as error:
            raise InputError(
                f"{noun} {name!r}: the factory raised {_line(error)}; call it by hand to see more"
            ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{noun} {name!r}: the factory returned a {type(model).__name__}, expected torch.nn.Module"
        )
    return model.to("cpu", torch.float32)


def _import_factory(noun: str, name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(f"{noun} {name!r}: expected package.module:factory")
    if os.getcwd() not in sys.path:  # a console script does not see the user's own folder otherwise
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"{noun} {name!r}: cannot import {module_name!r}: {_line(error)}; "
            "give package.module:factory of something installed or in this folder"
        ) from error
    except Exception as error:
        raise InputError(
            f"{noun} {name!r}: importing {module_name!r} raised {_line(error)}; mend that module"
        ) from error
    if not hasattr(module, attribute):
        raise InputError(f"{noun} {name!r}: {module_name!r} has no {attribute!r}; name a function in it")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise InputError(f"{noun} {name!r}: {attribute!r} is a {type(factory).__name__}, expected a function")
    return factory  # type: ignore[no-any-return]


def _line(error: Exception) -> str:
    """Return an error's type and first line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
