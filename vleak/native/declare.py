"""Declaration of operators, and the refusal of their second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vleak.errors import CapabilityError
from vleak.native.backend import NAMESPACES

__all__ = ["declare", "differentiable_once", "set_derivative"]


def declare(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Declare an operator in both namespaces.

    The kernel is in plain PyTorch, for every device; the fake returns tensors of the right shapes without
    computing them.
    """
    for namespace in NAMESPACES:
        qualified = f"{namespace}::{name}"
        torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(qualified, "CompositeExplicitAutograd", kernel)
        torch.library.register_fake(qualified, fake)


def set_derivative(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Set the derivative of an operator in both namespaces, as `torch.library.register_autograd` takes it."""
    for namespace in NAMESPACES:
        torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=setup)


class _DifferentiableOnce(torch.autograd.Function):
    """Identity that refuses to be differentiated.

    A derivative that a kernel computed is a constant to autograd. Without this refusal, differentiating it
    again would silently drop terms.
    """

    @staticmethod
    def forward(ctx: Any, operator: str, depends_on: Tensor, value: Tensor) -> Tensor:
        ctx.operator = operator
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise CapabilityError(
            f"{ctx.operator}: it can be differentiated once; for second derivatives write the formula in "
            "plain PyTorch, or detach what should be a constant"
        )


def differentiable_once(operator: str, depends_on: Tensor, value: Tensor) -> Tensor:
    """``value``, a derivative that depends on ``depends_on``; differentiating it raises CapabilityError."""
    if not (torch.is_grad_enabled() and depends_on.requires_grad):
        return value
    result: Tensor = _DifferentiableOnce.apply(operator, depends_on, value)  # type: ignore[no-untyped-call]
    return result
