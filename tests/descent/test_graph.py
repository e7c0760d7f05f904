"""Backend of captured steps: the same numbers as the graph called by Python, and nothing held too long.

The oracle is the captured graph itself, called once an iteration under no_grad.
"""

from __future__ import annotations

import _thread
import os
import platform
import resource
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from vleak.descent.capture import Capture
from vleak.descent.eager import EagerRunner
from vleak.descent.graph import GraphProgram, GraphRunner
from vleak.descent.lowering import lower
from vleak.descent.runner import HeldInterrupt, IterationBlock, never
from vleak.errors import CapabilityError, InputError
from vleak.native import build, loader, operators

Values = dict[str, Tensor]
Step = Callable[[Values], Values]

needs_library = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler on this machine")
#: in Python as slow as in native code, which they are there for.
HEAVY = ("norms", "recurrent")
backends = pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_library), "python"])
native = pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_library)])


def record(step: Step, values: Values, fixed: tuple[str, ...] = ()) -> Capture:
    """Capture a step as vleak.descent.capture does, without its checks."""
    outputs: list[str] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        returned = step(dict(zip(values, tensors, strict=True)))
        outputs[:] = returned
        return list(returned.values())

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    graph = make_fx(flat, tracing_mode="fake")(*(mode.from_tensor(v.detach()) for v in values.values()))
    return Capture(graph, tuple(values), tuple(outputs), frozenset(fixed), torch.device("cpu"))


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


def program_of(capture: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> GraphProgram:
    """Return a program that C++ runs, or, as where there is no runner library, Python."""
    with monkeypatch.context() as patch:
        if backend == "python":
            patch.setattr(loader, "loop_module", lambda: None)
        program = GraphProgram(capture)
    assert program.native == (backend == "native")
    return program


Start = Callable[..., GraphRunner | EagerRunner]


@pytest.fixture
def started(backend: str, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Return a function that starts a step on the backend."""

    def start(step: Step, values: Values, fixed: tuple[str, ...] = ()) -> GraphRunner | EagerRunner:
        return program_of(record(step, values, fixed), backend, monkeypatch).start(values)

    return start


def run(runner: Any, n: int, table: Tensor | None = None) -> list[float]:
    """Run iterations; a step without settings has rows of one number that nothing reads."""
    rows = torch.zeros(n, 1, dtype=torch.float64) if table is None else table[:n]
    return runner.run(rows, never).objectives.tolist()


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
    sums = pooled.sum() + indices.sum() + normed.std() + (first * last).sum()
    return {"x": x.roll(1, 2) * 0.9, "objective": sums + variance.sum() + mean[0, 0, 0] + top[1]}


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
    wide = (wide * last.sum((-1, -2), keepdim=True)).sum()
    total = wide + large.mean() + kept.std() + rest.sum() + padded.sum()
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


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *(pytest.param(name, "native", marks=needs_library) for name in CASES),
        *(pytest.param(name, "python", marks=pytest.mark.slow if name in HEAVY else ()) for name in CASES),
    ],
)
def test_equal_to_the_graph_called_by_python(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, table = CASES[name], settings(1, 2, 3, 4, 5)
    capture = record(case.step, case.values, case.fixed)
    before = {name: value.clone() for name, value in case.values.items()}
    expected, state = called_by_python(capture, case.values, table)
    runner = program_of(capture, backend, monkeypatch).start(case.values)
    before_the_first = runner.state()
    assert run(runner, 3, table) + run(runner, 2, table[3:]) == expected
    assert len(set(expected)) > 1
    assert runner.values.keys() == state.keys()
    for name, value in runner.values.items():
        assert name == "settings" or torch.equal(value, state[name]), name
        assert torch.equal(case.values[name], before[name]), f"{name} is the caller's"
    assert runner.outputs["objective"].item() == expected[-1]
    # A state taken before stays as it was, and leads to the same path again.
    for _ in range(2):
        runner.restore(before_the_first)
        assert run(runner, 5, table) == expected


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


@native
def test_what_is_fixed_is_computed_once(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(values: Values) -> Values:
        prepared = torch.ops.vleak_test_runner.count(values["weight"].t()) @ torch.ones(2)
        return {"x": values["x"] + prepared, "objective": prepared.sum() + values["x"].sum()}

    values = {"x": draw(3), "weight": draw(2, 3)}
    program = program_of(record(step, values, ("weight",)), backend, monkeypatch)
    calls.clear()
    runner = program.start(values)
    assert len(calls) == 1
    history = run(runner, 4)
    assert len(calls) == 1
    prepared = (values["weight"].t() + 1).sum(1)
    expected = [(values["x"] + (i + 1) * prepared).sum().item() for i in range(4)]
    assert history == pytest.approx(expected, rel=1e-5)
    changed = program.start({**values, "weight": values["weight"] * 2})
    assert len(calls) == 2
    assert run(changed, 1) != history[:1]


@backends
@pytest.mark.parametrize("change", ["value", "view", "statistics", "draw"])
def test_what_is_changed_or_drawn_is_not_fixed(change: str, started: Start) -> None:
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
        runner = started(step, values, ("weight",))
        calls.clear()
        run(runner, 4)
    assert len(calls) == 4


@native
def test_nothing_lives_longer_than_it_is_needed(started: Start) -> None:
    def step(values: Values) -> Values:
        x = values["x"]
        for _ in range(5):
            x = torch.ops.vleak_test_runner.probe(x)
        parts = torch.cat([torch.ops.vleak_test_runner.probe(x), torch.ops.vleak_test_runner.probe(x)])
        return {"x": torch.ops.vleak_test_runner.probe(parts[:3]), "objective": parts.sum()}

    runner = started(step, {"x": draw(3)})
    alive.clear()
    most_alive[0] = 0
    run(runner, 3)
    assert len(alive) == 24
    # From the second iteration on: x, and the argument with the first of the two.
    assert most_alive[0] == 3
    assert sum(reference() is not None for reference in alive) == 1
    del runner
    assert all(reference() is None for reference in alive)


@native
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_memory_is_asked_for_once(started: Start) -> None:
    def step(values: Values) -> Values:
        x = values["x"]
        for _ in range(4):
            x = x * 0.5
        return {"objective": x[0]}

    runner = started(step, {"x": torch.ones(1 << 20)})
    run(runner, 2)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    run(runner, 20)
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
    pages_of_one_tensor = 4 * (1 << 20) // resource.getpagesize()
    assert faults < 8 * pages_of_one_tensor, "eighty such tensors were made"


@backends
def test_fixed_inputs_are_shared_and_state_is_not(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["in place"]
    program = program_of(record(case.step, case.values, case.fixed), backend, monkeypatch)
    one, other = program.start(case.values), program.start(case.values)
    assert one.values["weight"].data_ptr() == case.values["weight"].data_ptr()
    assert len({runner["m"].data_ptr() for runner in (one.values, other.values, case.values)}) == 3
    run(one, 2)
    assert torch.equal(other.values["m"], case.values["m"])


@native
def test_tensors_of_the_graph_are_not_changed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = draw(3)
    capture = record(lambda values: {"objective": (own * values["x"]).sum()}, {"x": draw(3)})
    (constant,) = capture.graph.graph.find_nodes(op="get_attr")
    (product,) = capture.graph.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    assert not lower(capture).changed
    # No step changes a constant, but a graph may.
    product.target = torch.ops.aten.mul_.Tensor
    assert len(lower(capture).changed) == 1
    values, before = {"x": torch.full((3,), 2.0)}, own.clone()
    program = program_of(capture, backend, monkeypatch)
    assert [run(program.start(values), 2) for _ in range(2)] == [[before.sum() * 2, before.sum() * 4]] * 2
    assert torch.equal(own, before)
    assert constant.name


@backends
def test_other_strides_give_the_same(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["conv net"]
    program = program_of(record(case.step, case.values, case.fixed), backend, monkeypatch)
    table = settings(1, 2)
    strided = {
        name: value.transpose(0, 1).contiguous().transpose(0, 1) if value.ndim > 1 else value
        for name, value in case.values.items()
    }
    assert not strided["w:0.weight"].is_contiguous()
    assert run(program.start(strided), 2, table) == run(program.start(case.values), 2, table)


# ---- interrupts


def spin(values: Values) -> Values:
    return {"x": values["x"] + 1, "objective": values["x"][0]}


#: So many iterations that a run of them has to be ended from outside; some seconds if it is not.
ENDLESS = torch.zeros(1_000_000, 1, dtype=torch.float64)


def held(runner: Any, settings: Tensor) -> IterationBlock:
    """Run as a descent does, with Ctrl-C held back, and return the block with what was raised."""
    with HeldInterrupt() as interrupt:
        block = runner.run(settings, interrupt.requested)
    try:
        interrupt.deliver()
    except BaseException as raised:  # noqa: BLE001  returned
        return IterationBlock(block.objectives, raised)
    return block


@contextmanager
def handling(number: int, handler: Callable[..., object]) -> Iterator[None]:
    """Handle a signal otherwise, meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread receives signals")
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def run_until(what: Callable[[], None], runner: Any) -> IterationBlock:
    """Run until something that a timer does ends it."""
    timer = threading.Timer(0.2, what)
    timer.start()
    try:
        return held(runner, ENDLESS)
    finally:
        timer.join()


def press_key() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def keys() -> Iterator[None]:
    """Let Ctrl-C be heard: a shell that starts something in the background has it ignored."""
    with handling(signal.SIGINT, signal.default_int_handler):
        yield


@native
@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("press", [press_key, _thread.interrupt_main], ids=["signal", "simulated"])
def test_a_key_press_ends_a_run_and_loses_no_iteration(press: Callable[[], None], started: Start) -> None:
    runner = started(spin, {"x": torch.zeros(1, dtype=torch.float64)})
    before = signal.getsignal(signal.SIGINT)
    block = run_until(press, runner)
    assert signal.getsignal(signal.SIGINT) is before
    assert isinstance(block.raised, KeyboardInterrupt)
    history = block.objectives.tolist()
    assert 0 < len(history) < len(ENDLESS)
    assert history == [float(i) for i in range(len(history))]
    assert runner.values["x"].item() == len(history)
    again = held(runner, ENDLESS[:1])
    assert (again.objectives.tolist(), again.raised) == ([len(history)], None)


@backends
@pytest.mark.usefixtures("keys")
def test_a_key_press_does_not_end_an_operator(started: Start) -> None:
    def step(values: Values) -> Values:
        values["in_place"] += 1
        checked = torch.ops.vleak_test_runner.press(values["x"])
        return {"x": checked + 1, "objective": checked.sum()}

    runner = started(step, {"x": torch.zeros(1), "in_place": torch.zeros(1)})
    block = held(runner, ENDLESS[:20])
    assert isinstance(block.raised, KeyboardInterrupt)
    assert len(block.objectives) == runner.values["x"].item() == runner.values["in_place"].item() == 3


@native
def test_other_signals_lose_no_iteration(started: Start) -> None:
    def leave(*_: object) -> None:
        raise SystemExit(3)

    runner = started(spin, {"x": torch.zeros(1, dtype=torch.float64)})
    with handling(signal.SIGTERM, leave):
        block = run_until(lambda: os.kill(os.getpid(), signal.SIGTERM), runner)
    assert isinstance(block.raised, SystemExit)
    assert 0 < len(block.objectives) < len(ENDLESS)


@native
def test_a_handler_that_raises_nothing_ends_the_run_alone(started: Start) -> None:
    seen: list[int] = []
    runner = started(spin, {"x": torch.zeros(1, dtype=torch.float64)})
    with handling(signal.SIGINT, lambda number, _: seen.append(number)):
        block = run_until(press_key, runner)
    assert seen == [signal.SIGINT]
    assert block.raised is None
    assert 0 < len(block.objectives) < len(ENDLESS)


def run_in_thread(
    runner: Any, settings: Tensor, interrupted: Callable[[], bool] = never
) -> tuple[threading.Thread, list[IterationBlock]]:
    blocks: list[IterationBlock] = []
    thread = threading.Thread(target=lambda: blocks.append(runner.run(settings, interrupted)))
    thread.start()
    return thread, blocks


@native
def test_a_run_is_interrupted_from_another_thread(started: Start) -> None:
    runner, ended = started(spin, {"x": torch.zeros(1, dtype=torch.float64)}), threading.Event()
    thread, blocks = run_in_thread(runner, ENDLESS, ended.is_set)
    # Only without the GIL does this thread come so far while the other runs.
    ended.set()
    thread.join()
    done = len(blocks[0].objectives)
    assert done < len(ENDLESS)
    assert runner.values["x"].item() == done
    assert run(runner, 2) == [done, done + 1.0]


@backends
def test_threads_do_not_disturb_each_other(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["conv net"]
    program = program_of(record(case.step, case.values, case.fixed), backend, monkeypatch)
    starts = [{**case.values, "x": draw(*case.values["x"].shape, seed=seed)} for seed in range(3)]
    table = settings(*range(1, 31))
    alone = [run(program.start(start), 30, table) for start in starts]
    together = [run_in_thread(program.start(start), table) for start in starts]
    for thread, _ in together:
        thread.join()
    assert [blocks[0].objectives.tolist() for _, blocks in together] == alone
    assert len({tuple(history) for history in alone}) == 3


@native
def test_only_one_thread_runs_a_descent(started: Start) -> None:
    runner, ended = started(spin, {"x": torch.zeros(1)}), threading.Event()
    thread, _ = run_in_thread(runner, ENDLESS, ended.is_set)
    while not runner._busy.locked():
        pass
    with pytest.raises(InputError, match="running in another thread"):
        run(runner, 1)
    ended.set()
    thread.join()


# ---- refusals


@native
@pytest.mark.parametrize(
    ("error", "kind"), [(InputError("no"), InputError), (ValueError("no\nmore"), CapabilityError)]
)
def test_what_an_operator_raises_names_it_and_the_iteration(
    error: Exception, kind: type[Exception], started: Start
) -> None:
    def step(values: Values) -> Values:
        values["in_place"] += 1
        checked = torch.ops.vleak_test_runner.fail(values["x"])
        return {"x": checked + 1, "objective": checked.sum()}

    runner = started(step, {"x": torch.zeros(1), "in_place": torch.zeros(1)})
    to_raise[:] = [error]
    run(runner, 1)
    with pytest.raises(kind, match=r"^vleak_test_runner::fail failed in iteration 4: no$") as caught:
        run(runner, 9)
    assert caught.value.__cause__ is error
    assert runner.values["x"].item() == 3
    with pytest.raises(kind, match="in iteration 4"):
        run(runner, 1)


@native
def test_what_aten_raises_names_the_operator(started: Start) -> None:
    def step(values: Values) -> Values:
        picked = values["x"].index_select(0, values["settings"].long())
        return {"objective": picked.sum()}

    runner = started(step, {"x": torch.zeros(3), "settings": settings(0)[0]})
    with pytest.raises(
        CapabilityError, match=r"^aten::index_select failed in iteration 3: .*out of range"
    ) as caught:
        run(runner, 4, settings(0, 2, 3, 1))
    assert "\n" not in str(caught.value)


@native
def test_an_error_before_the_first_iteration(started: Start) -> None:
    def step(values: Values) -> Values:
        return {"objective": torch.ops.vleak_test_runner.fail(values["weight"]).sum() + values["x"].sum()}

    values = {"x": torch.zeros(1), "weight": torch.ones(4)}
    to_raise[:] = [ValueError("too much")]
    expected = "vleak_test_runner::fail failed before the first iteration: too much"
    with pytest.raises(CapabilityError, match=expected):
        started(step, values, ("weight",))


def from_table(values: Values) -> Values:
    values["in_place"] += 1
    return {"x": values["x"] + 1, "objective": values["settings"][0].float()}


COUNTERS = {"x": torch.zeros(2), "in_place": torch.zeros(1), "settings": settings(0)[0]}


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
    program = GraphProgram(record(from_table, COUNTERS))
    values = {key: value for key, value in {**COUNTERS, name: tensor}.items() if value is not None}
    with pytest.raises(InputError) as caught:
        program.start(values)
    assert all(word in str(caught.value) for word in words), caught.value


@native
def test_settings_of_another_shape_are_refused(started: Start) -> None:
    with pytest.raises(InputError, match=r"rows of shape \(1,\), got \(1, 2\)"):
        run(started(from_table, COUNTERS), 1, torch.zeros(1, 2))


@native
def test_objectives_of_a_batch_are_one_a_trial(started: Start) -> None:
    def step(values: Values) -> Values:
        return {"x": values["x"] + 1, "objective": values["x"] * values["settings"][:, 0]}

    runner = started(step, {"x": torch.zeros(2), "settings": torch.zeros(2, 1, dtype=torch.float64)})
    rows = torch.arange(1.0, 7.0, dtype=torch.float64).view(3, 2, 1)
    assert runner.run(rows, never).objectives.tolist() == [[0, 0], [3, 4], [10, 12]]


def test_a_step_without_an_objective_is_refused() -> None:
    with pytest.raises(CapabilityError, match="returns no 'objective', only x"):
        GraphProgram(record(lambda values: {"x": values["x"] + 1}, {"x": torch.zeros(2)}))


def test_a_graph_of_other_things_than_operators_is_refused() -> None:
    capture = record(lambda values: {"objective": values["x"].sum()}, {"x": torch.zeros(2)})
    node = next(iter(capture.graph.graph.find_nodes(op="call_function", target=torch.ops.aten.sum.default)))
    node.target = torch.sum
    with pytest.raises(CapabilityError, match="sum"):
        GraphProgram(capture)
