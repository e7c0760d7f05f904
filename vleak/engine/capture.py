"""One iteration of an attack, recorded once as a flat graph of ATen and vleak operators.

A step is a function of named tensors. It is run a single time on tensors without contents (fake tensors),
derivatives included, and every operator it dispatches is written down. What depends on the contents of a
tensor (a branch, a shape, a random draw) cannot be written down and is refused, never baked in.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vleak.backends import math_attention
from vleak.errors import CapabilityError, InputError, VleakError

Step = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Named tensors in, named tensors out; differentiates inside, and branches on no tensor's contents."""

# make_fx and functional_call patch process-wide state while they run.
_tracing = threading.Lock()


class CaptureError(CapabilityError):
    """A step cannot be written down as a graph; the message is one line that names the operator and why."""


@dataclass(frozen=True)
class Capture:
    """A step as a graph.

    Attributes:
        graph: calls ATen and vleak operators only; placeholders in the order of `inputs`, returns a list in
            the order of `outputs`. Every node's ``meta["val"]`` is a fake tensor of its shape, dtype and
            strides. Tensors that belong to nothing among the inputs are attributes of the module.
        inputs: names of the placeholders.
        outputs: names of what is returned.
        fixed: inputs that stay the same over all iterations.
    """

    graph: GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fixed: frozenset[str]


def capture(step: Step, values: Mapping[str, Tensor], fixed: Collection[str]) -> Capture:
    """Record one call of a step; nothing is computed, and no tensor in ``values`` is read or changed.

    Scaled-dot-product attention is recorded from its math backend, which alone has a second derivative, and
    an LSTM as plain operators. Calls from several threads take turns. A module that keeps tensors of its
    forward pass as attributes would keep fake ones: record a step on a copy of such a module.

    Args:
        step: may differentiate; runs in the grad mode of the caller.
        values: every tensor that the step reads, by name, any shapes; only shape, dtype and device matter.
        fixed: names among ``values`` that stay the same over all iterations.

    Returns:
        the graph, with ``values`` flattened in their own order.

    Raises:
        InputError: a name in ``fixed`` is not in ``values``.
        CaptureError: the step draws random numbers, branches or sizes a tensor on contents, changes a tensor
            that is meant to stay, has an operator without second derivative, or cannot be traced.
    """
    strangers = sorted(set(fixed) - set(values))
    if strangers:
        raise InputError(f"capture: fixed names {strangers[0]!r}, which is not among the step's values")
    outputs: list[str] = []
    graph = _trace(step, values, outputs)
    made = Capture(graph, tuple(values), tuple(outputs), frozenset(fixed))
    _check_operators(made)
    _check_outputs(made)
    return made


def _trace(step: Step, values: Mapping[str, Tensor], outputs: list[str]) -> GraphModule:
    def flat(*tensors: Tensor) -> list[Tensor]:
        result = step(dict(zip(values, tensors, strict=True)))
        outputs.extend(result)
        return list(result.values())

    # Without a shape environment, whatever depends on contents raises instead of becoming a symbol.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with _tracing, math_attention(), _plain_lstm():
            fakes = [mode.from_tensor(value.detach(), static_shapes=True) for value in values.values()]
            graph: GraphModule = make_fx(flat, tracing_mode="fake")(*fakes)
    except VleakError:
        raise
    except Exception as error:
        raise CaptureError(f"the step cannot be captured: {_explain(error)}") from error
    return graph


def _explain(error: Exception) -> str:
    """Return why a trace failed, in one line that names the operator where PyTorch does."""
    if isinstance(error, DataDependentOutputException):
        return f"{error.func} reads the contents of a tensor into Python (an .item() or an if on a tensor)"
    if isinstance(error, DynamicOutputShapeException):
        return f"{error.func} has a result whose shape depends on the contents of a tensor"
    message = str(error).strip()
    missing = re.search(r"derivative for (\S+) is not implemented", message)
    if missing:
        return f"{missing.group(1)} has no second derivative"
    return message.partition("\n")[0] or type(error).__name__


def _check_operators(made: Capture) -> None:
    kept = dict(zip(made.graph.graph.find_nodes(op="placeholder"), made.inputs, strict=True))
    owner = roots(made.graph.graph)
    for node in made.graph.graph.find_nodes(op="get_attr"):
        kept[node] = f"tensor {node.target}"
    for node in made.graph.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise CaptureError(
                f"the step cannot be captured: {node.target} draws random numbers; put the model in eval mode"
            )
        for changed in mutated(node):
            name = kept.get(owner[changed])
            if name is not None and (name in made.fixed or name not in made.inputs):
                raise CaptureError(
                    f"the step cannot be captured: {node.target} changes {name}, which has to stay as it is"
                )


def _check_outputs(made: Capture) -> None:
    """Check that every output is a tensor, and fits the input that it is carried into, if any."""
    inputs = dict(zip(made.inputs, made.graph.graph.find_nodes(op="placeholder"), strict=True))
    (returned,) = made.graph.graph.output_node().args
    for name, node in zip(made.outputs, returned, strict=True):  # type: ignore[arg-type]
        value = node.meta["val"] if isinstance(node, Node) else node
        if not isinstance(value, Tensor):
            raise CaptureError(f"the step cannot be captured: it returns no tensor as {name!r}")
        if name in made.fixed:
            raise CaptureError(f"the step cannot be captured: it returns {name!r}, which is fixed")
        before = inputs[name].meta["val"] if name in inputs else value
        if (value.shape, value.dtype) != (before.shape, before.dtype):
            raise CaptureError(
                f"the step cannot be captured: it takes {name!r} as {tuple(before.shape)} {before.dtype} and "
                f"returns it as {tuple(value.shape)} {value.dtype}"
            )


# ---------------------------------------------------------------------------------------------------------
# Who owns the memory a node names, and who changes it


def mutated(node: Node) -> list[Node]:
    """Return the arguments that a node's operator changes in place."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return []
    if target is torch.ops.aten.native_batch_norm.default:  # its schema does not say so
        statistics = node.args[3:5] if node.args[5] else ()
        return [each for each in statistics if isinstance(each, Node)]
    if not target._schema.is_mutable:
        return []
    names = [a.name for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    given = dict(zip((a.name for a in target._schema.arguments), node.args, strict=False)) | node.kwargs
    return [each for name in names for each in _nodes(given.get(name))]


def roots(graph: Graph) -> dict[Node, Node]:
    """Return for every node the node that allocated the memory it names: itself, or what it is a view of."""
    owner: dict[Node, Node] = {}
    for node in graph.nodes:
        source = _viewed(node)
        owner[node] = node if source is None else owner[source]
    return owner


def _viewed(node: Node) -> Node | None:
    """Return the argument whose memory a node's result is, if any."""
    target = node.target
    if node.op != "call_function":
        return None
    if not isinstance(target, torch._ops.OpOverload):  # getitem: of a list of views, or of fresh tensors
        source = node.args[0]
        assert isinstance(source, Node)
        return source if _viewed(source) is not None else None
    shared = {each for r in target._schema.returns if r.alias_info for each in r.alias_info.before_set}
    for argument, value in zip(target._schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and argument.alias_info.before_set & shared:
            return value if isinstance(value, Node) else None
    return None


def _nodes(value: Any) -> list[Node]:
    items = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if isinstance(item, Node)]


# ---------------------------------------------------------------------------------------------------------
# LSTM


def _plain_lstm() -> AbstractContextManager[object]:
    return _PlainLstm()


class _PlainLstm(TorchFunctionMode):
    """Run torch.lstm as plain operators: oneDNN's fused layer has a workspace that no graph can carry."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.lstm and not kwargs and not isinstance(args[1], Tensor):
            hidden, cell = args[1]
            if hidden.shape == cell.shape:  # with projections PyTorch runs plain operators itself
                return _lstm(*args)
        return func(*args, **(kwargs or {}))


def _lstm(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    weights: list[Tensor],
    biased: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what torch.lstm returns: output (time, row, width), last hidden and last cell states."""
    x = x.transpose(0, 1) if batch_first else x
    each, directions = (4 if biased else 2), 1 + bidirectional
    ends: list[tuple[Tensor, Tensor]] = []
    for layer in range(layers):
        if layer and dropout and train:
            x = F.dropout(x, dropout)
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            own = weights[each * index : each * (index + 1)]
            start = state[0][index], state[1][index]
            output, *end = _lstm_direction(x, start, own, backwards=direction == 1)
            outputs.append(output)
            ends.append((end[0], end[1]))
        x = torch.cat(outputs, 2) if bidirectional else outputs[0]
    hidden, cell = (torch.stack(states) for states in zip(*ends, strict=True))
    return (x.transpose(0, 1) if batch_first else x), hidden, cell


def _lstm_direction(
    x: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor], *, backwards: bool
) -> tuple[Tensor, Tensor, Tensor]:
    (hidden, cell), (of_input, of_hidden) = state, weights[:2]
    bias = weights[2] + weights[3] if len(weights) == 4 else None
    gates = F.linear(x, of_input, bias).unbind(0)
    outputs = []
    for gate in reversed(gates) if backwards else gates:
        enter, keep, new, leave = (gate + F.linear(hidden, of_hidden)).chunk(4, 1)
        cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs[::-1] if backwards else outputs), hidden, cell
