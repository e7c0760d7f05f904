"""Comparison of captured iterations with the reference, before they are used.

It is of one point: it catches a graph that computes something else, or leaves something behind for the next
iteration, not one that does so only elsewhere.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

import torch
from torch import Tensor

from vleak.descent.cuda import CudaProgram, CudaRunner
from vleak.descent.eager import EagerRunner
from vleak.descent.graph import GraphProgram, GraphRunner
from vleak.descent.problem import Values
from vleak.descent.runner import never
from vleak.descent.step import STATE, Step
from vleak.errors import CapabilityError
from vleak.native import operators
from vleak.seeds import generator
from vleak.switches import differentiable_rnn, math_attention

__all__ = ["GRADIENT_TOLERANCE", "agrees", "is_close", "reference_context", "reference_iteration"]

#: Of the derivative, loose: a pixel on the kink of a ReLU may fall to either side; a wrong graph is far off.
GRADIENT_TOLERANCE = 0.05
_TOLERANCES = {"objective": 1e-3, "gradient": GRADIENT_TOLERANCE}
#: What is left of a difference of nearly equal float32 numbers, where the distance is nearly zero.
_ROUNDING = 2e-6


def agrees(program: GraphProgram | CudaProgram, step: Step, values: Values) -> bool:
    """Compare one iteration with the reference, at the start and, should that fail, at noise.

    Where the start is the answer, there is only rounding to be compared. The values are those of the first
    iteration, "settings" among them.
    """
    if _agrees_at(values["x"], program, step, values):
        return True
    draws = torch.rand(values["x"].shape, generator=generator("witness"), dtype=values["x"].dtype)
    return _agrees_at(draws.to(values["x"]), program, step, values)


def reference_context(step: Step) -> AbstractContextManager[object]:
    """Return the context in which a step runs as the reference: plain PyTorch that has second derivatives."""
    stack = ExitStack()
    for context in (operators.use_reference(), math_attention(), differentiable_rnn(step.model)):
        stack.enter_context(context)
    return stack


def reference_iteration(step: Step, values: Values) -> Values:
    """Return "objective" and "gradient" of one iteration of the reference; the values are left alone."""

    def own() -> Values:
        return {name: value.clone() if name in STATE else value for name, value in values.items()}

    with reference_context(step):
        if step.settings.rule == "gauss_newton":
            after = step(own())
        else:  # the state is copied once autograd has given back its memory
            evaluated = step.evaluate(values, values["x"])
            after = step.advance(own(), evaluated)
    return {name: after[name] for name in _TOLERANCES}


def is_close(got: Tensor, expected: Tensor, tolerance: float, floor: float = 1e-12) -> bool:
    """Compare two tensors by the norm of their difference; neither may be finite where the other is not."""
    if not torch.isfinite(expected).all():
        # What both make of NaN is the descent's to report.
        return not bool(torch.isfinite(got).all())
    gap = (got.double() - expected.double()).norm()
    return bool(gap <= tolerance * expected.double().norm() + floor)


def _agrees_at(x: Tensor, program: GraphProgram | CudaProgram, step: Step, values: Values) -> bool:
    values = {**values, "x": x}
    # First the reference, which needs more memory, and keeps none of it.
    expected = reference_iteration(step, values)
    try:
        runner = program.start(values)
        iterations = [_iteration(runner, values) for _ in range(2)]
    except CapabilityError:
        return False
    floor = _ROUNDING * _unit(step, values)
    return all(
        is_close(got[name], expected[name], tolerance, floor)
        for got in iterations
        for name, tolerance in _TOLERANCES.items()
    )


def _iteration(runner: GraphRunner | EagerRunner | CudaRunner, values: Values) -> Values:
    """Return what an iteration from these values gives.

    Asked again, it gives the same, or an iteration leaves something behind that is not in the state.
    """
    runner.restore({name: values[name] for name in STATE if name in values and name != "settings"})
    block = runner.run(values["settings"][None], never)
    if block.raised is not None:
        raise block.raised
    return {name: runner.outputs[name].clone() for name in _TOLERANCES}


def _unit(step: Step, values: Values) -> float:
    """Return what a distance is measured in: 1, or for l2 the squared norm of the target."""
    if step.distance == "cosine":
        return 1.0
    targets = [value for name, value in values.items() if name.startswith("target:")]
    return sum(float(target.double().square().sum()) for target in targets)
