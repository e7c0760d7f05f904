"""Models of every family that a step can be captured of, and steps of gradient matching on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny import Residual
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from vleak.descent.capture import Capture, capture
from vleak.native import operators
from vleak.seeds import generator

CLASSES, SHAPE = 5, (2, 3, 4, 8, 8)


@contextmanager
def atens_operators() -> Iterator[None]:
    """Capture PyTorch's operators, as for a CUDA device, where vleak has kernels of its own for the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vleak.descent.own_operators._ON_CPU", {})
        yield


class Frames(nn.Module):
    """A model of frames, as one of clips."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, clips: Tensor) -> Tensor:
        return self.layers(clips.transpose(1, 2).flatten(0, 1)).view(clips.shape[0], 4, -1).mean(1)


class Sequence(nn.Module):
    """Rows over time into a layer that returns (clip, frame, width), alone or first in a tuple."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.enter, self.layer, self.head = nn.Linear(3 * 8 * 8, 8), layer, nn.Linear(width, CLASSES)

    def forward(self, clips: Tensor) -> Tensor:
        rows = self.enter(clips.transpose(1, 2).flatten(2))
        attends = isinstance(self.layer, nn.MultiheadAttention)
        out = self.layer(rows, rows, rows) if attends else self.layer(rows)
        return self.head((out if isinstance(out, Tensor) else out[0])[:, -1])


class ChannelsLast(nn.Module):
    """Convolutions whose results oneDNN lays out as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3, dilation=2), nn.Linear(64, CLASSES)
        self.second = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last)

    def forward(self, clips: Tensor) -> Tensor:
        frames = clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features = self.first(frames) * self.second(frames)[..., 2:6, 2:6]
        return self.head(features.flatten(1)).view(clips.shape[0], 4, -1).mean(1)


class Hidden(nn.Module):
    """Holds a tensor that is neither parameter nor buffer."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.scale, self.change = nn.Linear(768, CLASSES), torch.linspace(0.5, 1.5, 768), change

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.change(clips.flatten(1), self.scale))


def volumes(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), *layers, nn.Flatten(), nn.Linear(width, CLASSES))


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


MODELS_TAKEN: dict[str, Callable[[], nn.Module]] = {
    "conv2d": lambda: Frames(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, CLASSES)),
    "pool2d": lambda: Frames(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, CLASSES)),
    "groups and dilation": lambda: volumes(nn.Conv3d(4, 4, 3, padding=2, dilation=2, groups=2), width=1024),
    "depthwise": lambda: volumes(nn.Conv3d(4, 4, 3, (1, 2, 1), padding=1, groups=4), nn.GELU(), width=512),
    "depthwise 2d": lambda: Frames(
        nn.Conv2d(3, 3, 3, groups=3, bias=False), nn.Flatten(), nn.Linear(108, CLASSES)
    ),
    "conv transpose": lambda: volumes(nn.ConvTranspose3d(4, 2, 2, stride=2), nn.SiLU(), width=4096),
    "max pool": lambda: volumes(nn.ReLU(), nn.MaxPool3d(2), width=128),
    "overlapping max pool": lambda: volumes(nn.GELU(), nn.MaxPool3d(3, 2, 1), width=128),
    "average pool": lambda: volumes(nn.GELU(), nn.AvgPool3d(2), nn.Sigmoid(), width=128),
    "adaptive pool": lambda: volumes(nn.Tanh(), nn.AdaptiveAvgPool3d((2, 3, 1)), width=24),
    "adaptive max pool": lambda: volumes(nn.SiLU(), nn.AdaptiveMaxPool3d(2), width=32),
    "batch norm": lambda: volumes(nn.BatchNorm3d(4), nn.ReLU(), width=1024),
    "batch norm by batch": lambda: volumes(nn.BatchNorm3d(4, track_running_stats=False), width=1024),
    "group norm": lambda: volumes(nn.GroupNorm(2, 4), nn.ReLU(), width=1024),
    "layer norm": lambda: volumes(nn.LayerNorm([4, 8, 8]), nn.Softmax(1), width=1024),
    "instance norm": lambda: volumes(nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(), width=1024),
    "channels last": lambda: ChannelsLast(),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.ReLU(), nn.Linear(16, CLASSES)),
    "residual": lambda: Residual(),
    "lstm": lambda: Sequence(nn.LSTM(8, 6, batch_first=True), 6),
    "deep lstm": lambda: Sequence(nn.LSTM(8, 6, 2, bias=False, batch_first=True, bidirectional=True), 12),
    "projected lstm": lambda: Sequence(nn.LSTM(8, 6, batch_first=True, proj_size=3), 3),
    "gru": lambda: Sequence(nn.GRU(8, 6, batch_first=True), 6),
    "rnn": lambda: Sequence(nn.RNN(8, 6, batch_first=True), 6),
    "attention": lambda: Sequence(nn.MultiheadAttention(8, 2, batch_first=True), 8),
    "transformer": lambda: Sequence(encoder(), 8),
    "softmax": lambda: volumes(nn.SiLU(), nn.Softmax(-1), nn.GELU(), width=1024),
    "hidden tensor": lambda: Hidden(torch.mul),
}


#: Every model in both modes; those that differ in train mode and one of each kind run in the quick tests.
_QUICK_IN_TRAIN_MODE = ("batch norm", "residual")
_SLOW = ("deep lstm", "projected lstm")  # as `lstm`
families = pytest.mark.parametrize(
    ("name", "train"),
    [
        pytest.param(
            name,
            train,
            marks=pytest.mark.slow if name in _SLOW or (train and name not in _QUICK_IN_TRAIN_MODE) else (),
        )
        for name in MODELS_TAKEN
        for train in (False, True)
    ],
)


def build_small(factory: Callable[[], nn.Module], *, train: bool = False) -> nn.Module:
    """Build a model whose weights come from a generator of its own."""
    with torch.random.fork_rng(devices=[]):
        model = factory().train(train)
    numbers = generator("capture")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=numbers))
    return model


def make_step(model: nn.Module, *, kind: Any = "cosine") -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return one iteration of gradient matching by signed steps."""
    names = [name for name, _ in model.named_parameters()]
    buffers = [name for name, _ in model.named_buffers()]

    def step(values: dict[str, Tensor]) -> dict[str, Tensor]:
        x = values["x"].detach().requires_grad_()
        weights = {name: values[f"parameter:{name}"].detach().requires_grad_() for name in names}
        state = {name: values[f"buffer:{name}"].clone() for name in buffers}
        with torch.enable_grad():
            loss = F.cross_entropy(functional_call(model, {**weights, **state}, (x,)), values["labels"])
            gradients = torch.autograd.grad(
                loss, list(weights.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
            targets = [values[f"target:{name}"] for name in names]
            masks = [values[f"mask:{name}"] for name in names if f"mask:{name}" in values]
            scales = [values[f"scale:{name}"] for name in names if f"scale:{name}" in values]
            constants = scaled([gradient.detach() for gradient in gradients], scales)
            objective, residuals = operators.gradient_match(
                constants, targets, masks=masks or None, kind=kind
            )
            residuals = scaled(residuals, scales)
            live = [(g, r) for g, r in zip(gradients, residuals, strict=True) if g.requires_grad]
            outputs, weighted = zip(*live, strict=True)
            (slope,) = torch.autograd.grad(outputs, x, grad_outputs=weighted)
        return {"x": (values["x"] - 0.1 * slope.sign()).clamp(0, 1), "objective": objective, "slope": slope}

    return step


def scaled(tensors: list[Tensor], scales: list[Tensor]) -> list[Tensor]:
    return [t * s for t, s in zip(tensors, scales, strict=True)] if scales else tensors


def make_values(
    model: nn.Module, shape: tuple[int, ...] = SHAPE, *, masked: bool = False
) -> dict[str, Tensor]:
    numbers = generator("values")
    values = {"x": torch.rand(shape, generator=numbers)}
    values["labels"] = torch.arange(shape[0]) % CLASSES
    values |= {f"parameter:{name}": p.detach() for name, p in model.named_parameters()}
    values |= {f"buffer:{name}": b for name, b in model.named_buffers()}
    for name, p in model.named_parameters():
        values[f"target:{name}"] = torch.randn(p.shape, generator=numbers)
        if masked:
            values[f"mask:{name}"] = torch.rand(p.shape, generator=numbers) > 0.5
    dtype = next(model.parameters()).dtype
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()}


def captured(model: nn.Module, values: dict[str, Tensor]) -> Capture:
    return capture(make_step(model), values, set(values) - {"x"})


def run_capture(graph: Capture, values: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(zip(graph.outputs, graph.graph(*(values[name] for name in graph.inputs)), strict=True))
