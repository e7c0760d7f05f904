"""Pass over convolutions before a max pooling: where it fires, where not, and that it keeps the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from captures import Frames, build_small, captured, make_step, make_values, run_capture
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.descent.capture import Capture, capture
from vleak.descent.passes import optimize
from vleak.native import conv_input, conv_weight
from vleak.seeds import generator

BEFORE = ("simplify", "convolution")
OURS = torch.ops.vleak


def clips(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 3))


FITTING: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: clips(nn.Conv3d(3, 4, 5, padding=2), nn.ReLU(), nn.MaxPool3d(2), width=128),
    "relu in place": lambda: clips(
        nn.Conv3d(3, 4, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool3d(2), width=128
    ),
    "no relu": lambda: clips(nn.Conv3d(3, 4, 5, padding=2), nn.MaxPool3d(2), nn.Sigmoid(), width=128),
    "no bias": lambda: clips(
        nn.Conv3d(3, 4, 5, padding=2, bias=False), nn.ReLU(), nn.MaxPool3d(2), width=128
    ),
    "overlapping": lambda: clips(nn.Conv3d(3, 4, 5, padding=2), nn.ReLU(), nn.MaxPool3d(3, 2, 1), width=128),
    "frames": lambda: Frames(nn.Conv2d(3, 4, 9, padding=4), nn.ReLU(), nn.MaxPool2d(3)),
    "two layers": lambda: clips(
        nn.Conv3d(3, 4, 5, padding=2), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(4, 5, (5, 5, 3), padding=(2, 2, 1)), nn.ReLU(), nn.MaxPool3d(2), width=20,
    ),
}  # fmt: skip
AWAY: dict[str, Callable[[], nn.Module]] = {
    "few weights": lambda: clips(
        nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1)), nn.ReLU(), nn.MaxPool3d(2), width=128
    ),
    "few outputs a place": lambda: clips(
        nn.Conv3d(3, 4, 5, padding=2), nn.ReLU(), nn.MaxPool3d((1, 2, 2)), width=256
    ),
    "something between": lambda: clips(nn.Conv3d(3, 4, 5, padding=2), nn.GELU(), nn.MaxPool3d(2), width=128),
    "average": lambda: clips(nn.Conv3d(3, 4, 5, padding=2), nn.ReLU(), nn.AvgPool3d(2), width=128),
}


def calls(made: Capture) -> tuple[int, ...]:
    """Return the calls of the dense and of the sparse sums, of scatters and of gathers."""
    tally = Counter(node.target for node in made.graph.graph.nodes)
    stems = ("output", "input", "weight")
    spread = torch.ops.aten.max_pool3d_with_indices_backward.default
    return (
        *(tally[getattr(OURS, f"conv_{stem}").default] for stem in stems),
        *(tally[getattr(OURS, f"sparse_conv_{stem}").default] for stem in stems),
        tally[spread],
        tally[torch.ops.aten.gather.default],
    )


@pytest.mark.parametrize("name", FITTING)
def test_convolutions_are_computed_where_the_pooling_reads_them(name: str) -> None:
    model = build_small(FITTING[name]).double()
    values = make_values(model)
    made = optimize(captured(model, values), [*BEFORE, "pooling"])
    layers = 2 if name == "two layers" else 1
    # Dense: every layer once. Sparse, of the second derivative: the output and the input of every layer, and
    # of the gradient the weight; before a deeper layer its input too.
    assert calls(made) == (layers, 0, 0, layers, 2 * layers - 1, layers, 0, 0)
    torch.testing.assert_close(run_capture(made, values), make_step(model)(values), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", AWAY)
def test_what_does_not_fit_or_pay_stays(name: str) -> None:
    model = build_small(AWAY[name]).double()
    made = optimize(captured(model, make_values(model)), [*BEFORE, "pooling"])
    assert calls(made)[3:6] == (0, 0, 0)


POOLS = {
    "ours": nn.MaxPool2d(3, 2),
    "padded": nn.MaxPool2d(3, 2, 1),
    "cut windows": nn.MaxPool2d(3, 2, ceil_mode=True),
    "dilated": nn.MaxPool2d(2, dilation=2),
}


@pytest.mark.parametrize("name", POOLS)
def test_max_pooling_is_ours_where_no_window_is_cut(name: str) -> None:
    model = build_small(lambda: Frames(nn.Conv2d(3, 4, 3), nn.Tanh(), POOLS[name])).double()
    values = make_values(model)
    made = optimize(captured(model, values), ["simplify", "pooling"])
    targets = Counter(node.target for node in made.graph.graph.nodes)
    own = targets[OURS.max_pool.default], targets[torch.ops.aten.max_pool2d_with_indices.default]
    assert own == ((1, 0) if name == "ours" else (0, 1))
    torch.testing.assert_close(run_capture(made, values), make_step(model)(values), rtol=1e-9, atol=1e-12)


def pooled_alike(function: Callable[..., Tensor], passes: list[str]) -> Capture:
    """Run passes over a function of clips, filters and what is pooled; check that the numbers stay."""
    numbers = generator("pooling")
    shapes = {"x": (1, 3, 4, 8, 8), "y": (4, 3, 5, 5, 5), "z": (1, 4, 2, 4, 4)}
    values = {
        name: torch.randn(shape, generator=numbers, dtype=torch.float64) for name, shape in shapes.items()
    }
    plain = capture(lambda given: {"out": function(*given.values())}, values, ())
    made = optimize(plain, passes)
    torch.testing.assert_close(run_capture(made, values), run_capture(plain, values))
    return made


def test_a_derivative_that_something_else_reads_too_stays() -> None:
    def function(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        with torch.enable_grad():
            convolved = F.conv3d(x, y, padding=2).requires_grad_()
            pooled = F.max_pool3d(convolved.relu(), 2)
            (dense,) = torch.autograd.grad(pooled, convolved, z)
        by_input = conv_input([dense], [y], input_shape=x.shape, stride=[1] * 3, padding=[2] * 3)
        by_weight = conv_weight([x], [dense], kernel=[5] * 3, stride=[1] * 3, padding=[2] * 3)
        return dense.sum() + by_input.sum() + by_weight.sum() + pooled.detach().sum()

    assert calls(pooled_alike(function, [*BEFORE, "pooling"]))[4:7] == (1, 1, 1)


def test_what_is_written_to_in_between_is_read_before() -> None:
    def function(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        other = x.sin()
        pooled, places = F.max_pool3d(F.conv3d(x, y, padding=2), 2, return_indices=True)
        again = F.conv3d(other, y, padding=2).flatten(2)
        other[:, :1] = 0
        return again.gather(2, places.view(1, 4, -1)) + pooled.flatten(2) + other.sum() + z.sum()

    pooled_alike(function, ["convolution", "pooling"])
