"""Memory of a graph: values that share memory, and operators that change memory in place.

Derived from the operators' schemas, and from lists of the few operators whose schemas are incomplete.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node

__all__ = ["SILENT_VIEWS", "Memory", "changed_arguments", "viewed_arguments"]

_aten = torch.ops.aten

#: Operators whose results are views of their first argument, although their schemas do not declare it.
SILENT_VIEWS = (
    _aten._unsafe_view.default,
    _aten.unsafe_split.Tensor,  # a GRU writes into the parts
    _aten.unsafe_split_with_sizes.default,
)

#: Operators that change arguments 3 and 4, the running statistics, in training; schemas do not declare it.
_SILENT_CHANGES = (_aten.native_batch_norm.default, _aten.cudnn_batch_norm.default)


class Memory:
    """Memory of a graph: owners of shared memory, and nodes whose memory changes.

    Attributes:
        owner: for every node, the node that allocated its memory: itself, or the node that it is a view of.
    """

    def __init__(self, graph: Graph, carried: Iterable[tuple[Node, Node]] = ()) -> None:
        """Analyse the present state of a graph.

        Args:
            graph: graph of operator calls, and of getitem on their results.
            carried: (output, input) pairs: the output becomes the input of the next iteration, so that a
                change of one changes the other.
        """
        self._graph = graph
        self.owner: dict[Node, Node] = {}
        self._views: dict[Node, list[Node]] = {}  # by owner; a join touches these only
        for node in graph.nodes:
            first, *others = [self.owner[source] for source in viewed_arguments(node)] or [node]
            self.owner[node] = first
            self._views.setdefault(first, []).append(node)
            for other in others:
                self._join(other, first)
        for output, index in carried:
            self._join(self.owner[output], self.owner[index])

    def _join(self, one: Node, other: Node) -> None:
        if one is not other:
            views = self._views.pop(one)
            self.owner |= dict.fromkeys(views, other)
            self._views[other] += views

    @cached_property
    def _changed(self) -> set[Node]:
        return {self.owner[changed] for node in self._graph.nodes for changed in changed_arguments(node)}

    def changed(self, node: Node) -> bool:
        """Return whether an operator changes a node's memory in place."""
        return self.owner[node] in self._changed

    def unchanged(self) -> set[Node]:
        """Return the nodes whose memory no operator changes in place; they may be read at any later node."""
        return {node for node, owner in self.owner.items() if owner not in self._changed}


def changed_arguments(node: Node) -> list[Node]:
    """Return the arguments that a node's operator changes in place."""
    target = node.target
    if not isinstance(target, OpOverload):
        return []
    if target in _SILENT_CHANGES:
        return _nodes(list(node.args[3:5])) if node.args[5] else []
    return [value for position, name in _parameters(target).changed for value in _given(node, position, name)]


def viewed_arguments(node: Node) -> list[Node]:
    """Return the arguments whose memory a node's result shares."""
    target = node.target
    if node.op != "call_function":
        return []
    if not isinstance(target, OpOverload):  # getitem on a list of views, or of new tensors
        source = node.args[0]
        assert isinstance(source, Node)
        return [source] if viewed_arguments(source) else []
    if target in SILENT_VIEWS:
        return _nodes(node.args[0])
    return [value for position, name in _parameters(target).viewed for value in _given(node, position, name)]


class _Parameters(NamedTuple):
    """Parameters of an operator by what happens to their memory, each as its position and name."""

    changed: tuple[tuple[int, str], ...]
    viewed: tuple[tuple[int, str], ...]


@cache  # a schema builds its arguments anew each time that it is asked
def _parameters(target: OpOverload) -> _Parameters:
    schema = target._schema
    shared = {name for result in schema.returns for name in _aliases(result)}
    named = [(index, argument.name, argument) for index, argument in enumerate(schema.arguments)]
    return _Parameters(
        tuple((i, name) for i, name, a in named if a.alias_info is not None and a.alias_info.is_write),
        tuple((i, name) for i, name, a in named if _aliases(a) & shared),
    )


def _aliases(argument: torch._C.Argument) -> set[str]:
    return set(argument.alias_info.before_set) if argument.alias_info is not None else set()


def _given(node: Node, position: int, name: str) -> list[Node]:
    """Return the nodes in one argument of a call."""
    return _nodes(node.args[position] if position < len(node.args) else node.kwargs.get(name))


def _nodes(value: Any) -> list[Node]:
    if isinstance(value, Node):
        return [value]
    return [n for item in value for n in _nodes(item)] if isinstance(value, (list, tuple)) else []
