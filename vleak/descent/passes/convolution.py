"""Pass that calls vleak's own kernels for convolutions, their derivatives, and sums of them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch.fx import Node

from vleak.descent.capture import Capture
from vleak.descent.passes.editing import (
    argument,
    aten,
    calls,
    derive_strides,
    drop_dead,
    emit,
    is_term,
    parts,
    substitute,
    terms_of_sums,
    total,
    value,
)
from vleak.descent.passes.simplify import sweep

__all__ = ["convolution"]

_DTYPES = (torch.float32, torch.float64)
#: Bytes of inputs that one call takes, if more than two: they are kept until then, and leave a core's cache.
_AT_ONCE = 1 << 20


def convolution(capture: Capture) -> None:
    """Call vleak.conv_output, conv_input and conv_weight where supported, and merge those of one sum.

    Supported are two or three spatial axes, one group, dilation 1, float32 or float64, on a CPU. Results
    agree to rounding. Depthwise convolutions are captured as vleak's operators already.
    """
    graph = capture.graph.graph
    if capture.device.type != "cpu":
        return
    for node in list(graph.nodes):
        if calls(node, aten.convolution.default) and _is_weight_derivative(node):
            _weight_derivative(node)
        elif calls(node, aten.convolution.default) and _applies(node, node.args[0]):
            _forward(node)
        elif calls(node, aten.convolution_backward.default) and _applies(node, node.args[1]):
            _backward(node)
    drop_dead(graph)
    sweep(graph)  # removes copies of what is contiguous now, which would stand between the terms of a sum
    order = {node: index for index, node in enumerate(graph.nodes)}
    for root, terms in terms_of_sums(graph):
        _merge(root, terms, order)


def _applies(node: Node, x: Any) -> bool:
    tensor = value(x)
    return (
        set(argument(node, "dilation")) == {1}
        and argument(node, "groups") == 1
        and tensor.ndim in (4, 5)
        and tensor.numel() > 0
        and tensor.dtype in _DTYPES
        and value(argument(node, "weight")).dtype == tensor.dtype
    )


def _is_weight_derivative(node: Any) -> bool:
    """Return whether a convolution is what PyTorch makes of a derivative by the weight, see below."""
    x, dy, bias = node.args[:3]
    swapped = all(
        calls(each, aten.transpose.int) and set(each.args[1:]) == {0, 1} for each in (x, dy, *node.users)
    )
    plain = bias is None and not argument(node, "transposed") and argument(node, "groups") == 1
    steps_of_one = all(step == 1 for step in argument(node, "stride"))
    return swapped and plain and steps_of_one and value(x).ndim in (4, 5) and value(x).dtype in _DTYPES


def _weight_derivative(node: Any) -> None:
    """Call conv_weight for a convolution over swapped clips and channels, whose dilation is the stride.

    Its results are cut to the size of the kernel, often; only those that are kept are computed.
    """
    x, dy = (each.args[0] for each in node.args[:2])
    padding, stride = (_per_axis(node, name) for name in ("padding", "dilation"))
    for swapped in list(node.users):
        kept = swapped
        while len(kept.users) == 1 and _cuts_the_end(next(iter(kept.users))):
            kept = next(iter(kept.users))
        kernel = list(value(kept).shape[2:])
        with kept.graph.inserting_before(kept):
            made = emit(kept.graph, torch.ops.vleak.conv_weight.default, [x], [dy], kernel, stride, padding)
        kept.replace_all_uses_with(made)
        derive_strides(made.graph, {made})


def _cuts_the_end(node: Node) -> bool:
    if not calls(node, aten.slice.Tensor):
        return False
    return (argument(node, "start"), argument(node, "step")) == (0, 1) and argument(node, "dim") >= 2


def _per_axis(node: Node, name: str) -> list[int]:
    """Return the stride or padding of every axis; PyTorch accepts one number for all axes."""
    lengths = list(argument(node, name))
    axes = value(argument(node, "weight")).ndim - 2
    return lengths * axes if len(lengths) == 1 else lengths


def _forward(node: Node) -> None:
    x, weight, bias = node.args[:3]
    stride, padding = _per_axis(node, "stride"), _per_axis(node, "padding")
    transposed = argument(node, "transposed")
    if transposed and bias is not None:
        return
    with node.graph.inserting_before(node):
        operators, shape = torch.ops.vleak, list(value(node).shape)
        target, third = (operators.conv_input, shape) if transposed else (operators.conv_output, bias)
        result = emit(node.graph, target.default, [x], [weight], third, stride, padding)
    substitute(node, result)


def _backward(node: Node) -> None:
    if argument(node, "transposed"):
        return
    dy, x, weight = node.args[:3]
    stride, padding = _per_axis(node, "stride"), _per_axis(node, "padding")
    shape, kernel, axes = list(value(x).shape), list(value(weight).shape[2:]), [0, *range(2, value(dy).ndim)]
    calls_of = {
        0: (torch.ops.vleak.conv_input.default, [dy], [weight], shape, stride, padding),
        1: (torch.ops.vleak.conv_weight.default, [x], [dy], kernel, stride, padding),
        2: (aten.sum.dim_IntList, dy, axes),
    }
    with node.graph.inserting_before(node):
        for index, part in sorted(parts(node).items()):
            if part.users:
                substitute(part, emit(node.graph, *calls_of[index]))


# ---------------------------------------------------------------------------------------------------------
# Sums


def _merge(root: Node, terms: list[Node], order: dict[Node, int]) -> None:
    """Merge the convolutions among the terms of a sum into few calls, including a bias."""
    if value(root).ndim not in (4, 5):
        return
    joined = _joined(terms, order)
    with root.graph.inserting_before(root):
        fewer = _with_start(_with_bias(joined, root), root)
        if len(fewer) == len(terms):
            return
        substitute(root, total(root.graph, fewer))


def _joined(terms: list[Node], order: dict[Node, int]) -> list[Node]:
    """Return the terms of a sum, those of one geometry merged at the place of the last of them."""
    kept: list[Node] = []
    places: dict[Hashable, int] = {}
    for term in terms:
        key = _geometry(term)
        if key in places and _is_full(kept[places[key]]):
            del places[key]
        if key is None or places.setdefault(key, len(kept)) == len(kept):
            kept.append(term)
            continue
        first = kept[places[key]]
        arguments = _both(first, term)
        if arguments is None:
            kept.append(term)
        else:
            last = max(first, term, key=order.__getitem__)
            with last.graph.inserting_before(last):
                call = kept[places[key]] = emit(last.graph, first.target, *arguments)
            order[call] = order[last]
    return kept


def _geometry(term: Node) -> Hashable:
    """Return the properties that convolutions merged into one call share; None for other terms."""
    operators = torch.ops.vleak
    mergeable = (operators.conv_output.default, operators.conv_input.default, operators.conv_weight.default)
    if not is_term(term) or not calls(term, *mergeable):
        return None
    left, right, *rest = term.args
    shapes = tuple(value(nodes[0]).shape for nodes in (left, right))  # type: ignore[index,arg-type]
    rest = rest[1:] if term.target is operators.conv_output.default else rest
    return term.target, shapes, repr(rest)


def _is_full(call: Any) -> bool:
    """Return whether a call takes two inputs, as an iteration on a gradient adds up, and no third fits."""
    inputs = call.args[0]
    return len(inputs) > 1 and (len(inputs) + 1) * value(inputs[0]).nbytes > _AT_ONCE


def _both(left: Node, right: Node) -> tuple[Any, ...] | None:
    """Return the arguments of a call that computes the sum of two calls; None if both have a bias."""
    (firsts, seconds, *rest), (more_firsts, more_seconds, *other) = left.args, right.args
    if left.target is torch.ops.vleak.conv_output.default:
        if rest[0] is not None and other[0] is not None:
            return None
        rest[0] = other[0] if rest[0] is None else rest[0]
    return [*firsts, *more_firsts], [*seconds, *more_seconds], *rest  # type: ignore[misc]


def _with_bias(terms: list[Node], root: Node) -> list[Node]:
    """Return the terms, a vector over channels moved into a convolution without bias."""
    vectors = [(at, vector) for at, term in enumerate(terms) if (vector := _channel_vector(term, root))]
    for index, term in enumerate(terms):
        if not vectors or not calls(term, torch.ops.vleak.conv_output.default) or term.args[2] is not None:
            continue
        if term.users and not is_term(term):
            continue
        absorbed, vector = vectors[-1]
        xs, ws, _, *geometry = term.args
        result = emit(root.graph, term.target, xs, ws, vector, *geometry)
        # By index, since a sum may contain the same term twice.
        fewer = [*terms[:index], result, *terms[index + 1 :]]
        return [*fewer[:absorbed], *fewer[absorbed + 1 :]]
    return terms


def _with_start(terms: list[Node], root: Node) -> list[Node]:
    """Return the terms, derivatives with respect to a weight each begun with another term of the sum."""
    derivatives = [term for term in terms if _may_begin(term)]
    kept = [term for term in terms if term not in derivatives] or [derivatives.pop(0)]
    begun = kept[0]
    for term in derivatives:
        geometry = [*term.args[:5], argument(term, "depthwise")]
        begun = emit(root.graph, torch.ops.vleak.conv_weight.default, *geometry, begun)
    return [begun, *kept[1:]]


def _may_begin(term: Node) -> bool:
    """Return whether a term is a derivative with respect to a weight that begins with zeros."""
    if not calls(term, torch.ops.vleak.conv_weight.default) or (term.users and not is_term(term)):
        return False
    return argument(term, "start") is None


def _channel_vector(term: Node, root: Node) -> Node | None:
    """Return the vector behind a term that is its view (1, channel, 1, ...), expanded or not; else None."""
    viewed = term.args[0] if calls(term, aten.expand.default) else term
    if not calls(viewed, aten.view.default):
        return None
    shape, vector = value(root).shape, viewed.args[0]  # type: ignore[union-attr]
    fits = list(value(viewed).shape) == [1, shape[1]] + [1] * (len(shape) - 2) and value(vector).ndim == 1
    same_type = value(vector).dtype == value(root).dtype
    return vector if fits and same_type else None  # type: ignore[return-value]
