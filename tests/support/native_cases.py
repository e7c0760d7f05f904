"""Implementations, numbers and tolerances for the tests of the native operators."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.native import loader, operators
from vleak.seeds import generator

#: Plain PyTorch, and native code on every instruction set.
IMPLEMENTATIONS = ("torch", "baseline", "avx2", "avx512")


def need_native_code() -> None:
    if operators.backend() != "native":
        pytest.skip(f"no native code here: {loader.status().reason}")


@contextmanager
def using(implementation: str) -> Iterator[None]:
    """Run a block in "torch", in "native" code, or in native code on one instruction set."""
    if implementation == "torch":
        with operators.use_reference():
            yield
        return
    need_native_code()
    if implementation == "native":
        yield
        return
    with _instruction_set(implementation):
        yield


@contextmanager
def _instruction_set(name: str) -> Iterator[None]:
    status = loader.status()
    library = ctypes.CDLL(str(status.library))
    library.vleak_use_instruction_set.restype = ctypes.c_bool
    assert status.instruction_set is not None
    if not library.vleak_use_instruction_set(name.encode()):
        pytest.skip(f"this machine has no {name}")
    try:
        assert loader.status().instruction_set == name
        yield
    finally:
        library.vleak_use_instruction_set(status.instruction_set.encode())


def uniform(*shape: int, seed: object = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=generator("ops", shape, seed), dtype=torch.float64).to(dtype)


def normal(*shape: int, seed: object = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator("ops", shape, seed), dtype=torch.float64).to(dtype)


def with_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of a function, and the gradient of their sum."""
    x = x.detach().requires_grad_()
    value = function(x)
    (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True, materialize_grads=True)
    return value.detach(), gradient


def assert_as_good_as_torch(result: Tensor, plain: Tensor, truth: Tensor, scale: float = 0.0) -> None:
    """Check that the error against float64 is at most twice that of plain PyTorch in the same precision.

    The floor of 8 units in the last place of the largest entry is for cases in which PyTorch happens to be
    exact: a gradient entry is a sum of up to seven rounded terms. Where large terms cancel, ``scale`` is
    their size. In float64 the truth is rounded as well, so there the two may differ as two orders of a long
    sum do.
    """
    assert result.shape == truth.shape
    assert result.dtype == plain.dtype
    if not truth.numel():
        return
    scale = max(scale, truth.abs().max().item())
    if result.dtype == torch.float64:
        torch.testing.assert_close(result, truth, rtol=0.0, atol=1e-13 * scale)
        return
    floor = 8 * torch.finfo(result.dtype).eps * scale
    assert (result.double() - truth).abs().max() <= 2 * (plain.double() - truth).abs().max() + floor


def assert_same(result: Tensor, expected: Tensor, implementation: str) -> None:
    """Check equality: native code gives the same bits for all strides; PyTorch may add in another order."""
    if implementation == "native":
        assert torch.equal(result, expected)
    else:
        torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-15)


#: Error of a sum of up to some thousand products in any order, relative to the largest entry of the truth.
PRODUCT_ERROR = {torch.float32: 1e-5, torch.float64: 1e-13}


def assert_near(result: Tensor, truth: Tensor) -> None:
    """Check sums of products against a truth in float64."""
    assert result.shape == truth.shape
    assert result.is_contiguous()
    if truth.numel():
        scale = truth.abs().max().item()
        assert (result.double() - truth).abs().max().item() <= PRODUCT_ERROR[result.dtype] * scale


def assert_refused(call: Callable[[], Any], message: str) -> None:
    """Check that a call raises InputError with this text, on one line."""
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------
# Total variation, written apart from the library


def plain_tv(
    x: Tensor, spatial: float = 1.0, temporal: float = 1.0, isotropic: bool = False, smoothing: float = 0.0
) -> Tensor:
    def mean(d: Tensor) -> Tensor:
        if not d[0].numel():
            return x.new_zeros(len(x))
        size = d.abs() if smoothing == 0 else (d * d + smoothing**2).sqrt() - smoothing
        return size.mean((1, 2, 3, 4))

    if isotropic:
        right = torch.cat([x[..., 1:] - x[..., :-1], torch.zeros_like(x[..., :1])], 4)
        down = torch.cat([x[..., 1:, :] - x[..., :-1, :], torch.zeros_like(x[..., :1, :])], 3)
        square = right**2 + down**2 + smoothing**2
        root = torch.where(square == 0, 0.0, torch.where(square == 0, 1.0, square).sqrt())
        space = (root - smoothing).mean((1, 2, 3, 4))
    else:
        space = mean(x[..., 1:] - x[..., :-1]) + mean(x[..., 1:, :] - x[..., :-1, :])
    return spatial * space + temporal * mean(x[:, :, 1:] - x[:, :, :-1])


#: (clip, channel, frame, height, width) with the settings of a total variation. Every shape (odd, prime,
#: single-frame, degenerate, wider than any register) and every kind of penalty; odd rows of several vectors
#: with all penalties.
VARIATIONS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 3, 13, 37), {}),
    ((2, 3, 3, 13, 37), {"smoothing": 0.05}),
    ((2, 3, 3, 13, 37), {"isotropic": True, "spatial": 0.4}),
    ((2, 3, 3, 13, 37), {"isotropic": True, "smoothing": 0.02, "temporal": 0.1}),
    ((1, 3, 8, 16, 16), {"spatial": 0.3, "temporal": 0.0}),
    ((1, 3, 8, 16, 16), {"spatial": 0.0, "temporal": 0.7}),
    ((1, 3, 8, 16, 16), {"isotropic": True, "smoothing": 0.02, "temporal": 0.1}),
    ((2, 1, 1, 5, 7), {}),
    ((2, 1, 1, 5, 7), {"isotropic": True, "spatial": 0.4}),
    ((3, 2, 4, 1, 9), {"smoothing": 0.05}),
    ((3, 2, 4, 1, 9), {"isotropic": True, "smoothing": 0.02, "temporal": 0.1}),
    ((2, 3, 2, 11, 1), {}),
    ((2, 3, 2, 11, 1), {"isotropic": True, "spatial": 0.4}),
    ((1, 1, 5, 1, 1), {"smoothing": 0.05}),
    ((1, 1, 2, 3, 131), {"spatial": 0.3, "temporal": 0.0}),
    ((1, 1, 2, 3, 131), {"smoothing": 0.05}),
]
#: One of each kind of penalty.
PENALTIES: list[dict[str, Any]] = [
    {},
    {"spatial": 0.3, "temporal": 0.0},
    {"spatial": 0.0, "temporal": 0.7},
    {"smoothing": 0.05},
    {"isotropic": True, "spatial": 0.4},
    {"isotropic": True, "smoothing": 0.02, "temporal": 0.1},
]


class Run:
    """State of an optimiser on several trials, stepped by `operators.descend`."""

    def __init__(self, x: Tensor, layout: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        self.x = x
        self.m, self.v, self.best = (layout(torch.zeros_like(x)) for _ in range(3))
        self.best_objective = x.new_full((len(x),), torch.inf)
        self.count = 0

    def step(self, gradient: Tensor, distance: Tensor, **rest: Any) -> Tensor:
        self.count += 1
        state = (self.m, self.v, self.best, self.best_objective)
        self.x, objective = operators.descend(self.x, gradient, distance, *state, step=self.count, **rest)
        return objective
