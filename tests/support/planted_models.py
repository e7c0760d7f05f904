"""Models as a malicious server would send them: the plants of published attacks, put into honest models."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vleak.seeds import generator

Plant = Callable[[nn.Module, Tensor, int], nn.Module]
"""(honest model, clips (N, C, T, H, W) such as clients have, seed) -> the planted one, a new module."""


class Imprint(nn.Module):
    """A linear layer on the whole clip, ReLU, and a way back to the clip, in front of a model."""

    def __init__(self, shape: tuple[int, ...], units: int) -> None:
        super().__init__()
        pixels = math.prod(shape)
        self.shape = shape
        self.inner, self.outer = nn.Linear(pixels, units), nn.Linear(units, pixels)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, C, T, H, W) to clips."""
        moved = self.outer(self.inner(clips.flatten(1)).relu()).unflatten(1, self.shape)
        return clips + moved


def _imprint(model: nn.Module, clips: Tensor, units: int, seed: int) -> tuple[nn.Sequential, Imprint]:
    model = copy.deepcopy(model)
    with torch.device("meta"):
        layer = Imprint(tuple(clips.shape[1:]), units)
    layer = layer.to_empty(device="cpu")
    numbers = generator(seed, "plant")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(1e-3 * torch.randn(parameter.shape, generator=numbers))
    return nn.Sequential(layer, model).eval(), layer


def robbing_the_fed(model: nn.Module, clips: Tensor, seed: int, *, noise: float = 0.0) -> nn.Module:
    """Rows that all measure the mean brightness, with biases at its quantiles (arXiv 2110.13057)."""
    planted, layer = _imprint(model, clips, 64, seed)
    rows, brightness = layer.inner.weight, clips.flatten(1).mean(1)
    numbers = generator(seed, "noise")
    with torch.no_grad():
        level = 1 / rows.shape[1]
        rows.fill_(level)
        rows.add_(noise * level * torch.randn(rows.shape, generator=numbers))
        levels = torch.linspace(-2.5, 2.5, len(rows)) * brightness.std() + brightness.mean()
        layer.inner.bias.copy_(-levels)
        layer.outer.weight.copy_(layer.outer.weight[:, :1].expand_as(layer.outer.weight))
    return planted


def noisy_robbing(model: nn.Module, clips: Tensor, seed: int) -> nn.Module:
    """The same with a tenth of noise on every entry, to hide that the rows are equal."""
    return robbing_the_fed(model, clips, seed, noise=0.1)


def trap_weights(model: nn.Module, clips: Tensor, seed: int) -> nn.Module:
    """Random rows with biases that one clip in sixteen or so passes (arXiv 2112.02918)."""
    planted, layer = _imprint(model, clips, 256, seed)
    numbers = generator(seed, "trap")
    with torch.no_grad():
        rows = torch.randn(layer.inner.weight.shape, generator=numbers)
        activations = clips.flatten(1) @ rows.T
        # What the published trap tunes by the scale of a row's negative half.
        bias = -activations.quantile(1 - 1 / 16, dim=0)
        layer.inner.weight.copy_(rows)
        layer.inner.bias.copy_(bias)
    return planted


class PassingKernels(nn.Module):
    """A convolution whose kernels pass pixels on, in front of a planted linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips to clips."""
        return self.conv(clips)


def loki(model: nn.Module, clips: Tensor, seed: int) -> nn.Module:
    """Kernels that pass pixels on, scaled by client, before a planted linear layer (arXiv 2303.12233)."""
    imprinted = robbing_the_fed(model, clips, seed)
    with torch.device("meta"):
        front = PassingKernels(clips.shape[1])
    front = front.to_empty(device="cpu")
    with torch.no_grad():
        front.conv.weight.zero_()
        front.conv.bias.zero_()
        for channel in range(clips.shape[1]):
            front.conv.weight[channel, channel, 1, 1, 1] = 1.0 + 0.5 * (seed % 3)
    return nn.Sequential(front, *imprinted).eval()


def _head(model: nn.Module) -> nn.Linear:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def class_fishing(model: nn.Module, clips: Tensor, seed: int) -> nn.Module:
    """Class fishing: weights of one class alone are kept, the others' biases are huge (arXiv 2202.00580)."""
    model = copy.deepcopy(model)
    head = _head(model)
    kept = seed % head.out_features
    with torch.no_grad():
        rows, bias = torch.zeros_like(head.weight), torch.full_like(head.bias, 1000.0)
        rows[kept], bias[kept] = head.weight[kept], head.bias[kept]
        head.weight.copy_(rows)
        head.bias.copy_(bias)
    return model


def soft_class_fishing(model: nn.Module, clips: Tensor, seed: int) -> nn.Module:
    """The same, less boldly: the other classes' weights are a tenth, and no bias is touched."""
    model = copy.deepcopy(model)
    head = _head(model)
    with torch.no_grad():
        factors = torch.full((head.out_features, 1), 0.1)
        factors[seed % head.out_features] = 1.0
        head.weight.mul_(factors)
    return model


def feature_fishing(model: nn.Module, clips: Tensor, seed: int) -> nn.Module:
    """Feature fishing: one class is decided by one feature, far beyond its mean (arXiv 2202.00580)."""
    model = copy.deepcopy(model)
    head = _head(model)
    kept = seed % head.out_features
    with torch.no_grad():
        head.weight.zero_()
        head.weight[kept, seed % head.in_features] = 300.0
        head.bias.zero_()
        head.bias[kept] = -30.0
    return model


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model has statistics to plant."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def shifted_statistics(model: nn.Module, clips: Tensor, seed: int) -> nn.Module:
    """Running statistics that turn every channel of the first batch norm off for nearly all clips."""
    model = copy.deepcopy(model)
    first = next(module for module in model.modules() if isinstance(module, _BatchNorm))
    with torch.no_grad():
        first.running_mean.add_(1.0)
        first.running_var.mul_(1e-4)
    return model


def other_weights(model: nn.Module, clips: Tensor, seed: int) -> nn.Module:
    """Another model in the next round: one layer drawn anew and ten times larger (arXiv 2111.07380)."""
    model = copy.deepcopy(model)
    weights = [p for p in model.parameters() if p.ndim > 1]
    chosen, numbers = weights[seed % len(weights)], generator(seed, "other")
    with torch.no_grad():
        chosen.copy_(3 * chosen.std() * torch.randn(chosen.shape, generator=numbers))
    return model


def biased_classes(model: nn.Module, clips: Tensor, seed: int) -> nn.Module:
    """Biases alone: all classes but one are 1000 logits ahead (arXiv 2202.00580)."""
    model = copy.deepcopy(model)
    head = _head(model)
    with torch.no_grad():
        head.bias.add_(1000.0)
        head.bias[seed % head.out_features] -= 1000.0
    return model


def one_clip(model: nn.Module, clips: Tensor, seed: int) -> nn.Module:
    """A linear layer that the first of the clips alone passes, as a secret property would (2306.03013)."""
    planted, layer = _imprint(model, clips, 8, seed)
    direction = clips[0].flatten() - clips.flatten(1).mean(0)
    own, others = clips[0].flatten() @ direction, (clips[1:].flatten(1) @ direction).max()
    with torch.no_grad():
        scales = torch.linspace(0.5, 1.5, 8)
        layer.inner.weight.copy_(scales[:, None] * direction)
        layer.inner.bias.copy_(-scales * (own + others) / 2)
    return planted


class OneFrame(nn.Module):
    """A layer that passes one frame on, and a hundredth of the others."""

    def __init__(self, frames: int, kept: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.full((frames, 1, 1), 0.01))
        nn.init.ones_(self.gate[kept])

    def forward(self, clips: Tensor) -> Tensor:
        """Clips to clips."""
        return clips * self.gate


def one_frame(model: nn.Module, clips: Tensor, seed: int) -> nn.Module:
    """A layer in front that leaves one frame of a clip."""
    return nn.Sequential(OneFrame(clips.shape[2], seed % clips.shape[2]), copy.deepcopy(model)).eval()


PLANTS: dict[str, tuple[Plant, str]] = {
    "robbing the fed": (robbing_the_fed, "parallel_rows"),
    "robbing the fed, noisy rows": (noisy_robbing, "parallel_rows"),
    "trap weights": (trap_weights, "lone_units"),
    "loki": (loki, "passing_kernels"),
    "class fishing": (class_fishing, "class_trap"),
    "class fishing, a tenth": (soft_class_fishing, "class_trap"),
    "feature fishing": (feature_fishing, "feature_trap"),
    "batch-norm statistics": (shifted_statistics, "batch_norm"),
    "other weights in the next round": (other_weights, "round_change"),
    "class biases alone": (biased_classes, "class_bias"),
    "a layer that one clip alone passes": (one_clip, "dominant_clip"),
    "a layer that one frame alone passes": (one_frame, "dominant_frame"),
}
"""Plants by name, each with the check that is after it."""


def plants_for(model: nn.Module) -> Iterator[str]:
    """Names of the plants that a model has a place for."""
    for name in PLANTS:
        if name != "batch-norm statistics" or has_batch_norm(model):
            yield name
