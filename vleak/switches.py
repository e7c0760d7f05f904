"""Context managers for PyTorch's process-wide settings, safe for use from several threads.

The first context that is entered changes a setting, the last one that is left restores it. A thread that
leaves its context does not change the setting for threads that are still inside theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["differentiable_rnn", "exact_arithmetic", "math_attention", "one_thread", "recurrent"]

_Attribute = tuple[Any, str, object]  # object, name of the attribute, value


class _Shared:
    """Setting with a count of its active contexts; a call returns such a context."""

    def __init__(self, switch: Callable[[], AbstractContextManager[object]]) -> None:
        """Take a function that returns a context in which the setting is changed."""
        self._switch, self._lock = switch, threading.Lock()
        self._stack, self._users = ExitStack(), 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Context in which the setting is changed."""
        with self._lock:
            if self._users == 0:
                self._stack.enter_context(self._switch())
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._stack.close()


@contextmanager
def _changed(changes: list[_Attribute], before: list[_Attribute]) -> Iterator[None]:
    """Context in which attributes have the values ``changes``, and afterwards the values ``before``."""
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
    return _changed([(cudnn, "enabled", False)], _read((cudnn, "enabled")))


def _exact() -> AbstractContextManager[None]:
    cudnn: Any = torch.backends.cudnn  # its stubs lack `conv` and `rnn`
    matmul = torch.backends.cuda.matmul
    changes: list[_Attribute] = [(cudnn, "deterministic", True)]
    changes += [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]
    try:
        before = _read((cudnn, "allow_tf32"), (matmul, "allow_tf32"))
    except RuntimeError:  # PyTorch refuses to read these once the newer settings were used
        before = _read(*((owner, "fp32_precision") for owner in (cudnn.conv, cudnn.rnn, matmul)))
    return _changed(changes, _read((cudnn, "deterministic")) + before)


def _read(*attributes: tuple[Any, str]) -> list[_Attribute]:
    return [(owner, name, getattr(owner, name)) for owner, name in attributes]


_math_attention = _Shared(lambda: sdpa_kernel(SDPBackend.MATH))
_without_cudnn = _Shared(_cudnn_off)
_exact_arithmetic = _Shared(_exact)


def math_attention() -> AbstractContextManager[None]:
    """Context with scaled-dot-product attention on the math backend, the only twice differentiable one."""
    return _math_attention()


def exact_arithmetic() -> AbstractContextManager[None]:
    """Context with deterministic cuDNN algorithms and float32 in place of TF32; no effect on the CPU."""
    return _exact_arithmetic()


@contextmanager
def one_thread() -> Iterator[None]:
    """Context with one thread inside every operation, so that no sum depends on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def differentiable_rnn(model: nn.Module) -> AbstractContextManager[None]:
    """Context without cuDNN if the model has an RNN.

    The RNNs of cuDNN cannot be differentiated in eval mode, nor twice in any mode.
    """
    return _without_cudnn() if recurrent(model) else nullcontext()


def recurrent(model: nn.Module) -> bool:
    """Return whether the model contains an RNN, LSTM or GRU."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())
