"""A captured step as a flat list of operator calls: what runs once, what every time, what dies when.

Operators that depend on fixed inputs only are the prologue. Everything here is decided by the operators'
schemas, which say what a call changes and of what its results are views.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from vleak.descent.capture import SILENT_VIEWS, Capture
from vleak.errors import CapabilityError

__all__ = ["UNREAD", "Instruction", "Plan", "Slot", "make_plan"]

#: In place of a result's slot: nobody reads it.
UNREAD = -1

Place = int | tuple["Place", ...]
"""The slot of a value, or those of a list's items."""


@dataclass(frozen=True)
class Slot:
    """Stands in an instruction's arguments for the value of a slot."""

    index: int


@dataclass(frozen=True)
class Instruction:
    """One call of an operator.

    Attributes:
        target: the operator.
        arguments, keywords: as in the graph; values are replaced by `Slot`, also inside lists.
        results: a slot for each tensor that comes back, lists flattened.
        freed: slots that nobody reads after this call.
    """

    target: OpOverload
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: tuple[int, ...]
    freed: tuple[int, ...]

    @property
    def name(self) -> str:
        """The operator's name without its overload, such as ``"aten::add"``."""
        return self.target._schema.name

    @property
    def overload(self) -> str:
        """The overload's name, such as ``"Tensor"``; empty for the default one."""
        return self.target._schema.overload_name


@dataclass(frozen=True)
class Plan:
    """What a runner executes.

    Attributes:
        slots: number of slots.
        inputs: slot of every input, by name.
        constants: tensors of the graph itself, by slot.
        changed: slots of inputs and constants that are changed in place, or are views of such.
        prologue: run once.
        body: run every iteration.
        outputs: slot of every output, in the capture's order.
        leftover: slots that hold only outputs when an iteration ends.
        carries: (place of an output, slot of the input that it becomes).
        settings: slot of the input "settings", if there is one.
        objective: place of the output "objective".
    """

    slots: int
    inputs: dict[str, int]
    constants: dict[int, Tensor]
    changed: frozenset[int]
    prologue: tuple[Instruction, ...]
    body: tuple[Instruction, ...]
    outputs: tuple[int, ...]
    leftover: tuple[int, ...]
    carries: tuple[tuple[int, int], ...]
    settings: int | None
    objective: int


def make_plan(capture: Capture) -> Plan:
    """Lower a captured step.

    Raises:
        CapabilityError: the graph calls something that is no operator, or returns no number as "objective".
    """
    nodes = list(capture.graph.graph.nodes)
    places = _places(nodes)
    placeholders = dict(zip(capture.inputs, (n for n in nodes if n.op == "placeholder"), strict=True))
    inputs = {name: _one(places[node]) for name, node in placeholders.items()}
    returned: Sequence[Node] = nodes[-1].args[0]
    carried = {
        place: placeholders[name] for place, name in enumerate(capture.outputs) if name in placeholders
    }
    memory = _Memory(nodes, [(returned[place], node) for place, node in carried.items()])
    held = {node for node in nodes if node.op in ("placeholder", "get_attr")}
    once = _hoisted(nodes, memory, {placeholders[name] for name in capture.fixed})
    outputs = tuple(_one(places[node]) for node in returned)
    prologue, body = _instructions(nodes, places, once, outputs)
    made = {slot for instruction in body for slot in instruction.results}
    return Plan(
        slots=1 + max(slot for place in places.values() for slot in _slots(place)),
        inputs=inputs,
        constants={_one(places[n]): _attribute(capture, n) for n in nodes if n.op == "get_attr"},
        changed=frozenset(_one(places[node]) for node in held if memory.changed(node)),
        prologue=prologue,
        body=body,
        outputs=outputs,
        leftover=tuple(sorted(made & set(outputs))),
        carries=tuple((place, _one(places[node])) for place, node in carried.items()),
        settings=inputs.get("settings"),
        objective=_objective(capture, returned),
    )


def _objective(capture: Capture, returned: Sequence[Node]) -> int:
    if "objective" not in capture.outputs:
        raise CapabilityError(f"the step returns no 'objective', only {', '.join(capture.outputs)}")
    place = capture.outputs.index("objective")
    value = returned[place].meta.get("val")
    if isinstance(value, Tensor) and value.numel() != 1:
        raise CapabilityError(
            f"the step's objective has shape {tuple(value.shape)}; a descent needs one number"
        )
    return place


def _attribute(capture: Capture, node: Node) -> Tensor:
    tensor: Tensor = operator.attrgetter(str(node.target))(capture.graph)
    return tensor.detach()


# ---------------------------------------------------------------------------------------------------------
# Slots


def _places(nodes: Sequence[Node]) -> dict[Node, Place]:
    """Give every value of the graph its slots; an item of a list has the list's own."""
    places: dict[Node, Place] = {}
    free = iter(range(1 << 30))
    for node in nodes:
        if node.op == "output":
            continue
        if node.target is operator.getitem:
            whole, index = node.args
            places[node] = places[whole][index]  # type: ignore[index]
        elif node.op in ("placeholder", "get_attr") or isinstance(node.target, OpOverload):
            places[node] = _place(_example(node), free)
        else:
            raise CapabilityError(f"the graph calls {node.target}, which is no operator")
    return places


def _example(node: Node) -> Any:
    """Return something of the structure of a node's value."""
    returns = node.target._schema.returns if isinstance(node.target, OpOverload) else [None]
    if not returns:
        return ()
    if "val" not in node.meta and (len(returns) > 1 or "[]" in str(returns[0])):
        raise CapabilityError(f"the graph does not say how many tensors {node.target} returns")
    return node.meta.get("val")


def _place(value: Any, free: Iterator[int]) -> Place:
    if isinstance(value, (tuple, list)):
        return tuple(_place(item, free) for item in value)
    return next(free)


def _slots(place: Place) -> Iterator[int]:
    if isinstance(place, int):
        yield place
    else:
        for item in place:
            yield from _slots(item)


def _one(place: Place) -> int:
    if not isinstance(place, int):
        raise CapabilityError("the graph takes or returns a list where a tensor is expected")
    return place


# ---------------------------------------------------------------------------------------------------------
# Who shares memory, and whose memory changes

_aten = torch.ops.aten
#: In training they change arguments 3 and 4, the running statistics, though their schemas do not say so.
_SILENT_CHANGES = frozenset({_aten.native_batch_norm.default, _aten.cudnn_batch_norm.default})


class _Memory:
    """Groups the nodes that may share memory, and knows which groups are changed in place."""

    def __init__(self, nodes: Sequence[Node], carried: Sequence[tuple[Node, Node]]) -> None:
        self._leader = {node: node for node in nodes}
        for node in nodes:
            for source in _viewed(node):
                self._join(node, source)
        # An output becomes an input: what the next iteration changes is then the output.
        for output, place in carried:
            self._join(output, place)
        self._changed = {self._find(changed) for node in nodes for changed in _changes(node)}

    def changed(self, node: Node) -> bool:
        return self._find(node) in self._changed

    def _find(self, node: Node) -> Node:
        while self._leader[node] is not node:
            self._leader[node] = node = self._leader[self._leader[node]]
        return node

    def _join(self, one: Node, other: Node) -> None:
        self._leader[self._find(one)] = self._find(other)


def _viewed(node: Node) -> list[Node]:
    """Return the arguments whose memory a node's results may share."""
    target = node.target
    if target is operator.getitem or target in SILENT_VIEWS:
        return _nodes(node.args[0])
    if not isinstance(target, OpOverload):
        return []
    shared = {name for result in target._schema.returns for name in _alias(result)}
    return [source for argument, source in _given(node) if _alias(argument) & shared]


def _changes(node: Node) -> list[Node]:
    """Return the arguments that a node changes in place."""
    target = node.target
    if not isinstance(target, OpOverload):
        return []
    if target in _SILENT_CHANGES:
        return [n for value in node.args[3:5] for n in _nodes(value)] if node.args[5] else []
    return [source for a, source in _given(node) if a.alias_info is not None and a.alias_info.is_write]


def _alias(argument: torch._C.Argument) -> set[str]:
    return set(argument.alias_info.before_set) if argument.alias_info is not None else set()


def _given(node: Node) -> Iterator[tuple[torch._C.Argument, Node]]:
    """Yield every value that an operator is given, with the argument it is given for."""
    assert isinstance(node.target, OpOverload)
    for position, argument in enumerate(node.target._schema.arguments):
        value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        for source in _nodes(value):
            yield argument, source


def _nodes(value: Any) -> list[Node]:
    if isinstance(value, Node):
        return [value]
    return [n for item in value for n in _nodes(item)] if isinstance(value, (list, tuple)) else []


def _hoisted(nodes: Sequence[Node], memory: _Memory, fixed: set[Node]) -> set[Node]:
    """Return the nodes whose value is the same in every iteration, fixed inputs and constants included."""
    once: set[Node] = set()
    for node in nodes:
        if memory.changed(node) or node.op == "output":
            continue
        if node.op != "call_function":
            steady = node.op == "get_attr" or node in fixed
        else:
            steady = once.issuperset(node.all_input_nodes) and not _changes(node) and not _draws(node)
        if steady:
            once.add(node)
    return once


def _draws(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


# ---------------------------------------------------------------------------------------------------------
# Instructions


def _instructions(
    nodes: Sequence[Node], places: Mapping[Node, Place], once: set[Node], outputs: Sequence[int]
) -> tuple[tuple[Instruction, ...], tuple[Instruction, ...]]:
    """Return prologue and body."""
    calls = [node for node in nodes if isinstance(node.target, OpOverload)]
    parts = [n for n in calls if n in once], [n for n in calls if n not in once]
    # What the prologue leaves behind for the body lives as long as the descent.
    kept = {slot for node in parts[1] for slot in _read(node, places)} | set(outputs)
    return _part(parts[0], places, kept), _part(parts[1], places, set(outputs))


def _part(nodes: Sequence[Node], places: Mapping[Node, Place], kept: set[int]) -> tuple[Instruction, ...]:
    mortal = {slot for node in nodes for slot in _slots(places[node])} - kept
    last: dict[int, Node] = {}
    for node in nodes:
        last |= dict.fromkeys(_read(node, places), node)
    instructions = []
    for node in nodes:
        read = dict.fromkeys(_read(node, places))
        freed = [slot for slot in read if slot in mortal and last[slot] is node]
        results = [slot if slot in last or slot in kept else UNREAD for slot in _slots(places[node])]
        instructions.append(_instruction(node, places, results, freed))
    return tuple(instructions)


def _instruction(
    node: Node, places: Mapping[Node, Place], results: Sequence[int], freed: Sequence[int]
) -> Instruction:
    assert isinstance(node.target, OpOverload)
    arguments = tuple(_template(value, places) for value in node.args)
    keywords = {name: _template(value, places) for name, value in node.kwargs.items()}
    return Instruction(node.target, arguments, keywords, tuple(results), tuple(freed))


def _read(node: Node, places: Mapping[Node, Place]) -> list[int]:
    return [slot for source in node.all_input_nodes for slot in _slots(places[source])]


def _template(value: Any, places: Mapping[Node, Place]) -> Any:
    if isinstance(value, Node):
        return _as_slots(places[value])
    if isinstance(value, (list, tuple)):
        return [_template(item, places) for item in value]
    return value


def _as_slots(place: Place) -> Any:
    return Slot(place) if isinstance(place, int) else [_as_slots(item) for item in place]
