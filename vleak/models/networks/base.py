"""What the networks have in common: normalisation of the clips, and weights as published."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from vleak.errors import InputError, unknown_name

__all__ = [
    "HALF",
    "IMAGENET",
    "KINETICS",
    "Network",
    "Statistics",
    "check_clip",
    "check_share",
    "default_weights",
    "normalise_by",
    "residual_weights",
    "scaled",
    "transformer_weights",
]

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of the colours red, green and blue."""

KINETICS: Statistics = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Statistics = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


class Network(nn.Module):
    """Classifier of clips (N, 3, T, H, W) in [0, 1] that normalises them as in its publication.

    Constants, such as the mean of the colours, are buffers outside the state dict, so that the tensors of a
    state dict are those of the publication.
    """

    statistics: ClassVar[Statistics] = KINETICS
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        """Make room for the constants."""
        super().__init__()
        for name, values in self.constants().items():
            self.register_buffer(name, values, persistent=False)

    def constants(self) -> dict[str, Tensor]:
        """Tensors that neither training nor a checkpoint changes, by the names of buffers, on the CPU."""
        mean, std = (torch.tensor(values, device="cpu").view(3, 1, 1, 1) for values in self.statistics)
        return {"mean": mean, "std": std}

    def normalised(self, clips: Tensor) -> Tensor:
        """Return clips with mean and standard deviation of the colours taken out."""
        return (clips - self.mean) / self.std

    def draw(self, generator: torch.Generator) -> None:
        """Draw all weights as published, and give buffers their first values.

        Args:
            generator: on the CPU; the generator of the process is not used.
        """
        with torch.no_grad():
            for name, values in self.constants().items():
                self.get_buffer(name).copy_(values)
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.reset_running_stats()
                self.draw_layer(module, generator)

    def draw_layer(self, module: nn.Module, generator: torch.Generator) -> None:
        """Draw the weights that one module holds itself."""
        default_weights(module, generator)


def default_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of a layer as PyTorch does: uniform within 1/sqrt(fan in), or 1/sqrt(hidden)."""
    if isinstance(module, nn.RNNBase):
        for parameter in module.parameters(recurse=False):
            bound = 1 / math.sqrt(module.hidden_size)
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        bound = 1 / math.sqrt(module.weight[0].numel())
        for parameter in module.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    else:
        _identity_norm(module)


def residual_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of a layer as residual networks do (He et al., ICCV 2015, arXiv 1502.01852).

    Convolutions keep the variance on the way back, the last linear layer has a deviation of 0.01.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01, generator=generator)
    else:
        _identity_norm(module)
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def transformer_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of a layer as ViT does: truncated normal with a deviation of 0.02, biases 0.

    Convolutions, which embed patches, are drawn as PyTorch does.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        default_weights(module, generator)


def _identity_norm(module: nn.Module) -> None:
    """Give a normalisation the weights 1 and 0; leave any other module alone."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def normalise_by(network: nn.Module, norm: str) -> None:
    """Replace batch normalisation where another is asked for; parameters keep their names.

    Args:
        network: built with batch normalisation; changed in place.
        norm: "batch" for what is there, or "group" for group normalisation (Wu and He, ECCV 2018, arXiv
            1803.08494), which does not mix the clips of a batch, as DP-SGD needs it.

    Raises:
        InputError: it is neither.
    """
    if norm not in _NORMS:
        raise unknown_name("norm", norm, _NORMS)
    for parent in list(network.modules()) if norm == "group" else ():
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                width = layer.num_features
                # At least two channels a group, because maps may have one place.
                groups = 1 if width % 2 else math.gcd(32, width // 2)
                parent.add_module(name, nn.GroupNorm(groups, width))


_NORMS = ("batch", "group")


def scaled(channels: int, width: int, base: int) -> int:
    """Return channels of the publication for another width, at least 1; `base` is the published width."""
    return max(1, channels * width // base)


def check_share(setting: str, value: float) -> None:
    """Check a share, such as that of dropout.

    Raises:
        InputError: it is not from 0 to below 1.
    """
    if not 0 <= value < 1:
        raise InputError(f"{setting} is {value}, expected a number from 0 to below 1")


def check_clip(name: str, frames: int, size: int, *, least_frames: int = 1, least_size: int = 1) -> None:
    """Check that a network has something to look at behind its strides.

    Raises:
        InputError: the clip is too short or too small; names what the network needs.
    """
    if frames < least_frames or size < least_size:
        raise InputError(
            f"model {name} needs clips of at least {least_frames} frames of {least_size} x {least_size}, got "
            f"{frames} of {size} x {size}; choose larger `frames` or `size`"
        )
