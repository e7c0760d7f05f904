"""Descents that share a captured iteration, run as one program with a trial axis.

The captured iteration of one trial is mapped over the trials (`torch.vmap`), so what it holds, derivatives
included, holds for each of them. They share the model's weights, and whatever else is the same tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from vleak.descent.capture import Capture, capture, mutated, roots
from vleak.descent.cuda_graph import Replayed
from vleak.descent.native import _key, _near
from vleak.descent.passes import optimize
from vleak.descent.runner import Outcome, Plateau, Program
from vleak.descent.steps import STATE, Step, Values
from vleak.descent.watch import FIXED, LENGTH, as_step, changed_inputs, first_books, outcomes, watched
from vleak.errors import CapabilityError
from vleak.native import operators
from vleak.switches import differentiable_rnn, math_attention

__all__ = ["Batch", "Member", "Start", "batched", "kind", "make_batch", "share_weights"]


@dataclass(frozen=True)
class Start:
    """A descent before its first iteration: what `vleak.descent.runner.Program.bind` takes, and the step."""

    step: Step
    values: Values
    plateau: Plateau


def kind(start: Start) -> Hashable:
    """Return what descents have in common that may run together: one set of weights, and all but numbers."""
    weights = tuple(v.data_ptr() for name, v in start.values.items() if name.startswith("parameter:"))
    return _key(start.step, start.values), weights


def share_weights(starts: Sequence[Start]) -> list[Start]:
    """Let descents whose weights or buffers are equal use the same: copies of a model are one model."""
    known: dict[Hashable, list[Tensor]] = {}

    def one(name: str, value: Tensor) -> Tensor:
        if not name.startswith(("parameter:", "buffer:")):
            return value
        seen = known.setdefault((name, value.shape, value.stride(), value.dtype, value.device), [])
        for each in seen:
            if each.data_ptr() == value.data_ptr() or torch.equal(each, value):
                return each
        seen.append(value)
        return value

    return [
        replace(start, values={name: one(name, value) for name, value in start.values.items()})
        for start in starts
    ]


# ---------------------------------------------------------------------------------------------------------
# Mapping a captured iteration over trials


def batched(single: Capture, shared: Sequence[str]) -> Callable[[Values], Values]:
    """Return a captured step for many trials: values and outputs have a first axis of trials.

    Args:
        single: of one trial; apart from vleak's own operators, none changes a tensor that stays.
        shared: names of values without that axis.
    """
    axes = tuple(None if name in shared else 0 for name in single.inputs)
    spread = _written_by_trial(single, shared)

    def one(*tensors: Tensor) -> tuple[Tensor, ...]:
        of_trials = next(tensor for tensor, axis in zip(tensors, axes, strict=True) if axis == 0)
        return tuple(_Lenient(single.graph, spread, of_trials).run(*tensors))

    def run(values: Values) -> Values:
        made = torch.vmap(one, axes)(*(values[name] for name in single.inputs))
        return dict(zip(single.outputs, made, strict=True))

    return run


def _written_by_trial(single: Capture, shared: Sequence[str]) -> set[Node]:
    """Return the nodes that allocate what a graph then writes trials' values into."""
    graph = single.graph.graph
    owner, known = roots(graph), -1
    placeholders = zip(single.inputs, graph.find_nodes(op="placeholder"), strict=True)
    by_trial = {node for name, node in placeholders if name not in shared}
    written: set[Node] = set()
    while known < len(by_trial):  # names of memory may come before what is written into it
        known = len(by_trial)
        for node in graph.nodes:
            if not by_trial.isdisjoint(node.all_input_nodes):
                written.update(owner[each] for each in mutated(node))
                by_trial |= {node, *written}
    return {node for node in written if node.op == "call_function"}


class _Lenient(Interpreter):
    """Runs a graph with operators that can be mapped in place of those that cannot."""

    def __init__(self, graph: GraphModule, spread: set[Node], of_trials: Tensor) -> None:
        """Take the graph, the nodes from `_written_by_trial`, and any tensor that has a trial axis."""
        super().__init__(graph)
        self._spread, self._of_trials = spread, of_trials

    def run_node(self, n: Node) -> Any:
        made = super().run_node(n)
        if n not in self._spread:
            return made
        # Each trial writes into memory of its own, laid out as alone: so views of it are no copies.
        alone, kind = n.meta["val"], {"dtype": made.dtype, "device": made.device}
        return self._of_trials.new_empty_strided(alone.shape, alone.stride(), **kind).copy_(made)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.aten.clone.default:
            kwargs = {}  # a layout of one trial is none of many, and changes no number
        return super().call_function(_MAPPABLE.get(target, target), args, kwargs)


_MAPPABLE = {
    # The trial axis may stand between what a view merges.
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten.fill.Scalar: torch.ops.aten.full_like.default,
}


def _trial_by_trial(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return a rule for vmap: call an operator once for every trial, as its run alone does."""

    def rule(info: Any, axes: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        results = [operator(*_of_trial(arguments, axes, trial)) for trial in range(info.batch_size)]
        made = _stacked(results)
        return made, _zeros(made)

    return rule


def _of_trial(arguments: Any, axes: Any, trial: int) -> Any:
    if isinstance(arguments, list | tuple):
        return [_of_trial(each, axis, trial) for each, axis in zip(arguments, axes, strict=True)]
    return arguments if axes is None else arguments.select(axes, trial)


def _stacked(results: Sequence[Any]) -> Any:
    if isinstance(results[0], Tensor):
        return torch.stack(tuple(results))
    return type(results[0])(_stacked(each) for each in zip(*results, strict=True))


def _zeros(made: Any) -> Any:
    return 0 if isinstance(made, Tensor) else type(made)(_zeros(each) for each in made)


for _name in ("gradient_match", "total_variation", "descend"):
    torch.library.register_vmap(f"vleak::{_name}", _trial_by_trial(getattr(torch.ops.vleak, _name).default))


# ---------------------------------------------------------------------------------------------------------
# Programs, made once for every kind and number of trials

_lock = threading.Lock()
_programs: dict[Hashable, Capture | None] = {}
#: Programs kept; all are forgotten beyond, which costs making those again that are still in use.
_KEPT = 16


def make_batch(starts: Sequence[Start]) -> Batch | None:
    """Put descents together; None where their iteration cannot be mapped over trials.

    Args:
        starts: at least one, all of one `kind`; on a CUDA device they become one CUDA graph.
    """
    shared = _shared(starts)
    values = _together(starts, shared)
    # The weights come with the values: copies of a model that come and go share a program.
    key = (_key(starts[0].step, starts[0].values), len(starts), shared)
    with _lock:
        if key not in _programs:
            if len(_programs) >= _KEPT:
                _programs.clear()
            _programs[key] = _captured(starts, values, shared)
        found = _programs[key]
    return None if found is None else Batch(_bound(found, values), len(starts))


def _shared(starts: Sequence[Start]) -> tuple[str, ...]:
    first = starts[0].values
    names = [name for name in first if name not in STATE]
    return tuple(n for n in names if all(s.values[n].data_ptr() == first[n].data_ptr() for s in starts))


def _together(starts: Sequence[Start], shared: Sequence[str]) -> Values:
    values = {
        name: value if name in shared else torch.stack([start.values[name] for start in starts])
        for name, value in starts[0].values.items()
    }
    return values | first_books([start.plateau for start in starts], values["x"].device)


def _captured(starts: Sequence[Start], values: Values, shared: Sequence[str]) -> Capture | None:
    first = starts[0]
    fixed = [name for name in first.values if name not in STATE]
    try:
        with math_attention(), differentiable_rnn(first.step.model):
            single = optimize(capture(first.step, first.values, fixed), ["simplify"])
            step = _counting(watched(batched(single, shared), changed_inputs(single)))
            many = optimize(capture(step, values, [*fixed, *FIXED]))
    except CapabilityError:
        return None
    return many if _agrees(many, starts, values) else None


def _counting(step: Callable[[Values], Values]) -> Callable[[Values], Values]:
    """Let a step return how many trials run in place of their objectives: a runner asks for one number."""

    def run(values: Values) -> Values:
        after = step(values)
        return {**after, "objective": after["books:running"].sum(dtype=torch.float64)}

    return run


def _agrees(many: Capture, starts: Sequence[Start], values: Values) -> bool:
    """Compare one iteration with the reference's of every trial."""
    with torch.no_grad():
        after = as_step(many)({name: value.clone() for name, value in values.items()})
    for trial, start in enumerate(starts):
        own = {name: value.clone() if name in STATE else value for name, value in start.values.items()}
        with operators.use_reference(), math_attention(), differentiable_rnn(start.step.model):
            expected = start.step(own)
        pairs = (
            (after["books:history"][-1, trial], expected["objective"]),
            (after["gradient"][trial], expected["gradient"]),
        )
        if not all(_near(got, right, 0.05) for got, right in pairs):
            return False
    return True


class _Runs(Protocol):
    @property
    def values(self) -> dict[str, Tensor]: ...

    def run(self, n: int, table: Tensor, /) -> Outcome | None: ...


def _bound(many: Capture, values: Values) -> _Runs:
    if values["x"].is_cuda:
        return Replayed(as_step(many), values, many.fixed)
    return Program(many).bind(values)


# ---------------------------------------------------------------------------------------------------------
# Running them


class Batch:
    """Descents under way side by side, each to its own end."""

    def __init__(self, bound: _Runs, trials: int) -> None:
        """Take over a bound program; use `make_batch`."""
        self._bound, self._known = bound, [0] * trials
        self._lock = threading.Lock()

    @property
    def members(self) -> list[Member]:
        """The descents, in the order of the starts."""
        return [Member(self, trial) for trial in range(len(self._known))]

    def value(self, name: str, trial: int) -> Tensor:
        """Return a trial's value of what differs by trial."""
        return self._bound.values[name][trial]

    def run(self, tables: Mapping[int, Tensor]) -> dict[int, Outcome]:
        """Run further iterations of some trials; the others stay where they are.

        Args:
            tables: by trial, (iterations, numbers): the settings of each iteration; all of one length, of
                which at most `vleak.descent.watch.LENGTH` are run.

        Returns:
            what they gave, by trial; nothing for one that has ended before.
        """
        with self._lock:
            rows = self._rows(tables)
            active = torch.tensor([trial in tables for trial in range(len(self._known))])
            self._bound.values["books:active"].copy_(active)
            ran = self._bound.run(len(rows), rows)
            # A CUDA graph, which nothing interrupts, returns nothing.
            raised = None if ran is None else ran.raised
            length = len(rows) if ran is None else len(ran.history)
            found = outcomes(self._bound.values, self._known, length)
            self._known = [known + len(each.history) for known, each in zip(self._known, found, strict=True)]
        return {trial: replace(found[trial], raised=raised) for trial in tables}

    def _rows(self, tables: Mapping[int, Tensor]) -> Tensor:
        # Trials that rest see some other's settings: what they make of them is thrown away.
        some = next(iter(tables.values()))
        return torch.stack([tables.get(trial, some)[:LENGTH] for trial in range(len(self._known))], 1)


@dataclass(frozen=True)
class Member:
    """A descent of a batch, with the interface of `vleak.descent.runner.Bound` to run it alone."""

    batch: Batch
    trial: int

    @property
    def values(self) -> dict[str, Tensor]:
        """What a state is read from: "x", "best" and "best_objective", as the next iteration sees them."""
        return {name: self.batch.value(name, self.trial) for name in ("x", "best", "best_objective")}

    def run(self, n: int, table: Tensor) -> Outcome:
        """Run up to n further iterations of this descent alone, at the cost of all."""
        history: list[float] = []
        while len(history) < n:
            outcome = self.batch.run({self.trial: table[len(history) : n]})[self.trial]
            history += outcome.history
            if outcome.raised is not None or outcome.reason != "done" or not outcome.history:
                return Outcome(history, outcome.reason, outcome.raised)
        return Outcome(history, "done")
