"""Graph passes: that each fires, keeps the numbers, and stays away where it does not apply."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captures import (
    MODELS_TAKEN,
    Frames,
    Sequence,
    atens_operators,
    build_small,
    captured,
    families,
    make_step,
    make_values,
    run_capture,
    volumes,
)
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.descent.capture import Capture, capture
from vleak.descent.passes import PASSES, optimize
from vleak.errors import InputError
from vleak.native import conv_weight
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


def apply(name: str, graph: Capture) -> Capture:
    return optimize(graph, [name])


def agrees(
    name: str,
    function: Callable[..., Tensor],
    *tensors: Tensor,
    rtol: float = 1e-10,
    fixed: tuple[str, ...] = (),
) -> Capture:
    """Run one pass over a function's graph; check that it computes what the graph did, inputs included."""
    graph, values = of(function, *tensors, fixed=fixed)
    optimized = apply(name, graph)
    copies = [{key: value.clone() for key, value in values.items()} for _ in range(2)]
    torch.testing.assert_close(
        run_capture(optimized, copies[0]), run_capture(graph, copies[1]), rtol=rtol, atol=rtol
    )
    torch.testing.assert_close(copies[0], copies[1], rtol=0, atol=0)
    return optimized


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator("passes", *shape, seed), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------
# All passes


@families
def test_passes_keep_the_numbers(name: str, train: bool) -> None:
    model = build_small(MODELS_TAKEN[name], train=train).double()
    values = make_values(model)
    graph = captured(model, values)
    expected = run_capture(graph, values)
    for each in PASSES:
        before, kept = len(graph.graph.graph.nodes), graph.graph.code
        optimized = optimize(graph, [each])
        assert graph.graph.code == kept
        assert len(graph.graph.graph.nodes) == before
        torch.testing.assert_close(run_capture(optimized, values), expected, rtol=1e-8, atol=1e-11)
        graph = optimized


@pytest.mark.parametrize("kind", ["cosine", "l2"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_masks_and_both_distances(kind: str, masked: bool) -> None:
    model = build_small(MODELS_TAKEN["residual"]).double()
    values = make_values(model, masked=masked)
    step = make_step(model, kind=kind)
    graph = optimize(capture(step, values, set(values) - {"x"}))
    torch.testing.assert_close(run_capture(graph, values), step(values), rtol=1e-9, atol=1e-12)


def test_passes_can_be_left_out_and_misspelt() -> None:
    model = build_small(MODELS_TAKEN["conv2d"])
    graph = captured(model, make_values(model))
    assert len(optimize(graph, ()).graph.graph.nodes) == len(graph.graph.graph.nodes)
    assert sum(bilinear(optimize(graph, ("simplify",)))) > sum(bilinear(optimize(graph)))
    with pytest.raises(InputError, match="unknown pass 'simplfy'; did you mean simplify"):
        optimize(graph, ("simplfy",))


def test_every_node_keeps_a_shape() -> None:
    model = build_small(MODELS_TAKEN["residual"])
    for node in optimize(captured(model, make_values(model))).graph.graph.nodes:
        assert node.op == "output" or node.meta["val"] is not None


# ---------------------------------------------------------------------------------------------------------
# simplify


def simplified(function: Callable[..., Tensor], *tensors: Tensor) -> Capture:
    """Simplify a function's graph, and check that the numbers are the very same."""
    return agrees("simplify", function, *tensors, rtol=0)


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


def test_sums_of_what_is_doubled_are_doubled() -> None:
    doubled = simplified(lambda x, y, z: x * 2 + y * 2 + z * 2, *(draw(3, seed=s) for s in range(3)))
    assert calls_of(doubled) == [aten.add.Tensor, aten.add.Tensor, aten.mul.Tensor]
    # Three times a sum is rounded otherwise.
    assert count(simplified(lambda x, y: x * 3 + y * 3, draw(3), draw(3, seed=1)), aten.mul.Tensor) == 2
    assert count(simplified(lambda x, y: x * 2 + y * 4, draw(3), draw(3, seed=1)), aten.mul.Tensor) == 2


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
    model = build_small(MODELS_TAKEN["batch norm"], train=True).double()
    values = make_values(model)
    with atens_operators():
        captured_graph = captured(model, values)
    assert count(captured_graph, aten.native_batch_norm.default) > 0
    graph = apply("simplify", captured_graph)
    assert count(graph, aten.native_batch_norm.default) == 0
    torch.testing.assert_close(run_capture(graph, values), make_step(model)(values), rtol=1e-9, atol=1e-12)


def test_derivatives_that_nobody_reads_are_not_computed() -> None:
    model = build_small(lambda: volumes(nn.Conv3d(4, 4, 3, groups=2, padding=1), width=1024)).double()
    with atens_operators():
        graph = apply("simplify", captured(model, make_values(model)))
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
    "depthwise": (
        lambda: volumes(nn.GELU(), nn.Conv3d(4, 4, 3, padding=1, groups=4), width=1024),
        (4, 3, 2),
    ),
}
AWAY: dict[str, Callable[[], nn.Module]] = {
    "groups": lambda: Frames(nn.Conv2d(3, 6, 3, groups=3)),
    "dilation": lambda: Frames(nn.Conv2d(3, 4, 3, dilation=2)),
    "one axis": lambda: Sequence(nn.Conv1d(4, 4, 3), 6),
}


def bilinear(made: Capture) -> tuple[int, ...]:
    ops = torch.ops.vleak
    return tuple(count(made, op.default) for op in (ops.conv_output, ops.conv_input, ops.conv_weight))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_become_bilinear(name: str) -> None:
    factory, expected = CONVOLUTIONS[name]
    model = build_small(factory).double()
    values = make_values(model)
    graph = apply("convolution", apply("simplify", captured(model, values)))
    assert bilinear(graph) == expected
    assert count(graph, aten.convolution.default, aten.convolution_backward.default) == 0
    torch.testing.assert_close(run_capture(graph, values), make_step(model)(values), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", AWAY)
def test_convolutions_that_do_not_fit_stay(name: str) -> None:
    model = build_small(AWAY[name]).double()
    graph = apply("convolution", apply("simplify", captured(model, make_values(model))))
    assert bilinear(graph) == (0, 0, 0)
    assert count(graph, aten.convolution.default) > 0


def test_derivatives_by_weights_of_a_second_derivative_are_ours() -> None:
    # PyTorch computes them as convolutions over swapped clips and channels.
    def twice(x: Tensor, w: Tensor, dy: Tensor) -> Tensor:
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        y = F.conv3d(x, w, stride=(1, 2, 2), padding=1)
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
        return torch.autograd.grad(dx.tanh().sum(), w)[0].flatten(1) * 2

    x, w, dy = draw(1, 3, 4, 8, 8), draw(5, 3, 3, 3, 3), draw(1, 5, 4, 4, 4)
    with torch.enable_grad():
        graph, values = of(twice, x, w, dy)
        expected = twice(x, w, dy)
    ours = apply("convolution", apply("simplify", graph))
    assert count(ours, torch.ops.vleak.conv_weight.default) == 1
    assert count(ours, aten.convolution.default, aten.slice.Tensor) == 0
    with torch.no_grad():
        torch.testing.assert_close(run_capture(ours, values)["out"], expected, rtol=1e-10, atol=1e-12)


def test_other_types_stay() -> None:
    x, w = draw(1, 3, 8, 8).bfloat16(), draw(4, 3, 3, 3).bfloat16()
    graph, _ = of(F.conv2d, x, w)
    assert bilinear(apply("convolution", graph)) == (0, 0, 0)


def merged(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[int, ...]:
    return bilinear(agrees("convolution", function, *tensors))


def test_sums_of_convolutions_merge() -> None:
    x, y, z, w = draw(2, 3, 8, 8), draw(2, 3, 8, 8, seed=1), draw(4, 3, 3, 3), draw(4, 3, 3, 3, seed=1)
    assert merged(lambda x, y, z, w: F.conv2d(x, z) + F.conv2d(y, w), x, y, z, w) == (1, 0, 0)
    both = lambda x, y, z, w: F.conv_transpose2d(x, z) + F.conv_transpose2d(y, w)  # noqa: E731
    assert merged(both, draw(2, 4, 6, 6), draw(2, 4, 6, 6, seed=1), z, w) == (0, 1, 0)
    biased = lambda x, y, z, w: F.conv2d(x, z) + w.view(1, 4, 1, 1).expand(2, 4, 6, 6) + F.conv2d(y, z)  # noqa: E731
    assert merged(biased, x, y, z, draw(4)) == (1, 0, 0)


@pytest.mark.parametrize(("at_once", "calls_left"), [(1, 2), (1 << 20, 1)])
def test_a_call_takes_two_convolutions_of_a_sum_or_what_fits(
    at_once: int, calls_left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules["vleak.descent.passes.convolution"], "_AT_ONCE", at_once)

    def four(x: Tensor, w: Tensor) -> Tensor:
        first, second, third, fourth = (F.conv2d(x * factor, w) for factor in (1.0, 2.0, 3.0, 4.0))
        return first + second + third + fourth

    assert merged(four, draw(2, 3, 8, 8), draw(4, 3, 3, 3)) == (calls_left, 0, 0)


@pytest.mark.parametrize(("at_once", "calls_left"), [(1, 2), (1 << 20, 1)])
def test_derivatives_by_a_weight_merge_and_begin_with_the_other_terms_of_their_sum(
    at_once: int, calls_left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["vleak.descent.passes.convolution"], "_AT_ONCE", at_once)

    def by_weight(x: Tensor, dy: Tensor, start: Tensor) -> Tensor:
        return conv_weight([x], [dy], kernel=start.shape[2:], stride=(1, 1), padding=(0, 0))

    def total(x: Tensor, dy: Tensor, start: Tensor) -> Tensor:
        return (
            by_weight(x, dy, start)
            + start
            + by_weight(2 * x, dy, start)
            + by_weight(dy.new_ones(2, 3, 8, 8), dy, start)
        )

    optimized = agrees("convolution", total, draw(2, 3, 8, 8), draw(2, 4, 6, 6), draw(4, 3, 3, 3))
    assert (bilinear(optimized), count(optimized, aten.add.Tensor)) == ((0, 0, calls_left), 0)


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
    assert count(agrees("convolution", rows, x, z, draw(6)), aten.add.Tensor) == 1


def test_output_padding_is_part_of_the_shape() -> None:
    function = lambda x, y: F.conv_transpose2d(x, y, stride=2, padding=1, output_padding=1)  # noqa: E731
    assert merged(function, draw(2, 4, 5, 5), draw(4, 3, 3, 3)) == (0, 1, 0)


# ---------------------------------------------------------------------------------------------------------
# stack


def test_sums_of_outer_products_become_one_product() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        rows = [(a[None].t().mm(b[None])) for a, b in zip(x, y, strict=True)]
        return rows[0] + rows[1] + (rows[2] + rows[3]) + x.new_ones(20, 30)

    graph, values = of(function, draw(4, 20), draw(4, 30))
    stacked = apply("stack", apply("simplify", graph))
    assert (count(graph, aten.mm.default), count(stacked, aten.mm.default)) == (4, 1)
    assert count(stacked, aten.add.Tensor) == 1
    torch.testing.assert_close(
        run_capture(stacked, values), run_capture(graph, values), rtol=1e-12, atol=1e-12
    )


def test_rows_that_meet_a_matrix_made_later_meet_it_together() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        rows = [each.sin() for each in x.split(2)]
        matrix = y.exp()
        return torch.stack([row.mm(matrix) * place for place, row in enumerate(rows)])

    graph, _ = of(function, draw(8, 5), draw(5, 6))
    stacked = agrees("stack", function, draw(8, 5), draw(5, 6), rtol=1e-12)
    assert (count(graph, aten.mm.default), count(stacked, aten.mm.default)) == (4, 1)


def test_rows_that_follow_from_each_other_are_not_stacked() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        matrix = y.exp()
        for _ in range(4):
            x = x.mm(matrix).tanh()
        return x

    stacked = agrees("stack", function, draw(1, 5), draw(5, 5), rtol=0)
    assert count(stacked, aten.mm.default) == 4


def test_recurrent_gradients_are_stacked() -> None:
    model = build_small(lambda: Sequence(nn.LSTM(8, 24, batch_first=True), 24)).double()
    values = make_values(model)
    simple = apply("simplify", captured(model, values))
    stacked = apply("stack", simple)
    # Four frames, the first state zero: three products each for the gradient and both sides of the residual.
    assert count(stacked, aten.mm.default) == count(simple, aten.mm.default) - 6
    torch.testing.assert_close(run_capture(stacked, values), make_step(model)(values), rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------
# low_rank and products

PARTIAL = torch.ops.vleak.gradient_match_partial.default
WIDE = (2, 3, 4, 8, 8)


def wide(*layers: nn.Module) -> Callable[[], nn.Module]:
    """Linear layers on the 8 frames of two clips."""
    return lambda: Sequence(nn.Sequential(nn.Linear(8, 256), *layers), 8)


def ranked(model: nn.Module, *, masked: bool = False, kind: str = "cosine", scaled: bool = False) -> Capture:
    values = make_values(model, masked=masked)
    if scaled:
        scales = torch.linspace(0.5, 2.0, len(list(model.parameters()))).double()
        values |= {f"scale:{n}": s for (n, _), s in zip(model.named_parameters(), scales, strict=True)}
    step = make_step(model, kind=kind)
    graph = apply("stack", apply("simplify", capture(step, values, set(values) - {"x"})))
    optimized = apply("low_rank", graph)
    torch.testing.assert_close(run_capture(optimized, values), step(values), rtol=1e-7, atol=1e-9)
    return optimized


def listed(made: Capture) -> int:
    (node,) = made.graph.graph.find_nodes(op="call_function", target=PARTIAL)
    return len(node.args[0])


LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    # and how many of the parameters' gradients are still made
    "one of three": (wide(nn.Tanh(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 8)), 9),
    "without bias": (wide(nn.Tanh(), nn.Linear(256, 600, bias=False), nn.ReLU(), nn.Linear(600, 8)), 8),
    "two": (wide(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 700), nn.Linear(700, 8)), 10),
    "lstm": (lambda: Sequence(nn.LSTM(8, 200, batch_first=True), 200), 7),
    "first": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 256), nn.Tanh(), nn.Linear(256, 5)), 3),
}


@pytest.mark.parametrize("kind", ["cosine", "l2"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_wide_layers_are_not_made(name: str, kind: str) -> None:
    factory, kept = LAYERS[name]
    model = build_small(factory).double()
    optimized = ranked(model, kind=kind)
    assert count(optimized, torch.ops.vleak.gradient_match.default) == 0
    assert listed(optimized) == kept
    large = [p.shape for p in model.parameters() if p.numel() >= 1 << 17]
    products = optimized.graph.graph.find_nodes(op="call_function", target=aten.mm.default)
    assert not {node.meta["val"].shape for node in products} & {*large}


@pytest.mark.parametrize("kind", ["cosine", "l2"])
@pytest.mark.parametrize("name", ["one of three", "lstm"])
def test_scaled_gradients_of_wide_layers_are_not_made(name: str, kind: str) -> None:
    factory, kept = LAYERS[name]
    optimized = ranked(build_small(factory).double(), kind=kind, scaled=True)
    assert listed(optimized) == kept
    products = optimized.graph.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
    by_scale = [node for node in products if str(node.args[1]).startswith("scale")]
    assert by_scale
    assert all(node.meta["val"].numel() < 1 << 17 for node in by_scale)


def test_one_gradient_stays_listed() -> None:
    layers = nn.Linear(768, 256, bias=False), nn.Tanh(), nn.Linear(256, 512, bias=False)
    assert listed(ranked(build_small(lambda: nn.Sequential(nn.Flatten(), *layers)).double())) == 1


class Shared(nn.Module):
    """One wide layer, called twice, or whose weight is also read by something else."""

    def __init__(self, second: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.wide, self.head, self.second = nn.Linear(768, 256), nn.Linear(256, 5), second

    def forward(self, clips: Tensor) -> Tensor:
        rows = clips.flatten(1)
        return self.head(self.wide(rows).tanh() + self.second(self.wide, rows))


STAYS: dict[str, Callable[[], nn.Module]] = {
    "small": lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.Tanh(), nn.Linear(64, 5)),
    "weight read elsewhere": lambda: Shared(lambda wide, rows: wide.weight.square().mean(1)),
    "shared transposed weight": lambda: Shared(lambda wide, rows: (rows[:, :256] @ wide.weight)[:, :256]),
}


@pytest.mark.parametrize("name", STAYS)
def test_gradients_that_are_needed_are_made(name: str) -> None:
    assert count(ranked(build_small(STAYS[name]).double()), PARTIAL) == 0


def test_many_rows_are_no_low_rank() -> None:
    model = build_small(LAYERS["first"][0]).double()
    values = make_values(model, (70, 3, 4, 8, 8))
    graph = apply("low_rank", apply("simplify", captured(model, values)))
    assert count(graph, PARTIAL) == 0


def test_masked_gradients_are_made() -> None:
    assert count(ranked(build_small(LAYERS["first"][0]).double(), masked=True), PARTIAL) == 0


def test_a_layer_used_twice_is_of_the_rank_of_both() -> None:
    model = build_small(lambda: Shared(lambda wide, rows: wide(rows.flip(1)).tanh())).double()
    ranked(model)


def multiplied(function: Callable[..., Tensor], *tensors: Tensor) -> Capture:
    """Run the pass; tensors in float32."""
    values = {name: tensor.float() for name, tensor in zip("xyzw", tensors, strict=False)}
    graph = capture(lambda given: {"out": function(*given.values())}, values, {*values} - {"x", "w"})
    optimized = apply("products", apply("simplify", graph))
    torch.testing.assert_close(
        run_capture(optimized, values), run_capture(graph, values), rtol=1e-4, atol=1e-4
    )
    return optimized


def multiplications(made: Capture) -> tuple[int, int]:
    """Return how many calls are ours, and how many products they add up."""
    nodes = made.graph.graph.find_nodes(op="call_function", target=torch.ops.vleak.product.default)
    return len(nodes), sum(len(node.args[0]) for node in nodes)


ROWS, MATRIX = draw(16, 256), draw(256, 300)


def test_large_products_are_ours() -> None:
    assert multiplications(multiplied(lambda x, y: x.mm(y), ROWS, MATRIX)) == (1, 1)
    assert multiplications(multiplied(lambda x, y: x.mm(y.t()), ROWS, MATRIX.t())) == (1, 1)
    assert multiplications(multiplied(lambda x, y: y.t().mm(x), draw(512, 16), draw(512, 96))) == (1, 1)
    with_bias = multiplied(lambda x, y, z: torch.addmm(z, x, y), ROWS, MATRIX, draw(300))
    assert multiplications(with_bias) == (1, 1)
    twice = multiplied(lambda x, y: x.mm(y) + x.cos().mm(y).sin(), ROWS, MATRIX)
    assert multiplications(twice) == (2, 2)


def test_sums_of_products_are_one() -> None:
    both = multiplied(lambda x, y, z: x.sin().mm(y) + x.mm(z.t()), ROWS, MATRIX, MATRIX.t())
    assert multiplications(both) == (1, 2)
    assert count(both, aten.add.Tensor) == 0
    mixed = lambda x, y, z, w: x.sin().mm(y) + w + x.mm(z.t()) + x.mm(w)  # noqa: E731
    third = multiplied(mixed, *[draw(96, 96)] * 4)
    assert multiplications(third) == (1, 3)
    assert count(third, aten.add.Tensor) == 1


def test_products_of_many_rows_stay() -> None:
    assert multiplications(multiplied(lambda x, y: x.mm(y), draw(128, 256), MATRIX))[0] == 0


def test_small_products_stay() -> None:
    assert multiplications(multiplied(lambda x, y: x.mm(y), draw(2, 256), MATRIX)) == (0, 0)  # few rows
    assert multiplications(multiplied(lambda x, y: x.mm(y), draw(600, 256), draw(256, 8))) == (0, 0)
    assert multiplications(multiplied(lambda x, y: x.mm(y), draw(16, 8), draw(8, 30))) == (0, 0)
    scaled = multiplied(lambda x, y, z: torch.addmm(z, x, y, beta=2), ROWS, MATRIX, draw(300))
    assert multiplications(scaled) == (0, 0)
    small = multiplied(lambda x, y: x.mm(y) + x.sin().mm(y) + x.cos(), draw(16, 16), draw(16, 16))
    assert multiplications(small) == (0, 0)
    assert count(small, aten.addmm.default) == 2


def panelled(function: Callable[..., Tensor], *tensors: Tensor, fixed: tuple[str, ...]) -> tuple[int, ...]:
    """Return how many panels are cut, products with them and other products of ours there are."""
    optimized, ops = agrees("products", function, *tensors, rtol=1e-4, fixed=fixed), torch.ops.vleak
    counted = (aten.clone.default, ops.panel_product.default, ops.product.default)
    return tuple(count(optimized, each) for each in counted)


def test_large_matrices_that_stay_the_same_are_cut_once() -> None:
    function = lambda x, y: x.mm(y) + x.cos().mm(y) + x.sin().mm(y).sin()  # noqa: E731
    rows, large = draw(8, 512).float(), draw(512, 700).float()
    assert panelled(function, rows, large, fixed=("y",)) == (1, 2, 0)
    assert panelled(function, rows, large, fixed=()) == (0, 0, 2)  # it would be cut in every iteration
    assert panelled(function, rows, large.t().contiguous().t(), fixed=("y",)) == (1, 2, 0)
    assert panelled(function, rows, large[:, :300].contiguous(), fixed=("y",)) == (0, 0, 2)


def test_a_matrix_and_its_transpose_share_panels() -> None:
    both = lambda x, y: (x.mm(y) / 700).mm(y.t())  # noqa: E731
    assert panelled(both, draw(8, 512).float(), draw(512, 700).float(), fixed=("y",)) == (1, 2, 0)


def test_a_sum_of_products_is_split_by_how_its_matrices_are_read() -> None:
    mixed = lambda x, y, z: x.mm(y) + x.cos().mm(z.t())  # noqa: E731
    rows = draw(8, 512).float()
    fixed = draw(512, 700).float(), draw(700, 512).float()
    assert panelled(mixed, rows, *fixed, fixed=("y", "z")) == (2, 2, 0)
    three = lambda x, y, z: x.mm(y) + x.cos().mm(y) + x.sin().mm(z)  # noqa: E731
    changing = draw(512, 700, seed="z").float()
    assert panelled(three, rows, fixed[0], changing, fixed=("y",)) == (1, 1, 1)


def test_float64_stays() -> None:
    graph, _ = of(lambda x, y: x.mm(y), ROWS, MATRIX, fixed=("y",))
    assert multiplications(apply("products", graph)) == (0, 0)


# ---------------------------------------------------------------------------------------------------------
# Memory that changes, and nodes that occur twice


def test_a_bias_that_is_added_twice_is() -> None:
    def function(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        bias = z.view(1, 4, 1, 1)
        return F.conv2d(x, y) + bias + bias

    made = agrees("convolution", function, draw(2, 3, 8, 8), draw(4, 3, 3, 3), draw(4))
    assert count(made, aten.add.Tensor) == 1

    def of_one_twice(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        part = F.conv2d(x, y)
        return (part + part) + z.view(1, 4, 1, 1)

    agrees("convolution", of_one_twice, draw(2, 3, 8, 8), draw(4, 3, 3, 3), draw(4))


def test_a_bias_of_another_type_is_added() -> None:
    function = lambda x, y, z: F.conv2d(x, y) + z.view(1, 4, 1, 1)  # noqa: E731
    agrees("convolution", function, draw(2, 3, 8, 8), draw(4, 3, 3, 3), draw(4).float())


def test_zeros_that_were_written_to_are_no_zeros() -> None:
    def directly(x: Tensor, y: Tensor) -> Tensor:
        zeros = torch.zeros_like(x)
        zeros[1:] = x[:-1]
        return x + zeros.mm(y)

    def copied(x: Tensor, y: Tensor) -> Tensor:
        zeros = torch.zeros_like(x)
        zeros[1:] = x[:-1]
        return x + zeros.clone().mm(y)

    def ones(x: Tensor, y: Tensor) -> Tensor:
        ones = torch.ones_like(x)
        ones[1:] = y[1:]
        return x * ones.t().clone().t()

    for function in (directly, copied, ones):
        agrees("simplify", function, draw(4, 4), draw(4, 4, seed=1))


def test_a_result_that_is_written_to_is_not_shared() -> None:
    def one_of_several(x: Tensor) -> Tensor:
        (first, _), (second, _) = (F.max_pool2d(x, 2, return_indices=True) for _ in range(2))
        first[..., 0] = 0
        return first + second

    def product_of_batches(x: Tensor) -> Tensor:
        first, second = ((x @ x[0, 0]) for _ in range(2))
        first[..., 0] = 0
        return first + second

    def parts(x: Tensor) -> Tensor:
        first, second = (x.sin().unsafe_split(1, 1) for _ in range(2))
        first[0].mul_(2)
        return first[0] + second[0] + second[1]

    for function in (one_of_several, product_of_batches, parts):
        agrees("simplify", function, draw(2, 3, 4, 4))


def test_in_place_operators_keep_their_type_and_strides() -> None:
    def type_(x: Tensor, y: Tensor) -> Tensor:
        return x.sin().add_(y)

    def strides(x: Tensor, y: Tensor) -> Tensor:
        return x.sin()[:, 1].add_(y[:, 0])

    for function in (type_, strides):
        made = agrees("simplify", function, draw(3, 4).float(), draw(3, 4, seed=1))
        for node in made.graph.graph.nodes:
            if node.op == "call_function":
                arguments = torch.fx.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
                again, val = node.target(*arguments[0], **arguments[1]), node.meta["val"]
                assert (again.dtype, again.stride()) == (val.dtype, val.stride())


def test_products_are_made_before_what_they_read_changes() -> None:
    def rows(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        left = x.sin()
        first = left.mm(y)
        left[:, :1] = 0
        return first + left.mm(z)

    def term(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        base = x.mm(z).sin()
        first = base + x.mm(y)
        base[:, :1] = 0
        return first + x.cos().mm(z) + base

    for function in (rows, term):
        agrees("products", function, *(each.float() for each in (ROWS, MATRIX, MATRIX.cos())), rtol=1e-4)


def test_convolutions_are_made_before_what_they_read_changes() -> None:
    def function(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        frames = x.sin()
        first = F.conv2d(frames, y)
        frames[:, :1] = 0
        return first + F.conv2d(frames, z)

    made = agrees("convolution", function, draw(2, 3, 8, 8), draw(4, 3, 3, 3), draw(4, 3, 3, 3, seed=1))
    assert bilinear(made) == (2, 0, 0)


def test_stacked_products_are_made_before_what_they_read_changes() -> None:
    def outer(x: Tensor, y: Tensor) -> Tensor:
        row, total = y[:1].sin(), x.new_zeros(20, 30)
        for column in x.split(1):
            total = total + column.t().mm(row)
            row[:, :1] = 0
        return total

    def rows(x: Tensor, y: Tensor) -> Tensor:
        row, matrix = x.split(1)[0].sin(), y.t().exp()
        products = []
        for _ in range(4):
            products.append(row.mm(matrix))
            row[:, :1] += 1
        return torch.cat(products)

    agrees("stack", outer, draw(4, 20), draw(4, 30))
    agrees("stack", rows, draw(4, 30), draw(4, 30))


def test_factors_that_change_after_their_product_are_multiplied_before() -> None:
    def function(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        columns = y.sin()
        gradient = x.t().mm(columns)
        columns[:, :1] = 0
        gradients, targets = [gradient, x.cos()], [z, x]
        distance, residuals = torch.ops.vleak.gradient_match(gradients, targets, [], "l2")
        return distance + columns.mm(residuals[0].t()).sum() + residuals[1].sum()

    made = agrees("low_rank", function, draw(2, 400), draw(2, 400, seed=1), draw(400, 400))
    assert count(made, PARTIAL) == 0


@pytest.mark.parametrize("name", ["products", "stack", "convolution"])
def test_a_sum_within_a_sum_may_be_read_twice(name: str) -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        inner = x.mm(y) + x.mm(y.sin())
        return (inner + x.cos().mm(y)) * (inner + x.sin().mm(y) + inner.exp())

    agrees(name, function, draw(64, 64), draw(64, 64), rtol=1e-9)

    def convolved(x: Tensor, y: Tensor) -> Tensor:
        inner = F.conv2d(x, y) + F.conv2d(x.sin(), y)
        return (inner + F.conv2d(x.cos(), y)) * (inner + F.conv2d(x.exp(), y))

    agrees(name, convolved, draw(2, 3, 8, 8), draw(4, 3, 3, 3))
