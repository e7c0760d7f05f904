"""Convolutions with one kernel a channel: against float64, in plain PyTorch and on every instruction set."""

from __future__ import annotations

import pytest
import torch
from native_cases import IMPLEMENTATIONS, assert_near, normal
from torch import Tensor
from torch.nn import functional as F

from vleak.native import conv_input, conv_output, conv_weight

DTYPES = (torch.float32, torch.float64)
#: clips, channels, size, kernel, stride, padding
CASES: dict[str, tuple[int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "3-D": (2, 5, (4, 7, 9), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "2-D": (3, 13, (8, 11), (3, 3), (1, 1), (1, 1)),
    "frames only": (1, 4, (8, 5, 6), (5, 1, 1), (1, 1, 1), (2, 0, 0)),
    "one frame": (1, 3, (1, 6, 6), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "tiny planes": (1, 17, (8, 2, 2), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "stride 1, 2, 2": (1, 4, (4, 9, 16), (3, 3, 3), (1, 2, 2), (1, 1, 1)),
    "stride 2, 3, 2": (2, 3, (7, 11, 8), (3, 2, 3), (2, 3, 2), (1, 0, 2)),
    "stride above the kernel": (1, 3, (8, 19), (2, 1), (3, 4), (0, 0)),
    "kernel above the input": (1, 3, (2, 2, 3), (5, 5, 5), (1, 1, 1), (2, 3, 2)),
    "padding above the kernel": (1, 3, (2, 3, 4), (2, 2, 2), (1, 1, 1), (3, 3, 3)),
    "one output": (1, 3, (5, 4, 6), (2, 1, 3), (9, 5, 7), (1, 0, 1)),
    "no clip": (0, 3, (3, 4, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "many places": (1, 3, (3, 41, 43), (3, 3, 3), (1, 1, 1), (0, 0, 0)),
}


def plain(x: Tensor, w: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    conv = F.conv2d if x.ndim == 4 else F.conv3d
    return conv(x, w, None, stride, padding, groups=x.shape[1])


@pytest.mark.parametrize("name", CASES)
def test_all_three_sums_of_two_pairs(each_implementation: str, name: str) -> None:
    dtype = DTYPES[(list(CASES).index(name) + IMPLEMENTATIONS.index(each_implementation)) % 2]
    clips, channels, size, kernel, stride, padding = CASES[name]
    xs = [normal(clips, channels, *size, seed=s, dtype=dtype).requires_grad_() for s in (0, 1)]
    ws = [normal(channels, 1, *kernel, seed=s, dtype=dtype).requires_grad_() for s in (0, 1)]
    bias, settings = normal(channels, dtype=dtype), {"stride": stride, "padding": padding}
    wide = [[each.detach().double().requires_grad_() for each in tensors] for tensors in (xs, ws)]
    ys = [plain(x, w, stride, padding) for x, w in zip(*wide, strict=True)]
    dys = [normal(*y.shape, seed=s, dtype=dtype) for s, y in enumerate(ys)]
    gradients = [
        torch.autograd.grad(y, [x, w], dy.double()) for y, x, w, dy in zip(ys, *wide, dys, strict=True)
    ]
    spread = bias.double().view(1, -1, *[1] * len(size))
    assert_near(conv_output(xs, ws, bias, **settings), sum(ys).detach() + spread)  # type: ignore[union-attr]
    dx = conv_input(dys, ws, input_shape=xs[0].shape, **settings)
    assert_near(dx, sum(dx for dx, _ in gradients))  # type: ignore[arg-type]
    dw = sum(dw for _, dw in gradients)
    assert_near(conv_weight(xs, dys, kernel=kernel, depthwise=True, **settings), dw)  # type: ignore[arg-type]
    begun = conv_weight(xs, dys, kernel=kernel, depthwise=True, start=ws[1], **settings)
    assert_near(begun, dw + wide[1][1].detach())


def test_any_strides_are_read(each_implementation: str) -> None:
    clips, channels, size, kernel, stride, padding = CASES["3-D"]
    x, w, settings = (
        normal(clips, channels, *size),
        normal(channels, 1, *kernel),
        {"stride": stride, "padding": padding},
    )
    turned, wide = (t.transpose(1, -1).contiguous().transpose(1, -1) for t in (x, w))
    assert not turned.is_contiguous()
    y = conv_output([turned], [wide], **settings)
    assert_near(y, conv_output([x], [w], **settings))
    moved = y.transpose(2, 3).contiguous().transpose(2, 3)
    by_input = [
        conv_input([dy], [each], input_shape=x.shape, **settings) for dy, each in ((moved, wide), (y, w))
    ]
    by_weight = [
        conv_weight([left], [right], kernel=kernel, depthwise=True, **settings)
        for left, right in ((turned, moved), (x, y))
    ]
    assert_near(*by_input)
    assert_near(*by_weight)


def test_nan_spreads_no_further_than_its_taps(each_implementation: str) -> None:
    _, _, _, _, stride, padding = CASES["3-D"]
    x, w = normal(1, 5, 4, 7, 9), normal(5, 1, 3, 3, 3)
    x[0, 1, 1, 2, 3] = torch.nan
    y = conv_output([x], [w], stride=stride, padding=padding)
    assert torch.equal(y.isnan(), plain(x, w, stride, padding).isnan())
