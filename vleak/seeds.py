"""Randomness belongs to a cell: explicit generators, never the process-wide one."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: object) -> int:
    """Return a seed in [0, 2**63) that depends on every part and on nothing else.

    The parts are joined by their ``repr``, so that ``derive_seed(1, 23)`` and
    ``derive_seed(12, 3)`` differ, and the result is the same on every machine and in every process.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*parts: object) -> torch.Generator:
    """Return a CPU generator seeded from the parts.

    Numbers are drawn on the CPU and moved, so that a GPU run starts from the same values.
    """
    return torch.Generator().manual_seed(derive_seed(*parts))


def fork(numbers: torch.Generator) -> torch.Generator:
    """Return a generator that is seeded by the next number of another one."""
    return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (), generator=numbers)))


def tensor_digest(*tensors: torch.Tensor) -> str:
    """Return a hash of shapes and contents: equal tensors have equal ones, on every machine."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
