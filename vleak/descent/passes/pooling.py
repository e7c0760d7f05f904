"""Pass that moves a ReLU from before a max pooling to after it, where the tensors are smaller.

A maximum has the same index before and after ReLU, or it is 0 and its derivative is 0. So with p the pooled
values and i their indices, the right-hand sides need only tensors of the pooled size:

    maxpool(relu(x)) = relu(maxpool(x))
    mask(scatter(g, i), relu(x)) = scatter(mask(g, p), i)
    gather(mask(v, relu(x)), i) = mask(gather(v, i), p)
    sum(scatter(g, i)) = sum(g)
"""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

from vleak.descent.capture import Capture
from vleak.descent.passes.editing import (
    argument,
    aten,
    calls,
    drop_dead,
    emit,
    parts,
    substitute,
    unchanged,
    value,
)

__all__ = ["pooling"]

_BACKWARD: dict[Any, Any] = {
    aten.max_pool2d_with_indices.default: aten.max_pool2d_with_indices_backward.default,
    aten.max_pool3d_with_indices.default: aten.max_pool3d_with_indices_backward.default,
}
_AXES: dict[Any, int] = {
    aten.max_pool2d_with_indices_backward.default: 2,
    aten.max_pool3d_with_indices_backward.default: 3,
}


def pooling(capture: Capture) -> None:
    """Apply a ReLU and its masks to pooled tensors, after the pooling; sums agree to rounding."""
    graph = capture.graph.graph
    for node in list(graph.nodes):
        if node.target in _BACKWARD and calls(node.args[0], aten.relu.default):
            _swap(graph, node)
    stable = unchanged(graph)
    for node in graph.find_nodes(op="call_function", target=aten.sum.dim_IntList):
        _sum_pooled(node, stable)


def _swap(graph: Graph, pool: Node) -> None:
    results = parts(pool)
    if set(results) != {0, 1}:
        return
    relu, pooled, places = pool.args[0], results[0], results[1]
    assert isinstance(relu, Node)
    stable = unchanged(graph)
    if not stable.issuperset((relu, relu.args[0], pooled, places)):  # all of them are now read later
        return
    for user in list(relu.users):
        masks = calls(user, aten.threshold_backward.default) and user.args[1:] == (relu, 0)
        if masks and user.args[0] in stable:
            _mask_pooled(graph, user, pool, pooled, places)
    drop_dead(graph)
    if not _only_where_positive(places, pooled, _BACKWARD[pool.target]):
        return
    backward = _BACKWARD[pool.target]
    shape_only = [user for user in relu.users if calls(user, backward) and argument(user, "self") is relu]
    if {*shape_only, pool} == set(relu.users) and all(user.args[0] is not relu for user in shape_only):
        _pool_first(graph, relu, pool, pooled)


def _mask_pooled(graph: Graph, mask: Any, pool: Node, pooled: Node, places: Node) -> None:
    """Move a mask before a scatter, or after the gathers that read it."""
    scatter = mask.args[0]
    if (
        calls(scatter, _BACKWARD[pool.target])
        and list(scatter.users) == [mask]
        and scatter.args[-1] is places
    ):
        with graph.inserting_before(scatter):
            masked = emit(graph, aten.threshold_backward.default, scatter.args[0], pooled, 0)
        scatter.args = (masked, *scatter.args[1:])
        substitute(mask, scatter)
        return
    views = list(mask.users)
    gathers = [user for view in views for user in view.users]
    alike = value(mask).stride() == value(mask.args[0]).stride()  # as the views require
    flat = alike and all(calls(view, aten.view.default) for view in views)
    if flat and all(_gathers(user, places) for user in gathers):
        for gather in gathers:
            _mask_gathered(graph, gather, mask, pooled)


def _gathers(node: Any, places: Node) -> bool:
    """Return whether a call gathers the maxima by index, over flattened spatial axes."""
    if not calls(node, aten.gather.default) or node.args[1] not in (-1, value(node).ndim - 1):
        return False
    index = node.args[2]
    return calls(index, aten.view.default) and index.args[0] is places


def _only_where_positive(places: Node, pooled: Node, backward: Any) -> bool:
    """Return whether indices are used only where the maximum is not 0; elsewhere ReLU changes them."""
    return all(
        _masked(user.args[0], pooled)
        if calls(user, backward) and user.args[-1] is places
        else calls(user, aten.view.default)
        and all(_reads_masked(gather, places, pooled) for gather in user.users)
        for user in places.users
    )


def _reads_masked(gather: Node, places: Node, pooled: Node) -> bool:
    return _gathers(gather, places) and all(
        _masked(user, pooled) and user.args[0] is gather for user in gather.users
    )


def _masked(node: Any, pooled: Node) -> bool:
    """Return whether a node is masked to zero where the maximum is 0."""
    if not calls(node, aten.threshold_backward.default) or node.args[2] != 0:
        return False
    by = node.args[1]
    return by is pooled or (calls(by, aten.view.default) and by.args[0] is pooled)


def _mask_gathered(graph: Graph, gather: Any, mask: Any, pooled: Node) -> None:
    view = gather.args[0]
    with graph.inserting_before(gather):
        raw = emit(graph, aten.view.default, mask.args[0], list(value(view).shape))
        read = emit(graph, aten.gather.default, raw, *gather.args[1:])
        values = emit(graph, aten.view.default, pooled, list(value(gather).shape))
        masked = emit(graph, aten.threshold_backward.default, read, values, 0)
    substitute(gather, masked)


def _pool_first(graph: Graph, relu: Node, pool: Node, pooled: Node) -> None:
    before = relu.args[0]
    assert isinstance(before, Node)
    relu.replace_all_uses_with(before)
    with graph.inserting_after(pooled):
        after = emit(graph, aten.relu.default, pooled)
    pooled.replace_all_uses_with(after)
    after.args = (pooled,)
    graph.erase_node(relu)


def _sum_pooled(node: Any, stable: set[Node]) -> None:
    """Sum values before a scatter within their channel, which does not change the sum."""
    scatter = node.args[0]
    if scatter.target not in _AXES or not stable.issuperset((scatter, scatter.args[0])):
        return
    rank = value(scatter).ndim
    axes = argument(node, "dim") or range(rank)  # no axes mean all axes
    if set(range(rank - _AXES[scatter.target], rank)) <= {axis % rank for axis in axes}:
        node.args = (scatter.args[0], *node.args[1:])
