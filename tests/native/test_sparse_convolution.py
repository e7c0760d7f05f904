"""Convolutions at some outputs: against the dense sums in float64, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from native_cases import IMPLEMENTATIONS, assert_near, assert_refused, normal
from torch import Tensor
from torch.nn import functional as F

from vleak.native import sparse_conv_input, sparse_conv_output, sparse_conv_weight
from vleak.seeds import generator

DTYPES = (torch.float32, torch.float64)
Sizes = tuple[int, ...]
#: clips, channels, outputs, size, kernel, stride, padding, chosen outputs
CASES: dict[str, tuple[int, int, int, Sizes, Sizes, Sizes, Sizes, Sizes]] = {
    "3-D": (2, 3, 4, (4, 7, 9), (3, 3, 3), (1, 1, 1), (1, 1, 1), (2, 3, 4)),
    "2-D": (3, 5, 13, (8, 11), (3, 3), (1, 1), (1, 1), (4, 5)),
    "5x5x5": (1, 3, 12, (4, 8, 16), (5, 5, 5), (1, 1, 1), (2, 2, 2), (2, 4, 8)),
    "lines of whole vectors": (1, 16, 6, (3, 6, 6), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 3, 3)),
    "lines of several vectors": (1, 33, 3, (2, 5, 6), (2, 2, 3), (1, 1, 1), (1, 0, 1), (1, 2, 3)),
    "one frame": (1, 3, 8, (1, 6, 6), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 3, 3)),
    "one place": (2, 2, 5, (3, 4, 5), (3, 3, 3), (1, 1, 1), (0, 0, 0), (1, 1, 1)),
    "strides": (1, 3, 7, (8, 9, 10), (3, 2, 3), (2, 1, 3), (1, 0, 2), (2, 4, 2)),
    "kernel above the input": (1, 2, 3, (2, 2, 3), (5, 5, 5), (1, 1, 1), (2, 3, 2), (1, 2, 1)),
    "stride above the kernel": (1, 2, 3, (8, 19), (2, 1), (3, 4), (0, 0), (2, 3)),
    "many places": (1, 2, 3, (3, 30, 31), (3, 3, 3), (1, 1, 1), (1, 1, 1), (3, 15, 16)),
    "no place": (2, 2, 3, (3, 4, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1), (0, 2, 2)),
    "no clip": (0, 2, 3, (3, 4, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 2, 2)),
}


def dense(x: Tensor, w: Tensor, stride: Sizes, padding: Sizes) -> Tensor:
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, w, None, stride, padding)


def draw_places(output: Sizes, chosen: Sizes) -> Tensor:
    """Return places, some of which are named twice."""
    outputs = torch.Size(output[2:]).numel()
    return torch.randint(outputs, (*output[:2], *chosen), generator=generator("places", output, chosen))


def read(y: Tensor, places: Tensor) -> Tensor:
    return y.flatten(2).gather(2, places.flatten(2)).view(places.shape)


@pytest.mark.parametrize("name", CASES)
def test_all_three_sums_of_three_pairs(each_implementation: str, name: str) -> None:
    dtype = DTYPES[(list(CASES).index(name) + IMPLEMENTATIONS.index(each_implementation)) % 2]
    clips, channels, outputs, size, kernel, stride, padding, chosen = CASES[name]
    xs = [normal(clips, channels, *size, seed=s, dtype=dtype) for s in range(3)]
    ws = [normal(outputs, channels, *kernel, seed=s, dtype=dtype) for s in range(3)]
    bias, settings = normal(outputs, dtype=dtype), {"stride": stride, "padding": padding}
    wide = [[each.double().requires_grad_() for each in tensors] for tensors in (xs, ws)]
    ys = [dense(x, w, stride, padding) for x, w in zip(*wide, strict=True)]
    places = draw_places(tuple(ys[0].shape), chosen)
    spread = bias.double().view(1, -1, *[1] * len(size))
    truth = read(sum(ys) + spread, places).detach()  # type: ignore[operator]
    assert_near(sparse_conv_output(xs, ws, bias, places, **settings), truth)
    dys = [normal(*places.shape, seed=s, dtype=dtype) for s in range(3)]
    dys = [torch.where(dy > -0.5, dy, 0) for dy in dys]  # as behind a ReLU
    gradients = [
        torch.autograd.grad(read(y, places), [x, w], dy.double())
        for y, x, w, dy in zip(ys, *wide, dys, strict=True)
    ]
    for pairs in (1, 2, 3):
        dx = sparse_conv_input(dys[:pairs], ws[:pairs], places, input_shape=xs[0].shape, **settings)
        assert_near(dx, sum(dx for dx, _ in gradients[:pairs]))  # type: ignore[arg-type]
    assert_near(sparse_conv_weight(xs[0], dys[0], places, kernel=kernel, **settings), gradients[0][1])


def test_any_strides_are_read(each_implementation: str) -> None:
    clips, channels, outputs, size, kernel, stride, padding, chosen = CASES["3-D"]
    settings = {"stride": stride, "padding": padding}
    x, w = normal(clips, channels, *size), normal(outputs, channels, *kernel)
    places = draw_places((clips, outputs, *size), chosen)
    dy = normal(*places.shape)
    turned = [t.transpose(1, -1).contiguous().transpose(1, -1) for t in (x, w, places, dy)]
    assert not any(t.is_contiguous() for t in turned)
    a, b, at, d = turned
    assert_near(
        sparse_conv_output([a], [b], None, at, **settings),
        sparse_conv_output([x], [w], None, places, **settings),
    )
    assert_near(
        sparse_conv_input([d], [b], at, input_shape=x.shape, **settings),
        sparse_conv_input([dy], [w], places, input_shape=x.shape, **settings),
    )
    assert_near(
        sparse_conv_weight(a, d, at, kernel=kernel, **settings),
        sparse_conv_weight(x, dy, places, kernel=kernel, **settings),
    )


X, W, PLACES = normal(2, 3, 4, 5), normal(6, 3, 3, 3), torch.zeros(2, 6, 2, 2, dtype=torch.int64)
DY, SAME = normal(2, 6, 2, 2), {"stride": (1, 1), "padding": (1, 1)}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "places of another type": (
        lambda: sparse_conv_output([X], [W], None, PLACES.int(), **SAME),
        "expected places to be int64 of 4 axes beginning with (2, 6), on cpu, got torch.int32 (2, 6, 2, 2)",
    ),
    "places of other channels": (
        lambda: sparse_conv_input([DY], [W], PLACES[:, :5], input_shape=X.shape, **SAME),
        "sparse_conv_input: expected places to be int64 of 4 axes beginning with (2, 6)",
    ),
    "no outputs": (
        lambda: sparse_conv_output([X], [W], None, PLACES + 20, **SAME),
        "expected places from 0 to 19, got 20 to 20",
    ),
    "negative places": (
        lambda: sparse_conv_weight(X, DY, PLACES - 1, kernel=(3, 3), **SAME),
        "expected places from 0 to 19, got -1 to -1",
    ),
    "derivatives of another shape": (
        lambda: sparse_conv_weight(X, DY[..., :1], PLACES, kernel=(3, 3), **SAME),
        "that is the shape of places",
    ),
    "a kernel for every channel": (
        lambda: sparse_conv_output([X], [normal(3, 1, 3, 3)], None, PLACES[:, :3], **SAME),
        "sparse_conv_output: expected a weight of shape (out, 3, *kernel), got (3, 1, 3, 3)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name: str) -> None:
    assert_refused(*REFUSED[name])
