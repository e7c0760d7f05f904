"""Pass that calls vleak's own kernel for products of few rows with large matrices, which it reads once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from vleak.descent.capture import Capture
from vleak.descent.passes.editing import (
    aten,
    calls,
    emit,
    is_term,
    substitute,
    terms_of_sums,
    total,
    unchanged,
    value,
)
from vleak.native.bilinear import PANEL

__all__ = ["products"]

#: Rows, columns and multiplications from which our kernel is faster.
_ROWS, _COLUMNS, _WORK = 4, 16, 1 << 19
#: Entries from which a fixed matrix is worth a copy that is read faster.
_FAR = 1 << 18


def products(capture: Capture) -> None:
    """Call vleak.product, on a CPU in float32, for all matrix products that are not small.

    x m + y n is one call; remaining addends are accumulated in place. Large matrices that stay the same
    are copied once, into panels. Numbers agree to rounding.
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
    """Tell whether products of one shape are large enough together."""
    if not all(calls(term, aten.mm.default) for term in terms):
        return False
    result = value(terms[0])
    work = sum(value(term.args[0]).shape[1] for term in terms) * result.numel()
    enough = result.shape[0] >= _ROWS and result.shape[1] >= _COLUMNS and work >= _WORK
    return result.dtype == torch.float32 and enough


def _product(graph: Graph, terms: list[Node]) -> Node:
    """Add the sum of products, as one."""
    xs, ms = ([term.args[place] for term in terms] for place in (0, 1))
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
    """Let products read large matrices that stay the same from panels, which are cut once.

    One copy serves products with the matrix and with its transpose, and is read from end to end, which the
    processor sees coming; of the matrix itself one of the two reads a few entries of as many pages as it has
    rows.
    """
    graph = capture.graph.graph
    placeholders = graph.find_nodes(op="placeholder")
    fixed = {node for name, node in zip(capture.inputs, placeholders, strict=True) if name in capture.fixed}
    stable = (fixed | set(graph.find_nodes(op="get_attr"))) & unchanged(graph)
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
                results.append(emit(graph, torch.ops.vleak.product.default, *_lists(others)))
            substitute(node, total(graph, results))


@dataclass(frozen=True)
class _Pair:
    """Rows, and the matrix that they are multiplied with, or with whose transpose."""

    rows: Node
    matrix: Node


def _sorted_by_matrix(product: Any, stable: set[Node]) -> tuple[list[_Pair], list[_Pair], list[_Pair]]:
    """Return the pairs of a product with large fixed matrices, with transposes of such, and with others."""
    plain: list[_Pair] = []
    turned: list[_Pair] = []
    others: list[_Pair] = []
    for rows, m in zip(*product.args, strict=True):
        transposed = calls(m, aten.t.default)
        matrix = m.args[0] if transposed else m
        if matrix in stable and value(matrix).numel() >= _FAR:
            (turned if transposed else plain).append(_Pair(rows, matrix))
        else:
            others.append(_Pair(rows, m))
    return plain, turned, others


def _lists(pairs: list[_Pair]) -> tuple[list[Node], list[Node]]:
    return [pair.rows for pair in pairs], [pair.matrix for pair in pairs]


def _panel_product(graph: Graph, pairs: list[_Pair], turned: bool, panels_of: dict[Node, Node]) -> Node:
    for pair in pairs:
        if pair.matrix not in panels_of:
            panels_of[pair.matrix] = _panels(graph, pair.matrix)
    rows, matrices = _lists(pairs)
    arguments = (rows, [panels_of[m] for m in matrices], value(matrices[0]).shape[1], turned)
    result: Node = emit(graph, torch.ops.vleak.panel_product.default, *arguments)
    return result


def _panels(graph: Graph, matrix: Node) -> Node:
    """Cut a matrix as `vleak.native.bilinear.panels` does."""
    depth, columns = value(matrix).shape
    count = -(-columns // PANEL)
    missing = count * PANEL - columns
    filled = emit(graph, aten.constant_pad_nd.default, matrix, [0, missing]) if missing else matrix
    split = emit(graph, aten.reshape.default, filled, [depth, count, PANEL])
    turned = emit(graph, aten.permute.default, split, [1, 0, 2])
    result: Node = emit(graph, aten.clone.default, turned, memory_format=torch.contiguous_format)
    return result
