"""Capture of one iteration of an attack as a flat graph of ATen and vleak operators.

A step is a function of named tensors. It is run a single time on tensors without contents (PyTorch's meta
device), derivatives included, and every operator that reaches the dispatcher below autograd is recorded.
Operations that depend on the contents of a tensor (a branch, a shape, a random draw) cannot be recorded, and
raise `CaptureError`.
"""

from __future__ import annotations

import operator
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.utils._python_dispatch import TorchDispatchMode

from vleak.descent.memory import Memory, changed_arguments
from vleak.descent.own_operators import OwnOperators
from vleak.errors import CapabilityError, InputError, VleakError
from vleak.switches import math_attention

__all__ = ["OWN_LAYOUT", "Capture", "CaptureError", "Step", "as_step", "capture", "empty_like"]

Step = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Function from named tensors to named tensors; may differentiate, but not branch on tensor contents."""

#: Operators that choose the layout of their results by device if their arguments are not contiguous.
OWN_LAYOUT = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)

_META = torch.device("meta")

# One capture at a time: functional_call, which steps use, swaps the tensors of a module while it runs.
_tracing = threading.Lock()


class CaptureError(CapabilityError):
    """Error for a step that cannot be captured; its one-line message names the operator and the reason."""

    def __init__(self, why: str) -> None:
        """Build the message from the reason ``why``."""
        super().__init__(f"the step cannot be captured: {why}")


@dataclass(frozen=True)
class Capture:
    """Captured step: its graph, and the names of its inputs and outputs.

    Attributes:
        graph: calls ATen and vleak operators only; placeholders in the order of `inputs`, returns a list in
            the order of `outputs`. Every node's ``meta["val"]`` is a meta tensor of its shape, dtype and
            strides, or a list of them. Tensors that are not among the inputs are attributes of the module.
        inputs: names of the placeholders.
        outputs: names of the returned tensors.
        fixed: inputs that are constant over all iterations.
        device: device on which the graph runs.
    """

    graph: GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fixed: frozenset[str]
    device: torch.device


def capture(step: Step, values: Mapping[str, Tensor], fixed: Collection[str]) -> Capture:
    """Return one call of a step as a graph; nothing is computed, and ``values`` are neither read nor changed.

    Scaled-dot-product attention is recorded from its math backend, which alone has a second derivative, and
    recurrent layers as plain operators. Calls from several threads are serialised. A module that stores
    tensors of its forward pass as attributes would store empty ones: capture a step on a copy of it.

    Args:
        step: the function to capture, which may differentiate; runs in the caller's grad mode.
        values: every tensor that the step reads, by name, any shapes; only shape, strides, dtype and device
            matter.
        fixed: names among ``values`` that are constant over all iterations.

    Returns:
        the captured step, its inputs in the order of ``values``.

    Raises:
        InputError: a name in ``fixed`` is not in ``values``.
        CaptureError: the step draws random numbers, has a branch or a shape that depends on tensor contents,
            changes a fixed tensor, has an operator without second derivative, or cannot be traced.
    """
    strangers = sorted(set(fixed) - set(values))
    if strangers:
        raise InputError(f"capture: fixed names {strangers[0]!r}, which is not among the step's values")
    recorder = _Recorder(values)
    returned = recorder.run(step)
    inputs = dict(zip(values, recorder.graph.find_nodes(op="placeholder"), strict=True))
    _check_changes(recorder.graph, {node: name for name, node in inputs.items() if name not in fixed})
    for name, node in returned.items():
        _check_output(name, node, inputs.get(name), name in fixed)
    recorder.graph.output(list(returned.values()))
    module = _LazyGraphModule(recorder.constants, recorder.graph)  # compiled on its first call
    return Capture(module, tuple(values), tuple(returned), frozenset(fixed), recorder.device)


def as_step(capture: Capture) -> Step:
    """Return a captured step as a function; values that are no inputs of the graph are ignored."""
    return lambda values: dict(
        zip(capture.outputs, capture.graph(*(values[name] for name in capture.inputs)), strict=True)
    )


def _check_changes(graph: Graph, changeable: Mapping[Node, str]) -> None:
    """Raise CaptureError for in-place operators on fixed inputs or on tensors that are no inputs."""
    memory = Memory(graph)
    for node in graph.nodes:
        for root in (memory.owner[changed] for changed in changed_arguments(node)):
            if root.op != "call_function" and root not in changeable:
                raise CaptureError(f"{node.target} changes {root.meta['name']}, which has to stay as it is")


def _check_output(name: str, node: object, before: Node | None, fixed: bool) -> None:
    if not isinstance(node, Node):
        raise CaptureError(f"it returns no tensor as {name!r}")
    if fixed:
        raise CaptureError(f"it returns {name!r}, which is fixed")
    after, expected = (item.meta["val"] for item in (node, node if before is None else before))
    if (after.shape, after.dtype) != (expected.shape, expected.dtype):
        raise CaptureError(
            f"it takes {name!r} as {tuple(expected.shape)} {expected.dtype} and returns it as "
            f"{tuple(after.shape)} {after.dtype}"
        )


# ---------------------------------------------------------------------------------------------------------
# Recording


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that runs every operator on meta tensors and records it in a graph."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Avoids a wrapper on every call that disables PyTorch's compiler, which is never active in this mode.
        return False

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        """Add a placeholder for every value."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.constants = Graph(), nn.Module()
        self.device = Counter(value.device for value in values.values()).most_common(1)[0][0]
        self._nodes: dict[int, Node] = {}
        self._parts: dict[int, tuple[Node, int]] = {}  # results of several that nothing has read yet
        self._alive: list[Tensor] = []  # keeps tensors alive, since `_nodes` has their id() as keys
        self._running: Any = None
        self._known: dict[Hashable, Any] = {}
        self._inputs = {name: self._input(name, value) for name, value in values.items()}

    def run(self, step: Step) -> dict[str, Any]:
        """Return the node of every output by name; outputs that are no tensors are returned unchanged."""
        try:
            with _tracing, math_attention(), OwnOperators(self.device), self:
                returned = {
                    name: _laid_out(value, self._inputs.get(name))
                    for name, value in step(dict(self._inputs)).items()
                }
            return {name: self._find(value) for name, value in returned.items()}
        except VleakError:
            raise
        except Exception as error:
            raise CaptureError(_explain(error, self._running)) from error

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        reads = torch.Tag.data_dependent_output in func.tags
        if reads and not any(isinstance(item, Tensor) and item.is_meta for item in args):
            return func(*args, **kwargs)  # reads a constant
        _check_operator(func, args)
        if func is torch.ops.aten.detach.default:
            return self._alias(args[0])
        self._running = func
        node = self.graph.call_function(func, *torch.fx.node.map_aggregate((args, kwargs), self._find))  # type: ignore[arg-type]
        if any(argument.name == "device" for argument in func._schema.arguments):
            if node.kwargs.get("device") == _META:
                node.kwargs = {**node.kwargs, "device": self.device}
            kwargs["device"] = _META
        result = self._run(func, _mapped(args, _without_contents), kwargs)
        self._running = None
        result = self._track(node, result)
        own = func in OWN_LAYOUT and not all(
            item.is_contiguous() for item in args if isinstance(item, Tensor)
        )
        return _mapped(result, self._copied) if own else result

    def _alias(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the same contents and memory, of the same node."""
        node = self._find(tensor)
        alias = _without_contents(tensor).detach()
        self._nodes[id(alias)] = node
        self._alive.append(alias)
        return alias

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operator's result, cached by shapes of the arguments: recurrent layers repeat calls."""
        if any(argument.alias_info for argument in (*func._schema.arguments, *func._schema.returns)):
            return func(*args, **kwargs)
        key = func, _likeness(args), _likeness(tuple(kwargs.items()))
        if key not in self._known:
            self._known[key] = func(*args, **kwargs)
        return _mapped(self._known[key], empty_like)

    def _copied(self, result: Tensor) -> Tensor:
        """Return a contiguous copy of a result, for recorded strides that do not depend on the device."""
        contiguous: dict[str, Any] = {"memory_format": torch.contiguous_format}
        node = self.graph.call_function(torch.ops.aten.clone.default, (self._find(result),), contiguous)
        copy: Tensor = self._track(node, torch.empty(result.shape, dtype=result.dtype, device=_META))
        return copy

    def _input(self, name: str, value: Tensor) -> Tensor:
        node = self.graph.placeholder(re.sub(r"\W", "_", name))
        node.meta["name"] = name
        result: Tensor = self._track(node, _without_contents(value.detach()))
        return result

    def _find(self, value: Any) -> Any:
        """Return the node of a tensor; a tensor without a node becomes a constant of the graph."""
        if not isinstance(value, Tensor):
            return value
        if id(value) in self._parts:
            call, index = self._parts.pop(id(value))
            part = self.graph.call_function(operator.getitem, (call, index))
            part.meta["val"] = call.meta["val"][index]
            self._nodes[id(value)] = part
        if id(value) not in self._nodes:
            if value.is_meta:
                raise CaptureError("a tensor came from outside of the step's operators")
            name = f"constant_{len(self._alive)}"
            self.constants.register_buffer(name, value.detach())
            node = self.graph.create_node("get_attr", name)
            node.meta["name"] = f"a tensor of shape {tuple(value.shape)} that is not among the step's values"
            node.meta["val"] = _without_contents(value.detach())
            self._nodes[id(value)] = node
            self._alive.append(value)
        return self._nodes[id(value)]

    def _track(self, node: Node, result: Any) -> Any:
        if isinstance(result, Tensor):
            node.meta["val"] = result.detach()
            self._nodes[id(result)] = node
            self._alive.append(result)
        elif isinstance(result, (list, tuple)):
            node.meta["val"] = [self._promise(node, index, part) for index, part in enumerate(result)]
        else:
            node.meta["val"] = result
        return result

    def _promise(self, node: Node, index: int, part: Any) -> Any:
        """Return the meta value of one of several results; a tensor gets its node once it is read."""
        if isinstance(part, Tensor):
            self._parts[id(part)] = node, index
            self._alive.append(part)
            return part.detach()
        item = self.graph.call_function(operator.getitem, (node, index))
        self._track(item, part)
        return item.meta["val"]


def _laid_out(value: Any, taken: Tensor | None) -> Any:
    """Return an output with the strides of its input of the next iteration, whose views require them."""
    if not isinstance(value, Tensor) or taken is None or value.shape != taken.shape:
        return value  # no input of the next iteration, or rejected later
    pairs = zip(value.shape, value.stride(), taken.stride(), strict=True)
    if all(mine == its for size, mine, its in pairs if size > 1):
        return value
    order = sorted(range(taken.ndim), key=taken.stride, reverse=True)
    back = sorted(range(taken.ndim), key=order.__getitem__)
    return value.permute(order).clone(memory_format=torch.contiguous_format).permute(back)


def empty_like(meta: Tensor) -> Tensor:
    """Return a new meta tensor of the same shape, strides and dtype."""
    return torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype, device=_META)


def _without_contents(tensor: Tensor) -> Tensor:
    """Return a meta tensor of the same shape and strides; the tensor itself if it is one."""
    return tensor if tensor.is_meta else empty_like(tensor)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a value, or a list of them, with every tensor changed; what is no tensor stays."""
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, change) for item in value)
    return change(value) if isinstance(value, Tensor) else value


def _likeness(value: Any) -> Hashable:
    """Return a key of everything that an operator's result depends on, except the contents of tensors."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(_likeness(item) for item in value)
    return type(value), value


def _check_operator(func: Any, args: tuple[Any, ...]) -> None:
    """Raise CaptureError for an operator whose result a graph cannot represent."""
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise CaptureError(f"{func} draws random numbers; put the model in eval mode")
    if torch.Tag.data_dependent_output in func.tags:
        raise CaptureError(f"{func} reads what a tensor holds into Python (an .item() or an if on a tensor)")
    if torch.Tag.dynamic_output_shape in func.tags and not _at_places(func, args):
        raise CaptureError(f"{func} has a result whose shape depends on what a tensor holds")


def _at_places(func: Any, args: tuple[Any, ...]) -> bool:
    """Return whether a call indexes a tensor by integers, and not by a mask."""
    if func is not torch.ops.aten.index.Tensor:
        return False
    return not any(item is not None and item.dtype in (torch.bool, torch.uint8) for item in args[1])


def _explain(error: Exception, running: Any) -> str:
    """Return the reason why a trace failed, in one line, with the operator if there is one."""
    message = str(error).strip()
    missing = re.search(r"derivative for (\S+) is not implemented", message)
    if missing:
        return f"{missing.group(1)} has no second derivative"
    line = message.partition("\n")[0] or type(error).__name__
    return line if running is None else f"{running}: {line}"
