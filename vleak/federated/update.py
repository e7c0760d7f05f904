"""What leaves the client: named tensors, the bytes they took, public metadata; safetensors on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from vleak.errors import InputError
from vleak.files import write_atomic

_KEY = "vleak_update"
_EXPECTED = (
    f"expected the safetensors metadata key {_KEY!r} with JSON such as "
    '{"wire_bytes": 4000, "metadata": '
    '{"kind": "fedsgd", "batch_size": 1, "loss": "cross_entropy", "mode": "eval"}}'
)


@dataclass(frozen=True)
class Update:
    """One message of one client, as the server holds it.

    Attributes:
        tensors: one float32 CPU tensor a model parameter, in ``named_parameters()`` order: what ARRIVES,
            decoded.
        wire_bytes: bytes that the encoded message took.
        metadata: public facts, JSON values only: kind ("fedsgd"), batch_size, loss, mode.
    """

    tensors: dict[str, Tensor]
    wire_bytes: int
    metadata: dict[str, Any]

    def check(self, model: nn.Module) -> None:
        """Check that the tensors are those of the model.

        Raises:
            InputError: a parameter is missing, one too many is there, or a shape differs; names the tensor.
        """
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        for name, shape in shapes.items():
            if name not in self.tensors:
                raise InputError(f"the update lacks {name!r} of the model; give the model it was made with")
            if (given := tuple(self.tensors[name].shape)) != shape:
                raise InputError(
                    f"tensor {name!r} of the update has shape {given}, the model's has {shape}; "
                    "give the model it was made with"
                )
        if extra := [name for name in self.tensors if name not in shapes]:
            raise InputError(
                f"the update has {extra[0]!r}, which the model has not; give the model it was made with"
            )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all; the folder must exist.

        Raises:
            InputError: a tensor is not finite float32, or the metadata does not survive JSON.
            VleakError: the file cannot be written.
        """
        where = f"the update for {path}"
        _check_tensors(self.tensors, where)
        _check_metadata(self.metadata, self.wire_bytes, where)
        public = {"wire_bytes": self.wire_bytes, "metadata": self.metadata, "order": list(self.tensors)}
        # Cloned, because safetensors refuses tensors that share memory.
        copies = {name: t.detach().cpu().clone().contiguous() for name, t in self.tensors.items()}
        write_atomic(Path(path), to_safetensors(copies, {_KEY: json.dumps(public)}))

    @classmethod
    def load(cls, path: str | Path) -> Update:
        """Read what ``save`` wrote, values of the metadata with their types.

        Raises:
            InputError: no such file, not safetensors, no metadata, or a tensor that is not finite float32.
        """
        tensors, text = _read(Path(path))
        if text is None:
            raise InputError(f"{path} has no update metadata; {_EXPECTED}")
        try:
            public = json.loads(text)
            wire_bytes, metadata = public["wire_bytes"], public["metadata"]
            order = public.get("order", list(tensors))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} has update metadata that cannot be read; {_EXPECTED}") from error
        _check_metadata(metadata, wire_bytes, str(path))
        if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
            order = []
        if sorted(order) != sorted(tensors):
            raise InputError(f"{path} lists other tensors in its metadata than it holds; save it again")
        _check_tensors(tensors, str(path))
        return cls({name: tensors[name] for name in order}, wire_bytes, metadata)


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors of a safetensors file and the text under our metadata key."""
    if not path.is_file():
        raise InputError(f"{path} is not a file; expected an update written as .safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); save it again") from error


def _check_tensors(tensors: dict[str, Tensor], where: str) -> None:
    """Refuse what is not finite float32, naming the tensor."""
    if not tensors:
        raise InputError(f"{where} holds no tensors; expected one a model parameter")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            given = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"tensor {name!r} of {where} is {given}, expected float32; convert with .float()"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"tensor {name!r} of {where} holds NaN or infinity; nothing can be read from it")


def _check_metadata(metadata: object, wire_bytes: object, where: str) -> None:
    """Refuse a byte count that is none and metadata whose values JSON would change."""
    if isinstance(wire_bytes, bool) or not isinstance(wire_bytes, int) or wire_bytes < 0:
        raise InputError(f"wire_bytes of {where} is {wire_bytes!r}, expected a whole number of bytes")
    if not isinstance(metadata, dict):
        raise InputError(f"metadata of {where} is {type(metadata).__name__}, expected a dict of JSON values")
    for key, value in metadata.items():
        try:
            kept = isinstance(key, str) and json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError):
            kept = False
        if not kept:
            raise InputError(
                f"metadata {key!r} of {where} is {value!r}, which JSON cannot keep; use text, numbers, lists"
            )
