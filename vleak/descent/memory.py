"""Memory of a graph: values that share memory, and operators that change memory in place.

Derived from the operators' schemas, and from lists of the few operators whose schemas are incomplete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

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
        for node in graph.nodes:
            first, *others = [self.owner[source] for source in viewed_arguments(node)] or [node]
            self.owner[node] = first
            for other in others:
                self._join(other, first)
        for output, index in carried:
            self._join(self.owner[output], self.owner[index])

    def _join(self, one: Node, other: Node) -> None:
        if one is not other:
            self.owner = {node: other if owner is one else owner for node, owner in self.owner.items()}

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
    if not target._schema.is_mutable:
        return []
    return [value for a, value in _arguments(node) if a.alias_info is not None and a.alias_info.is_write]


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
    shared = {name for result in target._schema.returns for name in _aliases(result)}
    return [value for argument, value in _arguments(node) if _aliases(argument) & shared] if shared else []


def _aliases(argument: torch._C.Argument) -> set[str]:
    return set(argument.alias_info.before_set) if argument.alias_info is not None else set()


def _arguments(node: Node) -> Iterator[tuple[torch._C.Argument, Node]]:
    """Yield every node in an operator's arguments, with its parameter in the schema."""
    assert isinstance(node.target, OpOverload)
    for position, argument in enumerate(node.target._schema.arguments):
        value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        for source in _nodes(value):
            yield argument, source


def _nodes(value: Any) -> list[Node]:
    if isinstance(value, Node):
        return [value]
    return [n for item in value for n in _nodes(item)] if isinstance(value, (list, tuple)) else []
