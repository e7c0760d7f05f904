"""Forks: a process that code from outside forks off, and that comes back out of it, ends there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["one_process"]


@contextmanager
def one_process() -> Iterator[None]:
    """Context of code from outside, out of which the process comes that went in, and no copy of it.

    A copy would go on as a second driver: it would print every result and write every file once more, or
    wait for work as long as the machine runs.
    """
    own = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != own:
            os._exit(0)  # not sys.exit: what is buffered is for the process that went in to write
