"""Payloads of federated frameworks as their own objects have them, read without the framework.

Flower sends a list of arrays in the order of the ``state_dict``, packed in `Parameters` (which `FitRes`
holds), or arrays by name in an `ArrayRecord`; NVFlare a DXO: ``data_kind``, ``data`` and ``meta``, bare or in
a `Shareable`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, cast

from torch import Tensor

from vleak.errors import InputError
from vleak.federated.captured import Arrays
from vleak.federated.stored import read_array

__all__ = ["Kind", "read_dxo", "unpacked"]

Kind = Literal["auto", "gradient", "delta", "weights"]

_DXO_KINDS: dict[str, Kind] = {"WEIGHTS": "weights", "WEIGHT_DIFF": "delta"}
_DXO_STEPS = "NUM_STEPS_CURRENT_ROUND"
_NUMPY = "numpy.ndarray"


def unpacked(source: object) -> Arrays:
    """Return the arrays of a payload of Flower, or the mapping of a DXO; anything else as it is.

    Raises:
        InputError: the arrays are packed in a way that is not read, or are damaged.
    """
    source = getattr(source, "parameters", source) if hasattr(source, "num_examples") else source  # FitRes
    if hasattr(source, "tensor_type") and hasattr(source, "tensors"):
        return _of_parameters(source.tensor_type, source.tensors)
    if hasattr(source, "data_kind") and hasattr(source, "data"):
        return {"data_kind": source.data_kind, "data": source.data, "meta": getattr(source, "meta", None)}
    if isinstance(source, Mapping) and source and all(_is_array(value) for value in source.values()):
        return _of_record(source)
    return cast("Arrays", source)


def _of_parameters(kind: str, packed: list[bytes]) -> list[object]:
    """Return the arrays of Flower's `Parameters`, each of which is a .npy file."""
    if kind != _NUMPY:
        raise InputError(f"Parameters of Flower of type {kind!r:.60}: expected {_NUMPY!r}; unpack them first")
    return [
        _whole(f"tensor number {index}", partial(read_array, "it", io.BytesIO(data), len(data)))
        for index, data in enumerate(packed)
    ]


def _is_array(value: object) -> bool:
    """Return whether a value is an `Array` of Flower: bytes, their type, and a way to unpack them."""
    return not isinstance(value, Tensor) and hasattr(value, "stype") and hasattr(value, "numpy")


def _of_record(record: Mapping[str, Any]) -> Arrays:
    """Return the arrays of an `ArrayRecord` of Flower by name, or in order where Flower numbered them."""
    arrays = {name: _whole(f"array {name!r}", array.numpy) for name, array in record.items()}
    return list(arrays.values()) if list(arrays) == [str(index) for index in range(len(arrays))] else arrays


def _whole(what: str, read: Callable[[], object]) -> object:
    try:
        return read()
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise InputError(f"{what} of the payload cannot be read ({error}); send it again") from error


def read_dxo(arrays: Arrays) -> tuple[Kind | None, Arrays, int | None]:
    """Return what a DXO says of its kind, its tensors, and its number of local steps; None where it is none.

    Raises:
        InputError: it holds neither weights nor a difference of weights.
    """
    if isinstance(arrays, Mapping) and "DXO" in arrays:  # a Shareable
        arrays = unpacked(arrays["DXO"])
    if not isinstance(arrays, Mapping):
        return None, arrays, None
    told = arrays.get("data_kind", arrays.get("kind"))
    data, meta = arrays.get("data"), arrays.get("meta")
    if not isinstance(told, str) or not isinstance(data, Mapping):
        return None, arrays, None
    told = str(getattr(told, "value", told))
    if told not in _DXO_KINDS:
        raise InputError(
            f"the DXO holds {told!r:.60}, expected WEIGHTS or WEIGHT_DIFF; audit what the client sends to be "
            "averaged"
        )
    steps = meta.get(_DXO_STEPS) if isinstance(meta, Mapping) else None
    return _DXO_KINDS[told], data, int(steps) if isinstance(steps, int | float) and steps >= 1 else None
