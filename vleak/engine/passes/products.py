"""Products of rows with matrices that stay the same over all iterations, packed once."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

import vleak.bilinear  # noqa: F401 (declares the operators)
from vleak.engine.capture import Capture, mutated
from vleak.engine.passes.rewrite import (
    aten,
    calls,
    emit,
    is_term,
    substitute,
    terms_of_sums,
    value,
)

#: Rows, and multiplications, from which packing pays: below, the call itself costs more than it saves.
_ROWS, _WORK = 4, 1 << 19


def products(capture: Capture) -> None:
    """Call vleak.product where the right matrix is fixed, on a CPU in float32; numbers agree to rounding.

    x m + y n, both matrices fixed, becomes (x y) times (m over n); what else is added up is so as it is made.
    """
    graph = capture.graph.graph
    if capture.device.type != "cpu":
        return
    constant = constants(capture)
    for root, terms in terms_of_sums(graph):
        if value(root).ndim == 2:
            _add_up(root, terms, constant)
    for node in list(graph.nodes):
        if _packable([node], constant):
            with graph.inserting_before(node):
                substitute(node, _packed(graph, [node]))
        elif calls(node, aten.addmm.default) and not node.kwargs:
            _split_bias(node, constant)


def constants(capture: Capture) -> set[Node]:
    """Return the nodes that depend on fixed inputs alone, or on none."""
    graph = capture.graph.graph
    named = zip(graph.find_nodes(op="placeholder"), capture.inputs, strict=True)
    found = {node for node, name in named if name in capture.fixed}
    changed = {each for node in graph.nodes for each in mutated(node)}
    for node in graph.nodes:
        kept = node.op == "get_attr" or (
            node.op == "call_function" and found.issuperset(node.all_input_nodes)
        )
        if kept and node not in changed and not mutated(node):
            found.add(node)
    return found


def _packable(terms: list[Node], constant: set[Node]) -> bool:
    """Tell whether products of one shape are each of rows that change with a matrix that does not."""
    if not all(calls(term, aten.mm.default) and term.args[1] in constant for term in terms):
        return False
    if any(term.args[0] in constant for term in terms):
        return False
    made = value(terms[0])
    work = sum(value(term.args[0]).shape[1] for term in terms) * made.numel()
    return made.dtype == torch.float32 and made.shape[0] >= _ROWS and work >= _WORK


def _packed(graph: Graph, terms: list[Node]) -> Node:
    """Add the sum of products with fixed matrices, as one."""
    rows: list[Any] = [term.args[0] for term in terms]
    matrices = [_transposed(graph, term.args[1]) for term in terms]
    x = rows[0] if len(rows) == 1 else emit(graph, aten.cat.default, rows, 1)
    matrix = matrices[0] if len(rows) == 1 else emit(graph, aten.cat.default, matrices, 1)
    packed = emit(graph, torch.ops.vleak.pack_rows.default, matrix)
    made: Node = emit(graph, torch.ops.vleak.product.default, x, packed, value(matrix).shape[0])
    return made


def _transposed(graph: Graph, matrix: Any) -> Node:
    made: Node = matrix.args[0] if calls(matrix, aten.t.default) else emit(graph, aten.t.default, matrix)
    return made


def _split_bias(node: Node, constant: set[Node]) -> None:
    graph = node.graph
    bias, rows, matrix = node.args
    with graph.inserting_before(node):
        made = emit(graph, aten.mm.default, rows, matrix)
        if _packable([made], constant):
            substitute(node, emit(graph, aten.add.Tensor, _packed(graph, [made]), bias))


def _add_up(root: Node, terms: list[Node], constant: set[Node]) -> None:
    products = [term for term in terms if calls(term, aten.mm.default) and is_term(term)]
    if not products or len(terms) < 2:
        return
    graph = root.graph
    fixed = [term for term in products if term.args[1] in constant and term.args[0] not in constant]
    others = [term for term in terms if term not in products]
    with graph.inserting_before(root):
        if len(fixed) > 1 and _packable(fixed, constant):
            others.append(_packed(graph, fixed))
            products = [term for term in products if term not in fixed]
        total = others[0] if others else products.pop()
        for term in others[1:]:
            total = emit(graph, aten.add.Tensor, total, term)
        for term in products:
            if _packable([term], constant):
                total = emit(graph, aten.add.Tensor, total, term)
            else:
                total = emit(graph, aten.addmm.default, total, *term.args)
    substitute(root, total)
