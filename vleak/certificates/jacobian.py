"""Sum of squares of the Jacobian of an update by its clip."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vleak.errors import CapabilityError, first_line
from vleak.federated import LOSSES, Channel, JacobianProducts, random_signs, trained_part

__all__ = ["jacobian_energy"]


def jacobian_energy(
    model: nn.Module,
    loss: str,
    clip: Tensor,
    label: Tensor,
    channel: Channel,
    numbers: torch.Generator,
    probes: int = 8,
) -> float:
    """Return the sum of squares of the Jacobian of a clip's clipped gradient, with three standard errors.

    The mean of |J v|^2 over random signs v (Hutchinson 1990, Communications in Statistics 19). The standard
    errors are added because a floor that is computed from it is to be no higher than it may be.

    Args:
        model: as a client has it; in mode "eval" here.
        loss: a key of `vleak.federated.LOSSES`.
        clip, label: (1, C, T, H, W) and (1,), where the Jacobian is taken.
        channel: says how the gradient is clipped.
        numbers: CPU generator of the probes.
        probes: at least 2.

    Raises:
        CapabilityError: the model has no second derivative.
    """
    inner = trained_part(copy.deepcopy(model)).eval()
    device = next(inner.parameters()).device
    tensors = {name: t.detach() for name, t in (*inner.named_parameters(), *inner.named_buffers())}
    names = [name for name, _ in inner.named_parameters()]

    def send(x: Tensor) -> list[Tensor]:
        variables = {name: tensors[name].clone().requires_grad_() for name in names}
        value = LOSSES[loss](functional_call(inner, tensors | variables, (x,)), label.to(device))
        gradients = torch.autograd.grad(
            value, list(variables.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        samples = {name: g[None, None] for name, g in zip(names, gradients, strict=True)}
        return list(channel.clipped(samples).values())

    try:
        products = JacobianProducts(send, clip.to(device))
        squares = [float(products.times(random_signs(clip.numel(), numbers)).double().square().sum())
                   for _ in range(probes)]  # fmt: skip
    except RuntimeError as error:
        raise CapabilityError(
            f"the Jacobian of the update needs a second derivative: {first_line(error)}"
        ) from error
    mean = math.fsum(squares) / probes
    spread = math.fsum((each - mean) ** 2 for each in squares) / (probes - 1)
    return mean + 3 * math.sqrt(spread / probes)
