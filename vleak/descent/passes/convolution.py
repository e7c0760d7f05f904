"""Pass that computes sums of convolutions, and of their derivatives, in few calls."""

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
    emit,
    is_term,
    substitute,
    terms_of_sums,
    total,
    value,
)

__all__ = ["convolution"]

#: Bytes of inputs that one call takes, if more than two: they are kept until then, and leave a core's cache.
_AT_ONCE = 1 << 20


def convolution(capture: Capture) -> None:
    """Merge calls of vleak.conv_output, conv_input and conv_weight whose results are added, on a CPU.

    A bias, and what else is added to a derivative by the weight, go into a call as well. Results agree to
    rounding.
    """
    graph = capture.graph.graph
    if capture.device.type != "cpu":
        return
    order = {node: index for index, node in enumerate(graph.nodes)}
    for root, terms in terms_of_sums(graph):
        _merge(root, terms, order)


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
