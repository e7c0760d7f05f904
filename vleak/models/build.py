"""Building of classifiers by name, with weights that depend on the name and the seed alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from vleak.errors import InputError
from vleak.models.classifiers import LRCN, C3DTiny, initialise
from vleak.registry import Reference, Registry
from vleak.seeds import derive_seed, generator

MODELS: Registry[nn.Module] = Registry(
    "model", {"c3d_tiny": C3DTiny, "c3d_tiny_pool": partial(C3DTiny, pool=True), "lrcn": LRCN}
)
"""Classifiers of clips; the built-in ones are called with (frames, size, classes)."""


def build_model(name: str, *, frames: int, size: int, classes: int, seed: int) -> nn.Module:
    """Return a classifier with freshly drawn weights, in eval mode on the CPU.

    Args:
        name: a name of ``MODELS``, optionally with settings, such as ``c3d_tiny:width=16,depth=2``; or
            ``package.module:factory``. A factory of a plug-in is called with its settings and with those of
            ``frames``, ``size``, ``num_classes`` and ``classes`` (the same number) that it accepts.
        frames: T of the input clips (N, 3, T, size, size).
        size: height and width of the clips.
        classes: number of logits.
        seed: the weights depend on this number and on the name alone.

    Raises:
        InputError: the name or a setting is unknown, or the factory cannot be imported, raises, or returns
            no module.
    """
    arguments = {"frames": frames, "size": size, "num_classes": classes, "classes": classes}
    reference = MODELS.parse(name)
    return build_module(reference, (frames, size, classes), arguments, seed, "weights").eval()


def build_module(
    reference: Reference[nn.Module],
    sizes: tuple[object, ...],
    arguments: Mapping[str, object],
    seed: int,
    stream: str,
) -> nn.Module:
    """Return the module of a reference, with weights drawn from the seed and its canonical text.

    Args:
        reference: parsed by the registry of models, extractors or heads.
        sizes: positional arguments of a built-in class.
        arguments: arguments that a factory of a plug-in may accept by name.
        seed, stream: numbers and text that the weights depend on, beside the canonical text.

    Returns:
        the module in float32 on the CPU.

    Raises:
        InputError: a setting is out of range, or a plug-in's factory raises or returns no module.
    """
    if not reference.entry.built_in:
        return call_factory(reference, arguments, derive_seed(seed, stream, reference.text))
    with torch.device("meta"):  # allocating weights there draws no random numbers
        module = reference.build(*sizes)
    module = module.to_empty(device="cpu")
    initialise(module, generator(seed, stream, reference.text))
    return module


def call_factory(reference: Reference[nn.Module], arguments: Mapping[str, object], seed: int) -> nn.Module:
    """Return the module of a plug-in's factory, called with its settings and the arguments that it accepts.

    Args:
        reference: the factory.
        arguments: arguments that it may accept, by name.
        seed: seed of the process-wide generator during the call.

    Returns:
        the module in float32 on the CPU.

    Raises:
        InputError: the factory raises, or returns no module.
    """
    entry = reference.entry
    where = f"{entry.kind} {entry.name!r}"
    if entry.origin != entry.name:
        where += f" ({entry.origin})"
    # Factories of plug-ins draw from the process-wide generator; its state is saved and restored, so that
    # the weights depend on the seed and no other code in the process is affected.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            accepted = inspect.signature(entry.factory).parameters
            chosen = {key: value for key, value in arguments.items() if key in accepted}
            module = entry.factory(**{**chosen, **reference.settings})
        except Exception as error:
            raise InputError(
                f"{where}: the factory raised {_line(error)}; call it by hand to see more"
            ) from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{where}: the factory returned a {type(module).__name__}, expected torch.nn.Module")
    return module.to("cpu", torch.float32)


def _line(error: Exception) -> str:
    """Return an error's type and first line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
