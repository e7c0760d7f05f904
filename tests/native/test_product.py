"""Products: matrix products in float64, plain PyTorch, and native code on every instruction set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from native_cases import assert_near, assert_refused, normal
from torch import Tensor

from vleak.native import PANEL, panel_product, panels, product
from vleak.seeds import generator

DTYPES = (torch.float32, torch.float64)
#: (rows, depth, columns): empty, single, odd, of one block of registers, and of more than one; depths and
#: columns of less than a vector, of full panels, and of panels with a rest.
SIZES = [
    (0, 300, 64),
    (12, 0, 4),
    (3, 4, 0),
    (1, 1, 1),
    (3, 5, 31),
    (1, 300, 64),
    (12, 256, 70),
    (32, 64, 128),
    (37, 70, 256),
    (37, 33, 513),
    (12, 513, 33),
]


# ---------------------------------------------------------------------------------------------------------
# Products


def assert_product(xs: list[Tensor], ms: list[Tensor]) -> None:
    truth = torch.stack([x.double() @ m.double() for x, m in zip(xs, ms, strict=True)]).sum(0)
    result = product(xs, ms)
    assert result.dtype == xs[0].dtype
    assert_near(result, truth)


@pytest.mark.parametrize(("rows", "depth", "columns"), SIZES, ids=str)
def test_product(each_implementation: str, rows: int, depth: int, columns: int) -> None:
    for dtype in DTYPES:
        x, m = normal(rows, depth, seed="x", dtype=dtype), normal(depth, columns, seed="m", dtype=dtype)
        by_columns = m.T.contiguous().T
        assert_product([x], [m])
        assert_product([x], [by_columns])
        assert_product([x, -2 * x, x], [m, by_columns, 3 * m])
        assert_product([x, -2 * x, x], [by_columns, m, 3 * by_columns])


def test_known_product(each_implementation: str) -> None:
    x, m = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 1.0, 0.0], [100.0, 0.0, 7.0]])
    assert product([x], [m]).tolist() == [[210.0, 1.0, 14.0]]
    assert product([x, x], [m, m.T.contiguous().T]).tolist() == [[420.0, 2.0, 28.0]]


@pytest.mark.parametrize(("rows", "depth", "columns"), [(20, 9000, 40), (700, 500, 100), (40, 700, 300)])
def test_products_in_pieces(each_implementation: str, rows: int, depth: int, columns: int) -> None:
    x, m = normal(rows, depth, dtype=torch.float32), normal(depth, columns, dtype=torch.float32)
    assert_product([x], [m])
    assert_product([x], [m.T.contiguous().T])


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_different_depths(each_implementation: str, dtype: torch.dtype) -> None:
    depths = (3, 0, 70, 1)
    xs = [normal(18, depth, seed=i, dtype=dtype) for i, depth in enumerate(depths)]
    ms = [normal(37, depth, seed=-i, dtype=dtype).T for i, depth in enumerate(depths)]
    assert_product(xs, ms)
    assert_product(xs, [m.contiguous() if i % 2 else m for i, m in enumerate(ms)])


def test_product_of_views(each_implementation: str) -> None:
    matrix = normal(80, 140)
    views = {
        "parts of rows": matrix[3:43, 5:75],
        "parts of columns": matrix.T[3:43, 5:75],
        "every other entry": matrix[::2, ::2],
        "one row for all": matrix[:1, :70].expand(40, 70),
        "one column for all": matrix[:40, :1].expand(40, 70),
    }
    for x in views.values():
        for m in views.values():
            assert_product([x], [m.T])
            assert_product([x.T], [m])


def test_a_product_does_not_depend_on_how_the_matrix_lies(each_implementation: str) -> None:
    x, m = normal(19, 3000, dtype=torch.float32), normal(3000, 150, dtype=torch.float32)
    if each_implementation != "torch":
        assert torch.equal(product([x], [m]), product([x], [m.T.contiguous().T]))


def test_nan_stays_in_its_row_or_column(each_implementation: str) -> None:
    x, m = normal(20, 40), normal(40, 50)
    x[3, 7] = math.nan
    assert torch.equal(product([x], [m]).isnan().any(1), torch.arange(20) == 3)
    assert torch.equal(product([x], [m.T.contiguous().T]).isnan().any(1), torch.arange(20) == 3)
    m[5, 49] = math.inf
    assert torch.equal(product([x[4:]], [m]).isfinite().all(0), torch.arange(50) != 49)


# ---------------------------------------------------------------------------------------------------------
# Products with panels


def assert_panel_product(xs: list[Tensor], ms: list[Tensor], *, transposed: bool = False) -> None:
    read = [m.double().T if transposed else m.double() for m in ms]
    truth = torch.stack([x.double() @ m for x, m in zip(xs, read, strict=True)]).sum(0)
    result = panel_product(xs, [panels(m) for m in ms], ms[0].shape[1], transposed=transposed)
    assert result.dtype == xs[0].dtype
    assert_near(result, truth)


def thinned(x: Tensor, kept: float) -> Tensor:
    """Return x with zeros in place of all but a share of its entries, as behind a ReLU."""
    drawn = torch.rand(x.shape, generator=generator("thinned", *x.shape, kept), dtype=torch.float64)
    return torch.where(drawn < kept, x, 0)


def test_known_panels() -> None:
    matrix = torch.arange(2.0 * 65).view(2, 65)
    cut = panels(matrix)
    assert cut.shape == (2, 2, PANEL)
    assert cut[0, 1].tolist() == list(range(65, 129))
    assert cut[1].sum(1).tolist() == [64.0, 129.0]
    assert cut[1, :, 0].tolist() == [64.0, 129.0]
    assert torch.equal(panels(matrix.T.contiguous().T), cut)


@pytest.mark.parametrize(("rows", "depth", "columns"), SIZES, ids=str)
def test_panel_product(each_implementation: str, rows: int, depth: int, columns: int) -> None:
    for dtype, kept in (
        (torch.float32, 1.0),
        (torch.float32, 0.5),
        (torch.float64, 0.5),
        (torch.float64, 0.0),
    ):
        m = normal(depth, columns, seed="m", dtype=dtype)
        x = thinned(normal(rows, depth, seed="x", dtype=dtype), kept)
        z = thinned(normal(rows, columns, seed="z", dtype=dtype), kept)
        assert_panel_product([x], [m])
        assert_panel_product([x, -2 * x, x], [m, 3 * m, m.T.contiguous().T])
        assert_panel_product([z], [m], transposed=True)
        assert_panel_product([z, -2 * z, z], [m, 3 * m, m.T.contiguous().T], transposed=True)


@pytest.mark.parametrize("kept", [1.0, 0.3])
def test_panel_products_of_different_depths_and_of_views(each_implementation: str, kept: float) -> None:
    matrix = thinned(normal(80, 140, dtype=torch.float32), kept)
    xs = [matrix[3:21, 5:75], matrix.T[:18, :9], matrix[:36:2, ::2], matrix[:1, :70].expand(18, 70)]
    assert_panel_product(xs, [normal(x.shape[1], 90, seed=i, dtype=torch.float32) for i, x in enumerate(xs)])
    for x in xs:
        assert_panel_product([x], [normal(40, x.shape[1], dtype=torch.float32)], transposed=True)
    cut = panels(normal(18, 200)).float()
    spread = torch.stack([cut, cut], -1)[..., 0]
    for transposed, x in (
        (False, matrix[:20, :18]),
        (True, thinned(normal(20, 200, dtype=torch.float32), kept)),
    ):
        expected = panel_product([x], [cut], 200, transposed=transposed)
        assert torch.equal(panel_product([x], [spread], 200, transposed=transposed), expected)


def test_zeros_are_skipped_and_nan_stays_in_its_row(each_implementation: str) -> None:
    x, m = thinned(normal(20, 100), 0.5), normal(100, 150)
    for rows, transposed in ((x, False), (normal(20, 150), True)):
        rows[3, 7] = math.nan
        result = panel_product([rows], [panels(m)], 150, transposed=transposed)
        assert torch.equal(result.isnan().all(1), torch.arange(20) == 3)
        assert torch.equal(result.isnan().any(1), torch.arange(20) == 3)


# ---------------------------------------------------------------------------------------------------------
# Bad input

M = normal(8, 5)
CUT = panels(M)


def product_with(xs: list[Tensor], ms: list[Tensor]) -> Callable[[], Any]:
    return lambda: product(xs, ms)


def panels_with(
    xs: list[Tensor], cut: list[Tensor], columns: int, transposed: bool = False
) -> Callable[[], Any]:
    return lambda: panel_product(xs, cut, columns, transposed=transposed)


BAD_INPUTS: list[tuple[Callable[[], Any], str]] = [
    (product_with([], []), "expected as many xs as ms, at least one, got 0 and 0"),
    (product_with([M], [M.T, M.T]), "got 1 and 2"),
    (product_with([M[0]], [M]), "expected xs[0] to be a matrix, got shape (5,)"),
    (product_with([M], [M[None]]), "expected ms[0] to be a matrix, got shape (1, 8, 5)"),
    (product_with([M.int()], [M.T]), "expected xs[0] "),
    (product_with([M], [M]), "expected ms[0] of shape (5, 5), got (8, 5); as many rows as xs has columns"),
    (product_with([M, M[:7]], [M.T, M.T]), "expected xs[1] of shape (8, 5), got (7, 5)"),
    (product_with([M, M], [M.T, M.T[:, 1:]]), "expected ms[1] of shape (5, 8), got (5, 7)"),
    (product_with([M], [M.T.float()]), "expected ms[0] of dtype torch.float64 like xs[0]"),
    (lambda: panels(M[0]), "panels: expected a matrix, got shape (5,)"),
    (panels_with([], [], 5), "expected as many xs as panels, at least one, got 0 and 0"),
    (panels_with([M], [CUT], -1), "panel_product: expected columns >= 0, got -1"),
    (panels_with([M[0]], [CUT], 5), "panel_product: expected xs[0] to be a matrix, got shape (5,)"),
    (panels_with([M], [M], 5), "expected panels[0] to have 3 axes, got shape (8, 5)"),
    (panels_with([M], [CUT], 5), "expected xs[0] of shape (8, 8), got (8, 5); all xs need as many rows"),
    (panels_with([M], [CUT], 4, transposed=True), "expected xs[0] of shape (8, 4), got (8, 5)"),
    (panels_with([M], [CUT], 5 + PANEL), "expected xs[0] of shape (8, 8)"),
    (
        panels_with([M.T], [CUT], 65),
        "expected panels[0] of shape (2, 8, 64), got (1, 8, 64); vleak.native.panels cuts",
    ),
    (panels_with([M, M], [CUT, CUT[:, 1:]], 5, transposed=True), "expected panels[1] of shape (1, 8, 64)"),
    (panels_with([M.T], [CUT.float()], 5), "expected panels[0] of dtype torch.float64 like xs[0]"),
]


@pytest.mark.parametrize(("call", "message"), BAD_INPUTS, ids=[message[:60] for _, message in BAD_INPUTS])
def test_bad_input_is_refused(implementation: str, call: Callable[[], Any], message: str) -> None:
    assert_refused(call, message)
