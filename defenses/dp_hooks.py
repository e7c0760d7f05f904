"""DP-SGD as users of Opacus deploy it: per-clip gradients from hooks, and guards where these are void."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vleak.defenses.dp import DpSgd
from vleak.errors import CapabilityError, first_line
from vleak.federated import Loss

__all__ = ["DpHooks"]


@dataclass(frozen=True, kw_only=True)
class DpHooks(DpSgd):
    """DP-SGD with the hooks of Opacus (``GradSampleModule``), as ``PrivacyEngine.make_private`` sets it up.

    Where the hooks are sound it sends what `DpSgd` sends. Where they are not, nothing fails in Opacus and the
    guarantee is void; here nothing is sent:

    - batch norm, and losses or models in which a clip's gradient depends on other clips, such as a ranking
      loss over bags of the batch;
    - time folded into the batch, which clips every frame and not every clip;
    - padding other than with zeros, for which the hooks' gradients of convolutions are wrong;
    - recurrent and attention layers of PyTorch, and whatever else the hooks do not serve.

    The divisor is the size of the batch, which is public under "zero out". Opacus divides by the rounded
    expected size of a Poisson sample, by which adding or removing a clip can be seen (arXiv 2605.15648). The
    noise is drawn from PyTorch's generator, whose CPU form keeps 32 bits of a seed: whoever searches through
    them takes the noise off. What is proven here supposes randomness that nobody can search, in deployment
    ``secure_mode=True``.
    """

    name: ClassVar[str] = "dp_hooks"
    short: ClassVar[str] = "hooks"

    def check_model(self, model: nn.Module) -> None:
        """Refuse layers for which the hooks give wrong gradients, or none."""
        super().check_model(model)
        for name, module in model.named_modules():
            if getattr(module, "padding_mode", "zeros") != "zeros":
                raise CapabilityError(
                    f"dp_hooks: layer {name or 'model'!r} pads by {module.padding_mode!r}, for which the "
                    'hooks of Opacus give wrong gradients; use padding_mode="zeros", or dp'
                )
            if type(module) in _REPLACED:
                raise CapabilityError(
                    f"dp_hooks: layer {name or 'model'!r} is {type(module).__name__}, which the hooks of "
                    f"Opacus do not serve; use opacus.layers.{_REPLACED[type(module)]}, or dp"
                )

    def per_clip(self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return what the hooks collect, (M, *parameter shape) by name; M is not N where they fail.

        Raises:
            CapabilityError: a layer that they do not serve.
        """
        # Imported here because Opacus takes seconds to import.
        from opacus import GradSampleModule

        self.check_model(model)
        own = copy.deepcopy(model)
        for module in own.modules():  # hooks collect in training alone, and dropout stays as it is
            module.training = module.training or next(module.parameters(recurse=False), None) is not None
        try:
            hooked = GradSampleModule(own, loss_reduction="mean")
            with torch.enable_grad():
                torch.autograd.backward(loss(hooked(clips.detach().requires_grad_()), labels))
        except (RuntimeError, ValueError, NotImplementedError, AttributeError, KeyError) as error:
            raise CapabilityError(
                f"dp_hooks: the hooks of Opacus failed on {type(model).__name__}: {first_line(error)}; use dp"
            ) from error
        unused = {name: p.new_zeros(len(clips), *p.shape) for name, p in own.named_parameters()}
        found = {name: getattr(p, "grad_sample", None) for name, p in own.named_parameters()}
        return unused | {name: sample for name, sample in found.items() if sample is not None}


_REPLACED: dict[type[nn.Module], str] = {
    nn.RNN: "DPRNN",
    nn.GRU: "DPGRU",
    nn.LSTM: "DPLSTM",
    nn.MultiheadAttention: "DPMultiheadAttention",
}
"""Layers of PyTorch that Opacus has its own forms of."""
