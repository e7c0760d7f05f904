"""How far an update moves when its clips move, to first order: sums over singular values of its Jacobian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vleak.errors import InputError
from vleak.federated import JacobianProducts, Loss, Send, random_signs
from vleak.switches import differentiable_rnn, math_attention


def gradient_by_clips(model: nn.Module, loss: Loss, labels: Tensor) -> Send:
    """Return the function from clips to the gradient of their loss, for `JacobianProducts`.

    Args:
        model: maps the clips to logits; in the mode it is in.
        loss: (logits, labels) -> scalar.
        labels: (B,) int64.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def send(clips: Tensor) -> Sequence[Tensor]:
        with differentiable_rnn(model), math_attention():
            value = loss(functional_call(model, {**buffers, **parameters}, (clips,)), labels)
            return torch.autograd.grad(
                value, list(parameters.values()), create_graph=True, materialize_grads=True
            )

    return send


@dataclass(frozen=True)
class JacobianFacts:
    """Sums over the singular values of the Jacobian of an update by its clips, estimated.

    Attributes:
        energy: sum of squares, ||J||_F^2, in squared units of the update per squared unit of the pixel range.
        effective_rank: (sum of squares)^2 / sum of fourth powers of the singular values, from 1: how many
            directions of the clips carry the update's changes.
        entries: ``energy`` by entry of the update, (entries,), float32.
        frames: ``energy`` by frame, summed over the clips.
        gradient: the update itself, (entries,).
    """

    energy: float
    effective_rank: float
    entries: Tensor
    frames: tuple[float, ...]
    gradient: Tensor


def jacobian_facts(
    send: Send, clips: Tensor, generator: torch.Generator, *, probes: int = 8
) -> JacobianFacts:
    """Estimate sums over singular values by random signs (Hutchinson, Comm. Statist. Simul. 19, 1990).

    For z of random signs E||J z||^2 = ||J||_F^2 and E||J'J z||^2 = the sum of fourth powers; for r of random
    signs the part of J' r in a frame has the energy of that frame. The relative standard error of ``energy``
    is at most sqrt(2 / (probes * effective rank)).

    Args:
        send: see `gradient_by_clips`.
        clips: (B, C, T, H, W).
        generator: draws the signs, on the CPU.
        probes: pairs of random vectors, at least 1.

    Raises:
        InputError: fewer than one probe.
    """
    if probes < 1:
        raise InputError(f"probes is {probes}, expected at least 1; 8 are within a quarter of the truth")
    products = JacobianProducts(send, clips)
    entries, frames = torch.zeros(products.sent.numel()), torch.zeros(clips.shape[2]).double()
    energy, fourth = 0.0, 0.0
    for _ in range(probes):
        image = products.times(random_signs(clips.numel(), generator))
        squares = image.double().square().cpu()
        entries += squares / probes
        energy += float(squares.sum()) / probes
        fourth += float(products.transposed(image).double().square().sum()) / probes
        signs = random_signs(products.sent.numel(), generator).to(products.sent)
        frames += products.transposed(signs).view_as(clips).double().square().sum((0, 1, 3, 4)).cpu()
    return JacobianFacts(
        energy=energy,
        effective_rank=energy**2 / fourth if fourth else 0.0,
        entries=entries,
        frames=tuple((frames / probes).tolist()),
        gradient=products.sent.cpu(),
    )


def dominance(amounts: Sequence[float]) -> float:
    """Return the largest of several amounts over the sum of the others; infinity where there are none.

    The disaggregation signal-to-noise ratio (D-SNR) of Garov et al., ICLR 2024, arXiv 2306.03013, where the
    amounts are norms of the gradients of single clips. 0 where all of them are 0.
    """
    largest = max(amounts, default=0.0)
    others = math.fsum(amounts) - largest
    if others > 1e-12 * largest:
        return largest / others
    return math.inf if largest > 0 else 0.0
