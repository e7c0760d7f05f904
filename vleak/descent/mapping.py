"""A captured iteration mapped over trials by `torch.vmap`, so that many descents are one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from vleak.descent.capture import Capture
from vleak.descent.memory import Memory, changed_arguments
from vleak.descent.problem import Values
from vleak.native import operators  # noqa: F401 (declares the operators)

__all__ = ["batched_step"]


def batched_step(single: Capture, shared: Sequence[str]) -> Callable[[Values], Values]:
    """Return a captured step for many trials: values and outputs have a first axis of trials.

    Args:
        single: of one trial; apart from vleak's own operators, none changes a tensor that stays.
        shared: names of values without that axis.
    """
    axes = tuple(None if name in shared else 0 for name in single.inputs)
    per_trial = _written_by_trial(single, shared)

    def one(*tensors: Tensor) -> tuple[Tensor, ...]:
        of_trials = next(tensor for tensor, axis in zip(tensors, axes, strict=True) if axis == 0)
        return tuple(_MappableInterpreter(single.graph, per_trial, of_trials).run(*tensors))

    def run(values: Values) -> Values:
        outputs = torch.vmap(one, axes)(*(values[name] for name in single.inputs))
        return dict(zip(single.outputs, outputs, strict=True))

    return run


def _written_by_trial(single: Capture, shared: Sequence[str]) -> set[Node]:
    """Return the nodes that allocate what a graph then writes trials' values into."""
    graph = single.graph.graph
    owner, known = Memory(graph).owner, -1
    placeholders = zip(single.inputs, graph.find_nodes(op="placeholder"), strict=True)
    by_trial = {node for name, node in placeholders if name not in shared}
    written: set[Node] = set()
    while known < len(by_trial):  # names of memory may come before what is written into it
        known = len(by_trial)
        for node in graph.nodes:
            if not by_trial.isdisjoint(node.all_input_nodes):
                written.update(owner[changed] for changed in changed_arguments(node))
                by_trial |= {node, *written}
    return {node for node in written if node.op == "call_function"}


class _MappableInterpreter(Interpreter):
    """Runs a graph with operators that can be mapped in place of those that cannot."""

    def __init__(self, graph: GraphModule, per_trial: set[Node], of_trials: Tensor) -> None:
        """Take the graph, the nodes from `_written_by_trial`, and any tensor that has a trial axis."""
        super().__init__(graph)
        self._per_trial, self._of_trials = per_trial, of_trials

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n not in self._per_trial:
            return result
        # Each trial writes into memory of its own, laid out as alone: so views of it are no copies.
        alone, options = n.meta["val"], {"dtype": result.dtype, "device": result.device}
        return self._of_trials.new_empty_strided(alone.shape, alone.stride(), **options).copy_(result)

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
    """Return a rule for vmap: call an operator once for every trial, the first axis of all its results."""

    def rule(info: Any, axes: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        results = [operator(*_of_trial(arguments, axes, trial)) for trial in range(info.batch_size)]
        return _stacked(results), 0

    return rule


def _of_trial(arguments: Any, axes: Any, trial: int) -> Any:
    if isinstance(arguments, list | tuple):
        return [_of_trial(item, axis, trial) for item, axis in zip(arguments, axes, strict=True)]
    return arguments if axes is None else arguments.select(axes, trial)


def _stacked(results: Sequence[Any]) -> Any:
    if isinstance(results[0], Tensor):
        return torch.stack(tuple(results))
    return type(results[0])(_stacked(items) for items in zip(*results, strict=True))


_PASSES = ("gradient_match", "total_variation", "descend")
# Recorded on a CPU only; the batches that pay, on a CUDA device, map PyTorch's.
_LAYERS = ("conv_output", "conv_input", "conv_weight")
_NORMS = (
    *("batch_statistics", "batch_norm", "batch_norm_backward", "batch_norm_second"),
    *("layer_norm", "layer_norm_backward", "layer_norm_second"),
)
_ACTIVATIONS = ("activation_backward", "activation_second", "softmax_second")
for _name in (*_PASSES, *_LAYERS, *_NORMS, *_ACTIVATIONS):
    torch.library.register_vmap(f"vleak::{_name}", _trial_by_trial(getattr(torch.ops.vleak, _name).default))
