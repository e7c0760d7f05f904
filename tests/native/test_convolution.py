"""Convolutions: a plain sum over taps in float64, plain PyTorch, and native code on every instruction set."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import IMPLEMENTATIONS, assert_near, assert_refused, normal
from torch import Tensor
from torch.nn.functional import pad

from vleak.native import conv_input, conv_output, conv_weight

DTYPES = (torch.float32, torch.float64)


# ---------------------------------------------------------------------------------------------------------
# Plain formulas: one product for every tap of the kernel


@dataclass(frozen=True)
class Case:
    clips: int
    channels: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    @property
    def places(self) -> tuple[int, ...]:
        numbers = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        return tuple((size + 2 * p - k) // s + 1 for size, k, s, p in numbers)

    @property
    def settings(self) -> dict[str, tuple[int, ...]]:
        return {"stride": self.stride, "padding": self.padding}

    def inputs(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """Return x, w and dy."""
        x = normal(self.clips, self.channels, *self.size, seed=(seed, "x"), dtype=dtype)
        w = normal(self.outputs, self.channels, *self.kernel, seed=(seed, "w"), dtype=dtype)
        return x, w, normal(self.clips, self.outputs, *self.places, seed=(seed, "y"), dtype=dtype)

    def taps(self) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Yield every tap, and the entries of the padded input that it reads."""
        for tap in itertools.product(*map(range, self.kernel)):
            numbers = zip(tap, self.places, self.stride, strict=True)
            yield tap, tuple(slice(first, first + (n - 1) * step + 1, step) for first, n, step in numbers)

    def padded(self, x: Tensor) -> Tensor:
        return pad(x, [p for padding in reversed(self.padding) for p in (padding, padding)])

    def inside(self, x: Tensor) -> Tensor:
        cut = [slice(p, p + size) for p, size in zip(self.padding, self.size, strict=True)]
        return x[(slice(None), slice(None), *cut)]


def plain_output(case: Case, x: Tensor, w: Tensor) -> Tensor:
    padded = case.padded(x)
    y = x.new_zeros(case.clips, case.outputs, *case.places)
    for tap, places in case.taps():
        y += torch.einsum("nc...,oc->no...", padded[(..., *places)], w[(..., *tap)])
    return y


def plain_input(case: Case, dy: Tensor, w: Tensor) -> Tensor:
    padded = case.padded(dy.new_zeros(case.clips, case.channels, *case.size))
    for tap, places in case.taps():
        padded[(..., *places)] += torch.einsum("no...,oc->nc...", dy, w[(..., *tap)])
    return case.inside(padded)


def plain_weight(case: Case, x: Tensor, dy: Tensor) -> Tensor:
    padded = case.padded(x)
    dw = x.new_zeros(case.outputs, case.channels, *case.kernel)
    for tap, places in case.taps():
        dw[(..., *tap)] = torch.einsum("no...,nc...->oc", dy, padded[(..., *places)])
    return dw


CASES = {
    "3-D": Case(2, 3, 4, (4, 7, 9), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "2-D": Case(3, 5, 13, (8, 11), (3, 3), (1, 1), (1, 1)),
    "rows of one vector": Case(1, 2, 12, (3, 4, 16), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "rows of several vectors": Case(1, 3, 9, (2, 5, 64), (2, 3, 5), (1, 1, 1), (1, 1, 2)),
    "rows longer than vectors": Case(1, 2, 3, (5, 67), (3, 3), (1, 1), (1, 1)),
    "5x5x5": Case(1, 3, 12, (4, 8, 8), (5, 5, 5), (1, 1, 1), (2, 2, 2)),
    "few frames": Case(1, 12, 12, (2, 8, 8), (5, 5, 5), (1, 1, 1), (2, 2, 2)),
    "one frame": Case(1, 3, 8, (1, 6, 6), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "tiny planes": Case(2, 17, 33, (3, 4, 4), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "one place": Case(2, 3, 5, (3, 3, 3), (3, 3, 3), (1, 1, 1), (0, 0, 0)),
    "kernel 1": Case(2, 3, 5, (3, 4, 5), (1, 1, 1), (1, 1, 1), (0, 0, 0)),
    "kernel 1, stride 2, padding": Case(1, 2, 3, (4, 5, 6), (1, 1, 1), (2, 2, 2), (1, 1, 1)),
    "kernel above the input": Case(1, 2, 3, (2, 2, 3), (5, 5, 5), (1, 1, 1), (2, 3, 2)),
    "padding above the kernel": Case(1, 2, 3, (2, 3, 4), (2, 2, 2), (1, 1, 1), (3, 3, 3)),
    "stride 2": Case(2, 3, 16, (16, 16), (3, 3), (2, 2), (1, 1)),
    "stride 2, 3-D": Case(1, 3, 7, (8, 9, 10), (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    "stride 1, 2, 2": Case(1, 8, 8, (4, 16, 16), (3, 3, 3), (1, 2, 2), (1, 1, 1)),
    "stride 3, 1, 2": Case(1, 2, 3, (7, 5, 8), (3, 2, 3), (3, 1, 2), (1, 0, 2)),
    "stride above the kernel": Case(1, 2, 3, (8, 19), (2, 1), (3, 4), (0, 0)),
    "stride above the input": Case(1, 2, 3, (2, 2, 2), (2, 2, 2), (5, 5, 5), (0, 0, 0)),
    "one output, stride above the kernel": Case(1, 2, 3, (5, 4, 6), (2, 1, 3), (9, 5, 7), (1, 0, 1)),
    "one output on one axis": Case(2, 2, 3, (5, 9), (2, 3), (7, 2), (1, 1)),
    "two outputs, stride above the input": Case(1, 2, 3, (3, 4), (2, 2), (4, 6), (3, 4)),
    "an endless stride": Case(1, 2, 3, (3, 4, 5), (2, 2, 3), (2**31 - 1, 1 << 20, 1 << 20), (1, 0, 1)),
    "one channel": Case(1, 1, 1, (3, 5, 7), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "no clip": Case(0, 2, 3, (3, 4, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "bands of rows": Case(1, 64, 2, (2, 70, 66), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    # Tiles of 2x2 outputs, odd sizes, and no frame, one frame or one tap in time.
    "tiles": Case(2, 9, 14, (3, 17, 19), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "tiles, 2-D": Case(1, 8, 9, (33, 35), (3, 3), (1, 1), (0, 2)),
    "tiles, one tap": Case(2, 8, 8, (2, 20, 22), (1, 3, 3), (1, 1, 1), (0, 1, 1)),
    "tiles, one frame": Case(1, 8, 8, (1, 32, 33), (3, 3, 3), (1, 1, 1), (1, 1, 0)),
    "tiles, many frames": Case(1, 8, 13, (9, 16, 16), (3, 3, 3), (1, 1, 1), (2, 1, 1)),
    # Few outputs, many weights.
    "few outputs": Case(3, 16, 40, (1, 3, 3), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "few outputs, strides": Case(1, 17, 38, (5, 9, 7), (3, 3, 3), (2, 2, 3), (1, 0, 2)),
    "few outputs, 2-D": Case(2, 45, 41, (4, 5), (3, 3), (1, 1), (1, 1)),
    "many places": Case(2, 4, 26, (3, 21, 23), (3, 3, 3), (1, 1, 1), (0, 0, 0)),
}


def assert_all_three(case: Case, dtype: torch.dtype, pairs: int = 1, with_bias: bool = False) -> None:
    xs, ws, dys = zip(*(case.inputs(seed, dtype) for seed in range(pairs)), strict=True)
    wide = [[t.double() for t in tensors] for tensors in (xs, ws, dys)]
    bias = normal(case.outputs, dtype=dtype) if with_bias else None
    y = sum(plain_output(case, x, w) for x, w in zip(wide[0], wide[1], strict=True))
    if bias is not None:
        y = y + bias.double().view(-1, *[1] * len(case.size))
    dx = sum(plain_input(case, dy, w) for dy, w in zip(wide[2], wide[1], strict=True))
    assert_near(conv_output(xs, ws, bias, **case.settings), y)
    assert_near(conv_input(dys, ws, input_shape=xs[0].shape, **case.settings), dx)
    dw = sum(plain_weight(case, x, dy) for x, dy in zip(wide[0], wide[2], strict=True))
    assert_near(conv_weight(xs, dys, kernel=case.kernel, **case.settings), dw)
    begun = conv_weight(xs, dys, kernel=case.kernel, start=ws[0], **case.settings)
    assert_near(begun, dw + wide[1][0])


# ---------------------------------------------------------------------------------------------------------
# Against the plain formulas


def test_known_answers(each_implementation: str) -> None:
    x = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 1, 3)
    w = torch.tensor([10.0, 1.0, 100.0]).view(1, 1, 1, 3)
    settings = {"stride": (1, 1), "padding": (0, 1)}
    assert conv_output([x], [w], **settings).flatten().tolist() == [201.0, 412.0, 24.0]
    assert conv_output([x, x], [w, w], torch.ones(1), **settings).flatten().tolist() == [
        403,
        825,
        49,
    ]
    dx = conv_input([x], [w], input_shape=(1, 1, 1, 3), **settings)
    assert dx.flatten().tolist() == [21.0, 142.0, 204.0]
    dw = conv_weight([x], [x], kernel=(1, 3), **settings)
    assert dw.flatten().tolist() == [10.0, 21.0, 10.0]


@pytest.mark.parametrize("name", CASES)
def test_all_three_sums(each_implementation: str, name: str) -> None:
    # Precisions in turn: each case in both of them, on neighbouring instruction sets.
    turn = list(CASES).index(name) + IMPLEMENTATIONS.index(each_implementation)
    assert_all_three(CASES[name], DTYPES[turn % 2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["3-D", "2-D", "stride 2", "kernel above the input", "tiles", "few outputs"])
def test_two_pairs_and_a_bias(each_implementation: str, name: str, dtype: torch.dtype) -> None:
    assert_all_three(CASES[name], dtype, pairs=2, with_bias=True)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    axes = draw(st.sampled_from([2, 3]))
    few = st.lists(st.integers(1, 3), min_size=axes, max_size=axes).map(tuple)
    kernel, stride = draw(few), draw(few)
    padding = tuple(draw(st.integers(0, k + 1)) for k in kernel)
    sizes = zip(kernel, padding, strict=True)
    size = tuple(draw(st.integers(max(1, k - 2 * p), 18)) for k, p in sizes)
    clips, channels, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 14))
    return Case(clips, channels, outputs, size, kernel, stride, padding)


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from(DTYPES), st.integers(1, 2), st.booleans())
def test_any_geometry(case: Case, dtype: torch.dtype, pairs: int, with_bias: bool) -> None:
    assert_all_three(case, dtype, pairs, with_bias)


@pytest.mark.parametrize("name", ["3-D", "2-D", "stride 3, 1, 2"])
def test_the_three_are_adjoint(each_implementation: str, name: str) -> None:
    case = CASES[name]
    x, w, dy = case.inputs()
    value = (conv_output([x], [w], **case.settings) * dy).sum().item()
    dx = conv_input([dy], [w], input_shape=x.shape, **case.settings)
    dw = conv_weight([x], [dy], kernel=case.kernel, **case.settings)
    size = math.sqrt((dy * dy).sum().item() * (dx * dx).sum().item())
    assert (x * dx).sum().item() == pytest.approx(value, abs=1e-12 * size)
    assert (w * dw).sum().item() == pytest.approx(value, abs=1e-12 * size)


def test_reads_any_strides(each_implementation: str) -> None:
    case = CASES["3-D"]
    x, w, dy = case.inputs()

    def all_three(x: Tensor, w: Tensor, dy: Tensor) -> list[Tensor]:
        return [
            conv_output([x], [w], **case.settings),
            conv_input([dy], [w], input_shape=x.shape, **case.settings),
            conv_weight([x], [dy], kernel=case.kernel, start=w, **case.settings),
        ]

    permuted = [t.transpose(1, -1).contiguous().transpose(1, -1) for t in (x, w, dy)]
    expanded = [t[:1].expand_as(t) for t in (x, w, dy)]
    for tensors in (permuted, expanded):
        assert not tensors[0].is_contiguous()
        straight = all_three(*(t.contiguous() for t in tensors))
        for result, expected in zip(all_three(*tensors), straight, strict=True):
            assert_near(result, expected)


def test_a_requires_grad_input_is_read_as_a_constant(each_implementation: str) -> None:
    x, w, dy = (t.requires_grad_() for t in CASES["2-D"].inputs())
    y = conv_output([x], [w], **CASES["2-D"].settings)
    dw = conv_weight([x], [dy], kernel=(3, 3), **CASES["2-D"].settings)
    assert not y.requires_grad
    assert not dw.requires_grad


def test_nan_spreads_no_further_than_its_taps(each_implementation: str) -> None:
    case = CASES["rows of one vector"]
    x, w, dy = case.inputs()
    x[0, 1, 1, 2, 3] = math.nan
    y = conv_output([x], [w], **case.settings)
    assert torch.equal(y.isnan(), plain_output(case, x, w).isnan())
    dy[0, 3, 0, 1, 15] = math.nan
    dx = conv_input([dy], [w], input_shape=x.shape, **case.settings)
    assert torch.equal(dx.isnan(), plain_input(case, dy, w).isnan())


def test_a_stride_that_gives_one_output_costs_no_more_than_the_kernel(each_implementation: str) -> None:
    if each_implementation == "torch":
        pytest.skip("PyTorch's own plan")
    far = Case(1, 3, 4, (16, 112, 112), (1, 1, 1), (1 << 20, 1 << 20, 1 << 20), (0, 0, 0))
    x, w, dy = far.inputs(dtype=torch.float32)
    before = time.process_time()
    conv_output([x], [w], **far.settings)
    conv_input([dy], [w], input_shape=x.shape, **far.settings)
    conv_weight([x], [dy], kernel=far.kernel, **far.settings)
    # One part for every phase of the stride would never end.
    assert time.process_time() - before < 2


# ---------------------------------------------------------------------------------------------------------
# Bad input

X, W, DY = CASES["2-D"].inputs()
SETTINGS: dict[str, Any] = CASES["2-D"].settings


def output_with(**changes: Any) -> Callable[[], Any]:
    arguments: dict[str, Any] = {"xs": [X], "ws": [W], "bias": None, **SETTINGS, **changes}
    return lambda: conv_output(**arguments)


def input_with(**changes: Any) -> Callable[[], Any]:
    arguments: dict[str, Any] = {"dys": [DY], "ws": [W], "input_shape": X.shape, **SETTINGS, **changes}
    return lambda: conv_input(**arguments)


def weight_with(**changes: Any) -> Callable[[], Any]:
    arguments: dict[str, Any] = {"xs": [X], "dys": [DY], "kernel": (3, 3), **SETTINGS, **changes}
    return lambda: conv_weight(**arguments)


BAD_INPUTS: list[tuple[Callable[[], Any], str]] = [
    (output_with(xs=[]), "expected as many xs as ws, at least one, got 0 and 1"),
    (output_with(ws=[W, W]), "got 1 and 2"),
    (
        output_with(xs=[X[0]]),
        "expected xs[0] of shape (clip, channel, [frame,] height, width), got (5, 8, 11)",
    ),
    (output_with(xs=[X.half()]), "convert it with xs[0].float()"),
    (output_with(xs=[X, X[:1]], ws=[W, W]), "expected xs[1] of shape (3, 5, 8, 11), got (1, 5, 8, 11)"),
    (output_with(ws=[W.float()]), "expected ws[0] of dtype torch.float64 like xs[0], got torch.float32"),
    (output_with(ws=[W.to("meta")]), "expected ws[0] on cpu like xs[0], got meta"),
    (output_with(ws=[W[:, :1]]), "expected a weight of shape (out, 5, 2 kernel sizes)"),
    (output_with(ws=[W[None]]), "got (1, 13, 5, 3, 3); no groups are supported but of one channel each"),
    (output_with(bias=torch.zeros(2).double()), "expected bias of shape (13,), got (2,)"),
    (output_with(stride=(1,)), "expected stride to be 2 integers >= 1, one a spatial axis, got [1]"),
    (output_with(stride=(0, 1)), "expected stride to be 2 integers >= 1"),
    (output_with(stride=(1, 1 << 62)), "expected stride of at most 2147483647 each, got [1, 46116860"),
    (input_with(stride=(1 << 31, 1)), "conv_input: expected stride of at most 2147483647 each"),
    (weight_with(kernel=(3, 1 << 40)), "expected kernel of at most 2147483647 each"),
    (output_with(padding=(1 << 62, 1)), "expected padding of at most 2147483647 each"),
    (output_with(padding=(1 << 30, 1 << 30)), "the input (8, 11) with padding (1073741824, 1073741824) is"),
    (output_with(padding=(-1, 0)), "expected padding to be 2 integers >= 0"),
    (output_with(xs=[X[:, :, :1]], padding=(0, 0)), "the kernel (3, 3) is larger than the input (1, 11)"),
    (input_with(dys=[DY[:, :, 1:]]), "expected dys[0] of shape (3, 13, 8, 11), got (3, 13, 7, 11)"),
    (input_with(input_shape=(3, 5, 8)), "expected input_shape of 4 sizes like dys, got [3, 5, 8]"),
    (input_with(input_shape=(3, 4, 8, 11)), "expected a weight of shape (out, 4, 2 kernel sizes)"),
    (weight_with(dys=[DY[:, :, 1:]]), "expected dys[0] of shape (3, 13, 8, 11), got (3, 13, 7, 11)"),
    (weight_with(dys=[DY.float()]), "expected dys[0] of dtype torch.float64 like xs[0]"),
    (weight_with(kernel=(3, 0)), "expected kernel to be 2 integers >= 1"),
    (weight_with(xs=[X[0]]), "expected xs[0] of shape (clip"),
    (weight_with(dys=[DY, DY]), "expected as many xs as dys, at least one, got 1 and 2"),
    (weight_with(xs=[X, X], dys=[DY, DY[:1]]), "all dys need one shape"),
    (weight_with(start=W[:1]), "expected start of shape (13, 5, 3, 3), got (1, 5, 3, 3)"),
    (weight_with(start=W.float()), "expected start of dtype torch.float64 like xs[0]"),
]


@pytest.mark.parametrize(("call", "message"), BAD_INPUTS, ids=[message[:60] for _, message in BAD_INPUTS])
def test_bad_input_is_refused(implementation: str, call: Callable[[], Any], message: str) -> None:
    assert_refused(call, message)
