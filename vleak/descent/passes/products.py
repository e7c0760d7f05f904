"""Pass that calls vleak's kernel for products of few rows with large matrices, which reads them once."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from vleak.descent.capture import Capture
from vleak.descent.memory import Memory
from vleak.descent.passes.editing import (
    aten,
    calls,
    emit,
    is_term,
    substitute,
    terms_of_sums,
    total,
    value,
)
from vleak.native.bilinear import PANEL

__all__ = ["products"]

#: Number of rows, columns and multiplications from which vleak's kernel is faster.
_ROWS, _COLUMNS, _WORK = 4, 16, 1 << 19
#: Number of rows from which PyTorch's, which packs both factors, is faster.
_MANY_ROWS = 128
#: Number of entries from which copying a fixed matrix into panels pays off.
_FAR = 1 << 18


def products(capture: Capture) -> None:
    """Call vleak.product for all matrix products that are large enough, on a CPU in float32.

    x m + y n is one call; remaining addends are accumulated in place. Large fixed matrices are copied
    into panels once. Results agree to rounding.
    """
    graph = capture.graph.graph
    if capture.device.type != "cpu":
        return
    for root, terms in terms_of_sums(graph):
        if value(root).ndim == 2:
            _add_up(root, terms)
    for node in list(graph.nodes):
        if _worthwhile([node]):
            with graph.inserting_before(node):
                substitute(node, _product(graph, [node]))
        elif calls(node, aten.addmm.default) and not node.kwargs:
            _split_bias(node)
    _cut_fixed(capture)


def _worthwhile(terms: list[Node]) -> bool:
    """Return whether products of one shape are together large enough for vleak's kernel."""
    if not all(calls(term, aten.mm.default) for term in terms):
        return False
    result = value(terms[0])
    work = sum(value(term.args[0]).shape[1] for term in terms) * result.numel()
    enough = _ROWS <= result.shape[0] < _MANY_ROWS and result.shape[1] >= _COLUMNS and work >= _WORK
    return result.dtype == torch.float32 and enough


def _product(graph: Graph, terms: list[Node]) -> Node:
    """Add one call that computes the sum of products, and return it."""
    xs, ms = ([term.args[index] for term in terms] for index in (0, 1))
    result: Node = emit(graph, torch.ops.vleak.product.default, xs, ms)
    return result


def _split_bias(node: Node) -> None:
    graph = node.graph
    bias, rows, matrix = node.args
    with graph.inserting_before(node):
        result = emit(graph, aten.mm.default, rows, matrix)
        if _worthwhile([result]):
            substitute(node, emit(graph, aten.add.Tensor, _product(graph, [result]), bias))


def _add_up(root: Node, terms: list[Node]) -> None:
    products = [term for term in terms if calls(term, aten.mm.default) and is_term(term)]
    if not products or len(terms) < 2:
        return
    graph = root.graph
    others = [term for term in terms if term not in products]
    with graph.inserting_before(root):
        if _worthwhile(products):
            others.append(_product(graph, products))
            products = []
        result = total(graph, others or [products.pop()])
        for term in products:
            result = emit(graph, aten.addmm.default, result, *term.args)
    substitute(root, result)


def _cut_fixed(capture: Capture) -> None:
    """Replace large fixed matrices in products by their panels, which are computed once.

    One copy in panels serves products with the matrix and with its transpose, and both read it sequentially,
    which the processor prefetches. Without panels one of the two would read a few entries from as many pages
    as the matrix has rows.
    """
    graph = capture.graph.graph
    placeholders = graph.find_nodes(op="placeholder")
    fixed = {node for name, node in zip(capture.inputs, placeholders, strict=True) if name in capture.fixed}
    stable = (fixed | set(graph.find_nodes(op="get_attr"))) & Memory(graph).unchanged()
    panels_of: dict[Node, Node] = {}
    for node in graph.find_nodes(op="call_function", target=torch.ops.vleak.product.default):
        plain, turned, others = _sorted_by_matrix(node, stable)
        if not plain and not turned:
            continue
        with graph.inserting_before(node):
            both = ((plain, False), (turned, True))
            results = [
                _panel_product(graph, pairs, transposed, panels_of) for pairs, transposed in both if pairs
            ]
            if others:
                rows, matrices = zip(*others, strict=True)
                results.append(emit(graph, torch.ops.vleak.product.default, list(rows), list(matrices)))
            substitute(node, total(graph, results))


_Pairs = list[tuple[Node, Node]]
"""Rows, and the matrix that they are multiplied by, transposed or not."""


def _sorted_by_matrix(product: Any, stable: set[Node]) -> tuple[_Pairs, _Pairs, _Pairs]:
    """Return the pairs of a product: with large fixed matrices, with their transposes, and the others."""
    plain, turned, others = _Pairs(), _Pairs(), _Pairs()
    for rows, m in zip(*product.args, strict=True):
        transposed = calls(m, aten.t.default)
        matrix = m.args[0] if transposed else m
        if matrix in stable and value(matrix).numel() >= _FAR:
            (turned if transposed else plain).append((rows, matrix))
        else:
            others.append((rows, m))
    return plain, turned, others


def _panel_product(graph: Graph, pairs: _Pairs, turned: bool, panels_of: dict[Node, Node]) -> Node:
    for _, matrix in pairs:
        if matrix not in panels_of:
            panels_of[matrix] = _panels(graph, matrix)
    cut, columns = [panels_of[matrix] for _, matrix in pairs], value(pairs[0][1]).shape[1]
    arguments = ([rows for rows, _ in pairs], cut, columns, turned)
    result: Node = emit(graph, torch.ops.vleak.panel_product.default, *arguments)
    return result


def _panels(graph: Graph, matrix: Node) -> Node:
    """Add the panels of a matrix, laid out as by `vleak.native.bilinear.panels`."""
    depth, columns = value(matrix).shape
    count = -(-columns // PANEL)
    missing = count * PANEL - columns
    filled = emit(graph, aten.constant_pad_nd.default, matrix, [0, missing]) if missing else matrix
    split = emit(graph, aten.reshape.default, filled, [depth, count, PANEL])
    turned = emit(graph, aten.permute.default, split, [1, 0, 2])
    result: Node = emit(graph, aten.clone.default, turned, memory_format=torch.contiguous_format)
    return result
