"""Lowering of a captured step to a flat list of instructions, which the C++ runner executes.

Operators that depend on fixed inputs only form the prologue, which runs once a descent; all others form the
body, which runs once an iteration. An instruction lists the values that it is the last to read.
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

from vleak.descent.capture import Capture
from vleak.descent.memory import Memory, changed_arguments
from vleak.errors import CapabilityError

__all__ = ["UNREAD", "Instruction", "Lowered", "Slot", "lower"]

#: Stands for the slot of a result that is never read.
UNREAD = -1

SlotTree = int | tuple["SlotTree", ...]
"""Slot of a value, or the slots of a list's items."""


@dataclass(frozen=True)
class Slot:
    """Placeholder in an instruction's arguments for the value of a slot."""

    index: int


@dataclass(frozen=True)
class Instruction:
    """Call of an operator on values in slots.

    Attributes:
        target: the operator.
        arguments, keywords: as in the graph, with values replaced by `Slot`, also inside lists.
        results: slots of the returned tensors, lists flattened.
        freed: slots that are not read after this call.
    """

    target: OpOverload
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: tuple[int, ...]
    freed: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the operator without its overload, such as ``"aten::add"``."""
        return self.target._schema.name

    @property
    def overload(self) -> str:
        """Name of the overload, such as ``"Tensor"``; empty for the default one."""
        return self.target._schema.overload_name


@dataclass(frozen=True)
class Lowered:
    """Captured step as input of the C++ runner.

    Attributes:
        slots: number of slots.
        inputs: slot of every input, by name.
        constants: tensors that are attributes of the graph, by slot.
        changed: slots of inputs and constants whose memory is changed in place.
        prologue: instructions that run once.
        body: instructions that run in every iteration.
        outputs: slot of every output, in the capture's order.
        leftover: slots that the body writes and that hold only outputs when an iteration ends.
        carries: (position of an output, slot of the input that it becomes in the next iteration).
        settings: slot of the input "settings", if there is one.
        objective: position of the output "objective".
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


def lower(capture: Capture) -> Lowered:
    """Return a captured step as instructions.

    Raises:
        CapabilityError: the graph calls anything but operators, or returns no "objective".
    """
    nodes = list(capture.graph.graph.nodes)
    slots_of = _assign_slots(nodes)
    placeholders = dict(zip(capture.inputs, (n for n in nodes if n.op == "placeholder"), strict=True))
    inputs = {name: _single(slots_of[node]) for name, node in placeholders.items()}
    returned: Sequence[Node] = nodes[-1].args[0]
    carried = {
        index: placeholders[name] for index, name in enumerate(capture.outputs) if name in placeholders
    }
    pairs = [(returned[index], node) for index, node in carried.items()]
    # The tensors that one operator returns are computed together: if one changes, all belong to the body.
    pairs += [(node, node.args[0]) for node in nodes if node.target is operator.getitem]
    memory = Memory(capture.graph.graph, pairs)
    held = {node for node in nodes if node.op in ("placeholder", "get_attr")}
    once = _hoisted(nodes, memory, {placeholders[name] for name in capture.fixed})
    outputs = tuple(_single(slots_of[node]) for node in returned)
    prologue, body = _instructions(nodes, slots_of, once, outputs)
    results = {slot for instruction in body for slot in instruction.results}
    return Lowered(
        slots=1 + max(slot for tree in slots_of.values() for slot in _slots(tree)),
        inputs=inputs,
        constants={_single(slots_of[n]): _attribute(capture, n) for n in nodes if n.op == "get_attr"},
        changed=frozenset(_single(slots_of[node]) for node in held if memory.changed(node)),
        prologue=prologue,
        body=body,
        outputs=outputs,
        leftover=tuple(sorted(results & set(outputs))),
        carries=tuple((index, _single(slots_of[node])) for index, node in carried.items()),
        settings=inputs.get("settings"),
        objective=_objective(capture),
    )


def _objective(capture: Capture) -> int:
    if "objective" not in capture.outputs:
        raise CapabilityError(f"the step returns no 'objective', only {', '.join(capture.outputs)}")
    return capture.outputs.index("objective")


def _attribute(capture: Capture, node: Node) -> Tensor:
    tensor: Tensor = operator.attrgetter(str(node.target))(capture.graph)
    return tensor.detach()


# ---------------------------------------------------------------------------------------------------------
# Slots


def _assign_slots(nodes: Sequence[Node]) -> dict[Node, SlotTree]:
    """Return the slots of every value of the graph; an item of a list has its slot in the list."""
    slots_of: dict[Node, SlotTree] = {}
    free = iter(range(1 << 30))
    for node in nodes:
        if node.op == "output":
            continue
        if node.target is operator.getitem:
            source, index = node.args
            slots_of[node] = slots_of[source][index]  # type: ignore[index]
        elif node.op in ("placeholder", "get_attr") or isinstance(node.target, OpOverload):
            nothing = isinstance(node.target, OpOverload) and not node.target._schema.returns
            slots_of[node] = () if nothing else _new_slots(node.meta.get("val"), free)
        else:
            raise CapabilityError(f"the graph calls {node.target}, which is no operator")
    return slots_of


def _new_slots(value: Any, free: Iterator[int]) -> SlotTree:
    """Return new slots for a value, with the nesting of its lists."""
    if isinstance(value, (tuple, list)):
        return tuple(_new_slots(item, free) for item in value)
    return next(free)


def _slots(tree: SlotTree) -> Iterator[int]:
    if isinstance(tree, int):
        yield tree
    else:
        for item in tree:
            yield from _slots(item)


def _single(tree: SlotTree) -> int:
    assert isinstance(tree, int)  # a capture takes and returns tensors, no lists
    return tree


# ---------------------------------------------------------------------------------------------------------
# Instructions


def _hoisted(nodes: Sequence[Node], memory: Memory, fixed: set[Node]) -> set[Node]:
    """Return the nodes of constant value over all iterations, fixed inputs and constants included."""
    once: set[Node] = set()
    for node in nodes:
        if memory.changed(node) or node.op == "output":
            continue
        constant = node.op == "get_attr" or node in fixed
        if node.op == "call_function":
            computed = once.issuperset(node.all_input_nodes) and not _draws(node)
            constant = computed and not changed_arguments(node)
        if constant:
            once.add(node)
    return once


def _draws(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _instructions(
    nodes: Sequence[Node], slots_of: Mapping[Node, SlotTree], once: set[Node], outputs: Sequence[int]
) -> tuple[tuple[Instruction, ...], tuple[Instruction, ...]]:
    """Return the instructions of the prologue and of the body."""
    calls = [node for node in nodes if isinstance(node.target, OpOverload)]
    parts = [n for n in calls if n in once], [n for n in calls if n not in once]
    # Values that the body reads from the prologue live as long as the descent.
    kept = {slot for node in parts[1] for slot in _read(node, slots_of)} | set(outputs)
    return _lower_part(parts[0], slots_of, kept), _lower_part(parts[1], slots_of, set(outputs))


def _lower_part(
    nodes: Sequence[Node], slots_of: Mapping[Node, SlotTree], kept: set[int]
) -> tuple[Instruction, ...]:
    temporary = {slot for node in nodes for slot in _slots(slots_of[node])} - kept
    last: dict[int, Node] = {}
    for node in nodes:
        last |= dict.fromkeys(_read(node, slots_of), node)
    instructions = []
    for node in nodes:
        read = dict.fromkeys(_read(node, slots_of))
        freed = [slot for slot in read if slot in temporary and last[slot] is node]
        results = [slot if slot in last or slot in kept else UNREAD for slot in _slots(slots_of[node])]
        arguments = tuple(_template(value, slots_of) for value in node.args)
        keywords = {name: _template(value, slots_of) for name, value in node.kwargs.items()}
        assert isinstance(node.target, OpOverload)
        instructions.append(Instruction(node.target, arguments, keywords, tuple(results), tuple(freed)))
    return tuple(instructions)


def _read(node: Node, slots_of: Mapping[Node, SlotTree]) -> list[int]:
    return [slot for source in node.all_input_nodes for slot in _slots(slots_of[source])]


def _template(value: Any, slots_of: Mapping[Node, SlotTree]) -> Any:
    if isinstance(value, Node):
        return _as_slots(slots_of[value])
    if isinstance(value, (list, tuple)):
        return [_template(item, slots_of) for item in value]
    return value


def _as_slots(tree: SlotTree) -> Any:
    return Slot(tree) if isinstance(tree, int) else [_as_slots(item) for item in tree]
