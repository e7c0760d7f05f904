"""Building of classifiers by name, with weights that depend on the name and the seed alone."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from vleak.errors import InputError, first_line
from vleak.forks import one_process
from vleak.models import networks
from vleak.models.classifiers import LRCN, C3DTiny, initialise
from vleak.models.memory import refuse_too_large
from vleak.models.torchvision_video import VIDEO_MODELS, TorchvisionModel
from vleak.models.trial import try_factory
from vleak.models.unwrap import plain_module
from vleak.registry import Reference, Registry
from vleak.seeds import derive_seed, generator

T = TypeVar("T")

_SMALL: dict[str, Callable[..., nn.Module]] = {
    "c3d_tiny": C3DTiny,
    "c3d_tiny_pool": partial(C3DTiny, pool=True),
    "lrcn": LRCN,
}
SMALL_MODELS = tuple(_SMALL)
"""Names of the classifiers whose iterations take milliseconds on any machine."""
_TORCHVISION = {f"torchvision:{name}": TorchvisionModel(name) for name in VIDEO_MODELS}
MODELS: Registry[nn.Module] = Registry("model", {**_SMALL, **networks.NETWORKS, **_TORCHVISION})
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
    module = make_model(name, frames=frames, size=size, classes=classes, seed=seed)
    return (module if is_built_in(name) else plain_module(module).module).eval()


def is_built_in(name: str) -> bool:
    """Return whether a name of a model, with or without settings, is one that vleak itself brings."""
    return _is_builtin(MODELS, name)


def _is_builtin(registry: Registry[nn.Module], name: str) -> bool:
    return any(f"{name}:".startswith(f"{known}:") for known in registry.builtin)


def make_model(name: str, *, frames: int, size: int, classes: int | None, seed: int) -> nn.Module:
    """Return a classifier as its class or factory makes it: of any type, mode and device.

    A factory from outside is imported and called on trial in a child process first (`try_factory`).

    Args:
        name, frames, size, seed: as for `build_model`.
        classes: the same; None for a factory from outside that knows its own number.

    Raises:
        InputError: as for `build_model`; or the factory hangs or ends its process.
    """
    arguments = {"frames": frames, "size": size}
    if classes is not None:
        arguments |= {"num_classes": classes, "classes": classes}

    def make() -> nn.Module:
        with redirect_stdout(sys.stderr):  # stdout is for results; a module may print while it is imported
            reference = MODELS.parse(name)
        return _made(reference, (frames, size, classes), arguments, seed, "weights")

    return on_trial(MODELS, name, make)


def on_trial(registry: Registry[nn.Module], name: str, call: Callable[[], T]) -> T:
    """Return what a call makes of a name; of one from outside it runs in a child process first.

    Raises:
        InputError: the call raised it, or did what `try_factory` refuses.
    """
    if not _is_builtin(registry, name):
        try_factory(f"{registry.kind} {name!r}", call)
    return call()


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
        InputError: a setting is out of range, or a plug-in's factory raises or returns no usable module.
    """
    module = _made(reference, sizes, arguments, seed, stream)
    return module if reference.entry.built_in else plain_module(module).module


def _made(
    reference: Reference[nn.Module],
    sizes: tuple[object, ...],
    arguments: Mapping[str, object],
    seed: int,
    stream: str,
) -> nn.Module:
    """Return what `build_module` does; that of a plug-in as it was made."""
    if not reference.entry.built_in:
        return call_factory(reference, arguments, derive_seed(seed, stream, reference.text))
    if isinstance(reference.entry.factory, TorchvisionModel):
        with drawing(derive_seed(seed, stream, reference.text)):
            return reference.build(*sizes)
    with torch.device("meta"):  # allocating weights there draws no random numbers
        module = reference.build(*sizes)
    refuse_too_large(reference.text, module, "take a smaller width or size")
    module = module.to_empty(device="cpu")
    numbers = generator(seed, stream, reference.text)
    if isinstance(module, networks.Network):
        module.draw(numbers)
    else:
        initialise(module, numbers)
    return module


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Context in which the generator of the process is seeded; its state is put back afterwards.

    Modules of users draw from that generator, so that their weights depend on the seed, and no other code in
    the process is affected.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def call_factory(reference: Reference[nn.Module], arguments: Mapping[str, object], seed: int) -> nn.Module:
    """Return the module of a plug-in's factory, called with its settings and the arguments that it accepts.

    Args:
        reference: the factory.
        arguments: arguments that it may accept, by name.
        seed: seed of the process-wide generator during the call.

    Returns:
        the module as the factory made it.

    Raises:
        InputError: the factory raises, or returns no module.
    """
    entry = reference.entry
    where = f"{entry.kind} {entry.name!r}"
    if entry.origin != entry.name:
        where += f" ({entry.origin})"
    with drawing(seed), redirect_stdout(sys.stderr):
        try:
            accepted = inspect.signature(entry.factory).parameters
            chosen = {key: value for key, value in arguments.items() if key in accepted}
            with one_process():
                module = entry.factory(**{**chosen, **reference.settings})
        except KeyboardInterrupt:  # the user's
            raise
        except BaseException as error:
            told = ": ".join(filter(None, (type(error).__name__, first_line(error))))
            raise InputError(f"{where}: the factory raised {told}; call it by hand to see more") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{where}: the factory returned a {type(module).__name__}, expected torch.nn.Module")
    refuse_too_large(entry.name, module, "take a smaller model")
    return module
