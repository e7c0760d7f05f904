"""A captured iteration mapped over trials: which models it takes, what is shared, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from captures import CLASSES, MODELS_TAKEN, SHAPE, atens_operators, build_small
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.descent import DescentSettings, Problem, batch, mapping
from vleak.descent.batch import Batch, Trial, batch_key, make_batch
from vleak.descent.capture import capture
from vleak.descent.mapping import batched_step
from vleak.descent.memory import changed_arguments
from vleak.descent.programs import program_for
from vleak.descent.runner import never
from vleak.descent.step import Step, first_values
from vleak.descent.step_settings import settings_table
from vleak.seeds import generator

FAST = (("batch norm", True), ("attention", False))
LABELS = torch.tensor([1, 3])


def draw(*shape: int, seed: object) -> Tensor:
    return torch.rand(shape, generator=generator("batch", *shape, seed), dtype=torch.float64)


def make_starts(model: nn.Module, trials: int = 2, iterations: int = 6, **changes: Any) -> list[Trial]:
    """Return descents on one model; only the labels are the same tensor."""
    starts = []
    for trial in range(trials):
        target = {name: draw(*p.shape, seed=(name, trial)) - 0.5 for name, p in model.named_parameters()}
        problem = Problem(model, F.cross_entropy, LABELS, target)
        descent = DescentSettings(
            iterations=iterations, learning_rate=0.01 * (1 + trial), spatial=0.02, **changes
        )
        values = first_values(problem, descent, draw(*SHAPE, seed=trial))
        step = Step(model, problem.loss, problem.distance, descent)
        starts.append(Trial(step, values | {"settings": settings_table(descent)[0]}))
    return starts


def tables_of(starts: Sequence[Trial]) -> dict[int, Tensor]:
    return {trial: settings_table(start.step.settings) for trial, start in enumerate(starts)}


def histories(together: Batch, tables: dict[int, Tensor]) -> dict[int, list[float]]:
    return {trial: block.objectives.tolist() for trial, block in together.run(tables, never).items()}


def assert_as_alone(starts: Sequence[Trial]) -> None:
    together = make_batch(starts)
    assert together is not None
    found = histories(together, tables_of(starts))
    for trial, start in enumerate(starts):
        captured = program_for(start.step, start.values)
        assert captured is not None
        alone = captured.start(start.values)
        expected = alone.run(settings_table(start.step.settings), never).objectives.tolist()
        torch.testing.assert_close(found[trial], expected, rtol=1e-8, atol=1e-10)
        for name in ("x", "m", "best", "best_objective"):
            got = together.value(name, trial)
            torch.testing.assert_close(got, alone.values[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "train"),
    [
        pytest.param(name, train, marks=() if (name, train) in FAST else pytest.mark.slow)
        for name in MODELS_TAKEN
        for train in (False, True)
    ],
)
def test_trials_of_every_model_that_is_captured(name: str, train: bool) -> None:
    with atens_operators():  # as on a CUDA device, where batches pay
        assert_as_alone(make_starts(build_small(MODELS_TAKEN[name], train=train).double()))


@pytest.mark.parametrize("name", ["batch norm", "depthwise", "layer norm", "softmax"])
def test_our_own_operators_run_trial_by_trial(name: str) -> None:
    assert_as_alone(make_starts(build_small(MODELS_TAKEN[name], train=True).double()))


def test_only_the_tensors_that_are_the_same_are_shared() -> None:
    starts = make_starts(build_small(MODELS_TAKEN["batch norm"], train=False).double())
    shared = batch._shared_names(starts)
    of_model = [n for n in starts[0].values if n.startswith(("parameter:", "buffer:"))]
    assert sorted(shared) == sorted([*of_model, "labels"])
    assert any(name.startswith("buffer:") for name in shared)
    values = batch._stacked_values(starts, shared)
    assert values["labels"] is LABELS
    assert values["x"].shape == (2, *SHAPE)
    assert values["settings"].shape == (2, *starts[0].values["settings"].shape)


def test_alike_are_descents_of_one_model_and_one_structure() -> None:
    model = build_small(MODELS_TAKEN["max pool"], train=False).double()
    first, second = make_starts(model)
    assert batch_key(first) == batch_key(second)
    assert batch_key(first) != batch_key(make_starts(model, rule="sign")[0])
    assert batch_key(first) != batch_key(make_starts(model, prior=draw(*SHAPE, seed="p")[0])[0])
    assert batch_key(first) != batch_key(
        make_starts(build_small(MODELS_TAKEN["max pool"], train=False).double())[0]
    )


def test_trials_rest_where_they_are_not_asked_to_run() -> None:
    starts = make_starts(build_small(MODELS_TAKEN["max pool"], train=False).double())
    whole, parts = make_batch(starts), make_batch(starts)
    assert whole is not None
    assert parts is not None
    tables = tables_of(starts)
    expected = histories(whole, tables)
    before = parts.value("x", 1).clone()
    found = histories(parts, {0: tables[0][:2]})
    assert list(found) == [0]
    assert torch.equal(parts.value("x", 1), before)
    first, second = parts.runners
    assert found[0] + first.run(tables[0][2:], never).objectives.tolist() == expected[0]
    assert second.run(tables[1], never).objectives.tolist() == expected[1]
    for runner in whole.runners:
        assert torch.equal(runner.values["x"], parts.value("x", runner.trial))


def test_a_trial_goes_back_to_a_state_and_leaves_the_others_where_they_are() -> None:
    starts = make_starts(build_small(MODELS_TAKEN["linear"], train=False).double())
    together = make_batch(starts)
    assert together is not None
    tables, (first, second) = tables_of(starts), together.runners
    before = first.state()
    expected = histories(together, tables)
    stands = {name: value.clone() for name, value in second.state().items()}
    first.restore(before)
    assert all(torch.equal(value, stands[name]) for name, value in second.state().items())
    assert first.run(tables[0], never).objectives.tolist() == expected[0]
    assert all(torch.equal(value, stands[name]) for name, value in second.state().items())
    assert not torch.equal(first.values["x"], before["x"])


# ---------------------------------------------------------------------------------------------------------
# Memory that is written into: x is by trial, w the same for all


def fresh(x: Tensor, w: Tensor) -> Tensor:
    return w.sin().mul_(x)


def view_before(x: Tensor, w: Tensor) -> Tensor:
    base = w.sin()
    row = base[0]
    base.add_(x)
    return row * base


def base_after(x: Tensor, w: Tensor) -> Tensor:
    base = w.t().sin()
    base[1:].t().copy_(x[:, 1:])
    return base * x.t()


def reshaped(x: Tensor, w: Tensor) -> Tensor:
    base = w.sin()
    base.view(-1)[2:7].mul_(x.view(-1)[2:7])
    return base + base[0]


def filtered(x: Tensor, w: Tensor) -> Tensor:
    # With filters that differ by trial, the trial axis stands between what the view merges.
    base = F.conv2d(w.expand(2, 1, 3, 3), x.view(3, 1, 1, 3), padding=1)
    base.view(-1)[1:4].mul_(100)
    return base * 1


def parts(x: Tensor, w: Tensor) -> Tensor:
    base = w.sin()
    first, second = base.unsafe_split(2, 1)
    first.add_(x[:, :2]).sigmoid_()
    return base + second


def by_way_of_another(x: Tensor, w: Tensor) -> Tensor:
    one, other = w.sin(), w.cos()
    part = other[0]
    one.add_(x)
    other.mul_(one)
    return part + other


def without_trials(x: Tensor, w: Tensor) -> Tensor:
    base = w.sin()
    base[0].add_(1)
    return base * x + base[0]


@pytest.mark.parametrize(
    "function", [fresh, view_before, base_after, reshaped, filtered, parts, by_way_of_another, without_trials]
)
def test_memory_that_a_step_makes_is_each_trials_own(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    values = {"x": draw(2, 3, 3, seed="x"), "w": draw(3, 3, seed="w")}
    alone = {"x": values["x"][0], "w": values["w"]}
    single = capture(lambda given: {"out": function(given["x"], given["w"])}, alone, ["w"])
    assert any(changed_arguments(node) for node in single.graph.graph.nodes)
    made = batched_step(single, ["w"])(values)["out"]
    expected = torch.stack([function(x, values["w"]) for x in values["x"]])
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)


def test_only_memory_with_values_of_trials_gets_their_axis() -> None:
    def axes(function: Callable[[Tensor, Tensor], Tensor]) -> int:
        alone = {"x": draw(3, 3, seed="x"), "w": draw(3, 3, seed="w")}
        single = capture(lambda given: {"out": function(given["x"], given["w"])}, alone, ["w"])
        return len(mapping._written_by_trial(single, ["w"]))

    found = [axes(each) for each in (fresh, view_before, by_way_of_another, without_trials)]
    assert found == [1, 1, 2, 0]


def test_state_is_changed_where_it_lies() -> None:
    def step(values: dict[str, Tensor]) -> dict[str, Tensor]:
        values["m"][0].mul_(0.5).add_(values["x"][0])
        return {"out": values["m"] * values["w"].sin().mul_(values["x"])}

    values = {name: draw(2, 3, 3, seed=name) for name in ("x", "m")} | {"w": draw(3, 3, seed="w")}
    trials = [{"x": values["x"][t], "m": values["m"][t].clone(), "w": values["w"]} for t in range(2)]
    made = batched_step(capture(step, trials[0], ["w"]), ["w"])(values)["out"]
    assert torch.equal(made, torch.stack([step(each)["out"] for each in trials]))
    assert torch.equal(values["m"], torch.stack([each["m"] for each in trials]))


class Scratch(nn.Module):
    """Writes into a part of memory of its own, all of which it then reads."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(768, CLASSES)

    def forward(self, clips: Tensor) -> Tensor:
        shade = clips.new_zeros(2, 768)
        with torch.no_grad():
            shade[:, :9].copy_(clips.flatten(1)[:, :9])
        return self.head(clips.flatten(1) + shade)


def test_a_model_may_write_into_memory_of_its_own() -> None:
    assert_as_alone(make_starts(build_small(Scratch, train=False).double()))


class Chosen(Scratch):
    """Has an operator write where it is told to, which none does for many trials."""

    def forward(self, clips: Tensor) -> Tensor:
        shade = clips.new_zeros(2, 768)
        with torch.no_grad():
            torch.mul(clips.flatten(1), 0.1, out=shade)
        return self.head(clips.flatten(1) + shade)


def test_what_cannot_be_mapped_is_none_and_not_tried_twice(monkeypatch: Any) -> None:
    starts = make_starts(build_small(Chosen, train=False).double())
    calls: list[str] = []
    real = batch._captured

    def counted(*arguments: Any) -> Any:
        calls.append("captured")
        return real(*arguments)

    monkeypatch.setattr(batch, "_captured", counted)
    found = [make_batch(starts) for _ in range(2)]
    assert found == [None, None]
    assert len(calls) == 1


def test_a_batch_that_gives_other_numbers_is_refused(monkeypatch: Any) -> None:
    def wrong(single: Any, shared: Any) -> Any:
        right = batched_step(single, shared)

        def run(values: dict[str, Tensor]) -> dict[str, Tensor]:
            after = right(values)
            return {**after, "gradient": after["gradient"].flip(0)}

        return run

    monkeypatch.setattr(batch, "batched_step", wrong)
    monkeypatch.setattr(batch, "_programs", {})  # else one that was found right serves this model too
    model = build_small(MODELS_TAKEN["max pool"], train=False).double()
    assert make_batch(make_starts(model)) is None


def test_operators_are_called_once_for_every_trial() -> None:
    starts = make_starts(build_small(MODELS_TAKEN["linear"], train=False).double(), trials=3)
    fixed = [name for name in starts[0].values if name not in batch.STATE]
    values = {name: torch.stack([start.values[name] for start in starts]) for name in starts[0].values}
    many = capture(batched_step(capture(starts[0].step, starts[0].values, fixed), []), values, fixed)
    targets = [str(node.target) for node in many.graph.graph.nodes]
    assert [targets.count(f"vleak.{name}.default") for name in ("gradient_match", "descend")] == [3, 3]
