"""What vleak writes beside the tensors of an update, and checks when it reads them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vleak.errors import InputError, first_line
from vleak.files import unique_keys

__all__ = ["EXPECTED", "KEY", "Saved", "check_bytes", "check_tensors"]

KEY = "vleak_update"
"""Key in the metadata of a safetensors file."""

EXPECTED = (
    f"expected the safetensors metadata key {KEY!r} with JSON such as "
    '{"wire_bytes": 4000, "metadata": '
    '{"kind": "fedsgd", "batch_size": 1, "loss": "cross_entropy", "mode": "eval"}}'
)
"""What a file is expected to have, for messages."""


@dataclass(frozen=True)
class Saved:
    """Content of the metadata.

    Attributes:
        wire_bytes: bytes that the encoded message took.
        facts: public facts, not yet checked.
        order: names of the tensors in their order; None where it was not written.
        partial: whether parameters of the model may be missing.
    """

    wire_bytes: int
    facts: object
    order: tuple[str, ...] | None = None
    partial: bool = False

    @classmethod
    def of(cls, metadata: Mapping[str, str], where: str) -> Saved | None:
        """Return what the metadata of a file says; None where it says nothing of an update.

        Args:
            metadata: texts by key.
            where: the file, for the message.

        Raises:
            InputError: it cannot be read.
        """
        if (text := metadata.get(KEY)) is None:
            return None
        try:
            public = json.loads(text, object_pairs_hook=unique_keys)
            wire_bytes, facts = public["wire_bytes"], public["metadata"]
            order, partial = public.get("order"), public.get("partial", False)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{where} has update metadata that cannot be read ({first_line(error)}); {EXPECTED}"
            ) from error
        check_bytes(wire_bytes, where)
        return cls(wire_bytes, facts, _names(order), partial is True)

    def text(self) -> str:
        """Return it as JSON."""
        public = {"wire_bytes": self.wire_bytes, "metadata": self.facts, "order": self.order}
        return json.dumps(public | ({"partial": True} if self.partial else {}))


def _names(order: object) -> tuple[str, ...] | None:
    """Return an order of names; none where it is something else."""
    if order is None:
        return None
    listed = isinstance(order, list) and all(isinstance(name, str) for name in order)
    return tuple(order) if listed else ()  # type: ignore[arg-type]  # a list of texts by now


def check_tensors(tensors: dict[str, Tensor], where: str) -> None:
    """Check that tensors are finite float32.

    Args:
        tensors: by name.
        where: what holds them, for the message.

    Raises:
        InputError: there are none, or one is something else; names the tensor.
    """
    if not tensors:
        raise InputError(f"{where} holds no tensors; expected one a model parameter")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"tensor {name!r} of {where} is {dtype}, expected float32; convert with .float()"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"tensor {name!r} of {where} holds NaN or infinity; nothing can be read from it")


def check_bytes(wire_bytes: object, where: str) -> None:
    """Check that a number of bytes is one.

    Raises:
        InputError: it is no whole number from 0.
    """
    if isinstance(wire_bytes, bool) or not isinstance(wire_bytes, int) or wire_bytes < 0:
        raise InputError(f"wire_bytes of {where} is {wire_bytes!r}, expected a whole number of bytes")
