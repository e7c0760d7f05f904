"""Checks of operator arguments, with one wording for all implementations.

The public functions call them before any kernel runs, so that native and plain code refuse the same arguments
with the same message. The fake implementations call them too: PyTorch uses those as soon as one tensor is on
"meta", wherever the others are.

Every function raises :class:`~vleak.errors.InputError`. ``op`` is the operator that the message names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vleak.errors import InputError

__all__ = [
    "DTYPES",
    "check_axes_count",
    "check_choice",
    "check_clip",
    "check_like",
    "check_number",
    "check_pair_count",
    "check_same_kind",
    "check_tensor",
]

_CLIP_AXES = "(clip, channel, frame, height, width)"
DTYPES = (torch.float32, torch.float64)
"""Types of numbers that the operators take."""


def check_tensor(op: str, name: str, tensor: Tensor) -> None:
    """Refuse what is no dense tensor of float32 or float64."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{op}: expected {name} to be a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise InputError(
            f"{op}: expected {name} to be dense, got layout {tensor.layout}; use {name}.to_dense()"
        )
    if tensor.dtype not in DTYPES:
        raise InputError(
            f"{op}: expected {name} of dtype torch.float32 or torch.float64, got {tensor.dtype}; "
            f"convert it with {name}.float()"
        )


def check_clip(op: str, name: str, tensor: Tensor) -> None:
    """Refuse what is no batch of clips."""
    check_tensor(op, name, tensor)
    if tensor.ndim != 5:
        remedy = f"add the clip axis with {name}[None]" if tensor.ndim == 4 else "pass a batch of clips"
        raise InputError(f"{op}: expected {name} of shape {_CLIP_AXES}, got {tuple(tensor.shape)}; {remedy}.")


def check_same_kind(op: str, name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    """Refuse a tensor of another dtype or device than ``first``."""
    check_tensor(op, name, tensor)
    if tensor.dtype != first.dtype:
        raise InputError(
            f"{op}: expected {name} of dtype {first.dtype} like {first_name}, got {tensor.dtype}; "
            f"convert it with {name}.to({first_name}.dtype)"
        )
    if tensor.device != first.device:
        raise InputError(
            f"{op}: expected {name} on {first.device} like {first_name}, got {tensor.device}; "
            f"move it with {name}.to({first_name}.device)"
        )


def check_like(
    op: str, name: str, tensor: Tensor, first_name: str, first: Tensor, shape: Sequence[int], advice: str
) -> None:
    """Refuse a tensor of another dtype or device than ``first``, or not of ``shape``."""
    check_same_kind(op, name, tensor, first_name, first)
    if tuple(tensor.shape) != tuple(shape):
        raise InputError(
            f"{op}: expected {name} of shape {tuple(shape)}, got {tuple(tensor.shape)}; {advice}"
        )


def check_axes_count(op: str, name: str, tensor: Tensor, axes: int) -> None:
    """Refuse a tensor with another number of axes."""
    if tensor.ndim != axes:
        what = "be a matrix" if axes == 2 else f"have {axes} axes"
        raise InputError(f"{op}: expected {name} to {what}, got shape {tuple(tensor.shape)}")


def check_pair_count(op: str, names: tuple[str, str], left: list[Tensor], right: list[Tensor]) -> None:
    """Refuse empty lists and lists of different lengths."""
    if not left or len(left) != len(right):
        raise InputError(
            f"{op}: expected as many {names[0]} as {names[1]}, at least one, got {len(left)} and {len(right)}"
        )


def check_number(op: str, name: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuse a number that is not finite or not in [low, high)."""
    if not (math.isfinite(value) and low <= value < high):
        limits = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g})"
        raise InputError(f"{op}: expected {name} to be a finite number {limits}, got {value}")


def check_choice(op: str, name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a word that is not among the known ones."""
    if value not in known:
        raise InputError(f"{op}: expected {name} to be one of {', '.join(known)}, got {value!r}")
