"""Graph passes: that each fires, keeps the numbers, and stays away where it does not apply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_capture import (
    MODELS_TAKEN,
    Frames,
    Sequence,
    captured,
    made,
    make_step,
    make_values,
    run,
    volumes,
)
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.engine.capture import Capture, capture
from vleak.engine.passes import PASSES, optimize
from vleak.errors import InputError
from vleak.seeds import generator

aten = torch.ops.aten


def count(made: Capture, *operators: Any) -> int:
    """Return how many calls of some operators a graph has."""
    tally = Counter(node.target for node in made.graph.graph.nodes)
    return sum(tally[operator] for operator in operators)


def of(function: Callable[..., Tensor], *tensors: Tensor, fixed: tuple[str, ...] = ()) -> Any:
    """Capture a function of x, y, ...; return the graph and its values."""
    values = dict(zip("xyzw", tensors, strict=False))
    return capture(lambda given: {"out": function(*given.values())}, values, fixed), values


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator("passes", *shape, seed), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------
# All passes


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODELS_TAKEN)
def test_passes_keep_the_numbers(name: str, train: bool) -> None:
    model = made(MODELS_TAKEN[name], train=train).double()
    values = make_values(model)
    graph = captured(model, values)
    expected = run(graph, values)
    for each in PASSES.values():
        before, kept = len(graph.graph.graph.nodes), graph.graph.code
        optimized = each(graph)
        assert graph.graph.code == kept
        assert len(graph.graph.graph.nodes) == before
        torch.testing.assert_close(run(optimized, values), expected, rtol=1e-8, atol=1e-11)
        graph = optimized


@pytest.mark.parametrize("kind", ["cosine", "l2"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_masks_and_both_distances(kind: str, masked: bool) -> None:
    model = made(MODELS_TAKEN["residual"]).double()
    values = make_values(model, masked=masked)
    step = make_step(model, kind=kind)
    graph = optimize(capture(step, values, set(values) - {"x"}))
    torch.testing.assert_close(run(graph, values), step(values), rtol=1e-9, atol=1e-12)


def test_passes_can_be_left_out_and_misspelt() -> None:
    model = made(MODELS_TAKEN["conv2d"])
    graph = captured(model, make_values(model))
    assert len(optimize(graph, ()).graph.graph.nodes) == len(graph.graph.graph.nodes)
    assert count(optimize(graph, ("simplify",)), aten.convolution.default) > 0
    with pytest.raises(InputError, match="unknown pass 'simplfy'; did you mean simplify"):
        optimize(graph, ("simplfy",))


def test_every_node_keeps_a_shape() -> None:
    model = made(MODELS_TAKEN["residual"])
    for node in optimize(captured(model, make_values(model))).graph.graph.nodes:
        assert node.op == "output" or node.meta["val"] is not None


# ---------------------------------------------------------------------------------------------------------
# simplify


def simplified(function: Callable[..., Tensor], *tensors: Tensor) -> Capture:
    """Simplify a function's graph, and check that the numbers are the very same."""
    graph, values = of(function, *tensors)
    smaller = PASSES["simplify"](graph)
    copies = [{name: value.clone() for name, value in values.items()} for _ in range(2)]
    torch.testing.assert_close(run(smaller, copies[0]), run(graph, copies[1]), rtol=0, atol=0)
    torch.testing.assert_close(copies[0], copies[1], rtol=0, atol=0)
    return smaller


def calls_of(made: Capture) -> list[Any]:
    return [node.target for node in made.graph.graph.nodes if node.op == "call_function"]


NOTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda x: x.detach(),
    "view": lambda x: x.view(3, 4).view(12).view(3, 4),
    "transpose": lambda x: x.t().t(),
    "transpose back": lambda x: x.transpose(0, 1).transpose(1, 0),
    "permute": lambda x: x.permute(1, 0).permute(1, 0),
    "expand": lambda x: x.expand(3, 4),
    "slice": lambda x: x[:, :],
    "clone": lambda x: x.clone(),
    "zeros": lambda x: torch.zeros_like(x) + x + x.new_zeros(4, 3).t().expand(3, 4).contiguous() - 0,
    "zero product": lambda x: x + torch.zeros(3, 5, dtype=x.dtype).mm(x.new_ones(5, 4)),
    "ones": lambda x: x * torch.ones_like(x) / 1 * 1.0,
    "dead": lambda x: (x.sin().cos(), x)[1],
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_changes_nothing_goes(name: str) -> None:
    made = simplified(lambda x: NOTHING[name](x.sin()).cos(), draw(3, 4))
    assert calls_of(made) == [aten.sin.default, aten.cos.default]


SOMETHING: dict[str, Callable[[Tensor], Tensor]] = {
    "broadcast zeros": lambda x: x + x.new_zeros(2, 3, 4),
    "zeros of a wider type": lambda x: x.float() + torch.zeros_like(x),
    "scaled": lambda x: torch.add(torch.ones_like(x), x, alpha=2),
    "minus": lambda x: torch.zeros_like(x) - x,
    "one in the numerator": lambda x: torch.ones_like(x) / x,
    "contiguous copy": lambda x: x.t().clone(memory_format=torch.contiguous_format),
    "view of a transpose": lambda x: x.t().reshape(12),
    "cut": lambda x: x[:, :3],
}


@pytest.mark.parametrize("name", SOMETHING)
def test_what_changes_something_stays(name: str) -> None:
    made = simplified(lambda x: SOMETHING[name](x.sin()), draw(3, 4))
    assert len(calls_of(made)) > 1


def test_repeated_work_is_done_once() -> None:
    made = simplified(lambda x: x.exp() * x.exp().sum(0) + x.exp().sum(0), draw(3, 4))
    assert count(made, aten.exp.default) == count(made, aten.sum.dim_IntList) == 1


def test_arguments_of_another_type_are_other_work() -> None:
    made = simplified(lambda x: (x > 1).double() + (x > 0).double() + x.pow(1.0) + x.pow(1), draw(3, 4))
    assert count(made, aten.gt.Scalar) == 2


def test_a_mask_is_put_on_once() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        once = aten.threshold_backward(x, y, 0)
        return aten.threshold_backward(once, y, 0) + aten.threshold_backward(once, y, 1)

    made = simplified(function, draw(3, 4), draw(3, 4, seed=1))
    assert count(made, aten.threshold_backward.default) == 2


def test_in_place_operators_on_temporaries_become_pure() -> None:
    def function(x: Tensor) -> Tensor:
        made = torch.empty_like(x).fill_(1.0).sub_(x).mul_(2)
        return made.add_(x.clone().sigmoid_())

    made = simplified(function, draw(3, 4))
    assert not any(target._schema.is_mutable for target in calls_of(made))


def test_memory_that_is_read_again_stays_as_it_was() -> None:
    def of_a_view(x: Tensor) -> Tensor:
        base = x.sin()
        base[1].add_(1)
        return base * base[0]

    def of_an_input(x: Tensor, y: Tensor) -> Tensor:
        before = y * 2 + y * 2
        y.add_(x)
        return before + y * 2

    def of_a_copy(x: Tensor, y: Tensor) -> Tensor:
        before = y.clone()
        y.mul_(x)
        return before + y + y.clone()

    for function in (of_a_view, of_an_input, of_a_copy):
        tensors = [draw(3, 4), draw(3, 4, seed=1)]
        made = simplified(function, *tensors[: function.__code__.co_argcount])
        assert any(target._schema.is_mutable for target in calls_of(made))


def test_batch_norm_in_train_mode_needs_no_running_statistics() -> None:
    model = made(MODELS_TAKEN["batch norm"], train=True).double()
    values = make_values(model)
    graph = PASSES["simplify"](captured(model, values))
    assert count(graph, aten.native_batch_norm.default) == 0
    torch.testing.assert_close(run(graph, values), make_step(model)(values), rtol=1e-9, atol=1e-12)


def test_derivatives_that_nobody_reads_are_not_computed() -> None:
    model = made(lambda: volumes(nn.Conv3d(4, 4, 3, groups=2, padding=1), width=1024)).double()
    graph = PASSES["simplify"](captured(model, make_values(model)))
    nodes = graph.graph.graph.find_nodes(op="call_function", target=aten.convolution_backward.default)
    # First of the loss: by the second layer's input, and by all weights; then by the inputs alone.
    no, yes = False, True
    assert sorted(node.args[-1] for node in nodes) == [
        [no, yes, yes],
        [yes, no, no],
        [yes, no, no],
        [yes] * 3,
    ]


# ---------------------------------------------------------------------------------------------------------
# convolution

CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    # calls of conv_output, conv_input and conv_weight in a step: with two layers, forward 2, then input 1 and
    # weight 2; of the second derivative, output 2 (one of them of two pairs) and input 2, of two pairs each.
    "3d": (lambda: volumes(nn.GELU(), nn.Conv3d(4, 4, 3, padding=1), width=1024), (4, 3, 2)),
    "strides": (lambda: volumes(nn.GELU(), nn.Conv3d(4, 4, (1, 3, 2), (2, 1, 3)), width=144), (4, 3, 2)),
    "2d": (lambda: Frames(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3, stride=2)), (4, 3, 2)),
    "no bias": (lambda: Frames(nn.Conv2d(3, 4, 3, bias=False), nn.Tanh(), nn.Conv2d(4, 5, 3)), (4, 3, 2)),
}
AWAY: dict[str, Callable[[], nn.Module]] = {
    "groups": lambda: Frames(nn.Conv2d(3, 3, 3, groups=3)),
    "dilation": lambda: Frames(nn.Conv2d(3, 4, 3, dilation=2)),
    "one axis": lambda: Sequence(nn.Conv1d(4, 4, 3), 6),
}


def bilinear(made: Capture) -> tuple[int, ...]:
    ops = torch.ops.vleak
    return tuple(count(made, op.default) for op in (ops.conv_output, ops.conv_input, ops.conv_weight))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_become_bilinear(name: str) -> None:
    factory, expected = CONVOLUTIONS[name]
    model = made(factory).double()
    values = make_values(model)
    graph = PASSES["convolution"](PASSES["simplify"](captured(model, values)))
    assert bilinear(graph) == expected
    assert count(graph, aten.convolution.default, aten.convolution_backward.default) == 0
    torch.testing.assert_close(run(graph, values), make_step(model)(values), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", AWAY)
def test_convolutions_that_do_not_fit_stay(name: str) -> None:
    model = made(AWAY[name]).double()
    graph = PASSES["convolution"](PASSES["simplify"](captured(model, make_values(model))))
    assert bilinear(graph) == (0, 0, 0)
    assert count(graph, aten.convolution.default) > 0


def test_other_types_stay() -> None:
    x, w = draw(1, 3, 8, 8).bfloat16(), draw(4, 3, 3, 3).bfloat16()
    graph, _ = of(F.conv2d, x, w)
    assert bilinear(PASSES["convolution"](graph)) == (0, 0, 0)


def merged(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[int, ...]:
    graph, values = of(function, *tensors)
    optimized = PASSES["convolution"](graph)
    torch.testing.assert_close(run(optimized, values), run(graph, values), rtol=1e-10, atol=1e-10)
    return bilinear(optimized)


def test_sums_of_convolutions_merge() -> None:
    x, y, z, w = draw(2, 3, 8, 8), draw(2, 3, 8, 8, seed=1), draw(4, 3, 3, 3), draw(4, 3, 3, 3, seed=1)
    assert merged(lambda x, y, z, w: F.conv2d(x, z) + F.conv2d(y, w), x, y, z, w) == (1, 0, 0)
    both = lambda x, y, z, w: F.conv_transpose2d(x, z) + F.conv_transpose2d(y, w)  # noqa: E731
    assert merged(both, draw(2, 4, 6, 6), draw(2, 4, 6, 6, seed=1), z, w) == (0, 1, 0)
    biased = lambda x, y, z, w: F.conv2d(x, z) + w.view(1, 4, 1, 1).expand(2, 4, 6, 6) + F.conv2d(y, z)  # noqa: E731
    assert merged(biased, x, y, z, draw(4)) == (1, 0, 0)


def test_sums_that_do_not_fit_stay_sums() -> None:
    x, y, z, w = draw(2, 3, 8, 8), draw(2, 3, 8, 8, seed=1), draw(4, 3, 3, 3), draw(4, 3, 1, 1)
    # another kernel
    assert merged(lambda x, y, z, w: F.conv2d(x, z) + F.conv2d(y, w)[..., 2:, 2:], x, y, z, w)[0] == 2
    assert merged(lambda x, y, z, w: F.conv2d(x, z, padding=1) + F.conv2d(y, w), x, y, z, w)[0] == 2

    # a part that somebody else reads
    def read_twice(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        part = F.conv2d(x, z)
        return (part + F.conv2d(y, z)) * part

    assert merged(read_twice, x, y, z)[0] == 2
    # two biases, a difference, and a bias along another axis
    two = lambda x, y, z, w: F.conv2d(x, z, w) + F.conv2d(y, z, w)  # noqa: E731
    assert merged(two, x, y, z, draw(4))[0] == 2
    assert merged(lambda x, y, z: F.conv2d(x, z) - F.conv2d(y, z), x, y, z)[0] == 2
    assert merged(lambda x, y, z: torch.add(F.conv2d(x, z), F.conv2d(y, z), alpha=2), x, y, z)[0] == 2
    rows = lambda x, z, w: F.conv2d(x, z) + w.view(1, 1, 6, 1).expand(2, 4, 6, 6)  # noqa: E731
    graph, _ = of(rows, x, z, draw(6))
    assert count(PASSES["convolution"](graph), aten.add.Tensor) == 1


def test_output_padding_is_part_of_the_shape() -> None:
    function = lambda x, y: F.conv_transpose2d(x, y, stride=2, padding=1, output_padding=1)  # noqa: E731
    assert merged(function, draw(2, 4, 5, 5), draw(4, 3, 3, 3)) == (0, 1, 0)
