"""Captured tensors: what a server of another framework holds, brought to the parameters of a model.

Named tensors and arrays are matched by name, lists of them by order and shape. What is no parameter is
dropped, other precisions are converted; both are said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from vleak.errors import InputError

__all__ = ["Arrays", "Captured", "Slots", "capture", "contents", "difference", "refuse_weights"]

Arrays = Mapping[str, object] | Sequence[object]
"""Tensors or numpy arrays by name, or in the order of a ``state_dict`` or of the parameters."""

Shape = tuple[int, ...]

PREFIXES = ("module.", "model.", "_orig_mod.")
"""What DataParallel, a wrapper and torch.compile put before the names of a module."""

_CONTAINERS = ("state_dict", "model_state_dict", "model", "gradients", "gradient", "update", "delta")
"""Names under which a file may keep the tensors themselves."""

_STATISTICS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Captured:
    """Tensors of a model's parameters as they were captured.

    Attributes:
        tensors: by name, in the order of the parameters, on the CPU, of any floating type.
        wire_bytes: bytes that they take as captured.
        missing: names of parameters that are not there.
        notes: what was done to them, a line each.
    """

    tensors: dict[str, Tensor]
    wire_bytes: int
    missing: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Slots:
    """Places that captured tensors may have.

    Attributes:
        parameters: shape by name; None where it is not known.
        frozen: names of parameters that a client may leave out, because they are not trained.
        others: shape by name of buffers and of further names of parameters, which are dropped.
        listed: names in the order of a ``state_dict``.
    """

    parameters: Mapping[str, Shape | None]
    frozen: frozenset[str] = frozenset()
    others: Mapping[str, Shape | None] = field(default_factory=dict)
    listed: tuple[str, ...] = ()

    @classmethod
    def of_model(cls, model: nn.Module) -> Slots:
        """Return the places of a model."""
        named = dict(model.named_parameters())
        state = model.state_dict(keep_vars=True)
        held = {**dict(model.named_buffers(remove_duplicate=False)), **state}
        return cls(
            {name: tuple(p.shape) for name, p in named.items()},
            frozenset(name for name, p in named.items() if not p.requires_grad),
            {n: tuple(t.shape) if isinstance(t, Tensor) else None for n, t in held.items() if n not in named},
            tuple(state),
        )

    @classmethod
    def of_names(cls, names: Sequence[str]) -> Slots:
        """Return places of parameters of unknown shape.

        Raises:
            InputError: what is given is no list of names, or a name is there twice.
        """
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise InputError("update: expected a model or a list of the names of its parameters")
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise InputError(f"update: the name {twice!r} is there twice; give every parameter once")
        return cls(dict.fromkeys(names), listed=tuple(names))

    @classmethod
    def of_state(cls, state: Mapping[str, object]) -> Slots:
        """Return the places of a ``state_dict``: batch-norm statistics and whole numbers are buffers."""
        shapes = {_named(name): _shape(name, value) for name, value in state.items()}
        buffers = {n for n, v in state.items() if _STATISTICS.search(n) or not _floating(v)}
        return cls(
            {name: shape for name, shape in shapes.items() if name not in buffers},
            others={name: shape for name, shape in shapes.items() if name in buffers},
            listed=tuple(state),
        )

    def shape(self, name: str) -> Shape | None:
        """Return the shape of a place; None where it is not known."""
        return self.parameters[name] if name in self.parameters else self.others[name]

    def orders(self) -> list[tuple[str, ...]]:
        """Return the orders that a list may have: all of a state, all parameters, the trained ones."""
        names = tuple(self.parameters)
        orders = [self.listed, names, tuple(name for name in names if name not in self.frozen)]
        return [order for order in dict.fromkeys(orders) if order]


def capture(arrays: Arrays, slots: Slots, *, partial: bool = False) -> Captured:
    """Match captured tensors or arrays to places.

    Args:
        arrays: by name, with or without one of ``PREFIXES``; or in order.
        slots: of the model.
        partial: whether parameters may be missing that are not frozen.

    Raises:
        InputError: something is no array, has another name, shape or type, is not finite, or is missing.
    """
    arrays, notes = contents(arrays)
    if not len(arrays):
        raise InputError("the update holds no tensors; expected one a parameter of the model")
    if isinstance(arrays, Mapping):
        placed, stripped = _by_name(arrays, slots)
        notes += stripped
    else:
        placed, notes = _by_order(arrays, slots), [*notes, "tensors matched by order and shape"]
    for name, value in placed.items():
        _check_shape(name, value, slots.shape(name))
    tensors = {name: _tensor(name, placed[name]) for name in slots.parameters if name in placed}
    if not tensors:
        raise InputError("the update holds none of the model's parameters; give the model it was made with")
    dropped = len(placed) - len(tensors)
    if dropped:
        notes.append(
            f"{dropped} tensors that are no parameters (buffers such as batch-norm statistics) dropped"
        )
    missing = tuple(name for name in slots.parameters if name not in tensors)
    notes += _check_missing(missing, slots, partial)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    return Captured(tensors, size, missing, (*notes, *_precisions(tensors)))


def difference(before: Captured, after: Captured) -> dict[str, Tensor]:
    """Return after - before of the tensors that both have, float32; subtracted in double precision."""
    return {
        name: (tensor.double() - before.tensors[name].double()).float()
        for name, tensor in after.tensors.items()
        if name in before.tensors
    }


def refuse_weights(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse weights that are given for an update.

    An update points nowhere near the weights; weights after training are near those before it.

    Args:
        tensors: of parameters, by name.
        model: with the weights before.

    Raises:
        InputError: the distance to the model's weights is less than half of their norm.
    """
    weights = {n: p.detach().cpu().double() for n, p in model.named_parameters() if n in tensors}
    norm = sum(float(weight.square().sum()) for weight in weights.values()) ** 0.5
    gap = sum(float((tensors[n].double() - w).square().sum()) for n, w in weights.items()) ** 0.5
    if gap < 0.5 * norm:
        raise InputError(
            f"these are weights, not an update: they differ from the model's by {100 * gap / norm:.2g} % of "
            "their norm; give before and after: Update.from_state_dicts(model, after, learning_rate=...)"
        )


def contents(arrays: object) -> tuple[Arrays, list[str]]:
    """Return the tensors themselves, out of the entry of a file that holds them, and notes.

    Raises:
        InputError: what is given is neither tensors by name nor a list.
    """
    if isinstance(arrays, Mapping):
        for key in _CONTAINERS:
            inner = arrays.get(key)
            if isinstance(inner, Mapping | list | tuple):
                rest = f"; {len(arrays) - 1} other entries left out" if len(arrays) > 1 else ""
                return inner, [f"tensors taken from the entry {key!r}{rest}"]
        return arrays, []
    if isinstance(arrays, list | tuple):
        return arrays, []
    raise InputError(
        f"update: expected tensors or arrays by name, or a list of them, got {type(arrays).__name__}"
    )


def _by_name(arrays: Mapping[str, object], slots: Slots) -> tuple[dict[str, object], list[str]]:
    """Return what was captured by the name of its place."""
    known = {**slots.parameters, **slots.others}
    bare = _unambiguous(known)
    placed: dict[str, object] = {}
    stripped = 0
    for given, value in arrays.items():
        name = given if given in known else bare.get(_bare(_named(given)), given)
        if name not in known:
            raise InputError(
                f"the update has {given!r:.120}, which the model has not; give the model it was made with"
            )
        if name in placed:
            raise InputError(f"the update has {name!r} twice, once as {given!r}; leave one out")
        placed[name] = value
        stripped += given != name
    prefixes = ", ".join(repr(prefix) for prefix in PREFIXES)
    return placed, [f"{stripped} names matched without a prefix ({prefixes})"] if stripped else []


def _named(name: object) -> str:
    if not isinstance(name, str):
        raise InputError(
            f"a tensor of the update is named {str(name)[:40]}, expected the name of a parameter"
        )
    return name


def _unambiguous(known: Iterable[str]) -> dict[str, str]:
    """Return the places by their names without prefixes, those that share one left out."""
    counts = Counter(_bare(name) for name in known)
    return {_bare(name): name for name in known if counts[_bare(name)] == 1}


def _bare(name: str) -> str:
    """Return a name without the prefixes of wrappers."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _by_order(arrays: Sequence[object], slots: Slots) -> dict[str, object]:
    """Return a list by the names of the first order that it fits."""
    shapes = [_shape(f"number {index}", value) for index, value in enumerate(arrays)]
    same = [order for order in slots.orders() if len(order) == len(shapes)]
    for order in same:
        if all(slots.shape(name) in (None, s) for name, s in zip(order, shapes, strict=True)):
            return dict(zip(order, arrays, strict=True))
    for order in same[:1]:
        at = next(i for i, s in enumerate(shapes) if slots.shape(order[i]) not in (None, s))
        raise InputError(
            f"tensor number {at} of the update has shape {shapes[at]}, the model's {order[at]!r} has "
            f"{slots.shape(order[at])}; give them in the order of its state_dict, or by name"
        )
    counts = " or ".join(str(len(order)) for order in slots.orders())
    raise InputError(
        f"the update has {len(shapes)} tensors without names, the model {counts}; give them all, or by name"
    )


def _shape(name: str, value: object) -> Shape:
    """Return the shape of a tensor or an array; refuse what is neither."""
    if isinstance(value, Tensor) and value.is_nested:  # which has no shape
        raise InputError(f"tensor {name!r:.120} of the update is nested; give one of one shape")
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return tuple(value.shape)
    raise InputError(
        f"tensor {name!r:.120} of the update is {type(value).__name__}, expected a tensor or array"
    )


def _check_shape(name: str, value: object, expected: Shape | None) -> None:
    """Refuse another shape, before anything of the tensor is looked at: a view may claim any size."""
    actual = _shape(name, value)
    if expected is not None and actual != expected:
        raise InputError(
            f"tensor {name!r} of the update has shape {actual}, the model's has {expected}; "
            "give the model it was made with"
        )


def _floating(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return getattr(value, "dtype", np.dtype(int)).kind == "f"


def _tensor(name: str, value: object) -> Tensor:
    """Return a dense, finite tensor on the CPU, of the type that it had."""
    if not isinstance(value, Tensor):
        value = _of_numpy(name, np.asarray(value))
    if value.layout != torch.strided or value.device.type == "meta":
        raise InputError(f"tensor {name!r} of the update is not dense numbers; convert it with .to_dense()")
    if value.dtype not in _FLOATS:
        dtype = str(value.dtype).removeprefix("torch.")
        raise InputError(
            f"tensor {name!r} of the update is {dtype}, expected floating-point numbers; decode it first"
        )
    value = value.detach().cpu()
    if not torch.isfinite(value.float()).all():
        raise InputError(f"tensor {name!r} of the update holds NaN or infinity; nothing can be read from it")
    return value


def _of_numpy(name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind != "f":
        raise InputError(
            f"tensor {name!r} of the update is {array.dtype}, expected floating-point numbers; decode it "
            "first"
        )
    size = min(array.dtype.itemsize, 8)  # longer ones are rounded to float64, other byte orders turned
    return torch.from_numpy(np.array(array, dtype=f"=f{size}", order="C"))


def _check_missing(missing: Sequence[str], slots: Slots, partial: bool) -> list[str]:
    """Refuse missing parameters unless they are frozen or a part was announced; say how many there are."""
    trained = [name for name in missing if name not in slots.frozen]
    if trained and not partial:
        raise InputError(
            f"the update lacks {trained[0]!r} of the model; give the model it was made with, or partial=True "
            "to attack what is there"
        )
    if not missing:
        return []
    frozen = len(missing) - len(trained)
    return [f"{len(missing)} of {len(slots.parameters)} parameters are not in it, {frozen} of them frozen"]


def _precisions(tensors: Mapping[str, Tensor]) -> list[str]:
    counts = Counter(
        str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.dtype != torch.float32
    )
    return [f"{count} tensors converted from {dtype} to float32" for dtype, count in sorted(counts.items())]
