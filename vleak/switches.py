"""PyTorch's process-wide switches, held by any number of threads at once.

The first holder sets a switch and the last one puts it back as it was, so that a thread that ends does not
change it under one that still runs, and none leaves it changed for good.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_Value = tuple[Any, str, object]  # owner, name of the attribute, value


class _Shared:
    """Counts the holders of one switch; calling it gives a context in which the switch is set."""

    def __init__(self, switch: Callable[[], AbstractContextManager[object]]) -> None:
        """Take the switch: a context that sets it and puts it back, entered once at a time."""
        self._switch, self._lock = switch, threading.Lock()
        self._held, self._holders = ExitStack(), 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the switch, which whoever comes first sets and whoever leaves last puts back."""
        with self._lock:
            if self._holders == 0:
                self._held.enter_context(self._switch())
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if self._holders == 0:
                    self._held.close()


@contextmanager
def _set(changes: list[_Value], before: list[_Value]) -> Iterator[None]:
    """Set attributes, and others at the end."""
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _cudnn_off() -> AbstractContextManager[None]:
    # Not torch.backends.cudnn.flags(), which also resets `deterministic` and `allow_tf32`.
    cudnn = torch.backends.cudnn
    return _set([(cudnn, "enabled", False)], _read((cudnn, "enabled")))


def _exact() -> AbstractContextManager[None]:
    cudnn: Any = torch.backends.cudnn  # whose stubs lack `conv` and `rnn`
    matmul = torch.backends.cuda.matmul
    changes: list[_Value] = [(cudnn, "deterministic", True)]
    changes += [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]
    try:
        before = _read((cudnn, "allow_tf32"), (matmul, "allow_tf32"))
    except RuntimeError:  # PyTorch does not read these to whoever has set the newer switches
        before = _read(*((each, "fp32_precision") for each in (cudnn.conv, cudnn.rnn, matmul)))
    return _set(changes, _read((cudnn, "deterministic")) + before)


def _read(*switches: tuple[Any, str]) -> list[_Value]:
    return [(owner, name, getattr(owner, name)) for owner, name in switches]


_math_attention = _Shared(lambda: sdpa_kernel(SDPBackend.MATH))
_without_cudnn = _Shared(_cudnn_off)
_exact_arithmetic = _Shared(_exact)


def math_attention() -> AbstractContextManager[None]:
    """Keep scaled-dot-product attention on the math backend, the only one with a second derivative."""
    return _math_attention()


def exact_arithmetic() -> AbstractContextManager[None]:
    """Keep cuDNN to deterministic algorithms and CUDA to full float32, not TF32; no effect on a CPU."""
    return _exact_arithmetic()


def differentiable_rnn(model: nn.Module) -> AbstractContextManager[None]:
    """Keep cuDNN off if the model has an RNN: its RNNs have no backward in eval mode and no second one."""
    return _without_cudnn() if recurrent(model) else nullcontext()


def recurrent(model: nn.Module) -> bool:
    """Tell whether there is an RNN, LSTM or GRU in the model."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())
