"""Products of few rows with large matrices, which our own kernel reads once and where they lie."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

import vleak.bilinear  # noqa: F401 (declares the operators)
from vleak.engine.capture import Capture
from vleak.engine.passes.rewrite import (
    aten,
    calls,
    emit,
    is_term,
    settled,
    substitute,
    terms_of_sums,
    value,
)

#: Rows, columns and multiplications from which our kernel is faster.
_ROWS, _COLUMNS, _WORK = 4, 16, 1 << 19
#: Entries from which a fixed matrix is worth a copy that is read faster.
_FAR = 1 << 18


def products(capture: Capture) -> None:
    """Call vleak.product, on a CPU in float32, for all matrix products that are not small.

    x m + y n is one call; what else is added up is so as it is made. Large matrices that stay the same are
    copied once, so that a row of the transpose is contiguous. Numbers agree to rounding.
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
    _turn_fixed(capture)


def _worthwhile(terms: list[Node]) -> bool:
    """Tell whether products of one shape are large enough together."""
    if not all(calls(term, aten.mm.default) for term in terms):
        return False
    made = value(terms[0])
    work = sum(value(term.args[0]).shape[1] for term in terms) * made.numel()
    enough = made.shape[0] >= _ROWS and made.shape[1] >= _COLUMNS and work >= _WORK
    return made.dtype == torch.float32 and enough


def _product(graph: Graph, terms: list[Node]) -> Node:
    """Add the sum of products, as one."""
    xs, ms = ([term.args[place] for term in terms] for place in (0, 1))
    made: Node = emit(graph, torch.ops.vleak.product.default, xs, ms)
    return made


def _split_bias(node: Node) -> None:
    graph = node.graph
    bias, rows, matrix = node.args
    with graph.inserting_before(node):
        made = emit(graph, aten.mm.default, rows, matrix)
        if _worthwhile([made]):
            substitute(node, emit(graph, aten.add.Tensor, _product(graph, [made]), bias))


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
        total = others[0] if others else products.pop()
        for term in others[1:]:
            total = emit(graph, aten.add.Tensor, total, term)
        for term in products:
            total = emit(graph, aten.addmm.default, total, *term.args)
    substitute(root, total)


def _turn_fixed(capture: Capture) -> None:
    """Let products read large matrices that stay the same column by column, from copies made once.

    The kernel goes through a few rows of the transpose at a time, from end to end, which the processor sees
    coming; the rows of the matrix itself it takes a few entries at a time, from as many pages as it has rows.
    """
    graph = capture.graph.graph
    placeholders = graph.find_nodes(op="placeholder")
    fixed = {node for name, node in zip(capture.inputs, placeholders, strict=True) if name in capture.fixed}
    steady = (fixed | set(graph.find_nodes(op="get_attr"))) & settled(graph)
    turned: dict[Node, Node] = {}
    for node in graph.find_nodes(op="call_function", target=torch.ops.vleak.product.default):
        xs, ms = node.args
        for matrix in ms:
            if matrix in steady and matrix not in turned and _lies_in_rows(matrix):
                with graph.inserting_before(node):
                    turned[matrix] = _turned(graph, matrix)
        node.args = (xs, [turned.get(matrix, matrix) for matrix in ms])


def _lies_in_rows(matrix: Node) -> bool:
    made = value(matrix)
    return made.numel() >= _FAR and made.is_contiguous()


def _turned(graph: Graph, matrix: Node) -> Node:
    """Return a matrix of the same entries whose columns are contiguous."""
    transposed = emit(graph, aten.t.default, matrix)
    copied = emit(graph, aten.clone.default, transposed, memory_format=torch.contiguous_format)
    made: Node = emit(graph, aten.t.default, copied)
    return made
