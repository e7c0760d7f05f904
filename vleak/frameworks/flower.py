"""Mod for Flower clients: what is about to be sent is recorded, audited, or held back. Needs no flwr itself.

The first mod of a `ClientApp` is the outermost and sees what leaves the client; defenses come after it:
``ClientApp(mods=[FlowerMod(gate), fixedclipping_mod])``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vleak.errors import InputError
from vleak.federated.captured import Arrays
from vleak.frameworks.gate import Gate

__all__ = ["FlowerMod"]


@dataclass(frozen=True)
class FlowerMod:
    """Mod ``(message, context, call_next) -> message`` of a Flower `ClientApp`.

    Attributes:
        gate: what is done with every update. One that is refused raises `RefusedError`, and Flower then sends
            an error in place of the weights.
    """

    gate: Gate

    def __call__(self, message: Any, context: Any, call_next: Callable[[Any, Any], Any]) -> Any:
        """Let the client train, look at its reply, and return it as it is.

        Raises:
            RefusedError: the reply must not be sent.
            InputError: the reply or the message holds no weights of the gate's model.
        """
        if not str(message.metadata.message_type).startswith("train"):
            return call_next(message, context)
        before = _arrays(message)  # read first: the client may train in place
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        sent = _arrays(reply)
        if before is None or sent is None:
            raise InputError(
                "flower: expected one ArrayRecord of weights in message and reply; send no others"
            )
        self.gate.check(sent, kind="weights", before=before, who=f"client-{context.node_id}")
        return reply


def _arrays(message: Any) -> Arrays | None:
    """Return the weights of a message, by name or, where Flower numbered them, in order; None without any."""
    records = list(message.content.array_records.values())
    if len(records) != 1:
        return None
    arrays: Mapping[str, np.ndarray] = {name: array.numpy() for name, array in records[0].items()}
    numbered = [str(index) for index in range(len(arrays))]
    return list(arrays.values()) if list(arrays) == numbered else arrays
