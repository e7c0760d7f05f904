"""Pass that matches gradients of wide linear layers on few rows by their factors, without computing them.

Such a gradient is g = d^T x for n rows d (n, out) and x (n, in). The match and its derivative need only
products with d and x: <g, t> = sum(d * (x t^T)), |g|^2 = sum((d d^T) * (x x^T)), and for any rows z,
z g = (z d^T) x and z g^T = (z x^T) d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from vleak.descent.capture import Capture
from vleak.descent.memory import Memory
from vleak.descent.passes.editing import aten, calls, emit, parts, substitute, total, value
from vleak.descent.passes.simplify import sweep

__all__ = ["low_rank"]

#: Number of entries from which a gradient is not computed.
_LARGE = 1 << 17
#: Largest number of entries in one sum on a CPU, where PyTorch first converts all of them to float64.
_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class _Factored:
    """Gradient rows^T columns, its target, and the products that read its residual."""

    rows: Node
    columns: Node
    target: Node
    products: list[Node]


def low_rank(capture: Capture) -> None:
    """Match the gradients of wide linear layers on few rows by their factors; results agree to rounding."""
    graph = capture.graph.graph
    for match in graph.find_nodes(op="call_function", target=torch.ops.vleak.gradient_match.default):
        _scale_factors(match)
        gradients, targets, masks = _lists(match)
        factored_gradients = {} if masks else _factors(match, gradients, targets)
        if len(factored_gradients) == len(gradients):  # the operator takes at least one gradient
            factored_gradients.pop(min(factored_gradients, key=lambda index: value(gradients[index]).numel()))
        if factored_gradients:
            _match_in_parts(match, factored_gradients, at_once=capture.device.type != "cpu")
    sweep(graph)  # merges products with the target, which the match and its derivative share


# ---------------------------------------------------------------------------------------------------------
# Conditions


def _lists(match: Any) -> tuple[list[Node], list[Node], list[Node]]:
    gradients, targets, masks, _ = match.args
    return gradients, targets, masks


def _factors(match: Node, gradients: list[Node], targets: list[Node]) -> dict[int, _Factored]:
    residuals, stable = _residuals(match), Memory(match.graph).unchanged()
    factored_gradients = {}
    for index, (gradient, target) in enumerate(zip(gradients, targets, strict=True)):
        factors = _few_rows(gradient)
        products = _products(residuals[index]) if index in residuals else []
        # The factors and the target are now read later than the gradient was.
        if factors is not None and products is not None and stable.issuperset((*factors, target)):
            factored_gradients[index] = _Factored(*factors, target, products)
    return factored_gradients


def _residuals(match: Node) -> dict[int, Node]:
    both = parts(match)
    return parts(both[1]) if 1 in both else {}


def _few_rows(gradient: Any) -> tuple[Node, Node] | None:
    """Return d and x of a gradient d^T x if they are much smaller and only the match reads the gradient."""
    if not calls(gradient, aten.mm.default) or not calls(gradient.args[0], aten.t.default):
        return None
    if len(gradient.users) != 1:
        return None
    rows, columns = gradient.args[0].args[0], gradient.args[1]
    (count, out), entries = value(rows).shape, value(gradient).numel()
    small = 4 * count * (out + value(columns).shape[1]) <= entries
    return (rows, columns) if small and entries >= _LARGE else None


def _products(residual: Node) -> list[Node] | None:
    """Return the matrix products of a residual; None if anything else reads it."""
    products = []
    for user in residual.users:
        inner = _products(user) if calls(user, aten.t.default) else [user]
        if inner is None or not all(calls(product, aten.mm.default) for product in inner):
            return None
        products += inner
    return products


# ---------------------------------------------------------------------------------------------------------
# Scales


def _scale_factors(match: Node) -> None:
    """Scale d in place of d^T x where the match reads s d^T x, and what the residual's products make of r."""
    residuals = _residuals(match)
    for index, scaled in enumerate(_lists(match)[0]):
        residual = residuals.get(index)
        if not _is_scaled(scaled) or (factors := _few_rows(scaled.args[0])) is None:
            continue
        again = [] if residual is None else list(residual.users)
        products = [_products(user) if _is_scaled(user) else None for user in again]
        if None not in products:
            _scale_rows(scaled, *factors)
            for user, read in zip(again, products, strict=True):
                _scale_products(user, read or [])


def _is_scaled(node: Any) -> bool:
    """Return whether a node is a tensor times a number that is itself a tensor."""
    if not calls(node, aten.mul.Tensor) or not isinstance(node.args[1], Node):
        return False
    return value(node.args[1]).ndim == 0


def _scale_rows(scaled: Any, rows: Node, columns: Node) -> None:
    graph = scaled.graph
    with graph.inserting_before(scaled):
        few = emit(graph, aten.t.default, emit(graph, aten.mul.Tensor, rows, scaled.args[1]))
        substitute(scaled, emit(graph, aten.mm.default, few, columns))


def _scale_products(scaled: Any, products: list[Node]) -> None:
    scale = scaled.args[1]
    substitute(scaled, scaled.args[0])
    for product in products:
        with product.graph.inserting_after(product):
            after = emit(product.graph, aten.mul.Tensor, product, scale)
        for user in [user for user in product.users if user is not after]:
            user.replace_input_with(product, after)


# ---------------------------------------------------------------------------------------------------------
# Replacement


def _match_in_parts(match: Any, factored_gradients: dict[int, _Factored], *, at_once: bool) -> None:
    gradients, targets, _, kind = match.args
    graph = match.graph
    kept = [index for index in range(len(gradients)) if index not in factored_gradients]
    with graph.inserting_before(match):
        sums = _sums(graph, list(factored_gradients.values()), kind, at_once)
        lists = [gradients[index] for index in kept], [targets[index] for index in kept]
        partial = torch.ops.vleak.gradient_match_partial.default
        distance, residuals, factors = emit(graph, partial, *lists, [], sums, kind)
        scales = [emit(graph, aten.select.int, factors, 0, index) for index in (0, 1)]
    old = _residuals(match)
    for factored in factored_gradients.values():
        for product in factored.products:
            _multiply(product, factored, scales, old)
    for index, residual in zip(kept, residuals, strict=True):
        if index in old:
            substitute(old[index], residual)
    substitute(parts(match)[0], distance)


def _sums(graph: Graph, factored_gradients: list[_Factored], kind: str, at_once: bool) -> Node:
    """Return <g, t> (of l2: |g - t|^2), |g|^2 and |t|^2 over all factored gradients, in float64."""
    sums = [_three_sums(graph, factored, at_once) for factored in factored_gradients]
    dot, of_gradient, of_target = (total(graph, list(column)) for column in zip(*sums, strict=True))
    if kind == "l2":
        twice = emit(graph, aten.mul.Tensor, dot, 2.0)
        squares = emit(graph, aten.add.Tensor, of_gradient, of_target)
        gap = emit(graph, aten.clamp_min.default, emit(graph, aten.sub.Tensor, squares, twice), 0.0)
        zero = emit(graph, aten.zeros_like.default, gap)
        dot, of_gradient, of_target = gap, zero, zero
    result: Node = emit(graph, aten.stack.default, [dot, of_gradient, of_target])
    return result


def _three_sums(graph: Graph, factored: _Factored, at_once: bool) -> tuple[Node, Node, Node]:
    rows, columns, target = factored.rows, factored.columns, factored.target
    against = _transposed_product(graph, columns, target)
    squares = _transposed_product(graph, rows, rows), _transposed_product(graph, columns, columns)
    return _dot(graph, rows, against), _dot(graph, *squares), _square(graph, target, at_once)


def _transposed_product(graph: Graph, left: Node, right: Node) -> Node:
    result: Node = emit(graph, aten.mm.default, left, emit(graph, aten.t.default, right))
    return result


def _dot(graph: Graph, left: Node, right: Node) -> Node:
    multiplied = emit(graph, aten.mul.Tensor, left, right)
    result: Node = emit(graph, aten.sum.default, multiplied, dtype=torch.float64)
    return result


def _square(graph: Graph, target: Node, at_once: bool) -> Node:
    """Return |t|^2, as one sum or as a sum over pieces."""
    count = value(target).numel()
    if at_once or count <= _AT_ONCE:
        return _dot(graph, target, target)
    flat = emit(graph, aten.reshape.default, target, [-1])
    pieces = [
        emit(graph, aten.slice.Tensor, flat, 0, start, min(start + _AT_ONCE, count))
        for start in range(0, count, _AT_ONCE)
    ]
    return total(graph, [_dot(graph, piece, piece) for piece in pieces])


def _multiply(product: Any, factored: _Factored, scales: list[Node], residuals: dict[int, Node]) -> None:
    """Replace a product that has a residual, or its transpose, on either side."""
    graph = product.graph
    left, right = product.args
    on_the_right = _untransposed(right)[0] in residuals.values()
    turned = _untransposed(right if on_the_right else left)[1]
    with graph.inserting_before(product):
        if on_the_right:
            result = _rows_by_residual(graph, left, factored, turned, scales)
        else:  # r y = (y^T r^T)^T
            rows = emit(graph, aten.t.default, right)
            result = _rows_by_residual(graph, rows, factored, not turned, scales)
            result = emit(graph, aten.t.default, result)
    substitute(product, result)


def _untransposed(node: Any) -> tuple[Any, bool]:
    turned = False
    while calls(node, aten.t.default):
        node, turned = node.args[0], not turned
    return node, turned


def _rows_by_residual(graph: Graph, z: Node, factored: _Factored, turned: bool, scales: list[Node]) -> Node:
    """Return z r, or z r^T if turned, for r = scales[0] g + scales[1] t."""
    near, far = (factored.columns, factored.rows) if turned else (factored.rows, factored.columns)
    inner = emit(graph, aten.mul.Tensor, _transposed_product(graph, z, near), scales[0])
    of_gradient = emit(graph, aten.mm.default, inner, far)
    if turned and z is near:  # the match needs x t^T too
        of_target = emit(graph, aten.mul.Tensor, _transposed_product(graph, z, factored.target), scales[1])
    else:
        target = emit(graph, aten.t.default, factored.target) if turned else factored.target
        of_target = emit(graph, aten.mm.default, emit(graph, aten.mul.Tensor, z, scales[1]), target)
    result: Node = emit(graph, aten.add.Tensor, of_target, of_gradient)
    return result
