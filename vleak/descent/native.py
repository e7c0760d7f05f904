"""The captured iteration: made once for every kind of problem, shared by all descents of that kind."""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vleak.descent.capture import Capture, capture
from vleak.descent.cuda_graph import CudaBound, CudaProgram
from vleak.descent.inductor import compile_capture
from vleak.descent.passes import optimize
from vleak.descent.passes.rewrite import rewritten
from vleak.descent.runner import Bound, Program
from vleak.descent.steps import STATE, Step, Values
from vleak.errors import CapabilityError
from vleak.native import operators
from vleak.seeds import generator
from vleak.switches import differentiable_rnn, math_attention

__all__ = ["EngineWarning", "Found", "program_for"]

#: Programs kept; a run has one or two, and each holds no tensor of a trial.
_KEPT = 32

_lock = threading.RLock()
_programs: OrderedDict[Hashable, Found | str] = OrderedDict()
_told: set[str] = set()


@dataclass(frozen=True)
class Found:
    """A captured iteration, and the engine that it is: "native" or "inductor".

    The witness is the same iteration, which also returns the derivative that it is compared by.
    """

    program: Program | CudaProgram
    engine: str
    witness: Program | CudaProgram


class EngineWarning(UserWarning):
    """Another engine runs than the one asked for, with the same results, only slower."""


def program_for(step: Step, values: Values, engine: str = "native") -> Found | None:
    """Return the captured iteration of such a step, or None, with one warning, where there can be none.

    It is captured by whoever asks first, and optimized. Whatever is alike in all but the numbers in its
    tensors shares it. Each caller's first iteration is compared with the reference on the caller's own
    values: what a graph pass has missed, or what two models do not share after all, ends here.

    Args:
        step: what to capture.
        values: the tensors of the first iteration, "settings" among them.
        engine: "native", or "inductor" for a compiled one; where it cannot be compiled, native, with one
            warning.
    """
    if operators.backend(values["x"].device) != "native":
        return None  # whose absence the extension has told of
    found = _shared(step, values, engine)
    if isinstance(found, Found) and not _agrees(found.witness, step, values):
        # Alike from outside, and yet another model: it gets a capture of its own.
        found = _made(step, values, engine)
        if isinstance(found, Found) and not _agrees(found.witness, step, values):
            found = "its captured iteration gave other numbers"
    _give_memory_back()
    if isinstance(found, Found):
        return found
    _tell(f"the reference engine runs: {found}")
    return None


def _give_memory_back() -> None:
    """Return to the system what capture and comparison have freed; the runner has told glibc to keep it."""
    trim = getattr(_c_library, "malloc_trim", None)
    if trim is not None:
        trim(0)


_c_library = ctypes.CDLL(None)


def _shared(step: Step, values: Values, engine: str) -> Found | str:
    """Return the program of all that are alike, or why there is none."""
    try:
        key = (engine, _key(step, values))
    except RecursionError:  # something that holds itself
        return _made(step, values, engine)
    with _lock:
        found = _programs.get(key)
        if found is None:
            found = _made(step, values, engine)
            _programs[key] = found
            while len(_programs) > _KEPT:
                _programs.popitem(last=False)
        _programs.move_to_end(key)
    return found


def _tell(what: str) -> None:
    if what not in _told:
        _told.add(what)
        warnings.warn(what, EngineWarning, stacklevel=5)


def _made(step: Step, values: Values, engine: str) -> Found | str:
    """Return the program, or why there is none."""
    fixed = [name for name in values if name not in STATE]
    try:
        with math_attention(), differentiable_rnn(step.model):
            found = optimize(capture(step, values, fixed))
        make = CudaProgram if values["x"].is_cuda else Program
        lean = _lean(found)
        native, witness = make(lean), make(found)
    except CapabilityError as error:
        return str(error)
    compiled = _compiled(lean, native, values) if engine == "inductor" else None
    if compiled is None:
        return Found(native, "native", witness)
    return Found(compiled, "inductor", witness)


def _compiled(lean: Capture, native: Program | CudaProgram, values: Values) -> Program | None:
    """Return the iteration as AOTInductor compiles it; None, with one warning, where it cannot."""
    try:
        program = Program(compile_capture(lean))
    except CapabilityError as error:
        _tell(f"the native engine runs: {error}")
        return None
    bounds = native.bind(values), program.bind(values)
    for bound in bounds:
        bound.run(1, values["settings"][None]).checked()
    expected, got = (bound.values for bound in bounds)
    if all(_near(got[name], expected[name], 0.05) for name in STATE if name in expected):
        return program
    _tell("the native engine runs: what AOTInductor compiled gave other numbers")
    return None


def _lean(found: Capture) -> Capture:
    """Return a capture without what was only compared, which would be held from one iteration to the next."""
    kept = [name for name in found.outputs if name in found.inputs or name == "objective"]

    def rewrite(capture: Capture) -> None:
        output = capture.graph.graph.output_node()
        returned = dict(zip(found.outputs, output.args[0], strict=True))  # type: ignore[arg-type]
        output.args = ([returned[name] for name in kept],)

    return replace(rewritten(found, [rewrite]), outputs=tuple(kept))


def _agrees(witness: Program | CudaProgram, step: Step, values: Values) -> bool:
    """Compare one iteration with the reference, at the start and, should that fail, at noise.

    Where the start is the answer, there is only rounding to be compared.
    """
    if _agrees_at(values["x"], witness, step, values):
        return True
    draws = torch.rand(values["x"].shape, generator=generator("witness"), dtype=values["x"].dtype)
    return _agrees_at(draws.to(values["x"]), witness, step, values)


def _agrees_at(x: Tensor, witness: Program | CudaProgram, step: Step, values: Values) -> bool:
    values = {**values, "x": x}
    # First the reference, which needs more memory, and keeps none of it.
    expected = _expected(step, values)
    try:
        bound = witness.bind(values)
        found = [_iterated(bound, values) for _ in range(2)]
    except CapabilityError:
        return False
    # The derivative loosely, for a pixel on the kink of a ReLU may fall to either side; a wrong graph is off
    # by far more.
    tolerances = {"objective": 1e-3, "gradient": 0.05}
    floor = _ROUNDING * _unit(step, values)
    return all(
        _near(each[name], expected[name], loose, floor)
        for each in found
        for name, loose in tolerances.items()
    )


def _expected(step: Step, values: Values) -> Values:
    own = {name: value.clone() if name in STATE else value for name, value in values.items()}
    with operators.use_reference(), math_attention(), differentiable_rnn(step.model):
        made = step(own)
    return {name: made[name] for name in ("objective", "gradient")}


def _iterated(bound: Bound | CudaBound, values: Values) -> Values:
    """Return what an iteration from these values gives.

    Asked again, it gives the same, or an iteration leaves something behind that is not in the state.
    """
    for name, value in bound.values.items():
        if name in STATE and value.data_ptr() != values[name].data_ptr():
            value.copy_(values[name])
    bound.run(1, values["settings"][None]).checked()
    return {name: bound.outputs[name].clone() for name in ("objective", "gradient")}


#: What is left of a difference of nearly equal float32 numbers, where the distance has nothing to tell.
_ROUNDING = 2e-6


def _unit(step: Step, values: Values) -> float:
    """Return what a distance is measured in: 1, or for l2 the squared norm of the target."""
    if step.distance == "cosine":
        return 1.0
    targets = [value for name, value in values.items() if name.startswith("target:")]
    return sum(float(target.double().square().sum()) for target in targets)


def _near(got: Tensor, expected: Tensor, tolerance: float, floor: float = 1e-12) -> bool:
    if not torch.isfinite(expected).all():
        # What both make of NaN is the descent's to report.
        return not bool(torch.isfinite(got).all())
    gap = (got.double() - expected.double()).norm()
    return bool(gap <= tolerance * expected.double().norm() + floor)


# ---------------------------------------------------------------------------------------------------------
# What makes two problems alike


def _key(step: Step, values: Values) -> Hashable:
    tensors = tuple((name, v.shape, v.stride(), v.dtype, v.device) for name, v in values.items())
    descent = step.descent
    written_into_the_graph = (descent.rule, descent.isotropic, descent.smoothing, step.distance)
    return _structure(step.model), tensors, written_into_the_graph, _same(step.loss)


def _structure(model: nn.Module) -> Hashable:
    """Return all of a model but the numbers in its tensors, so that copies of a model are alike."""
    modules = tuple((name, type(m), _attributes(m)) for name, m in model.named_modules())
    named = (model.named_modules, model.named_parameters, model.named_buffers)
    return modules, *(_sharing(each(remove_duplicate=False)) for each in named)


def _sharing(named: Iterable[tuple[str, object]]) -> Hashable:
    """Return for every name the first name of the same object: what a model uses in several places."""
    first: dict[int, str] = {}
    return tuple((name, first.setdefault(id(held), name)) for name, held in named)


def _attributes(module: nn.Module) -> Hashable:
    kept = {
        name: value for name, value in vars(module).items() if name not in _OF_NN_MODULE or "hook" in name
    }
    return tuple((name, _same(value)) for name, value in sorted(kept.items()))


#: What nn.Module itself keeps: tensors, which come with the values, modules, which are visited, and hooks.
_OF_NN_MODULE = frozenset(vars(nn.Module())) - {"training"}


@dataclass(frozen=True)
class _Itself:
    """An object that only itself is equal to; as long as the key lives, no other object takes its place."""

    held: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.held is self.held

    def __hash__(self) -> int:
        return id(self.held)


def _same(value: object) -> Hashable:
    """Return what two values share only if they are alike; of what is not plain, an object is like itself."""
    if value is None or isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, tuple | list):
        return type(value), tuple(_same(each) for each in value)
    if isinstance(value, Mapping):
        return type(value), tuple((_same(k), _same(v)) for k, v in value.items())
    return _Itself(value)


_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
