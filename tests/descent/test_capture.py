"""Writing a step down as a graph: which models it takes, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from captures import (
    CLASSES,
    MODELS_TAKEN,
    SHAPE,
    Hidden,
    Sequence,
    build_small,
    captured,
    families,
    make_step,
    make_values,
    run_capture,
    volumes,
)
from torch import Tensor, nn

from vleak.descent.capture import Capture, CaptureError, capture
from vleak.errors import InputError
from vleak.models import SMALL_MODELS, build_model
from vleak.seeds import generator
from vleak.switches import math_attention

# ---------------------------------------------------------------------------------------------------------
# Models


@families
def test_graph_computes_what_the_step_does(name: str, train: bool) -> None:
    model = build_small(MODELS_TAKEN[name], train=train).double()
    values = make_values(model)
    graph = captured(model, values)
    for _ in range(3):
        with math_attention():
            expected, got = make_step(model)(values), run_capture(graph, values)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
        assert expected["slope"].abs().max() > 0
        values["x"] = got["x"]


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_built_in_models_in_float32(name: str) -> None:
    model = build_model(name, frames=4, size=8, classes=CLASSES, seed=0)
    values = make_values(model, (1, 3, 4, 8, 8))
    got, expected = run_capture(captured(model, values), values), make_step(model)(values)
    torch.testing.assert_close(got["objective"], expected["objective"])
    torch.testing.assert_close(got["slope"], expected["slope"], rtol=1e-4, atol=1e-5)


def test_graph_holds_plain_operators_and_is_laid_out_as_promised() -> None:
    model = build_small(MODELS_TAKEN["lstm"])
    values = make_values(model)
    graph = captured(model, values)
    assert graph.inputs == tuple(values)
    assert graph.outputs == ("x", "objective", "slope")
    assert graph.fixed == set(values) - {"x"}
    targets = {str(node.target) for node in graph.graph.graph.nodes if node.op == "call_function"}
    kept = {target for target in targets if target.startswith(("aten.", "vleak."))}
    assert targets - kept == {"<built-in function getitem>"}
    assert "aten.mkldnn_rnn_layer.default" not in targets
    assert "vleak.gradient_match.default" in targets


@pytest.mark.parametrize("name", ["depthwise", "depthwise 2d"])
def test_depthwise_convolutions_are_not_cut_into_channels(name: str) -> None:
    model = build_small(MODELS_TAKEN[name])
    nodes = list(captured(model, make_values(model)).graph.graph.nodes)
    assert torch.ops.vleak.conv_weight.default in [node.target for node in nodes]
    plain = [node for node in nodes if node.target is torch.ops.aten.convolution.default]
    assert all(node.args[-1] == 1 for node in plain)


def test_float64_and_a_batch_of_another_size_are_other_graphs() -> None:
    model = build_small(MODELS_TAKEN["conv2d"])
    small, large = (make_values(model, (clips, *SHAPE[1:])) for clips in (1, 3))
    assert run_capture(captured(model, small), small)["x"].shape[0] == 1
    assert run_capture(captured(model, large), large)["x"].shape[0] == 3


# ---------------------------------------------------------------------------------------------------------
# What it leaves alone


def test_nothing_but_the_graph_is_left_behind() -> None:
    model = build_small(MODELS_TAKEN["batch norm"], train=True)
    next(model.parameters()).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    grads = [parameter.requires_grad for parameter in model.parameters()]
    random_state, mkldnn = torch.random.get_rng_state(), torch._C._get_mkldnn_enabled()
    values = make_values(model)
    kept = {name: value.clone() for name, value in values.items()}
    graph = captured(model, values)
    run_capture(graph, values)
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(type(value) in (Tensor, nn.Parameter) for value in model.state_dict(keep_vars=True).values())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(values, kept, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert torch._C._get_mkldnn_enabled() == mkldnn
    assert torch.backends.cuda.flash_sdp_enabled()


def test_a_refusal_leaves_nothing_behind_either() -> None:
    model = build_small(lambda: volumes(nn.Dropout(), width=1024), train=True)
    random_state = torch.random.get_rng_state()
    with pytest.raises(CaptureError):
        captured(model, make_values(model))
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())
    assert captured(model.eval(), make_values(model)).outputs


def test_threads_take_turns() -> None:
    models = [
        build_small(MODELS_TAKEN[name]).double() for name in ("lstm", "batch norm", "max pool", "attention")
    ]
    values = [make_values(model) for model in models]
    graphs: dict[int, Capture] = {}

    def work(index: int) -> None:
        graphs[index] = captured(models[index], values[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, model in enumerate(models):
        torch.testing.assert_close(run_capture(graphs[index], values[index]), make_step(model)(values[index]))


def test_hidden_tensors_become_attributes() -> None:
    model = build_small(MODELS_TAKEN["hidden tensor"])
    graph = captured(model, make_values(model)).graph
    attributes = [str(node.target) for node in graph.graph.find_nodes(op="get_attr")]
    assert attributes
    for name in attributes:
        torch.testing.assert_close(getattr(graph, name), torch.linspace(0.5, 1.5, 768), rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------
# What it refuses


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(192, CLASSES)

    def forward(self, clips: Tensor) -> Tensor:
        rows = list(clips.transpose(1, 2).flatten(2))
        return self.lstm(nn.utils.rnn.pack_sequence(rows))[1][0][0]


def around(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: volumes(Lambda(function), width=1024)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout": (lambda: volumes(nn.Dropout(), width=1024), "random numbers.*eval mode"),
    "noise": (around(lambda x: x + torch.rand_like(x)), "rand_like.* draws random numbers"),
    "recurrent dropout": (
        lambda: Sequence(nn.LSTM(8, 6, 2, dropout=0.5, batch_first=True), 6),
        "draws random numbers",
    ),
    "item": (around(lambda x: x * x.max().item()), "_local_scalar_dense.* reads what a tensor holds"),
    "branch": (around(lambda x: x if x.sum() > 0 else -x), "reads what a tensor holds into Python"),
    "nonzero": (around(lambda x: x * x.nonzero().shape[0]), "nonzero.* shape depends on what a tensor holds"),
    "indexing": (around(lambda x: x - x[x > 0].mean()), "shape depends on what a tensor holds"),
    "no second derivative": (lambda: volumes(nn.Hardsigmoid(), width=1024), "ard.?sigmoid.* no second deriv"),
    "packed sequence": (lambda: Packed(), "pack_padded_sequence"),
    "numpy": (around(lambda x: x * float(x.detach().numpy().max())), "cannot be captured"),
    "changed constant": (
        lambda: Hidden(lambda x, scale: x * scale.add_(1)),
        "add_.* changes a tensor of shape .768,. that is not among",
    ),
    "changed part of a constant": (
        lambda: Hidden(lambda x, scale: x * scale.unsafe_chunk(1)[0].add_(1)),
        "add_.* changes a tensor of shape .768,. that is not among",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_operator_and_why(name: str) -> None:
    factory, message = REFUSED[name]
    model = build_small(factory, train=True)
    with pytest.raises(CaptureError, match=message) as caught:
        captured(model, make_values(model))
    assert "\n" not in str(caught.value)


def test_fixed_inputs_must_stay() -> None:
    values = {"x": torch.zeros(3), "count": torch.zeros(())}

    def step(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": values["x"] + values["count"].add_(1)}

    with pytest.raises(CaptureError, match="changes count"):
        capture(step, values, {"count"})
    graph = capture(step, values, ())
    run_capture(graph, values)
    assert values["count"] == 1


def test_outputs_must_fit_the_inputs_they_replace() -> None:
    values = {"x": torch.zeros(3), "y": torch.zeros(3)}
    with pytest.raises(CaptureError, match=r"takes 'x' as \(3,\) torch.float32 and returns it as \(1, 3\)"):
        capture(lambda values: {"x": values["x"][None]}, values, ())
    with pytest.raises(CaptureError, match="returns 'y', which is fixed"):
        capture(lambda values: {"y": values["y"] + 1}, values, {"y"})
    with pytest.raises(CaptureError, match="no tensor as 'z'"):
        capture(lambda values: {"z": 1.0}, values, ())  # type: ignore[dict-item]
    with pytest.raises(InputError, match="fixed names 'w'"):
        capture(lambda values: values, values, {"w"})


# ---------------------------------------------------------------------------------------------------------
# Layouts and places


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": channels_last,
    "transposed": lambda x: x.contiguous().transpose(0, 3),
}


@pytest.mark.parametrize("taken", LAYOUTS)
@pytest.mark.parametrize("returned", LAYOUTS)
def test_what_is_carried_is_laid_out_as_it_is_taken(taken: str, returned: str) -> None:
    values = {"x": LAYOUTS[taken](torch.rand(4, 3, 4, 4, generator=generator("layout")))}

    def step(values: dict[str, Tensor]) -> dict[str, Tensor]:
        x = values["x"]
        flat = x.permute(sorted(range(4), key=x.stride, reverse=True)).reshape(
            -1
        )  # a view of that layout only
        return {"x": LAYOUTS[returned](x.sin() * flat.sum()), "objective": flat.cumsum(0).sum()}

    graph = capture(step, values, ())
    strides = values["x"].stride()
    for _ in range(3):
        expected, got = step({"x": values["x"]}), run_capture(graph, values)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        assert got["x"].stride() == strides
        values["x"] = got["x"]


@pytest.mark.parametrize("taken", LAYOUTS)
@pytest.mark.parametrize("rows", [1, 4])
def test_what_is_laid_out_so_already_is_not_copied(taken: str, rows: int) -> None:
    x = LAYOUTS[taken](torch.zeros(4, 3, 4, rows)).transpose(0, 3)
    graph = capture(lambda values: {"x": values["x"].sin()}, {"x": x}, ())
    assert len(graph.graph.graph.find_nodes(op="call_function", target=torch.ops.aten.clone.default)) == 0


def test_numbered_places_are_taken() -> None:
    places = torch.tensor([3, 0, 3, 1])

    def function(x: Tensor) -> Tensor:
        changed = x.index_put((places[:2],), x[:2].sin())
        return (changed[:, places] * x[places[None]][0]).square()

    model = build_small(around(lambda x: function(x.transpose(0, 2)).transpose(0, 2))).double()
    values = make_values(model)
    graph = captured(model, values)
    torch.testing.assert_close(run_capture(graph, values), make_step(model)(values), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_places_of_a_mask_are_refused(dtype: torch.dtype) -> None:
    values = {"x": torch.zeros(3, 4), "mask": torch.ones(4).to(dtype)}
    with pytest.raises(CaptureError, match=r"index.* shape depends on what a tensor holds"):
        capture(lambda values: {"y": values["x"][:, values["mask"]]}, values, ())


def test_a_mask_may_choose_what_is_overwritten() -> None:
    values = {"x": torch.arange(4.0), "mask": torch.tensor([True, False, True, False])}

    def step(values: dict[str, Tensor]) -> dict[str, Tensor]:
        x = values["x"].clone()
        x[values["mask"]] = 7
        return {"x": x}

    assert run_capture(capture(step, values, ()), values)["x"].tolist() == [7, 1, 7, 3]
