"""Modules as people hand them over: out of their wrappers, copied, in float32 on the CPU; or refused."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from vleak.errors import InputError, first_line

__all__ = ["Plain", "copy_of", "plain_module", "unwrapped_module"]


class Plain(NamedTuple):
    """A module without wrappers.

    Attributes:
        module: a copy in float32 on the CPU.
        notes: what was changed, a sentence each.
    """

    module: nn.Module
    notes: tuple[str, ...]


def plain_module(given: nn.Module) -> Plain:
    """Copy a module out of DataParallel, DistributedDataParallel and torch.compile, to float32 on the CPU.

    Names of parameters are those of the module inside.

    Args:
        given: left as it is.

    Raises:
        InputError: it is scripted or traced, has weights without numbers (meta tensors), or cannot be copied.
    """
    module, wrappers = unwrapped_module(given)
    module = copy_of(module)
    wrappers += _unwrap_children(module)
    notes = [f"taken out of {' and '.join(dict.fromkeys(wrappers))}"] if wrappers else []
    found = {str(p.dtype).removeprefix("torch.") for p in _floats(module)} - {"float32"}
    if found:
        notes.append(f"weights were {' and '.join(sorted(found))}, converted to float32")
    return Plain(module.to("cpu", torch.float32), tuple(notes))


def unwrapped_module(given: nn.Module) -> tuple[nn.Module, list[str]]:
    """Return the module inside all wrappers around it, the caller's own, and the names of the wrappers.

    Raises:
        InputError: it is scripted or traced, its forward is compiled, or it has meta tensors.
    """
    module, wrappers = given, []
    while (inner := _inside(module)) is not None:
        wrappers.append(type(module).__name__)
        module = inner
    _refuse(module)
    return module, wrappers


def _inside(module: nn.Module) -> nn.Module | None:
    """Module inside a wrapper that adds nothing to what is computed; None for any other module."""
    inner: Any = None
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = module.module
    elif type(module).__module__.startswith("torch._dynamo"):  # not imported here: that takes seconds
        inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def _unwrap_children(module: nn.Module) -> list[str]:
    """Put the inner modules in the place of wrapped ones; names of the wrappers."""
    wrappers = []
    for parent in list(module.modules()):
        if parent._compiled_call_impl is not None:  # module.compile(), which wraps without a wrapper
            parent._compiled_call_impl = None
            wrappers.append("torch.compile")
        for name, child in list(parent.named_children()):
            while (inner := _inside(child)) is not None:
                wrappers.append(type(child).__name__)
                child = inner
                setattr(parent, name, inner)
    return wrappers


def _floats(module: nn.Module) -> list[Tensor]:
    return [tensor for tensor in module.parameters() if tensor.is_floating_point()]


def _refuse(module: nn.Module) -> None:
    """Refuse what no copy can be used of."""
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            where = f"its part {name!r}" if name else "it"
            raise InputError(
                f"the model cannot be attacked: {where} is scripted or traced by torch.jit, which hides the "
                "weights from second derivatives; give the torch.nn.Module that it was made from"
            )
        if hasattr(getattr(part, "forward", None), "_torchdynamo_orig_callable"):
            raise InputError(
                f"the model cannot be attacked: the forward of {type(part).__name__} is compiled, and so has "
                "no second derivative; give the model as it was before torch.compile"
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta:
            raise InputError(
                f"weight {name!r} of the model is on the meta device and holds no numbers; load the weights "
                "before you hand the model over"
            )
        if tensor.is_complex():
            raise InputError(
                f"weight {name!r} of the model is {tensor.dtype}, expected real numbers; "
                "keep real and imaginary parts in weights of their own"
            )


def copy_of(module: nn.Module) -> nn.Module:
    """Copy a module.

    Raises:
        InputError: it cannot be copied; names the part that is in the way, and the remedy.
    """
    # Tensors without a shape yet: torch copies such parameters, and not such buffers.
    unsized = {
        id(tensor): UninitializedBuffer(device=tensor.device, dtype=tensor.dtype)  # type: ignore[call-arg]
        for tensor in module.buffers()
        if is_lazy(tensor)
    }
    try:
        return copy.deepcopy(module, dict(unsized))
    except Exception as error:
        raise InputError(
            f"the model cannot be copied, which every client needs: {_obstacle(module) or first_line(error)}"
        ) from error


_REPARAMETRISED = (
    (WeightNorm, "use torch.nn.utils.parametrizations.weight_norm, or remove_weight_norm"),
    (SpectralNorm, "use torch.nn.utils.parametrizations.spectral_norm"),
    (BasePruningMethod, "call torch.nn.utils.prune.remove on it"),
)
"""Hooks that put a computed tensor in the place of a weight, and what to do instead."""


def _obstacle(module: nn.Module) -> str:
    """What of a module cannot be copied, and the remedy; empty where nothing was found."""
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key not in ("_modules", "_parameters", "_buffers") and (why := _refused(value)):
                return _told(part, f"{name}.{key}".lstrip("."), value, why)
    return ""


def _refused(value: object) -> str:
    """Why a value cannot be copied; empty where it can."""
    try:
        copy.deepcopy(value)
    except Exception as error:  # noqa: BLE001  of a stranger's object; the caller tells it
        return first_line(error) or type(error).__name__
    return ""


def _told(part: nn.Module, name: str, value: object, why: str) -> str:
    for hook in part._forward_pre_hooks.values():
        for kind, remedy in _REPARAMETRISED:
            if isinstance(hook, kind):
                return f"{name!r} is computed by {kind.__name__}; {remedy}"
    if "graph leaves" in why:
        return f"{name!r} holds a tensor that is kept from a forward pass; keep none, or its detach()"
    return f"{name!r} is a {type(value).__name__} ({why}); make it outside of the model"
