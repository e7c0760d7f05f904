"""The runner of captured steps: the same numbers as the graph called by Python, and nothing held too long.

The oracle is the captured graph itself, called once an iteration under no_grad.
"""

from __future__ import annotations

import _thread
import math
import os
import platform
import resource
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from vleak.descent.plan import make_plan
from vleak.descent.runner import Bound, Outcome, Plateau, Program
from vleak.errors import CapabilityError, InputError
from vleak.native import build, loader, operators

Values = dict[str, Tensor]
Step = Callable[[Values], Values]

needs_library = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler on this machine")
executors = pytest.mark.parametrize("executor", [pytest.param("native", marks=needs_library), "python"])


def record(step: Step, values: Values, fixed: tuple[str, ...] = ()) -> Any:
    """Capture a step as vleak.descent.capture does, without its checks."""
    outputs: list[str] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        returned = step(dict(zip(values, tensors, strict=True)))
        outputs[:] = returned
        return list(returned.values())

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    graph = make_fx(flat, tracing_mode="fake")(*(mode.from_tensor(v.detach()) for v in values.values()))
    return SimpleNamespace(
        graph=graph,
        inputs=tuple(values),
        outputs=tuple(outputs),
        fixed=frozenset(fixed),
        device=torch.device("cpu"),
    )


def called_by_python(capture: Any, values: Values, table: Tensor) -> tuple[list[float], Values]:
    values = {name: value.detach().clone() for name, value in values.items()}
    history = []
    with torch.no_grad():
        for row in table:
            if "settings" in values:
                values["settings"] = row.clone()
            returned = dict(zip(capture.outputs, capture.graph(*values.values()), strict=True))
            history.append(returned["objective"].item())
            values |= {name: value for name, value in returned.items() if name in values}
    return history, values


def started(
    step: Step, values: Values, executor: str, fixed: tuple[str, ...] = (), plateau: Plateau | None = None
) -> Bound:
    return Program(record(step, values, fixed), executor=executor).bind(values, plateau)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def settings(*rows: float) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 1)


# ---- steps


@dataclass(frozen=True)
class Case:
    step: Step
    values: Values
    fixed: tuple[str, ...] = ()


def build_model(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def matching(make: Callable[[], nn.Module], *shape: int) -> Case:
    """Return a step of gradient matching: the network's second derivative, then Adam."""
    model = build_model(make)
    weights = {f"w:{name}": p.detach() for name, p in model.named_parameters()}
    buffers = {f"b:{name}": b.detach() for name, b in model.named_buffers()}
    x, labels = draw(*shape), torch.arange(shape[0])
    targets = {f"t:{name}": draw(*w.shape, seed=i) for i, (name, w) in enumerate(weights.items())}

    def step(values: Values) -> Values:
        x = values["x"].detach().requires_grad_()
        own = {name[2:]: values[name].detach().requires_grad_() for name in weights}
        state = {name[2:]: values[name].clone() for name in buffers}
        with torch.enable_grad():
            loss = F.cross_entropy(functional_call(model, {**own, **state}, (x,)), values["labels"])
            gradients = torch.autograd.grad(loss, list(own.values()), create_graph=True)
            wanted = [values[name] for name in targets]
            distance, residuals = operators.gradient_match(
                [g.detach() for g in gradients], wanted, kind="cosine"
            )
            (slope,) = torch.autograd.grad(gradients, x, grad_outputs=residuals)
        m = values["m"].mul_(0.9).add_(slope, alpha=0.1)
        v = values["v"].mul_(0.999).addcmul_(slope, slope, value=0.001)
        t = values["settings"][0]
        move = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        return {"x": (x.detach() - 0.1 * move).float(), "objective": distance, **state}

    state = {"x": x, "labels": labels, "m": torch.zeros_like(x), "v": torch.zeros_like(x)}
    values = {**state, "settings": settings(1)[0], **weights, **buffers, **targets}
    return Case(step, values, ("labels", *weights, *targets, *buffers))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 5), x.new_zeros(len(x), 5)
        for frame in x.unbind(1):
            state = self.cell(frame, state)
        return self.head(state[0])


def conv_net() -> nn.Module:
    layers = [nn.Conv3d(2, 4, 3, padding=1), nn.Sigmoid(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(32, 3)]
    return nn.Sequential(*layers)


def norm_net() -> nn.Module:
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GELU("tanh"), nn.GroupNorm(2, 4)]
    return nn.Sequential(*layers, nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3))


def several_results(values: Values) -> Values:
    x = values["x"]
    pooled, indices = F.max_pool3d(x, 2, return_indices=True)
    normed = F.layer_norm(x, x.shape[2:])
    first, *_, last = x.split([1, 2, 1], dim=2)
    variance, mean = torch.var_mean(x, dim=(0, 1))
    top, _ = x.flatten().topk(3)
    objective = (
        pooled.sum()
        + indices.sum()
        + normed.std()
        + (first * last).sum()
        + variance.sum()
        + mean[0, 0, 0]
        + top[1]
    )
    return {"x": x.roll(1, 2) * 0.9, "objective": objective}


def lists(values: Values) -> Values:
    x = values["x"]
    parts = x.chunk(2, 1)
    distance, residuals = operators.gradient_match([x, parts[0].contiguous()], [x * 2, parts[1]], kind="l2")
    # A list that is passed on whole, one with holes, and one that holds a tensor twice.
    joined = torch.cat(torch.ops.aten.split.Tensor(x, 2, 1), 1) + torch.cat([x[:, :2], x[:, :2]], 1)
    picked = joined[:, torch.tensor([0, 3]), :, torch.tensor([1, 1])]
    return {"x": x - 0.1 * residuals[0], "objective": distance + picked.sum() + torch.stack(parts).norm()}


def scalars(values: Values) -> Values:
    x = values["x"]
    wide = torch.full((4,), 2, dtype=torch.float64, device="cpu") + torch.arange(4)
    last = x.contiguous(memory_format=torch.channels_last_3d).to(torch.float64)
    large = F.interpolate(x, scale_factor=(1.0, 2.0, 0.5), mode="trilinear")
    kept = torch.where(x > 0, x, -1).clamp(max=1.5).to(torch.bfloat16).float()
    rest = (2 - x) / 3 + x * True + F.gelu(x, approximate="tanh") + x.pow(2) + torch.rsub(x, 1, alpha=2)
    padded = F.pad(x, (1, 0, 0, 2), value=0.5)
    total = (
        (wide * last.sum((-1, -2), keepdim=True)).sum()
        + large.mean()
        + kept.std()
        + rest.sum()
        + padded.sum()
    )
    return {"x": rest * 0.1, "objective": total.float()}


def in_place(values: Values) -> Values:
    x, m, counter = values["x"], values["m"], values["counter"]
    m.mul_(0.5).add_(x, alpha=2)
    m[0, 0].zero_()
    view = m.view(-1)[5:9]
    view.copy_(x.view(-1)[:4])
    counter += 1
    # Constants and fixed inputs that are changed must be made anew every time.
    scratch = torch.zeros(4)
    scratch.index_add_(0, torch.tensor([0, 2]), view[:2])
    double = values["weight"].clone()
    double.diagonal().add_(counter)
    torch._foreach_mul_([double, scratch], 0.5)
    return {"x": x + view.sum(), "objective": m.sum() + scratch.sum() + double.sum()}


def parts(values: Values) -> Values:
    # A GRU writes into parts that are no views by their schema; whole, they depend on what is fixed.
    equal, sized = values["weight"].sin(), values["weight"].cos()
    first, second = equal.unsafe_split(2, 1)
    third, fourth = sized.unsafe_split_with_sizes([1, 2], 1)
    first.add_(values["x"])
    fourth.mul_(values["x"])
    return {"x": values["x"] * 0.5, "objective": (first - fourth).sum() + second.sum() + third.sum()}


def swapped(values: Values) -> Values:
    x, m = values["x"], values["m"]
    return {"x": m, "m": x, "objective": (x - 2 * m).sum(), "last": values["weight"].t()}


CLIP = draw(2, 4, 4, 4, 4)
CASES = {
    "conv net": matching(conv_net, 2, 2, 4, 4, 4),
    "norms": matching(norm_net, 3, 2, 6, 6),
    "recurrent": matching(Recurrent, 2, 4, 6),
    "several results": Case(several_results, {"x": CLIP}),
    "lists": Case(lists, {"x": CLIP}),
    "scalars": Case(scalars, {"x": CLIP}),
    "in place": Case(
        in_place, {"x": CLIP, "m": CLIP + 1, "counter": torch.zeros(()), "weight": draw(3, 3)}, ("weight",)
    ),
    "parts": Case(parts, {"x": draw(3, 2), "weight": draw(3, 3)}, ("weight",)),
    "swapped": Case(
        swapped, {"x": CLIP, "m": CLIP * 2, "weight": draw(3, 2), "last": draw(2, 3)}, ("weight",)
    ),
}


@executors
@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_graph_called_by_python(name: str, executor: str) -> None:
    case, table = CASES[name], settings(1, 2, 3, 4, 5)
    capture = record(case.step, case.values, case.fixed)
    before = {name: value.clone() for name, value in case.values.items()}
    expected, state = called_by_python(capture, case.values, table)
    bound = Program(capture, executor=executor).bind(case.values)
    got = bound.run(3, table)
    got = Outcome(got.history + bound.run(2, table[3:]).history, got.reason)
    assert got == Outcome(expected, "done")
    assert len(set(expected)) > 1
    assert bound.values.keys() == state.keys()
    for name, value in bound.values.items():
        assert torch.equal(value, state[name]), name
        assert torch.equal(case.values[name], before[name]), f"{name} is the caller's"
    assert bound.outputs["objective"].item() == expected[-1]


@needs_library
def test_auto_is_native() -> None:
    assert Program(record(scalars, {"x": CLIP})).executor == "native"


# ---- what runs when, and what lives how long


@pytest.fixture(scope="module", autouse=True)
def own_operators() -> Iterator[None]:
    """Operators in Python that say when they are called."""
    library = torch.library.Library("vleak_test_runner", "DEF")
    for name, kernel in {"count": count, "probe": probe, "fail": fail, "press": press}.items():
        library.define(f"{name}(Tensor x) -> Tensor")
        library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"vleak_test_runner::{name}", torch.empty_like, lib=library)
    yield
    library._destroy()


calls: list[Tensor] = []
alive: list[weakref.ref[Tensor]] = []
most_alive = [0]
to_raise: list[BaseException] = []


def count(x: Tensor) -> Tensor:
    calls.append(x)
    return x + 1


def probe(x: Tensor) -> Tensor:
    most_alive[0] = max(most_alive[0], sum(reference() is not None for reference in alive))
    result = x + 1
    alive.append(weakref.ref(result))
    return result


def fail(x: Tensor) -> Tensor:
    if float(x.sum()) > 2:
        raise to_raise[0]
    return x.clone()


def press(x: Tensor) -> Tensor:
    """Press Ctrl-C in the third iteration, in the middle of which Python would raise it."""
    if float(x) == 2:
        press_key()
        time.sleep(0.2)
    return x.clone()


@executors
def test_what_is_fixed_is_computed_once(executor: str) -> None:
    def step(values: Values) -> Values:
        prepared = torch.ops.vleak_test_runner.count(values["weight"].t()) @ torch.ones(2)
        return {"x": values["x"] + prepared, "objective": prepared.sum() + values["x"].sum()}

    values = {"x": draw(3), "weight": draw(2, 3)}
    program = Program(record(step, values, ("weight",)), executor=executor)
    calls.clear()
    bound = program.bind(values)
    assert len(calls) == 1
    history = bound.run(4).history
    assert len(calls) == 1
    prepared = (values["weight"].t() + 1).sum(1)
    expected = [(values["x"] + (i + 1) * prepared).sum().item() for i in range(4)]
    assert history == pytest.approx(expected, rel=1e-5)
    changed = program.bind({**values, "weight": values["weight"] * 2})
    assert len(calls) == 2
    assert changed.run(1).history != history[:1]


@executors
@pytest.mark.parametrize("change", ["value", "view", "statistics", "draw"])
def test_what_is_changed_or_drawn_is_not_fixed(change: str, executor: str) -> None:
    def step(values: Values) -> Values:
        weight, fresh = values["weight"], torch.zeros(3)
        if change == "value":
            fresh += 1
        elif change == "view":
            fresh.view(3, 1)[1:].add_(weight.sum())
        elif change == "statistics":
            F.batch_norm(weight.expand(2, 3), fresh, torch.ones(3), training=True)
        else:
            fresh = torch.bernoulli(weight.sigmoid())
        counted = torch.ops.vleak_test_runner.count(fresh)
        return {"x": values["x"] + counted, "objective": counted.sum() + values["x"].sum()}

    values = {"x": draw(3), "weight": draw(3)}
    with torch.random.fork_rng():
        bound = started(step, values, executor, ("weight",))
        calls.clear()
        bound.run(4)
    assert len(calls) == 4


@executors
def test_nothing_lives_longer_than_it_is_needed(executor: str) -> None:
    def step(values: Values) -> Values:
        x = values["x"]
        for _ in range(5):
            x = torch.ops.vleak_test_runner.probe(x)
        parts = torch.cat([torch.ops.vleak_test_runner.probe(x), torch.ops.vleak_test_runner.probe(x)])
        return {"x": torch.ops.vleak_test_runner.probe(parts[:3]), "objective": parts.sum()}

    bound = started(step, {"x": draw(3)}, executor)
    alive.clear()
    most_alive[0] = 0
    bound.run(3)
    assert len(alive) == 24
    # From the second iteration on: x, and the argument with the first of the two.
    assert most_alive[0] == 3
    assert sum(reference() is not None for reference in alive) == 1
    del bound
    assert all(reference() is None for reference in alive)


@needs_library
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_memory_is_asked_for_once() -> None:
    def step(values: Values) -> Values:
        x = values["x"]
        for _ in range(4):
            x = x * 0.5
        return {"objective": x[0]}

    bound = started(step, {"x": torch.ones(1 << 20)}, "native")
    bound.run(2)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    bound.run(20)
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
    pages_of_one_tensor = 4 * (1 << 20) // resource.getpagesize()
    assert faults < 8 * pages_of_one_tensor, "eighty such tensors were made"


@executors
def test_fixed_inputs_are_shared_and_state_is_not(executor: str) -> None:
    case = CASES["in place"]
    program = Program(record(case.step, case.values, case.fixed), executor=executor)
    one, other = program.bind(case.values), program.bind(case.values)
    assert one.values["weight"].data_ptr() == case.values["weight"].data_ptr()
    assert len({bound["m"].data_ptr() for bound in (one.values, other.values, case.values)}) == 3
    one.run(2)
    assert torch.equal(other.values["m"], case.values["m"])


@executors
def test_tensors_of_the_graph_are_not_changed(executor: str) -> None:
    own = draw(3)
    capture = record(lambda values: {"objective": (own * values["x"]).sum()}, {"x": draw(3)})
    (constant,) = capture.graph.graph.find_nodes(op="get_attr")
    (product,) = capture.graph.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    assert not make_plan(capture).changed
    # No step changes a constant, but a graph may.
    product.target = torch.ops.aten.mul_.Tensor
    assert len(make_plan(capture).changed) == 1
    values, before = {"x": torch.full((3,), 2.0)}, own.clone()
    program = Program(capture, executor=executor)
    assert [program.bind(values).run(2).history for _ in range(2)] == [
        [before.sum() * 2, before.sum() * 4]
    ] * 2
    assert torch.equal(own, before)
    assert constant.name


@executors
def test_other_strides_give_the_same(executor: str) -> None:
    case = CASES["conv net"]
    program = Program(record(case.step, case.values, case.fixed), executor=executor)
    table = settings(1, 2)
    strided = {
        name: value.transpose(0, 1).contiguous().transpose(0, 1) if value.ndim > 1 else value
        for name, value in case.values.items()
    }
    assert not strided["w:0.weight"].is_contiguous()
    assert program.bind(strided).run(2, table) == program.bind(case.values).run(2, table)


# ---- when a run ends


def from_table(values: Values) -> Values:
    """Return an objective that the table dictates, and count iterations in two ways."""
    values["in_place"] += 1
    return {"x": values["x"] + 1, "objective": values["settings"][0].float(), "seen": values["settings"] * 2}


COUNTERS = {"x": torch.zeros(2), "in_place": torch.zeros(1), "settings": settings(0)[0]}


@executors
def test_nan_ends_the_run_before_its_step(executor: str) -> None:
    bound = started(from_table, COUNTERS, executor)
    table = settings(3, 2, math.nan, 1)
    got = bound.run(4, table)
    assert got.reason == "nan"
    assert got.history[:2] == [3, 2]
    assert len(got.history) == 3
    assert math.isnan(got.history[2])
    assert torch.equal(bound.values["x"], torch.full((2,), 2.0))
    assert torch.isnan(bound.outputs["seen"]).all()
    assert bound.run(1, table[3:]) == Outcome([1], "done")


@executors
@pytest.mark.parametrize(
    ("objectives", "patience", "tolerance", "length"),
    [
        ([5, 4, 4, 4, 4, 4], 3, 0.0, 5),
        ([5, 4, 4, 4, 3, 3, 3, 3], 4, 0.0, None),
        ([10, 9.5, 9.1, 8.99, 8.5, 8.2, 7], 3, 0.1, None),
        ([10, 9.5, 9.1, 9.0, 8.9, 8.2], 3, 0.1, 4),
        ([-10, -10.5, -10.9, -11], 3, 0.1, 4),
        ([-10, -10.5, -10.9, -11.1], 3, 0.1, None),
        ([math.inf, math.inf, 1], 2, 0.1, 2),
        ([5, 5, 5, 5, 5], 0, 0.1, None),
        ([5, 6, 7], 1, 0.0, 2),
    ],
)
def test_plateau(
    objectives: list[float], patience: int, tolerance: float, length: int | None, executor: str
) -> None:
    table = settings(*objectives)
    whole = started(from_table, COUNTERS, executor, plateau=Plateau(patience, tolerance))
    got = whole.run(len(objectives), table)
    assert got.reason == ("done" if length is None else "plateau")
    assert got.history == pytest.approx(objectives[:length])
    assert whole.values["x"].tolist() == [len(got.history)] * 2
    halves = started(from_table, COUNTERS, executor, plateau=Plateau(patience, tolerance))
    reasons = [halves.run(1, row[None]).reason for row in table]
    assert reasons.index("plateau") + 1 == length if length else "plateau" not in reasons


def spin(values: Values) -> Values:
    return {"x": values["x"] + 1, "objective": values["x"][0]}


#: So many iterations that a run of them has to be ended from outside; some seconds if it is not.
ENDLESS = 1_000_000


def run_in_thread(
    bound: Bound, n: int, table: Tensor | None = None
) -> tuple[threading.Thread, list[Outcome]]:
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(bound.run(n, table)))
    thread.start()
    return thread, outcomes


@executors
def test_interrupt_from_another_thread(executor: str) -> None:
    bound = started(spin, {"x": torch.zeros(1, dtype=torch.float64)}, executor)
    thread, outcomes = run_in_thread(bound, ENDLESS)
    # Only without the GIL does this thread come so far while the other runs.
    bound.interrupt()
    thread.join()
    (got,) = outcomes
    assert got.reason == "interrupted"
    assert len(got.history) < ENDLESS
    assert bound.values["x"].item() == len(got.history)
    assert bound.run(2) == Outcome([len(got.history), len(got.history) + 1.0], "done")


@executors
def test_interrupt_before_a_run_ends_that_run(executor: str) -> None:
    bound = started(spin, {"x": torch.zeros(1)}, executor)
    bound.interrupt()
    assert bound.run(5) == Outcome([], "interrupted")
    assert bound.run(2) == Outcome([0, 1], "done")


def only_in_the_main_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread is told of a signal")


def run_until(what: Callable[[], None], bound: Bound) -> Outcome:
    """Run until something that a timer does ends it."""
    timer = threading.Timer(0.2, what)
    timer.start()
    try:
        return bound.run(ENDLESS)
    finally:
        timer.join()


def press_key() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def keys() -> Iterator[None]:
    """Let Ctrl-C be heard: a shell that starts something in the background has it ignored."""
    only_in_the_main_thread()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@executors
@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("press", [press_key, _thread.interrupt_main], ids=["signal", "simulated"])
def test_a_key_press_ends_a_run_and_loses_no_iteration(press: Callable[[], None], executor: str) -> None:
    bound = started(spin, {"x": torch.zeros(1, dtype=torch.float64)}, executor)
    before = signal.getsignal(signal.SIGINT)
    got = run_until(press, bound)
    assert signal.getsignal(signal.SIGINT) is before
    assert got.reason == "interrupted"
    assert 0 < len(got.history) < ENDLESS
    assert got.history == [float(i) for i in range(len(got.history))]
    assert bound.values["x"].item() == len(got.history)
    with pytest.raises(KeyboardInterrupt):
        got.checked()
    assert bound.run(1) == Outcome([len(got.history)], "done")
    assert bound.run(1).checked().raised is None


@executors
@pytest.mark.usefixtures("keys")
def test_a_key_press_does_not_end_an_operator(executor: str) -> None:
    def step(values: Values) -> Values:
        values["in_place"] += 1
        checked = torch.ops.vleak_test_runner.press(values["x"])
        return {"x": checked + 1, "objective": checked.sum()}

    bound = started(step, {"x": torch.zeros(1), "in_place": torch.zeros(1)}, executor)
    got = bound.run(20)
    assert isinstance(got.raised, KeyboardInterrupt)
    assert len(got.history) == bound.values["x"].item() == bound.values["in_place"].item() == 3


@executors
def test_other_signals_lose_no_iteration(executor: str) -> None:
    def leave(*_: object) -> None:
        raise SystemExit(3)

    only_in_the_main_thread()
    bound = started(spin, {"x": torch.zeros(1, dtype=torch.float64)}, executor)
    before = signal.signal(signal.SIGTERM, leave)
    try:
        got = run_until(lambda: os.kill(os.getpid(), signal.SIGTERM), bound)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got.reason == "interrupted"
    assert 0 < len(got.history) < ENDLESS
    with pytest.raises(SystemExit):
        got.checked()


@executors
def test_a_handler_that_raises_nothing_ends_the_run_alone(executor: str) -> None:
    only_in_the_main_thread()
    seen: list[int] = []
    bound = started(spin, {"x": torch.zeros(1, dtype=torch.float64)}, executor)
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        got = run_until(press_key, bound)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]
    assert (got.reason, got.raised) == ("interrupted", None)


@executors
def test_threads_do_not_disturb_each_other(executor: str) -> None:
    case = CASES["conv net"]
    program = Program(record(case.step, case.values, case.fixed), executor=executor)
    starts = [{**case.values, "x": draw(*case.values["x"].shape, seed=seed)} for seed in range(3)]
    table = settings(*range(1, 31))
    alone = [program.bind(start).run(30, table) for start in starts]
    together = [run_in_thread(program.bind(start), 30, table) for start in starts]
    for thread, _ in together:
        thread.join()
    assert [outcomes[0] for _, outcomes in together] == alone
    assert len({tuple(outcome.history) for outcome in alone}) == 3


# ---- refusals


@executors
@pytest.mark.parametrize(
    ("error", "kind"), [(InputError("no"), InputError), (ValueError("no\nmore"), CapabilityError)]
)
def test_what_an_operator_raises_names_it_and_the_iteration(
    error: Exception, kind: type[Exception], executor: str
) -> None:
    def step(values: Values) -> Values:
        values["in_place"] += 1
        checked = torch.ops.vleak_test_runner.fail(values["x"])
        return {"x": checked + 1, "objective": checked.sum()}

    bound = started(step, {"x": torch.zeros(1), "in_place": torch.zeros(1)}, executor)
    to_raise[:] = [error]
    bound.run(1)
    with pytest.raises(kind, match=r"^vleak_test_runner::fail failed in iteration 4: no$") as caught:
        bound.run(9)
    assert caught.value.__cause__ is error
    assert bound.values["x"].item() == 3
    with pytest.raises(kind, match="in iteration 4"):
        bound.run(1)


@executors
def test_what_aten_raises_names_the_operator(executor: str) -> None:
    def step(values: Values) -> Values:
        picked = values["x"].index_select(0, values["settings"].long())
        return {"objective": picked.sum()}

    bound = started(step, {"x": torch.zeros(3), "settings": settings(0)[0]}, executor)
    with pytest.raises(
        CapabilityError, match=r"^aten::index_select failed in iteration 3: .*out of range"
    ) as caught:
        bound.run(4, settings(0, 2, 3, 1))
    assert "\n" not in str(caught.value)


@executors
def test_an_error_before_the_first_iteration(executor: str) -> None:
    def step(values: Values) -> Values:
        return {"objective": torch.ops.vleak_test_runner.fail(values["weight"]).sum() + values["x"].sum()}

    values = {"x": torch.zeros(1), "weight": torch.ones(4)}
    to_raise[:] = [ValueError("too much")]
    expected = "vleak_test_runner::fail failed before the first iteration: too much"
    with pytest.raises(CapabilityError, match=expected):
        started(step, values, executor, ("weight",))


@executors
def test_only_one_thread_runs_a_descent(executor: str) -> None:
    bound = started(spin, {"x": torch.zeros(1)}, executor)
    thread, _ = run_in_thread(bound, ENDLESS)
    while not bound._busy.locked():
        pass
    with pytest.raises(InputError, match="running in another thread"):
        bound.run(1)
    bound.interrupt()
    thread.join()


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("x", None, ["'x'", "missing"]),
        ("x", torch.zeros(3), ["'x'", "shape (2,)", "(3,)"]),
        ("in_place", torch.zeros(1, dtype=torch.float64), ["'in_place'", "torch.float32", "torch.float64"]),
        ("settings", torch.zeros(1, dtype=torch.float64, device="meta"), ["'settings'", "cpu", "meta"]),
    ],
)
def test_tensors_that_do_not_fit_are_named(name: str, tensor: Tensor | None, words: list[str]) -> None:
    program = Program(record(from_table, COUNTERS), executor="python")
    values = {key: value for key, value in {**COUNTERS, name: tensor}.items() if value is not None}
    with pytest.raises(InputError) as caught:
        program.bind(values)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("n", "table", "words"),
    [
        (-1, settings(1), ["0 iterations", "-1"]),
        (2, settings(1), ["(2, 1)", "(1, 1)"]),
        (1, torch.zeros(1, 2), ["(1, 1)", "(1, 2)"]),
        (1, None, ["(1, 1)", "none"]),
    ],
)
def test_a_run_that_does_not_fit_is_refused(n: int, table: Tensor | None, words: list[str]) -> None:
    bound = started(from_table, COUNTERS, "python")
    with pytest.raises(InputError) as caught:
        bound.run(n, table)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda values: {"x": values["x"] + 1}, ["'objective'", "x"]),
        (lambda values: {"objective": values["x"] + 1}, ["(2,)", "one number"]),
    ],
)
def test_a_step_without_one_objective_is_refused(step: Step, words: list[str]) -> None:
    with pytest.raises(CapabilityError) as caught:
        Program(record(step, {"x": torch.zeros(2)}), executor="python")
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_graph_of_other_things_than_operators_is_refused() -> None:
    capture = record(lambda values: {"objective": values["x"].sum()}, {"x": torch.zeros(2)})
    node = next(iter(capture.graph.graph.find_nodes(op="call_function", target=torch.ops.aten.sum.default)))
    node.target = torch.sum
    with pytest.raises(CapabilityError, match="sum"):
        Program(capture, executor="python")


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(InputError, match="unknown executor 'fast'; did you mean auto"):
        Program(record(spin, {"x": torch.zeros(1)}), executor="fast")


def test_without_the_library_python_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "loop_module", lambda: None)
    program = Program(record(spin, {"x": torch.zeros(1)}))
    assert program.executor == "python"
    assert program.bind({"x": torch.zeros(1)}).run(2) == Outcome([0, 1], "done")
    with pytest.raises(CapabilityError, match="vleak doctor"):
        Program(record(spin, {"x": torch.zeros(1)}), executor="native")
