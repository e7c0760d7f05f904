"""Pass that removes needless work: dead code, repeated code, and operators without effect."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.fx import Graph, Node

from vleak.descent.capture import OWN_LAYOUT, Capture
from vleak.descent.memory import Memory, changed_arguments, viewed_arguments
from vleak.descent.passes.editing import (
    argument,
    aten,
    calls,
    drop_dead,
    emit,
    full,
    layout,
    on_metas,
    parts,
    substitute,
    value,
)

__all__ = ["simplify", "sweep"]

Rule = Callable[[Node], Any]
"""Function of a node that returns an existing node of the same value, or None."""


def simplify(capture: Capture) -> None:
    """Make in-place operators on temporaries pure; remove nodes that are dead, repeated or without effect.

    Results are rounded like the original graph's, with two exceptions: 0 + x may differ from x in the sign of
    zero, and a product with zeros is zero even if the other factor holds infinity or NaN.
    """
    graph = capture.graph.graph
    _purify(graph)
    for _ in range(2):  # the first round removes the loss, which leaves its inputs unread for the second
        drop_dead(graph)
        _forget_values(graph, capture.device)
    for _ in range(2):  # the first sweep enables further matches in the second
        sweep(graph)
        _narrow_masks(graph)
        drop_dead(graph)


# ---------------------------------------------------------------------------------------------------------
# In-place operators on temporaries


def _purify(graph: Graph) -> None:
    """Replace in-place operators whose effect is visible only through their result."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    owner: dict[Node, Node] = {}
    names: dict[Node, list[Node]] = {}  # of the memory that a node owns, so far
    for node in list(graph.nodes):
        changes = changed_arguments(node)
        if changes and all(_private(owner[changed], node, names, order) for changed in changes):
            _make_pure(node)
        first, *others = dict.fromkeys(owner[source] for source in viewed_arguments(node)) or [node]
        for other in others:
            owner |= dict.fromkeys(names[other], first)
            names[first] += names.pop(other)
        owner[node] = first
        names.setdefault(first, []).append(node)


def _private(root: Node, by: Node, names: dict[Node, list[Node]], order: dict[Node, int]) -> bool:
    """Return whether memory is a temporary whose earlier nodes are not read after the change."""
    if root.op != "call_function":
        return False
    if by.target is aten.native_batch_norm_backward.default:
        return True
    readers = (user for name in names[root] for user in name.users if order[user] > order[by])
    return not any(_reads(user, name) for user in readers for name in names[root])


def _reads(user: Node, name: Node) -> bool:
    """Return whether a call reads an argument; batch norm in train mode ignores the running statistics."""
    if user.target is aten.native_batch_norm_backward.default and argument(user, "train"):
        return name in user.args[:3] or name in user.args[5:7]
    return name in user.all_input_nodes


def _make_pure(node: Node) -> None:
    target: Any = node.target
    if target is aten.native_batch_norm.default:
        x, weight, bias, _, _, training, momentum, eps = node.args
        node.target = aten._native_batch_norm_legit.no_stats
        node.args = (x, weight, bias, training, momentum, eps)
        return
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    pure = getattr(packet, target._overloadname, None)
    # The result must lie as the memory that the call changes.
    if pure is not None and layout(on_metas(pure, node.args, node.kwargs)) == layout(node.meta["val"]):
        node.target = pure


# ---------------------------------------------------------------------------------------------------------
# Values that are not read


def _forget_values(graph: Graph, device: torch.device) -> None:
    """Remove the inputs of operators that read only a tensor's shape, so that they run once a descent."""
    for node in list(graph.nodes):
        if node.target in _FILLED and node.all_input_nodes and value(node).is_contiguous():
            with graph.inserting_before(node):
                substitute(node, full(graph, value(node), _FILLED[node.target](node), device))
        elif node.target in _LOSS_BACKWARDS:
            _forget_argument(node, 1, device)
        elif node.target in _LOSSES and not any(user.args[1] == 0 and user.users for user in node.users):
            _forget_argument(node, 0, device)


def _forget_argument(node: Node, index: int, device: torch.device) -> None:
    """Replace a log-likelihood's argument by zeros: its divisor and derivative depend on labels alone."""
    with node.graph.inserting_before(node):
        zeros = full(node.graph, value(node.args[index]), 0, device)
    node.args = (*node.args[:index], zeros, *node.args[index + 1 :])


# ---------------------------------------------------------------------------------------------------------
# One sweep, in order


def sweep(graph: Graph) -> None:
    """Remove pure operators without effect, and merge repeated ones, in one pass over the graph in order."""
    stable = Memory(graph).unchanged()
    seen: dict[Hashable, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or changed_arguments(node):
            continue
        touched = not stable.issuperset((node, *_results(node), *node.all_input_nodes))
        other = _already(node, stable) if not touched or node.target in _ALIASES else None
        if other is None and not touched:
            other = seen.setdefault(_key(node), node)
        if other is not None and other is not node:
            if not touched:
                stable.add(other)  # it may be a new node
            substitute(node, other)


def _results(node: Node) -> list[Node]:
    """Return the getitem nodes of a call that returns several tensors, nested ones included."""
    items = [user for user in node.users if user.target is operator.getitem]
    return [*items, *(result for item in items for result in _results(item))]


def _already(node: Node, stable: set[Node]) -> Any:
    """Return an existing node of the same value, or None; `stable` is from `Memory.unchanged`."""
    if node.target in _NEUTRAL:
        kept = _with_neutral(node, _NEUTRAL[node.target], stable)
        return _doubled_once(node) if kept is None and node.target is aten.add.Tensor else kept
    rule = _RULES.get(node.target)
    return None if rule is None else rule(node)


def _key(node: Node) -> Hashable:
    return node.target, _frozen(node.args), _frozen(node.kwargs)


def _frozen(value: Any) -> Hashable:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _frozen(item)) for name, item in sorted(value.items()))
    return value if isinstance(value, Node) else (type(value), repr(value))


def _same_layout(node: Node, other: Any) -> bool:
    return isinstance(other, Node) and layout(value(node)) == layout(value(other))


def _nothing(node: Node) -> Any:
    """Return the argument of a copy or view with the same layout."""
    return node.args[0] if _same_layout(node, node.args[0]) else None


def _clone(node: Node) -> Any:
    """Return the argument of a copy with the same layout, unless the device determines its strides."""
    source: Any = node.args[0]
    maker = source.args[0] if source.target is operator.getitem else source
    return None if maker.target in OWN_LAYOUT else _nothing(node)


def _view(node: Node) -> Any:
    """Return the argument of a view without effect, or a direct view for a view of a view."""
    source: Any = node.args[0]
    if _same_layout(node, source):
        return source
    if calls(source, *_VIEWS) and value(source.args[0]).is_contiguous():
        with node.graph.inserting_before(node):
            return emit(node.graph, aten.view.default, source.args[0], list(value(node).shape))
    return None


def _transpose(node: Node) -> Any:
    """Return the argument of two transposes that cancel."""
    inner: Any = node.args[0]
    return inner.args[0] if calls(inner, *_TRANSPOSES) and _same_layout(node, inner.args[0]) else None


def _with_neutral(node: Node, rule: tuple[float, bool], stable: set[Node]) -> Any:
    """Return the other operand of an addition of zeros or a multiplication by ones."""
    (number, commutes), (left, right, *scale) = rule, node.args
    for kept, other in ((left, right), (right, left))[: 1 + commutes]:
        scaled = other is left and (scale or node.kwargs)  # left + alpha right
        if _same_layout(node, kept) and not scaled and _constant(other, number, stable):
            return kept
    return None


def _doubled_once(node: Any) -> Any:
    """Return 2 (x + y) for 2 x + 2 y, or with another power of 2: a model may double what it is given."""
    left, right = node.args
    factors = [
        each.args[1] if calls(each, aten.mul.Tensor) and len(each.users) == 1 else None for each in node.args
    ]
    exact = isinstance(factors[0], (int, float)) and abs(math.frexp(factors[0])[0]) == 0.5
    if not exact or factors[0] != factors[1] or node.kwargs:
        return None
    if not all(_same_layout(node, each.args[0]) for each in node.args):
        return None
    with node.graph.inserting_before(node):
        both = emit(node.graph, aten.add.Tensor, left.args[0], right.args[0])
        return emit(node.graph, aten.mul.Tensor, both, factors[0])


def _threshold(node: Node) -> Any:
    """Return the argument of a mask that is already applied to it."""
    inner: Any = node.args[0]
    masked = calls(inner, node.target) and inner.args[1:] == node.args[1:]
    return inner if masked and _same_layout(node, inner) else None


def _constant(node: Any, number: float, stable: set[Node]) -> bool:
    """Return whether an argument is a number, or a tensor filled with it and not changed since."""
    if isinstance(node, (int, float)):
        return node == number
    if not isinstance(node, Node) or node.op != "call_function" or node not in stable:
        return False
    if node.target in _FILLED:
        return bool(_FILLED[node.target](node) == number)
    if node.target in _LOOKS:
        return _constant(node.args[0], number, stable)
    if node.target in (aten.mm.default, aten.threshold_backward.default, aten.neg.default) and number == 0:
        factors = node.args[: 2 if node.target is aten.mm.default else 1]
        return any(_constant(factor, 0, stable) for factor in factors)
    return False


_ALIASES = (aten.detach.default, aten.alias.default)
_VIEWS = (aten.view.default, aten._unsafe_view.default)
_TRANSPOSES = (aten.t.default, aten.transpose.int, aten.permute.default)
_CUTS = (aten.expand.default, aten.select.int, aten.slice.Tensor, aten.unsqueeze.default)
_LOOKS = (*_ALIASES, *_VIEWS, *_TRANSPOSES, *_CUTS, aten.clone.default)
_FILLED: dict[Any, Callable[[Node], Any]] = {
    aten.zeros.default: lambda node: 0,
    aten.zeros_like.default: lambda node: 0,
    aten.new_zeros.default: lambda node: 0,
    aten.ones.default: lambda node: 1,
    aten.ones_like.default: lambda node: 1,
    aten.new_ones.default: lambda node: 1,
    aten.full.default: lambda node: node.args[1],
    aten.full_like.default: lambda node: node.args[1],
    aten.new_full.default: lambda node: node.args[2],
    aten.fill.Scalar: lambda node: node.args[1],
}
_LOSSES = (aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
_LOSS_BACKWARDS = (aten.nll_loss_backward.default, aten.nll_loss2d_backward.default)
#: Neutral number of an operator, and whether it is neutral as the first operand too.
_NEUTRAL: dict[Any, tuple[float, bool]] = {
    aten.add.Tensor: (0, True),
    aten.add.Scalar: (0, False),
    aten.sub.Tensor: (0, False),
    aten.mul.Tensor: (1, True),
    aten.mul.Scalar: (1, False),
    aten.div.Tensor: (1, False),
    aten.div.Scalar: (1, False),
}
_RULES: dict[Any, Rule] = {
    **dict.fromkeys(_ALIASES, lambda node: node.args[0]),
    **dict.fromkeys(_VIEWS, _view),
    **dict.fromkeys(_TRANSPOSES, lambda node: _nothing(node) or _transpose(node)),
    **dict.fromkeys((*_CUTS, aten.squeeze.dim, aten.squeeze.dims), _nothing),
    aten.clone.default: _clone,
    aten._to_copy.default: _nothing,
    aten.threshold_backward.default: _threshold,
}


# ---------------------------------------------------------------------------------------------------------
# Results without readers


def _narrow_masks(graph: Graph) -> None:
    """Restrict backward operators with an output mask to the outputs that are read."""
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        names = [parameter.name for parameter in node.target._schema.arguments]
        if "output_mask" not in names:
            continue
        used = {index for index, part in parts(node).items() if part.users}
        index = names.index("output_mask")
        mask = [bool(wanted) and index in used for index, wanted in enumerate(argument(node, "output_mask"))]
        node.args = (*node.args[:index], mask, *node.args[index + 1 :])
