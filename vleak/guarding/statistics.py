"""Check of batch-norm statistics: running means and variances that the client's own clips do not have."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vleak.federated.dropout import one_pass

__all__ = ["batch_norm_distances"]


def batch_norm_distances(model: nn.Module, clips: Tensor) -> dict[str, float]:
    """Return by batch norm how far the clips' mean is from a channel's running mean, in running deviations.

    The largest over the channels. Statistics that are shifted or shrunk turn a channel off for all clips but
    some; they are weights of the server like others, but no gradient shows them.

    Args:
        model: in the mode it is in; left as it is.
        clips: (N, C, T, H, W) in [0, 1].
    """
    seen: dict[str, float] = {}
    hooks = [
        module.register_forward_pre_hook(_watch(name, seen))
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    try:
        if hooks:
            with torch.no_grad():
                one_pass(model, clips)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _watch(name: str, seen: dict[str, float]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        assert module.running_mean is not None
        assert module.running_var is not None
        rows = inputs[0].double().transpose(0, 1).flatten(1)
        deviation = (module.running_var.double() + module.eps).sqrt()
        distance = float(((rows.mean(1) - module.running_mean.double()) / deviation).abs().max())
        seen[name] = max(distance, seen.get(name, 0.0))

    return watch
