"""Layers in a captured step: vleak's operators, or PyTorch's, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from captures import run_capture
from torch import Tensor
from torch.nn import functional as F

from vleak.descent.capture import capture
from vleak.seeds import generator

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of clips, a kernel (3, 3, 3, 3, 3), or one a channel, and three numbers a channel."""

OURS: dict[str, Layer] = {
    "same": lambda x, w, b: F.conv3d(x, w, b, padding="same"),
    "one number for all axes": lambda x, w, b: F.conv3d(x, w, bias=b, stride=[2], padding=1),
    "frames": lambda x, w, b: F.conv2d(x[:, :, 0], w[:, :, 0], b, 2, (0, 1)),
    "depthwise": lambda x, w, b: F.conv3d(x, w[:, :1], b, padding=1, groups=3),
    "transposed": lambda x, w, b: F.conv_transpose3d(x, w, b, stride=2, padding=1, output_padding=1),
    "transposed frames": lambda x, w, b: F.conv_transpose2d(x[:, :, 0], w[:, :, 0], b, (2, 1)),
    "batch norm": lambda x, w, b: F.batch_norm(x, None, None, b, b.cos(), training=True, eps=0.01),
    "batch norm of constants": lambda x, w, b: F.batch_norm(
        x, b.detach(), b.detach() ** 2, b, None, False, 0.1, 0.1
    ),
    "batch norm of features": lambda x, w, b: F.batch_norm(
        x.mean((2, 3, 4)), None, None, b, None, training=True
    ),
    "layer norm": lambda x, w, b: F.layer_norm(x.movedim(1, -1), (3,), b, b.sin(), 0.01),
    "layer norm of rows and columns": lambda x, w, b: F.layer_norm(x, (6, 7), eps=0.01),
    "gelu": lambda x, w, b: F.gelu(x.transpose(1, 2)),
    "silu": lambda x, w, b: F.silu(x),
    "attention": lambda x, w, b: F.scaled_dot_product_attention(x, x.sin(), x.cos()),
    "attention of a scale": lambda x, w, b: F.scaled_dot_product_attention(x, x.sin(), x.cos(), scale=2.0),
    "softmax": lambda x, w, b: x.softmax(-1) + F.softmax(x, dim=4) + torch.softmax(x, -1),
}
THEIRS: dict[str, Layer] = {
    "dilation": lambda x, w, b: F.conv3d(x, w, b, dilation=(1, 2, 2)),
    "valid": lambda x, w, b: F.conv3d(x, w, b, padding="valid"),
    "without clips": lambda x, w, b: F.conv3d(x[0], w, b),
    "transposed groups": lambda x, w, b: F.conv_transpose3d(x, w[:, :1], b, groups=3),
    "one axis": lambda x, w, b: F.conv1d(x[:, :, 0, 0], w[:, :, 0, 0], b),
    "instance norm": lambda x, w, b: F.instance_norm(x, weight=b),
    "approximated gelu": lambda x, w, b: F.gelu(x, approximate="tanh"),
    "silu in place": lambda x, w, b: F.silu(x + 1, inplace=True),
    "masked attention": lambda x, w, b: F.scaled_dot_product_attention(x, x.sin(), x.cos(), is_causal=True),
    "softmax of another axis": lambda x, w, b: x.softmax(1),
    "softmax in another type": lambda x, w, b: x.softmax(-1, dtype=torch.float64),
}


def _slope(layer: Layer) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return a layer's result, and a derivative of the squares of its derivatives by everything."""

    def step(values: dict[str, Tensor]) -> dict[str, Tensor]:
        x, w, b = (values[name].detach().requires_grad_() for name in "xwb")
        with torch.enable_grad():
            y = layer(x, w, b)
            first = torch.autograd.grad(
                y.sin().sum(), [x, w, b], create_graph=True, allow_unused=True, materialize_grads=True
            )
            squares = sum((each**2).sum() for each in first)
            second = torch.autograd.grad(squares, [x, w, b], allow_unused=True, materialize_grads=True)
        return {"y": y.detach(), **dict(zip(("by x", "by w", "by b"), second, strict=True))}

    return step


def _recorded(layer: Layer) -> set[str]:
    numbers = generator("own operators")
    shapes = {"x": (2, 3, 4, 6, 7), "w": (3, 3, 3, 3, 3), "b": (3,)}
    values = {
        name: torch.randn(shape, generator=numbers, dtype=torch.float64) for name, shape in shapes.items()
    }
    graph = capture(_slope(layer), values, ())
    torch.testing.assert_close(run_capture(graph, values), _slope(layer)(values), rtol=1e-9, atol=1e-11)
    return {str(node.target) for node in graph.graph.graph.nodes if node.op == "call_function"}


#: Parts of the names of PyTorch's layers and derivatives. Softmax and its first derivative stay PyTorch's.
LAYERS = ("convolution", "batch_norm", "layer_norm", "gelu_backward", "silu_backward")


def _of_pytorch(operators: set[str], layers: tuple[str, ...]) -> set[str]:
    return {name for name in operators if name.startswith("aten") and any(part in name for part in layers)}


@pytest.mark.parametrize("name", OURS)
def test_layers_are_recorded_as_our_operators(name: str) -> None:
    recorded = _recorded(OURS[name])
    assert not _of_pytorch(recorded, LAYERS)
    assert any(operator.startswith("vleak.") for operator in recorded)


@pytest.mark.parametrize("name", THEIRS)
def test_what_our_operators_do_not_serve_is_recorded_as_pytorch_runs_it(name: str) -> None:
    recorded = _recorded(THEIRS[name])
    assert _of_pytorch(recorded, (*LAYERS, "softmax"))
    assert not any(operator.startswith("vleak.") for operator in recorded)
