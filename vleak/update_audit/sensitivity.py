"""Which layer and which frame of an update tell most of the pixels: its Jacobian, by random probes.

For a random v with independent entries of mean 0 and variance 1, the gradient by x of <g(x), v> has the
squared norm |J|^2 of the Jacobian J = dg/dx in expectation (Hutchinson). Where every entry of the update
carries noise of one size, |J|^2 is the Fisher information about the pixels up to that size.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.func import functional_call

from vleak.federated import LOSSES, trained_part
from vleak.seeds import generator
from vleak.switches import differentiable_rnn, math_attention
from vleak.update_audit.setup import Setup

__all__ = ["MOST_LAYERS", "sensitivity"]

MOST_LAYERS = 32
"""Parameters that are probed: those with most of the update's norm."""
_PROBES = 4


def sensitivity(setup: Setup, clips: Tensor, labels: Tensor) -> tuple[dict[str, float], list[float]]:
    """Return the shares of parameters and of frames in the squared Jacobian of the gradient.

    Args:
        setup: of the audit; the weights are those before any local step.
        clips: (B, C, T, H, W), where the Jacobian is taken: the rebuilt clips.
        labels: (B,) int64.

    Returns:
        by parameter, of the largest `MOST_LAYERS`, and by frame; both sum to 1, or are 0 throughout.
    """
    facts = setup.update.facts
    model = copy.deepcopy(trained_part(setup.model)).train(facts.mode == "train")
    names = sorted(setup.update.tensors, key=lambda name: -float(setup.update.tensors[name].norm()))
    numbers = generator(setup.seed, "audit", "sensitivity")
    x = clips.clone().requires_grad_()
    parameters = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
    table = torch.zeros(min(len(names), MOST_LAYERS), clips.shape[2], dtype=torch.float64)
    with math_attention(), differentiable_rnn(model), torch.enable_grad():
        loss = LOSSES[facts.loss](functional_call(model, parameters, (x,)), labels)
        chosen = names[:MOST_LAYERS]
        gradients = torch.autograd.grad(
            loss,
            [parameters[n] for n in chosen],
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for row, gradient in enumerate(gradients):
            if gradient.requires_grad:
                table[row] = _squared(gradient, x, numbers)
    total = float(table.sum())
    shares = table / total if total > 0 else torch.zeros_like(table)
    return dict(zip(chosen, shares.sum(1).tolist(), strict=True)), shares.sum(0).tolist()


def _squared(gradient: Tensor, x: Tensor, numbers: torch.Generator) -> Tensor:
    """Return the squared Jacobian of one tensor by frame (T,), the mean over the probes."""
    found = torch.zeros(x.shape[2], dtype=torch.float64)
    for _ in range(_PROBES):
        v = torch.randn(gradient.shape, generator=numbers)
        (slope,) = torch.autograd.grad(
            (gradient * v).sum(), x, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        found += slope.double().square().sum((0, 1, 3, 4)) / _PROBES
    return found
