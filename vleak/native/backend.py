"""Choice between the native and the plain implementation of an operator.

Every operator is declared twice: in the namespace ``vleak``, to which native code adds its kernels, and in
``vleak_reference``, to which it never adds anything. :func:`use_reference` selects the second one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor

from vleak.native import loader

__all__ = [
    "NAMESPACES",
    "backend",
    "call_without_autograd",
    "find_operator",
    "results_without_autograd",
    "use_reference",
]

_NATIVE, _REFERENCE = "vleak", "vleak_reference"

#: The namespaces in which every operator is declared.
NAMESPACES = (_NATIVE, _REFERENCE)

_reference_only: ContextVar[bool] = ContextVar("vleak_reference_only", default=False)


@contextmanager
def use_reference() -> Iterator[None]:
    """Context in which the operators run in plain PyTorch, whatever is installed.

    It holds for the current thread (or asyncio task) only, and may be nested. The reference engine uses it,
    and tests compare native code with it.
    """
    token = _reference_only.set(True)
    try:
        yield
    finally:
        _reference_only.reset(token)


def backend(device: str | torch.device = "cpu") -> Literal["native", "torch"]:
    """Implementation that the next call on ``device`` will run.

    Loads the native extension if that was not tried yet, which may compile it (see
    :mod:`vleak.native.loader`). Inside :func:`use_reference` the answer is ``"torch"``.
    """
    if _reference_only.get():
        return "torch"
    return "native" if loader.ensure_loaded(torch.device(device).type) else "torch"


def find_operator(name: str, device: torch.device) -> Callable[..., Any]:
    """Operator ``name`` of the namespace in use, with the native extension for ``device`` loaded."""
    namespace = _REFERENCE if _reference_only.get() else _NATIVE
    if namespace == _NATIVE:
        loader.ensure_loaded(device.type)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, namespace), name).default
    return operator


def call_without_autograd(name: str, device: torch.device, *arguments: Any) -> Tensor:
    """Result of an operator that returns one tensor, with nothing recorded for autograd."""
    with torch.no_grad():
        result: Tensor = find_operator(name, device)(*arguments)
    return result


def results_without_autograd(name: str, device: torch.device, *arguments: Any) -> tuple[Tensor, ...]:
    """Results of an operator that returns several tensors, with nothing recorded for autograd."""
    with torch.no_grad():
        return tuple(find_operator(name, device)(*arguments))
