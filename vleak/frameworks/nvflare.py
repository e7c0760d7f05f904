"""Filter for NVFlare clients, by its interface alone: ``process(shareable, fl_ctx)``; needs no nvflare.

It belongs at the end of the task-result filters, where it sees what leaves the client. Clients that send
weights and no difference need `remember` among the task-data filters too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vleak.errors import InputError
from vleak.federated.captured import Arrays
from vleak.frameworks.gate import Gate

__all__ = ["NvflareFilter"]


class NvflareFilter:
    """Filter of task results.

    Attributes:
        gate: what is done with every update. One that is refused raises `RefusedError`, upon which NVFlare
            sends an error in place of the result.
    """

    def __init__(self, gate: Gate) -> None:
        """Take the gate."""
        self.gate = gate
        self._before: Arrays | None = None

    def remember(self, shareable: Any, fl_ctx: Any) -> Any:
        """Keep the weights that the server sent, and return the task as it is."""
        kind, dxo = _dxo(shareable)
        if kind == "WEIGHTS":
            self._before = dict(dxo["data"])
        return shareable

    def process(self, shareable: Any, fl_ctx: Any) -> Any:
        """Look at a result, and return it as it is; what holds no weights passes.

        Raises:
            RefusedError: it must not be sent.
            InputError: it holds no update of the gate's model.
        """
        kind, dxo = _dxo(shareable)
        if kind in ("WEIGHTS", "WEIGHT_DIFF"):
            who = str(getattr(fl_ctx, "get_identity_name", lambda: "client")())
            if not who.replace("-", "").replace("_", "").isalnum():
                raise InputError(
                    f"nvflare: client {who!r:.60} cannot name a file; expected letters and digits"
                )
            self.gate.check(dxo, kind="auto", before=self._before, who=who)
        return shareable


def _dxo(shareable: Any) -> tuple[str, Any]:
    """Return the kind of a DXO and the DXO; an empty kind where there is none with tensors by name."""
    dxo = shareable.get("DXO") if isinstance(shareable, Mapping) else None
    if not isinstance(dxo, Mapping) or not isinstance(dxo.get("data"), Mapping):
        return "", None
    kind = dxo.get("kind", "")
    return str(getattr(kind, "value", kind)), dxo
