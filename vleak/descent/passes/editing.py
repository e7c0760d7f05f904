"""Editing of captured graphs, shared by the passes: copies, new nodes with shapes, users of a node."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx._lazy_graph_module import _LazyGraphModule

from vleak.descent.capture import Capture
from vleak.descent.memory import Memory, changed_arguments

__all__ = [
    "Pass",
    "argument",
    "aten",
    "calls",
    "drop_dead",
    "edited",
    "emit",
    "full",
    "is_term",
    "layout",
    "on_metas",
    "parts",
    "substitute",
    "terms_of_sums",
    "total",
    "value",
]

aten = torch.ops.aten

Pass = Callable[[Capture], None]
"""Function that rewrites the graph of a capture in place; the graph's results agree to rounding."""


def edited(capture: Capture, passes: Iterable[Pass]) -> Capture:
    """Return a copy of a capture, its graph rewritten by passes."""
    fresh = Graph()
    copies: dict[Node, Node] = {}
    output = fresh.graph_copy(capture.graph.graph, copies)
    fresh.output(output)
    fresh.output_node().meta = dict(capture.graph.graph.output_node().meta)
    copy = replace(capture, graph=_LazyGraphModule(capture.graph, fresh))
    for graph_pass in passes:
        graph_pass(copy)
        drop_dead(fresh)
    copy.graph.recompile()
    return copy


def drop_dead(graph: Graph) -> None:
    """Remove nodes without users, unless they change memory in place."""
    for node in reversed(graph.nodes):
        if not node.users and node.op in ("call_function", "get_attr") and not changed_arguments(node):
            graph.erase_node(node)


def value(node: Any) -> Tensor:
    """Return the meta tensor of a node that computes one tensor: its shape, strides and dtype."""
    meta = node.meta["val"]
    assert isinstance(meta, Tensor)
    return meta


def calls(node: Any, *targets: Any) -> bool:
    """Return whether an argument is a call of one of the target operators."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def emit(graph: Graph, target: Any, *args: Any, **kwargs: Any) -> Any:
    """Add a call at the graph's insertion point; its shapes are derived on meta tensors.

    Returns:
        the node; nested lists of nodes for an operator that returns several tensors or lists of them.
    """
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = on_metas(target, args, kwargs)
    return _items(graph, node)


def on_metas(target: Any, args: Any, kwargs: Any) -> Any:
    """Return what an operator makes of the meta tensors of nodes."""
    args, kwargs = torch.fx.map_arg((args, kwargs), lambda item: item.meta["val"])
    with torch.no_grad():
        return target(*args, **kwargs)


def layout(value: Any) -> Any:
    """Return shape, strides and type of a tensor, of a list item by item; of what is neither, None."""
    if isinstance(value, (list, tuple)):
        return [layout(item) for item in value]
    return (value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else None


def total(graph: Graph, terms: list[Node]) -> Node:
    """Add calls at the insertion point that sum at least one node, in order, and return the sum."""
    result = terms[0]
    for term in terms[1:]:
        result = emit(graph, aten.add.Tensor, result, term)
    return result


def full(graph: Graph, like: Tensor, number: float, device: torch.device) -> Node:
    """Add a contiguous tensor filled with a number, of the shape and dtype of ``like``."""
    options: dict[str, Any] = {"dtype": like.dtype, "device": device, "pin_memory": False}
    node = graph.call_function(aten.full.default, (list(like.shape), number), options)
    node.meta["val"] = torch.empty(like.shape, dtype=like.dtype, device="meta")
    return node


def _items(graph: Graph, node: Node) -> Any:
    if isinstance(node.meta["val"], Tensor):
        return node
    parts = []
    for index, part in enumerate(node.meta["val"]):
        item = graph.call_function(operator.getitem, (node, index))
        item.meta["val"] = part
        parts.append(_items(graph, item))
    return parts


def substitute(node: Node, by: Node) -> None:
    """Replace a node by another one for all its users, and remove it."""
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def parts(node: Node) -> dict[int, Node]:
    """Return the getitem nodes of a call that returns several tensors, by index; duplicates are merged."""
    items: dict[int, Node] = {}
    for user in list(node.users):
        if user.target is not operator.getitem:
            continue
        index = user.args[1]
        assert isinstance(index, int)
        if index in items:
            substitute(user, items[index])
        else:
            items[index] = user
    return items


def argument(node: Node, name: str) -> Any:
    """Return an argument of an operator call by its name, or its default."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for index, known in enumerate(node.target._schema.arguments):
        if known.name == name:
            if index < len(node.args):
                return node.args[index]
            return node.kwargs.get(name, known.default_value if known.has_default_value() else None)
    raise KeyError(name)


def terms_of_sums(graph: Graph) -> Iterator[tuple[Node, list[Node]]]:
    """Yield every sum that is not a term of another, with its terms in order, all of them tensors.

    The terms may be recomputed at the place of the sum: nothing changes them or their inputs in place. A sum
    may be replaced as soon as it is there; the terms of later sums are read after that.
    """
    changing = set(graph.nodes) - Memory(graph).unchanged()
    for node in [node for node in graph.nodes if _plain_sum(node) and not is_term(node)]:
        terms = _terms(node, node)
        if all(_may_move(term, changing) for term in terms):
            yield node, terms


def _may_move(term: Any, changing: set[Node]) -> bool:
    return isinstance(term, Node) and changing.isdisjoint((term, *term.all_input_nodes))


def is_term(node: Any) -> bool:
    """Return whether a node's only user is a sum of the same shape and dtype."""
    if len(node.users) != 1:
        return False
    (user,) = node.users
    if not _plain_sum(user):
        return False
    mine, its = value(node), value(user)
    return (mine.shape, mine.dtype) == (its.shape, its.dtype)


def _plain_sum(node: Any) -> bool:
    return calls(node, aten.add.Tensor) and not node.kwargs


def _terms(node: Any, root: Node) -> list[Any]:
    if node is not root and not (isinstance(node, Node) and _plain_sum(node) and is_term(node)):
        return [node]
    return [*_terms(node.args[0], root), *_terms(node.args[1], root)]
