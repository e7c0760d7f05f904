"""Build a classifier by name, with weights that depend on the seed alone."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from vleak.errors import InputError, unknown_name
from vleak.models.classifiers import LRCN, C3DTiny, initialise
from vleak.seeds import derive_seed, generator

#: name -> factory(frames, size, classes); the first line of each docstring is shown by `vleak list models`.
MODELS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "c3d_tiny": C3DTiny,
    "c3d_tiny_pool": partial(C3DTiny, pool=True),
    "lrcn": LRCN,
}


def build_model(name: str, *, frames: int, size: int, classes: int, seed: int) -> nn.Module:
    """Return a classifier with freshly drawn weights, in eval mode on the CPU.

    Args:
        name: a key of ``MODELS``, or ``package.module:factory``. A factory is called without
            arguments, or with those of ``frames``, ``size``, ``num_classes`` and ``classes`` (the same
            number) that it names.
        frames: T of the clips (N, 3, T, size, size) that it will see.
        size: height and width of the clips.
        classes: number of logits.
        seed: the weights depend on this number and on the name alone.

    Raises:
        InputError: the name is unknown, or the factory cannot be imported, raises, or returns no module.
    """
    if name in MODELS:
        with torch.device("meta"):  # allocating weights there draws no random numbers
            model = MODELS[name](frames, size, classes)
        model = model.to_empty(device="cpu")
        initialise(model, generator(seed, "weights", name))
    elif ":" in name:
        arguments = {"frames": frames, "size": size, "num_classes": classes, "classes": classes}
        model = _call_factory(name, _import_factory(name), arguments, derive_seed(seed, "weights", name))
    else:
        raise unknown_name("model", name, MODELS, also="package.module:factory")
    return model.eval()


def _import_factory(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(f"model {name!r}: expected package.module:factory")
    if os.getcwd() not in sys.path:  # a console script does not see the user's own folder otherwise
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"model {name!r}: cannot import {module_name!r}: {_line(error)}; "
            "give package.module:factory of something installed or in this folder"
        ) from error
    except Exception as error:
        raise InputError(
            f"model {name!r}: importing {module_name!r} raised {_line(error)}; mend that module"
        ) from error
    if not hasattr(module, attribute):
        raise InputError(f"model {name!r}: {module_name!r} has no {attribute!r}; name a function in it")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise InputError(f"model {name!r}: {attribute!r} is a {type(factory).__name__}, expected a function")
    return factory  # type: ignore[no-any-return]


def _call_factory(name: str, factory: Callable[..., Any], arguments: dict[str, int], seed: int) -> nn.Module:
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
                f"model {name!r}: the factory raised {_line(error)}; call it by hand to see more"
            ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model {name!r}: the factory returned a {type(model).__name__}, expected torch.nn.Module"
        )
    return model.to("cpu", torch.float32)


def _line(error: Exception) -> str:
    """Return an error's type and first line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
