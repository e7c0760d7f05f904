"""Memory of this machine and of a process, and the refusal of models that no attack could fit into."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

from torch import nn

from vleak.errors import InputError

__all__ = ["free_gibibytes", "limit_memory", "memory_bytes", "refuse_too_large"]

_COPIES = 4
"""What a run holds at least: the weights, an update, the undefended one, and a gradient to compare with."""
_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Where a container says how much of the machine's memory is its own."""


def memory_bytes() -> int:
    """Return the memory of this machine, or of the container that the process runs in."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = _LIMIT.read_text().strip()
    except OSError:
        return machine
    return min(machine, int(text)) if text.isdigit() else machine


def free_gibibytes() -> float | None:
    """Return the memory that is free, swap with it, in GiB; None where the system does not say."""
    with suppress(OSError, ValueError, KeyError):
        with open("/proc/meminfo") as file:
            sizes = {name: int(size.split()[0]) for name, _, size in (line.partition(":") for line in file)}
        return (sizes["MemAvailable"] + sizes["SwapFree"]) / 2**20
    return None


def limit_memory(gibibytes: float | None) -> None:
    """Let this process take so much more address space than it has; an allocation beyond it fails.

    A limit that is tighter stays as it is.

    Args:
        gibibytes: beyond what it has; None sets no limit.
    """
    if gibibytes is None:
        return
    with open("/proc/self/statm") as sizes:
        now = int(sizes.read().split()[0]) * resource.getpagesize()
    most, (_, hard) = now + int(gibibytes * 2**30), resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def refuse_too_large(name: str, module: nn.Module, remedy: str) -> None:
    """Refuse a model of which this machine cannot hold the copies that a run needs.

    Args:
        name: of the model, for the message.
        module: on any device; on the meta device it takes no memory yet.
        remedy: what to do.

    Raises:
        InputError: it is too large.
    """
    needed = _COPIES * sum(parameter.nbytes for parameter in module.parameters())
    if needed > memory_bytes():
        count = sum(parameter.numel() for parameter in module.parameters())
        raise InputError(
            f"model {name!r} has {count:,} parameters, of which a run needs at least {needed / 1e9:.0f} GB; "
            f"there are {memory_bytes() / 1e9:.0f} GB: {remedy}"
        )
