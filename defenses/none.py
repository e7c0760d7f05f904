"""The undefended client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vleak.federated import Channel, Defense, Update


@dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """No defense: the plain mean gradient as float32."""

    name: ClassVar[str] = "none"

    def channel(self, update: Update) -> Channel:
        """Return that every entry is the gradient itself."""
        return Channel(key=(self.name,))
