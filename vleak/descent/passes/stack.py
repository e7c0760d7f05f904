"""Pass that merges matrix products over time: sums of outer products, and rows times the same matrix."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch.fx import Graph, Node

from vleak.descent.capture import Capture
from vleak.descent.memory import Memory
from vleak.descent.passes.editing import (
    aten,
    calls,
    drop_dead,
    emit,
    substitute,
    terms_of_sums,
    total,
    value,
)

__all__ = ["stack"]

#: Number of products from which a single one with concatenated operands is cheaper.
_MANY = 3


def stack(capture: Capture) -> None:
    """Merge the many small products of a recurrent network into single ones; results agree to rounding."""
    graph = capture.graph.graph
    for root, terms in terms_of_sums(graph):
        _sum_outer_products(root, terms)
    drop_dead(graph)
    _batch_rows(graph)


def _sum_outer_products(root: Node, terms: list[Node]) -> None:
    """Replace a1 b1 + a2 b2 + ... by (a1 a2 ...) (b1 b2 ...), for a with few columns and b with few rows."""
    outer: list[Any] = [term for term in terms if _is_outer(term)]
    if len(outer) < _MANY:
        return
    graph = root.graph
    with graph.inserting_before(root):
        left = _columns([term.args[0] for term in outer], graph)
        right = emit(graph, aten.cat.default, [term.args[1] for term in outer])
        product = emit(graph, aten.mm.default, left, right)
        result = total(graph, [product, *(term for term in terms if term not in outer)])
    substitute(root, result)


def _is_outer(term: Any) -> bool:
    if not calls(term, aten.mm.default) or len(term.users) != 1:
        return False
    (rows, inner), columns = value(term.args[0]).shape, value(term).shape[1]
    return 2 * inner * (rows + columns) <= rows * columns


def _columns(parts: list[Any], graph: Graph) -> Any:
    """Concatenate matrices along columns; transposed ones along rows, which other products may share."""
    if all(calls(part, aten.t.default) for part in parts):
        return emit(graph, aten.t.default, emit(graph, aten.cat.default, [part.args[0] for part in parts]))
    return emit(graph, aten.cat.default, parts, 1)


def _batch_rows(graph: Graph) -> None:
    """Multiply all rows by a matrix in one product if the matrix is computed after all of them."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    stable = Memory(graph).unchanged()
    groups: dict[Node, list[Node]] = defaultdict(list)
    for node in graph.find_nodes(op="call_function", target=aten.mm.default):
        rows, matrix = node.args
        if order[rows] < order[matrix] and matrix.op == "call_function" and stable >= {rows, matrix, node}:
            groups[matrix].append(node)
    for matrix, products in groups.items():
        if len(products) >= _MANY:
            _multiply_together(matrix, sorted(products, key=lambda node: order[node.args[0]]))


def _multiply_together(matrix: Node, products: list[Node]) -> None:
    graph = matrix.graph
    with graph.inserting_after(matrix):
        anchor = graph.call_function(aten.detach.default, (matrix,))
    with graph.inserting_before(anchor):
        rows = emit(graph, aten.cat.default, [node.args[0] for node in products])
        product = emit(graph, aten.mm.default, rows, matrix)
        sizes = [value(node).shape[0] for node in products]
        parts = emit(graph, aten.split_with_sizes.default, product, sizes)
    graph.erase_node(anchor)
    for node, part in zip(products, parts, strict=True):
        substitute(node, part)
