"""What the graph passes share: fresh copies, new nodes with shapes, and who uses what."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node

from vleak.engine.capture import Capture, mutated

aten = torch.ops.aten

Rewrite = Callable[[GraphModule], None]
"""Changes a graph in place; the numbers that it computes stay the same."""


def rewritten(capture: Capture, rewrites: Iterable[Rewrite]) -> Capture:
    """Return a capture whose graph went through some rewrites; the given one is left alone."""
    fresh = Graph()
    copies: dict[Node, Node] = {}
    output = fresh.graph_copy(capture.graph.graph, copies)
    fresh.output(output)
    fresh.output_node().meta = dict(capture.graph.graph.output_node().meta)
    module = GraphModule(capture.graph, fresh)
    for rewrite in rewrites:
        rewrite(module)
        module.graph.eliminate_dead_code()
    module.recompile()
    return Capture(module, capture.inputs, capture.outputs, capture.fixed)


def value(node: Any) -> Tensor:
    """Return the fake tensor of a node that computes one tensor: its shape, strides and dtype."""
    made = node.meta["val"]
    assert isinstance(made, Tensor)
    return made


def calls(node: Any, *targets: Any) -> bool:
    """Tell whether an argument is a call of one of some operators."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def emit(graph: Graph, target: Any, *args: Any, **kwargs: Any) -> Any:
    """Add a call at the graph's insertion point; what it computes is derived on fake tensors.

    Returns:
        the node, or a list of nodes where the operator returns several tensors.
    """
    node = graph.call_function(target, args, kwargs)
    fakes = torch.fx.map_arg((args, kwargs), lambda each: each.meta["val"])
    with _mode(node), torch.no_grad():
        node.meta["val"] = target(*fakes[0], **fakes[1])
    return node if isinstance(node.meta["val"], Tensor) else items(graph, node)


def items(graph: Graph, node: Node) -> list[Node]:
    """Add a getitem for every result of a call that returns several tensors."""
    parts = []
    for index, part in enumerate(node.meta["val"]):
        item = graph.call_function(operator.getitem, (node, index))
        item.meta["val"] = part
        parts.append(item)
    return parts


def _mode(node: Node) -> FakeTensorMode:
    made = [each.meta["val"] for each in node.all_input_nodes]
    return next(each.fake_mode for each in made if isinstance(each, FakeTensor))


def replace(node: Node, by: Node) -> None:
    """Let every user of a node use another one, and remove the node."""
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def parts(node: Node) -> dict[int, Node]:
    """Return the getitems of a call that returns several tensors, by index; repeated ones are merged."""
    found: dict[int, Node] = {}
    for user in list(node.users):
        if user.target is not operator.getitem:
            continue
        index = user.args[1]
        assert isinstance(index, int)
        if index in found:
            replace(user, found[index])
        else:
            found[index] = user
    return found


def argument(node: Node, name: str) -> Any:
    """Return an argument of an operator call by its name, or its default."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for place, known in enumerate(node.target._schema.arguments):
        if known.name == name:
            if place < len(node.args):
                return node.args[place]
            return node.kwargs.get(name, known.default_value if known.has_default_value() else None)
    raise KeyError(name)


def changed_memory(graph: Graph, owner: dict[Node, Node]) -> set[Node]:
    """Return the nodes whose memory some operator changes in place; `owner` is from `capture.roots`."""
    return {owner[each] for node in graph.nodes for each in mutated(node)}
