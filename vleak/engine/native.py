"""The captured iteration: made once for every kind of problem, shared by all descents of that kind."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor, nn

from vleak import ops
from vleak.backends import differentiable_rnn, math_attention
from vleak.engine.capture import CaptureError, capture
from vleak.engine.passes import optimize
from vleak.engine.runner import Program
from vleak.engine.steps import STATE, Step, Values
from vleak.errors import VleakError

__all__ = ["EngineWarning", "program_for"]

#: Programs kept; a run has one or two, and each holds no tensor of a trial.
_KEPT = 32

_lock = threading.RLock()
_programs: OrderedDict[Hashable, Program | str] = OrderedDict()
_told: set[str] = set()


class EngineWarning(UserWarning):
    """The native engine cannot run a model; the reference engine does, with the same results, only slower."""


def program_for(step: Step, values: Values) -> Program | None:
    """Return the captured iteration of such a step, or None, with one warning, where there can be none.

    It is captured by whoever asks first, optimized, and compared with the reference on the caller's
    own values. Whatever is alike in all but the numbers in its tensors shares it.

    Args:
        step: what to capture.
        values: the tensors of the first iteration, "settings" among them.
    """
    if ops.backend(values["x"].device) != "native":
        return None  # whose absence the extension has told of
    key = _key(step, values)
    with _lock:
        found = _programs.get(key)
        if found is None:
            found = _made(step, values)
            _programs[key] = found
            while len(_programs) > _KEPT:
                _programs.popitem(last=False)
        _programs.move_to_end(key)
    if isinstance(found, Program):
        return found
    if found not in _told:
        _told.add(found)
        warnings.warn(f"the reference engine runs: {found}", EngineWarning, stacklevel=4)
    return None


def _made(step: Step, values: Values) -> Program | str:
    """Return the program, or why there is none."""
    fixed = [name for name in values if name not in STATE]
    try:
        with math_attention(), differentiable_rnn(step.model):
            program = Program(optimize(capture(step, values, fixed)))
        return program if _agrees(program, step, values) else "its captured iteration gave other numbers"
    except CaptureError as error:
        return str(error)


def _agrees(program: Program, step: Step, values: Values) -> bool:
    """Compare one iteration with the reference: whatever a graph pass may have missed ends here."""
    bound = program.bind(values)
    bound.run(1, values["settings"][None])
    own = {name: value.clone() if name in STATE else value for name, value in values.items()}
    with ops.use_reference(), math_attention(), differentiable_rnn(step.model):
        expected = step(own)
    # Loose, for a pixel on the kink of a ReLU may fall to either side; a wrong graph is off by far more.
    return all(_near(bound.outputs[name], expected[name], 0.05) for name in ("objective", "gradient"))


def _near(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    if not torch.isfinite(expected).all():
        return True  # what both make of NaN is the descent's to report
    gap = (got.double() - expected.double()).norm()
    return bool(gap <= tolerance * expected.double().norm() + 1e-12)


# ---------------------------------------------------------------------------------------------------------
# What makes two problems alike


def _key(step: Step, values: Values) -> Hashable:
    tensors = tuple((name, v.shape, v.stride(), v.dtype, v.device) for name, v in values.items())
    descent = step.descent
    written_into_the_graph = (descent.rule, descent.isotropic, descent.smoothing, step.distance, step.loss)
    return _structure(step.model), tensors, written_into_the_graph


def _structure(model: nn.Module) -> Hashable:
    """Return all of a model but the numbers in its tensors, so that copies of a model are alike."""
    return tuple((name, type(m), _attributes(m)) for name, m in model.named_modules())


def _attributes(module: nn.Module) -> Hashable:
    own = {name: value for name, value in vars(module).items() if name not in _OF_NN_MODULE}
    return (*sorted((name, _plain(value)) for name, value in own.items()), _hooks(module))


#: What nn.Module itself keeps: tensors, which come with the values, and hooks, see `_hooks`.
_OF_NN_MODULE = frozenset(vars(nn.Module())) - {"training"}


def _hooks(module: nn.Module) -> Hashable:
    return tuple((name, _plain(hook)) for name, hook in vars(module).items() if "hook" in name and hook)


def _plain(value: object) -> str:
    """Return a text that two values share only if they are the same; what is not plain, with itself alone."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}:[{','.join(_plain(each) for each in value)}]"
    if isinstance(value, Mapping):
        return f"dict:[{','.join(f'{_plain(k)}={_plain(v)}' for k, v in value.items())}]"
    return f"{type(value).__name__}@{id(value)}"
