"""Cache of what attacks learn once and use for many cells, kept in the process."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import nn

from vleak.seeds import tensor_digest

__all__ = ["Cache", "digest_of_model"]

T = TypeVar("T")


@dataclass
class _Entry(Generic[T]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    values: list[T] = field(default_factory=list)


class Cache(Generic[T]):
    """Values of few keys; the least recently used goes first.

    Two threads that want the same value make it once; different ones are made side by side. A value must
    depend on its key alone, so that no result depends on whether it was kept.
    """

    def __init__(self, size: int) -> None:
        """Keep so many values, at least 1."""
        self._size, self._lock = size, threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry[T]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of a key, made if it is not there; what raises in making it is not kept."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)
        with entry.lock:
            if not entry.values:
                entry.values.append(make())
            return entry.values[0]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()


def digest_of_model(model: nn.Module) -> str:
    """Return a digest of a model's parameters, buffers and kind; not of its code."""
    kinds = repr([(name, type(module).__qualname__) for name, module in model.named_modules()])
    return hashlib.sha256((kinds + tensor_digest(*model.parameters(), *model.buffers())).encode()).hexdigest()
