"""Sums of products with matrices that are stored in panels, as an operator without autograd.

Native results do not depend on the number of threads. They may differ between instruction sets in the last
digits, because products and sums are fused where the machine can.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.native.backend import call_without_autograd
from vleak.native.checks import check_axes_count, check_like, check_pair_count, check_tensor
from vleak.native.declare import declare
from vleak.native.product import plain_product

__all__ = ["PANEL", "panel_product", "panels"]

#: Columns of a panel; csrc/kernels/tile.h has the same number.
PANEL = 64


def panels(matrix: Tensor) -> Tensor:
    """Panels of columns of a matrix, for :func:`panel_product`; worth it for a matrix that is used often.

    Args:
        matrix: (depth, columns), any strides.

    Returns:
        (panels, depth, PANEL), contiguous. Column c of the matrix is column c % PANEL of panel c // PANEL;
        the last panel is padded with zeros.

    Raises:
        InputError: it is no matrix.
    """
    if matrix.ndim != 2:
        raise InputError(f"panels: expected a matrix, got shape {tuple(matrix.shape)}")
    depth, columns = matrix.shape
    count = -(-columns // PANEL)
    padded = torch.constant_pad_nd(matrix, [0, count * PANEL - columns])
    return padded.view(depth, count, PANEL).permute(1, 0, 2).contiguous()


def panel_product(
    xs: Sequence[Tensor], panels: Sequence[Tensor], columns: int, *, transposed: bool = False
) -> Tensor:
    """Sum of products with matrices in panels: y = sum over i of x_i @ m_i, or of x_i @ m_i.T.

    Where many entries of xs are zero, as those of a gradient behind a ReLU, only the others are multiplied:
    zero times infinity counts as zero. Transposed, all entries are multiplied.

    Args:
        xs: (rows, depth_i) each, transposed (rows, columns); any strides; float32 or float64.
        panels: as many matrices (depth_i, columns), as :func:`panels` returns them, with zeros at the end of
            the last panel; transposed, all of one depth.
        columns: columns of the matrices, which the padded panels do not tell.
        transposed: multiply with the transposed matrices.

    Returns:
        (rows, columns), transposed (rows, depth), contiguous. Nothing is recorded for autograd.

    Raises:
        InputError: lists of different lengths, or shapes, dtypes or devices that disagree.
    """
    xs, panels = list(xs), list(panels)
    _check(xs, panels, columns, transposed)
    return call_without_autograd("panel_product", xs[0].device, xs, panels, columns, transposed)


def _check(xs: list[Tensor], panels: list[Tensor], columns: int, transposed: bool) -> None:
    op = "panel_product"
    check_pair_count(op, ("xs", "panels"), xs, panels)
    check_tensor(op, "xs[0]", xs[0])
    if columns < 0:
        raise InputError(f"{op}: expected columns >= 0, got {columns}")
    for name, tensors, axes in (("xs", xs, 2), ("panels", panels, 3)):
        for index, tensor in enumerate(tensors):
            check_axes_count(op, f"{name}[{index}]", tensor, axes)
    for index, (x, m) in enumerate(zip(xs, panels, strict=True)):
        depth = (panels[0] if transposed else m).shape[1]
        x_shape = (xs[0].shape[0], columns if transposed else depth)
        advice = "all xs need as many rows, and one column per row of the matrix (transposed: per column)"
        check_like(op, f"xs[{index}]", x, "xs[0]", xs[0], x_shape, advice)
        advice = "vleak.native.panels cuts a matrix into panels"
        m_shape = (-(-columns // PANEL), depth, PANEL)
        check_like(op, f"panels[{index}]", m, "xs[0]", xs[0], m_shape, advice)


def _matrix(panels: Tensor, columns: int) -> Tensor:
    """The matrix that was cut into panels."""
    count, depth, _ = panels.shape
    return panels.permute(1, 0, 2).reshape(depth, count * PANEL)[:, :columns]


def _plain(xs: list[Tensor], panels: list[Tensor], columns: int, transposed: bool) -> Tensor:
    # A call without any tensor arrives here unchecked.
    check_pair_count("panel_product", ("xs", "panels"), xs, panels)
    matrices = [_matrix(m, columns) for m in panels]
    return plain_product(xs, [m.t() for m in matrices] if transposed else matrices)


def _fake(xs: list[Tensor], panels: list[Tensor], columns: int, transposed: bool) -> Tensor:
    _check(xs, panels, columns, transposed)
    return xs[0].new_empty(xs[0].shape[0], panels[0].shape[1] if transposed else columns)


declare(
    "panel_product",
    "(Tensor[] xs, Tensor[] panels, int columns, bool transposed) -> Tensor",
    _plain,
    _fake,
)
