"""Pass over max pooling: our own kernel, and convolutions before it at the chosen outputs only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from vleak.descent.capture import Capture
from vleak.descent.memory import Memory
from vleak.descent.passes.editing import (
    argument,
    aten,
    calls,
    drop_dead,
    emit,
    parts,
    substitute,
    total,
    value,
)
from vleak.native import DTYPES

__all__ = ["pooling"]

_POOLS = (aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
_POOL_DERIVATIVES = (
    aten.max_pool2d_with_indices_backward.default,
    aten.max_pool3d_with_indices_backward.default,
)

# Fewer outputs per chosen one, or smaller kernels, do not pay: see docs/inner_loop.md.
_OUTPUTS_PER_PLACE = 8
_WEIGHTS_PER_OUTPUT = 64


@dataclass(frozen=True)
class _Pool:
    """Max pooling of a convolution, with or without a ReLU between.

    Attributes:
        pooled: its input.
        values, places: its results.
        rectified: whether its input is a ReLU's result.
    """

    pooled: Node
    values: Node
    places: Node
    rectified: bool


def pooling(capture: Capture) -> None:
    """Call vleak.max_pool, and vleak.sparse_conv_output, _input and _weight where they pay.

    Behind a max pooling, and a ReLU before it, the derivative by a convolution's output is 0 but at the
    outputs that were chosen, and the second derivative is read there only. The convolution itself stays.
    """
    graph = capture.graph.graph
    if capture.device.type != "cpu":
        return
    steady = Memory(graph).unchanged()  # what is read later than it was must not be written to
    for pool in [pool for node in list(graph.nodes) if (pool := _pool(node)) is not None]:
        if steady.issuperset((pool.values, pool.places)):
            _read_at_places(pool, steady)
            _derive_at_places(pool, steady)
    for node in list(graph.nodes):
        if calls(node, *_POOLS) and _has_kernel(node):
            _own_pooling(node)
    drop_dead(graph)


def _has_kernel(node: Node) -> bool:
    x = value(node.args[0])
    axes = len(argument(node, "kernel_size"))
    plain = not any(argument(node, "padding")) and set(argument(node, "dilation")) == {1}
    batched = x.ndim == axes + 2 and axes in (2, 3) and x.numel() > 0
    return plain and batched and not argument(node, "ceil_mode") and x.dtype in DTYPES


def _own_pooling(node: Node) -> None:
    kernel = list(argument(node, "kernel_size"))
    stride = list(argument(node, "stride")) or kernel
    with node.graph.inserting_before(node):
        made = emit(node.graph, torch.ops.vleak.max_pool.default, node.args[0], kernel, stride)
    for index, result in parts(node).items():
        substitute(result, made[index])


def _pool(node: Node) -> _Pool | None:
    if not calls(node, *_POOLS):
        return None
    results, pooled = parts(node), node.args[0]
    rectified = calls(pooled, aten.relu.default)
    convolved = pooled.args[0] if rectified else pooled  # type: ignore[union-attr]
    if set(results) != {0, 1} or not calls(convolved, torch.ops.vleak.conv_output.default):
        return None
    pool = _Pool(pooled, results[0], results[1], rectified)  # type: ignore[arg-type]
    per_place = value(pooled).numel() / max(1, value(pool.places).numel())
    weights = value(convolved.args[1][0])  # type: ignore[union-attr, index]
    pays = per_place >= _OUTPUTS_PER_PLACE and math.prod(weights.shape[1:]) >= _WEIGHTS_PER_OUTPUT
    return pool if pays and weights.shape[1] == value(convolved.args[0][0]).shape[1] else None  # type: ignore[union-attr, index]


def _rectified(graph: Any, node: Node, pool: _Pool) -> Node:
    """Add the derivative of the ReLU at the chosen outputs."""
    if not pool.rectified:
        return node
    rectified: Node = emit(graph, aten.threshold_backward.default, node, pool.values, 0)
    return rectified


def _before_relu(node: Any, pool: _Pool) -> Any:
    """Return what the derivative of the pool's ReLU was taken of; the node itself if there is no ReLU."""
    if not pool.rectified:
        return node
    fits = calls(node, aten.threshold_backward.default) and node.args[1:] == (pool.pooled, 0)
    return node.args[0] if fits else None


def _read_at_places(pool: _Pool, steady: set[Node]) -> None:
    """Compute convolutions of which only the chosen outputs are gathered."""
    for viewed in [user for user in pool.places.users if calls(user, aten.view.default)]:
        for gathered in [user for user in viewed.users if calls(user, aten.gather.default)]:
            source = gathered.args[0]
            dense = source.args[0] if calls(source, aten.view.default) else None  # type: ignore[union-attr]
            convolved = _before_relu(dense, pool)
            flat = gathered.args[1] in (2, -1) and value(gathered).ndim == 3
            if not flat or not _is_like(convolved, pool) or not steady.issuperset(convolved.all_input_nodes):
                continue
            graph, target = gathered.graph, torch.ops.vleak.sparse_conv_output.default
            xs, ws, bias, *geometry = convolved.args
            with graph.inserting_before(gathered):
                made = emit(graph, target, xs, ws, bias, pool.places, *geometry)
                made = _rectified(graph, made, pool)
                made = emit(graph, aten.view.default, made, list(value(gathered).shape))
            substitute(gathered, made)


def _is_like(node: Any, pool: _Pool) -> bool:
    """Return whether a node is a convolution whose output is pooled alike."""
    convolves = calls(node, torch.ops.vleak.conv_output.default)
    return convolves and value(node).shape == value(pool.pooled).shape


def _derive_at_places(pool: _Pool, steady: set[Node]) -> None:
    """Compute derivatives of a convolution from those by the chosen outputs."""
    sparse: dict[Node, Node] = {}
    for spread in [user for user in pool.places.users if calls(user, *_POOL_DERIVATIVES)]:
        derivative = spread.args[0]
        known = spread.args[1] is pool.pooled and argument(spread, "indices") is pool.places
        if not known or derivative not in steady:
            continue
        dense = [user for user in spread.users if _before_relu(user, pool) is spread]
        if not pool.rectified:
            dense = [spread]
        if dense:
            with spread.graph.inserting_before(dense[0]):
                chosen = _rectified(spread.graph, derivative, pool)  # type: ignore[arg-type]
            sparse |= dict.fromkeys(dense, chosen)
    for whole, few in sparse.items():
        for user in list(whole.users):
            _replace(user, whole, few, sparse, pool.places)


def _replace(user: Node, whole: Node, few: Node, sparse: dict[Node, Node], places: Node) -> None:
    """Replace a sum over a dense derivative by one over the chosen outputs."""
    operators, graph = torch.ops.vleak, user.graph
    every = [0, *range(2, value(whole).ndim)]
    with graph.inserting_before(user):
        if calls(user, operators.conv_weight.default) and set(user.args[1]) <= set(sparse):  # type: ignore[arg-type]
            xs, dys, *geometry = user.args
            target = operators.sparse_conv_weight.default
            terms = [
                emit(graph, target, x, sparse[dy], places, *geometry[:3])
                for x, dy in zip(xs, dys, strict=True)  # type: ignore[arg-type]
            ]
            start = argument(user, "start")
            made = total(graph, terms if start is None else [*terms, start])
        elif calls(user, operators.conv_input.default) and set(user.args[0]) <= set(sparse):  # type: ignore[arg-type]
            dys, ws, *geometry = user.args
            all_few = [sparse[dy] for dy in dys]  # type: ignore[union-attr, index]
            made = emit(graph, operators.sparse_conv_input.default, all_few, ws, places, *geometry)
        elif calls(user, aten.sum.dim_IntList) and sorted(user.args[1]) == every:  # type: ignore[arg-type]
            made = emit(graph, aten.sum.dim_IntList, few, *user.args[1:], **user.kwargs)
        else:
            return
    substitute(user, made)
