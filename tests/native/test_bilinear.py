"""Convolutions and products: plain formulas, plain PyTorch, and native code on every instruction set."""

from __future__ import annotations

import ctypes
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from vleak.errors import InputError
from vleak.native import bilinear, loader, operators
from vleak.seeds import generator

DTYPES = [torch.float32, torch.float64]
STATES = ["torch", "baseline", "avx2", "avx512"]
# Of the largest entry of the truth: sums of up to some thousand products in any order.
ERROR = {torch.float32: 1e-5, torch.float64: 1e-13}


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Run the block on one instruction set, or skip the test where the machine has not got it."""
    if operators.backend() != "native":
        pytest.skip(f"no native code here: {loader.status().reason}")
    found = loader.status()
    library = ctypes.CDLL(str(found.library))
    library.vleak_use_instruction_set.restype = ctypes.c_bool
    assert found.instruction_set is not None
    if not library.vleak_use_instruction_set(name.encode()):
        pytest.skip(f"this machine has no {name}")
    try:
        yield
    finally:
        library.vleak_use_instruction_set(found.instruction_set.encode())


@pytest.fixture(params=STATES)
def state(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test in plain PyTorch and on every instruction set of native code."""
    with operators.use_reference() if request.param == "torch" else instruction_set(request.param):
        yield request.param


def normal(*shape: int, seed: object = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator("bilinear", shape, seed), dtype=torch.float64).to(dtype)


def assert_near(got: Tensor, truth: Tensor) -> None:
    assert got.shape == truth.shape
    assert got.is_contiguous()
    if truth.numel():
        scale = truth.abs().max().item()
        assert (got.double() - truth).abs().max().item() <= ERROR[got.dtype] * scale


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
        """Yield every tap, and the entries of the padded input that the outputs meet there."""
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
    assert_near(bilinear.conv_output(xs, ws, bias, **case.settings), y)
    assert_near(bilinear.conv_input(dys, ws, input_shape=xs[0].shape, **case.settings), dx)
    dw = bilinear.conv_weight(xs[0], dys[0], kernel=case.kernel, **case.settings)
    assert_near(dw, plain_weight(case, wide[0][0], wide[2][0]))


# ---------------------------------------------------------------------------------------------------------
# Convolutions


def test_known_answers(state: str) -> None:
    x = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 1, 3)
    w = torch.tensor([10.0, 1.0, 100.0]).view(1, 1, 1, 3)
    settings = {"stride": (1, 1), "padding": (0, 1)}
    assert bilinear.conv_output([x], [w], **settings).flatten().tolist() == [201.0, 412.0, 24.0]
    assert bilinear.conv_output([x, x], [w, w], torch.ones(1), **settings).flatten().tolist() == [
        403,
        825,
        49,
    ]
    dx = bilinear.conv_input([x], [w], input_shape=(1, 1, 1, 3), **settings)
    assert dx.flatten().tolist() == [21.0, 142.0, 204.0]
    dw = bilinear.conv_weight(x, x, kernel=(1, 3), **settings)
    assert dw.flatten().tolist() == [10.0, 21.0, 10.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_all_three_sums(state: str, name: str, dtype: torch.dtype) -> None:
    assert_all_three(CASES[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["3-D", "2-D", "stride 2", "tiny planes", "kernel above the input"])
def test_two_pairs_and_a_bias(state: str, name: str, dtype: torch.dtype) -> None:
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


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(DTYPES), st.integers(1, 2), st.booleans())
def test_any_geometry(case: Case, dtype: torch.dtype, pairs: int, with_bias: bool) -> None:
    assert_all_three(case, dtype, pairs, with_bias)


@pytest.mark.parametrize("name", ["3-D", "2-D", "stride 2", "few frames", "stride 3, 1, 2"])
def test_the_three_are_adjoint(state: str, name: str) -> None:
    case = CASES[name]
    x, w, dy = case.inputs()
    value = (bilinear.conv_output([x], [w], **case.settings) * dy).sum().item()
    dx = bilinear.conv_input([dy], [w], input_shape=x.shape, **case.settings)
    dw = bilinear.conv_weight(x, dy, kernel=case.kernel, **case.settings)
    size = math.sqrt((dy * dy).sum().item() * (dx * dx).sum().item())
    assert (x * dx).sum().item() == pytest.approx(value, abs=1e-12 * size)
    assert (w * dw).sum().item() == pytest.approx(value, abs=1e-12 * size)


def test_strides_of_the_tensors_do_not_matter(state: str) -> None:
    case = CASES["3-D"]
    x, w, dy = case.inputs()

    def all_three(x: Tensor, w: Tensor, dy: Tensor) -> list[Tensor]:
        return [
            bilinear.conv_output([x], [w], **case.settings),
            bilinear.conv_input([dy], [w], input_shape=x.shape, **case.settings),
            bilinear.conv_weight(x, dy, kernel=case.kernel, **case.settings),
        ]

    turned = [t.transpose(1, -1).contiguous().transpose(1, -1) for t in (x, w, dy)]
    expanded = [t[:1].expand_as(t) for t in (x, w, dy)]
    for tensors in (turned, expanded):
        assert not tensors[0].is_contiguous()
        whole = all_three(*(t.contiguous() for t in tensors))
        for got, expected in zip(all_three(*tensors), whole, strict=True):
            assert_near(got, expected)


def test_a_requires_grad_input_is_read_as_a_constant(state: str) -> None:
    x, w, dy = (t.requires_grad_() for t in CASES["2-D"].inputs())
    y = bilinear.conv_output([x], [w], **CASES["2-D"].settings)
    dw = bilinear.conv_weight(x, dy, kernel=(3, 3), **CASES["2-D"].settings)
    assert not y.requires_grad
    assert not dw.requires_grad


def test_nan_spreads_no_further_than_its_taps(state: str) -> None:
    case = CASES["rows of one vector"]
    x, w, dy = case.inputs()
    x[0, 1, 1, 2, 3] = math.nan
    y = bilinear.conv_output([x], [w], **case.settings)
    assert torch.equal(y.isnan(), plain_output(case, x, w).isnan())
    dy[0, 3, 0, 1, 15] = math.nan
    dx = bilinear.conv_input([dy], [w], input_shape=x.shape, **case.settings)
    assert torch.equal(dx.isnan(), plain_input(case, dy, w).isnan())


# ---------------------------------------------------------------------------------------------------------
# Products


def assert_product(xs: list[Tensor], ms: list[Tensor]) -> None:
    truth = torch.stack([x.double() @ m.double() for x, m in zip(xs, ms, strict=True)]).sum(0)
    got = bilinear.product(xs, ms)
    assert got.dtype == xs[0].dtype
    assert_near(got, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 3, 12, 32, 37])
@pytest.mark.parametrize(
    ("depth", "columns"), [(1, 1), (5, 31), (300, 64), (256, 70), (513, 33), (0, 4), (4, 0)]
)
def test_product(state: str, rows: int, depth: int, columns: int, dtype: torch.dtype) -> None:
    x, m = normal(rows, depth, seed="x", dtype=dtype), normal(depth, columns, seed="m", dtype=dtype)
    turned = m.T.contiguous().T
    assert_product([x], [m])
    assert_product([x], [turned])
    assert_product([x, -2 * x, x], [m, turned, 3 * m])
    assert_product([x, -2 * x, x], [turned, m, 3 * turned])


def test_known_product(state: str) -> None:
    x, m = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 1.0, 0.0], [100.0, 0.0, 7.0]])
    assert bilinear.product([x], [m]).tolist() == [[210.0, 1.0, 14.0]]
    assert bilinear.product([x, x], [m, m.T.contiguous().T]).tolist() == [[420.0, 2.0, 28.0]]


@pytest.mark.parametrize(("rows", "depth", "columns"), [(20, 9000, 40), (700, 500, 100), (40, 700, 300)])
def test_products_in_pieces(state: str, rows: int, depth: int, columns: int) -> None:
    x, m = normal(rows, depth, dtype=torch.float32), normal(depth, columns, dtype=torch.float32)
    assert_product([x], [m])
    assert_product([x], [m.T.contiguous().T])


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_different_depths(state: str, dtype: torch.dtype) -> None:
    depths = (3, 0, 70, 1)
    xs = [normal(18, depth, seed=i, dtype=dtype) for i, depth in enumerate(depths)]
    ms = [normal(37, depth, seed=-i, dtype=dtype).T for i, depth in enumerate(depths)]
    assert_product(xs, ms)
    assert_product(xs, [m.contiguous() if i % 2 else m for i, m in enumerate(ms)])


def test_product_of_views(state: str) -> None:
    whole = normal(80, 140)
    views = {
        "parts of rows": whole[3:43, 5:75],
        "parts of columns": whole.T[3:43, 5:75],
        "every other entry": whole[::2, ::2],
        "one row for all": whole[:1, :70].expand(40, 70),
        "one column for all": whole[:40, :1].expand(40, 70),
    }
    for x in views.values():
        for m in views.values():
            assert_product([x], [m.T])
            assert_product([x.T], [m])


def test_a_product_does_not_depend_on_how_the_matrix_lies(state: str) -> None:
    x, m = normal(19, 3000, dtype=torch.float32), normal(3000, 150, dtype=torch.float32)
    if state != "torch":
        assert torch.equal(bilinear.product([x], [m]), bilinear.product([x], [m.T.contiguous().T]))


def test_nan_stays_in_its_row_or_column(state: str) -> None:
    x, m = normal(20, 40), normal(40, 50)
    x[3, 7] = math.nan
    assert torch.equal(bilinear.product([x], [m]).isnan().any(1), torch.arange(20) == 3)
    assert torch.equal(bilinear.product([x], [m.T.contiguous().T]).isnan().any(1), torch.arange(20) == 3)
    m[5, 49] = math.inf
    assert torch.equal(bilinear.product([x[4:]], [m]).isfinite().all(0), torch.arange(50) != 49)


# ---------------------------------------------------------------------------------------------------------
# Products with panels


def assert_panel_product(xs: list[Tensor], ms: list[Tensor]) -> None:
    truth = torch.stack([x.double() @ m.double() for x, m in zip(xs, ms, strict=True)]).sum(0)
    got = bilinear.panel_product(xs, [bilinear.panels(m) for m in ms], ms[0].shape[1])
    assert got.dtype == xs[0].dtype
    assert_near(got, truth)


def assert_turned_product(xs: list[Tensor], ms: list[Tensor]) -> None:
    truth = torch.stack([x.double() @ m.double().T for x, m in zip(xs, ms, strict=True)]).sum(0)
    got = bilinear.panel_product(xs, [bilinear.panels(m) for m in ms], ms[0].shape[1], turned=True)
    assert got.dtype == xs[0].dtype
    assert_near(got, truth)


def thinned(x: Tensor, kept: float) -> Tensor:
    """Return x with zeros in place of all but a share of its entries, as behind a ReLU."""
    drawn = torch.rand(x.shape, generator=generator("thinned", *x.shape, kept), dtype=torch.float64)
    return torch.where(drawn < kept, x, 0)


def test_known_panels() -> None:
    matrix = torch.arange(2.0 * 65).view(2, 65)
    cut = bilinear.panels(matrix)
    assert cut.shape == (2, 2, bilinear.PANEL)
    assert cut[0, 1].tolist() == list(range(65, 129))
    assert cut[1].sum(1).tolist() == [64.0, 129.0]
    assert cut[1, :, 0].tolist() == [64.0, 129.0]
    assert torch.equal(bilinear.panels(matrix.T.contiguous().T), cut)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 3, 12, 37])
@pytest.mark.parametrize(
    ("depth", "columns"), [(1, 1), (5, 31), (300, 64), (64, 128), (70, 256), (33, 513), (0, 4), (4, 0)]
)
def test_panel_product(state: str, rows: int, depth: int, columns: int, dtype: torch.dtype) -> None:
    m = normal(depth, columns, seed="m", dtype=dtype)
    for kept in (1.0, 0.5, 0.0):
        x = thinned(normal(rows, depth, seed="x", dtype=dtype), kept)
        z = thinned(normal(rows, columns, seed="z", dtype=dtype), kept)
        assert_panel_product([x], [m])
        assert_panel_product([x, -2 * x, x], [m, 3 * m, m.T.contiguous().T])
        assert_turned_product([z], [m])
        assert_turned_product([z, -2 * z, z], [m, 3 * m, m.T.contiguous().T])


@pytest.mark.parametrize("kept", [1.0, 0.3])
def test_panel_products_of_different_depths_and_of_views(state: str, kept: float) -> None:
    whole = thinned(normal(80, 140, dtype=torch.float32), kept)
    xs = [whole[3:21, 5:75], whole.T[:18, :9], whole[:36:2, ::2], whole[:1, :70].expand(18, 70)]
    assert_panel_product(xs, [normal(x.shape[1], 90, seed=i, dtype=torch.float32) for i, x in enumerate(xs)])
    for x in xs:
        assert_turned_product([x], [normal(40, x.shape[1], dtype=torch.float32)])
    cut = bilinear.panels(normal(18, 200)).float()
    spread = torch.stack([cut, cut], -1)[..., 0]
    for turned, x in ((False, whole[:20, :18]), (True, thinned(normal(20, 200, dtype=torch.float32), kept))):
        expected = bilinear.panel_product([x], [cut], 200, turned=turned)
        assert torch.equal(bilinear.panel_product([x], [spread], 200, turned=turned), expected)


def test_zeros_are_skipped_and_nan_stays_in_its_row(state: str) -> None:
    x, m = thinned(normal(20, 100), 0.5), normal(100, 150)
    x[3, 7] = math.nan
    product = bilinear.panel_product([x], [bilinear.panels(m)], 150)
    assert torch.equal(product.isnan().all(1), torch.arange(20) == 3)
    assert torch.equal(product.isnan().any(1), torch.arange(20) == 3)
    z = normal(20, 150)
    z[3, 7] = math.nan
    turned = bilinear.panel_product([z], [bilinear.panels(m)], 150, turned=True)
    assert torch.equal(turned.isnan().all(1), torch.arange(20) == 3)
    assert torch.equal(turned.isnan().any(1), torch.arange(20) == 3)


# ---------------------------------------------------------------------------------------------------------
# What holds of all of them

OPERATORS = ["conv_output", "conv_input", "conv_weight", "product", "panel_product"]


def samples(dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """Arguments of the raw operators."""
    x, w, dy = CASES["3-D"].inputs(dtype=dtype)
    ones = [1, 1, 1]
    x_rows, m = normal(3, 6, dtype=dtype), normal(6, 40, dtype=dtype)
    return {
        "conv_output": ([x, x], [w, w], normal(4, dtype=dtype), ones, ones),
        "conv_input": ([dy, dy], [w, w], list(x.shape), ones, ones),
        "conv_weight": (x, dy, [3, 3, 3], ones, ones),
        "product": ([x_rows, x_rows], [m, m.T.contiguous().T]),
        "panel_product": ([x_rows, x_rows], [bilinear.panels(m), bilinear.panels(2 * m)], 40, False),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("namespace", ["vleak", "vleak_reference"])
def test_opcheck(namespace: str, name: str, dtype: torch.dtype) -> None:
    with nullcontext() if namespace == "vleak" else operators.use_reference():
        arguments = samples(dtype)[name]
        torch.library.opcheck(getattr(getattr(torch.ops, namespace), name).default, arguments)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_does_not_change_a_bit(dtype: torch.dtype) -> None:
    case = Case(2, 9, 25, (5, 37, 41), (3, 3, 3), (1, 2, 1), (1, 1, 1))
    x, w, dy = case.inputs(dtype=dtype)
    rows, m = normal(19, 700, dtype=dtype), normal(700, 1030, dtype=dtype)
    threads, answers = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            y = bilinear.conv_output([x, x], [w, w], **case.settings)
            dx = bilinear.conv_input([dy], [w], input_shape=x.shape, **case.settings)
            dw = bilinear.conv_weight(x, dy, kernel=case.kernel, **case.settings)
            products = [bilinear.product([rows], [n]) for n in (m, m.T.contiguous().T)]
            cut = [bilinear.panels(n) for n in (m, m.T)]
            products.append(bilinear.panel_product([rows], cut[:1], 1030))
            products.append(bilinear.panel_product([thinned(rows, 0.5)], cut[:1], 1030))
            products.append(bilinear.panel_product([rows], cut[1:], 700, turned=True))
            answers.append([y, dx, dw, *products])
    finally:
        torch.set_num_threads(threads)
    for other in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], other, strict=True))


def test_a_stride_that_gives_one_output_costs_no_more_than_the_kernel(state: str) -> None:
    if state == "torch":
        pytest.skip("PyTorch's own plan")
    far = Case(1, 3, 4, (16, 112, 112), (1, 1, 1), (1 << 20, 1 << 20, 1 << 20), (0, 0, 0))
    x, w, dy = far.inputs(dtype=torch.float32)
    before = time.process_time()
    bilinear.conv_output([x], [w], **far.settings)
    bilinear.conv_input([dy], [w], input_shape=x.shape, **far.settings)
    bilinear.conv_weight(x, dy, kernel=far.kernel, **far.settings)
    # One part for every phase of the stride would never end.
    assert time.process_time() - before < 2


X, W, DY = CASES["2-D"].inputs()
SETTINGS: dict[str, Any] = CASES["2-D"].settings


def output_with(**changes: Any) -> Callable[[], Any]:
    arguments: dict[str, Any] = {"xs": [X], "ws": [W], "bias": None, **SETTINGS, **changes}
    return lambda: bilinear.conv_output(**arguments)


def input_with(**changes: Any) -> Callable[[], Any]:
    arguments: dict[str, Any] = {"dys": [DY], "ws": [W], "input_shape": X.shape, **SETTINGS, **changes}
    return lambda: bilinear.conv_input(**arguments)


def weight_with(**changes: Any) -> Callable[[], Any]:
    arguments: dict[str, Any] = {"x": X, "dy": DY, "kernel": (3, 3), **SETTINGS, **changes}
    return lambda: bilinear.conv_weight(**arguments)


def product_with(xs: list[Tensor], ms: list[Tensor]) -> Callable[[], Any]:
    return lambda: bilinear.product(xs, ms)


def panels_with(xs: list[Tensor], cut: list[Tensor], columns: int, turned: bool = False) -> Callable[[], Any]:
    return lambda: bilinear.panel_product(xs, cut, columns, turned=turned)


M = normal(8, 5)
CUT = bilinear.panels(M)
REFUSALS: list[tuple[Callable[[], Any], str]] = [
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
    (output_with(ws=[W[None]]), "got (1, 13, 5, 3, 3); groups are not supported"),
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
    (weight_with(dy=DY[:, :, 1:]), "expected dy of shape (3, 13, 8, 11), got (3, 13, 7, 11)"),
    (weight_with(dy=DY.float()), "expected dy of dtype torch.float64 like x"),
    (weight_with(kernel=(3, 0)), "expected kernel to be 2 integers >= 1"),
    (weight_with(x=X[0]), "expected x of shape (clip"),
    (product_with([], []), "expected as many xs as ms, at least one, got 0 and 0"),
    (product_with([M], [M.T, M.T]), "got 1 and 2"),
    (product_with([M[0]], [M]), "expected xs[0] to be a matrix, got shape (5,)"),
    (product_with([M], [M[None]]), "expected ms[0] to be a matrix, got shape (1, 8, 5)"),
    (product_with([M.int()], [M.T]), "expected xs[0] "),
    (product_with([M], [M]), "expected ms[0] of shape (5, 5), got (8, 5); as many rows as xs has columns"),
    (product_with([M, M[:7]], [M.T, M.T]), "expected xs[1] of shape (8, 5), got (7, 5)"),
    (product_with([M, M], [M.T, M.T[:, 1:]]), "expected ms[1] of shape (5, 8), got (5, 7)"),
    (product_with([M], [M.T.float()]), "expected ms[0] of dtype torch.float64 like xs[0]"),
    (lambda: bilinear.panels(M[0]), "panels: expected a matrix, got shape (5,)"),
    (panels_with([], [], 5), "expected as many xs as panels, at least one, got 0 and 0"),
    (panels_with([M], [CUT], -1), "panel_product: expected columns >= 0, got -1"),
    (panels_with([M[0]], [CUT], 5), "expected xs[0] to have 2 axes, got shape (5,)"),
    (panels_with([M], [M], 5), "expected panels[0] to have 3 axes, got shape (8, 5)"),
    (panels_with([M], [CUT], 5), "expected xs[0] of shape (8, 8), got (8, 5); all xs need as many rows"),
    (panels_with([M], [CUT], 4, turned=True), "expected xs[0] of shape (8, 4), got (8, 5)"),
    (panels_with([M], [CUT], 5 + bilinear.PANEL), "expected xs[0] of shape (8, 8)"),
    (
        panels_with([M.T], [CUT], 65),
        "expected panels[0] of shape (2, 8, 64), got (1, 8, 64); vleak.native.bilinear.",
    ),
    (panels_with([M, M], [CUT, CUT[:, 1:]], 5, turned=True), "expected panels[1] of shape (1, 8, 64)"),
    (panels_with([M.T], [CUT.float()], 5), "expected panels[0] of dtype torch.float64 like xs[0]"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message[:60] for _, message in REFUSALS])
@pytest.mark.parametrize("plain", [True, False])
def test_refusals_are_alike_in_every_backend(plain: bool, call: Callable[[], Any], message: str) -> None:
    with operators.use_reference() if plain else nullcontext(), pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_direct_call_with_bad_arguments_fails_and_does_not_crash() -> None:
    if operators.backend() != "native":
        pytest.skip(f"no native code here: {loader.status().reason}")
    bad: dict[str, tuple[Any, ...]] = {
        "conv_output": ([X], [W[:, :1]], None, [1, 1], [1, 1]),
        "conv_input": ([DY], [W], [3, 5, 9, 11], [1, 1], [1, 1]),
        "conv_weight": (X, DY, [3], [1, 1], [1, 1]),
        "product": ([M], [M]),
        "panel_product": ([M], [CUT], 5, False),
    }
    for name, arguments in bad.items():
        with pytest.raises(RuntimeError, match="vleak"):
            getattr(torch.ops.vleak, name).default(*arguments)
    for stride, padding in [([1, 1 << 62], [1, 1]), ([1, 1], [1 << 62, 1]), ([1, 1], [1 << 30, 1 << 30])]:
        with pytest.raises(RuntimeError, match=r"vleak.*(out of range|too large)"):
            torch.ops.vleak.conv_output([X], [W], None, stride, padding)
        with pytest.raises(RuntimeError, match=r"vleak.*(out of range|too large)"):
            torch.ops.vleak.conv_input([DY], [W], list(X.shape), stride, padding)


ONES = [1, 1]
DIRECT: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "a meta weight": ("conv_output", ([X], [W.to("meta")], None, ONES, ONES), "ws[0] on cpu like xs[0], got"),
    "a meta bias": ("conv_output", ([X], [W], W[:, 0, 0, 0].to("meta"), ONES, ONES), "expected bias on cpu"),
    "a meta input": ("conv_output", ([X.to("meta")], [W], None, ONES, ONES), "expected ws[0] on meta"),
    "a second meta input": ("conv_output", ([X, X.to("meta")], [W, W], None, ONES, ONES), "xs[1] on cpu"),
    "a meta weight backward": ("conv_input", ([DY], [W.to("meta")], list(X.shape), ONES, ONES), "ws[0] on"),
    "a meta dy": ("conv_weight", (X, DY.to("meta"), [3, 3], ONES, ONES), "expected dy on cpu"),
    "a meta matrix": ("product", ([M], [M.T.to("meta")]), "expected ms[0] on cpu"),
    "no input": ("conv_output", ([], [], None, ONES, ONES), "as many xs as ws, at least one, got 0 and 0"),
    "no dy": ("conv_input", ([], [], list(X.shape), ONES, ONES), "as many dys as ws, at least one, got 0"),
    "no matrix": ("product", ([], []), "as many xs as ms, at least one, got 0 and 0"),
    "meta panels": ("panel_product", ([M.T], [CUT.to("meta")], 5, False), "expected panels[0] on cpu"),
    "no panels": ("panel_product", ([], [], 5, True), "as many xs as panels, at least one, got 0 and 0"),
}


@pytest.mark.parametrize("namespace", ["vleak", "vleak_reference"])
@pytest.mark.parametrize("name", DIRECT)
def test_a_direct_call_with_other_devices_or_no_tensor_says_so(name: str, namespace: str) -> None:
    operator, arguments, message = DIRECT[name]
    with pytest.raises(InputError) as caught:
        getattr(getattr(torch.ops, namespace), operator).default(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_on_meta_gives_shapes() -> None:
    x, w, dy, m = (tensor.to("meta") for tensor in (X, W, DY, M))
    assert torch.ops.vleak.conv_output([x], [w], None, ONES, ONES).shape == DY.shape
    assert torch.ops.vleak.conv_input([dy], [w], list(X.shape), ONES, ONES).shape == X.shape
    assert torch.ops.vleak.conv_weight(x, dy, [3, 3], ONES, ONES).shape == W.shape
    assert torch.ops.vleak.product([m], [m.T]).shape == (8, 8)
    assert torch.ops.vleak.panel_product([m.T], [CUT.to("meta")], 5, False).shape == (5, 5)
    assert torch.ops.vleak.panel_product([m], [CUT.to("meta")], 5, True).shape == (8, 8)
