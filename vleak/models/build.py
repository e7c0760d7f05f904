"""Build a classifier by name, with weights that depend on the seed alone."""

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
"""Classifiers of clips: those built in are made of (frames, size, classes)."""


def build_model(name: str, *, frames: int, size: int, classes: int, seed: int) -> nn.Module:
    """Return a classifier with freshly drawn weights, in eval mode on the CPU.

    Args:
        name: a name of ``MODELS``, with settings where others than the default ones are wanted, such as
            ``c3d_tiny:width=16,depth=2``; or ``package.module:factory``. A factory from outside is called
            with its settings and with those of ``frames``, ``size``, ``num_classes`` and ``classes`` (the
            same number) that it names.
        frames: T of the clips (N, 3, T, size, size) that it will see.
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
    """Build what a reference stands for, with weights drawn from the seed and its canonical text.

    Args:
        reference: as the registry of models, extractors or heads parsed it.
        sizes: positional arguments of a built-in class.
        arguments: what a factory from outside may ask for by name.
        seed, stream: what the weights depend on, beside the canonical text.

    Returns:
        the module in float32 on the CPU.

    Raises:
        InputError: a setting is out of range, or a factory from outside raises or returns no module.
    """
    if not reference.entry.built_in:
        return call_factory(reference, arguments, derive_seed(seed, stream, reference.text))
    with torch.device("meta"):  # allocating weights there draws no random numbers
        module = reference.build(*sizes)
    module = module.to_empty(device="cpu")
    initialise(module, generator(seed, stream, reference.text))
    return module


def call_factory(reference: Reference[nn.Module], arguments: Mapping[str, object], seed: int) -> nn.Module:
    """Call a factory from outside with its settings and those of the arguments that it names.

    Args:
        reference: the factory.
        arguments: what it may ask for.
        seed: of the random numbers that it draws.

    Returns:
        the module in float32 on the CPU.

    Raises:
        InputError: the factory raises, or returns no module.
    """
    entry = reference.entry
    where = f"{entry.kind} {entry.name!r}"
    if entry.origin != entry.name:
        where += f" ({entry.origin})"
    # A factory from outside draws from the process-wide generator; it is forked and put back, so that
    # the weights follow the seed and nothing else in the process notices.
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
