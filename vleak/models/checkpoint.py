"""Weights of a classifier from a file: safetensors, or a torch file that is read as tensors alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vleak.errors import InputError, argument, first_line

__all__ = ["check_checkpoint", "load_checkpoint"]

_CONTENTS = ("state_dict", "model_state_dict", "model_state", "model")
"""Keys under which training programs keep the weights, beside an optimiser and more."""
_PREFIXES = ("module.", "model.", "_orig_mod.")
"""What DataParallel, Lightning and torch.compile put before names."""
_SAFETENSORS = ".safetensors"
_ADAPTERS = ("lora_a", "lora_b")
_OPTIONAL = ("num_batches_tracked", *_ADAPTERS)
"""Tensors that a file may lack."""


def check_checkpoint(path: str) -> None:
    """Refuse a path without a regular file.

    Raises:
        InputError: there is none, or it is a folder, a pipe or a device.
    """
    if not Path(path).expanduser().is_file():
        raise InputError(f"{argument('checkpoint', path)}: there is no such file; give a file of weights")


def load_checkpoint(model: nn.Module, path: str, *, new_head: bool = False) -> tuple[str, ...]:
    """Load weights into a model, whole or not at all; return what there is to note.

    A torch file is read with ``weights_only=True``: no code in it runs. It holds a state dict, or one under
    "state_dict", "model_state_dict", "model_state" or "model". The prefixes "module.", "model." and
    "_orig_mod." are dropped where the model's own names have none.

    Args:
        model: of any weights, on the CPU, in float32.
        path: of the file; safetensors where it ends in .safetensors.
        new_head: whether a last layer for another number of classes is left out; the model keeps its own.

    Raises:
        InputError: no such file, a file of something else, or weights of another model: missing, unexpected
            and mis-shaped ones are named.
    """
    check_checkpoint(path)
    given = argument("checkpoint", path)
    expected = model.state_dict()
    state = _stripped(_read(Path(path).expanduser(), given), set(expected))
    notes = _without_head(state, expected) if new_head else []
    if wrong := _differences(state, expected):
        raise InputError(f"{given} does not fit the model: {wrong}; give the weights of this model")
    model.load_state_dict(state, strict=False)  # checked above; a counter of batches may be missing
    types = {str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()}
    narrow = sorted(types - {"float32"})
    if narrow:
        notes.append(f"weights of the checkpoint are {' and '.join(narrow)}, converted to float32")
    if any(name.endswith(_ADAPTERS) for name in expected.keys() - state.keys()):
        notes.append("the checkpoint has no adapters of low rank; those of the model are as drawn")
    return tuple(notes)


def _without_head(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Put the model's own last layer into a state whose last layer has another number of classes; say so.

    The last layer is the last weight of a model and the bias behind it.
    """
    if len(expected) < 2:
        return []
    weight, bias = list(expected)[-2:]
    if not {weight, bias} <= state.keys():
        return []
    (theirs, *inputs), (ours, *wanted) = (tuple(part[weight].shape) or (0,) for part in (state, expected))
    if theirs == ours or not wanted or inputs != wanted or state[bias].shape != (theirs,):
        return []
    state |= {name: expected[name] for name in (weight, bias)}
    return [f"the checkpoint has {theirs} classes, the data {ours}: the last layer is as drawn"]


def _read(path: Path, given: str) -> dict[str, Tensor]:
    """Tensors of a file by name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # what torch says of a program in place of tensors is refused here
            content: Any = (
                load_file(path)
                if path.suffix == _SAFETENSORS
                else torch.load(path, map_location="cpu", weights_only=True)
            )
    except Exception as error:  # what a hostile stream of opcodes raises is not to be listed
        why = first_line(error).partition(". ")[0][:160] or type(error).__name__
        raise InputError(
            f"{given}: is damaged, or holds more than tensors ({why}); give a safetensors file, or what "
            "torch.save(model.state_dict(), FILE) writes"
        ) from error
    return _tensors(content, given)


def _tensors(content: object, given: str, levels: int = 4) -> dict[str, Tensor]:
    """State dict in the content of a file; entries that are no tensors, such as versions, are left out."""
    if isinstance(content, Mapping):
        for key in _CONTENTS if levels else ():  # a dict may hold itself
            if isinstance(content.get(key), Mapping):
                return _tensors(content[key], given, levels - 1)
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    found = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        found = f"a dict of {', '.join(map(repr, list(content)[:5])) or 'nothing'}"
    raise InputError(
        f"{given}: holds {found}, expected a state dict, or one under {', '.join(map(repr, _CONTENTS))}"
    )


def _stripped(state: Mapping[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """State with names as the model has them, as far as prefixes are in the way."""
    names = {name: name.replace("_orig_mod.", "") for name in state}
    while not expected & set(names.values()):
        prefix = next((p for p in _PREFIXES if any(n.startswith(p) for n in names.values())), None)
        if prefix is None:
            return dict(state)
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    return {names[name]: tensor for name, tensor in state.items()}


def _differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What is missing, unexpected and of another shape, in one line; empty where all fits."""
    missing = [name for name in expected if name not in state and not name.endswith(_OPTIONAL)]
    strange = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    odd = [
        name
        for name, tensor in state.items()
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized
    ]
    parts = (
        ("missing", missing),
        ("unexpected", strange),
        ("of another shape", shapes),
        ("no dense real numbers", odd),
    )
    return "; ".join(f"{what}: {_listed(names)}" for what, names in parts if names)


def _listed(names: list[str]) -> str:
    more = len(names) - 3
    shown = ", ".join(repr(name)[1:-1] for name in names[:3])  # on one line, whatever they hold
    return shown + (f" and {more} more" if more > 0 else "")
