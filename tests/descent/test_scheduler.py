"""Many descents side by side: whatever the company, each gives the numbers that it gives alone."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from descents import (
    CLASSES,
    Cliff,
    Smooth,
    assert_alike,
    batch_of,
    built_in,
    descents_of,
    draw,
    make_settings,
    problems,
    starts,
    update_of,
)
from tiny import build
from torch import Tensor, nn

from vleak.attacks import Knowledge, Matching, Observation
from vleak.descent import Descent, DescentSettings, Group, Problem, run_descents, run_groups
from vleak.descent.batch import TrialRunner
from vleak.descent.problem import RULES
from vleak.errors import InputError
from vleak.federated import Client
from vleak.models import SMALL_MODELS
from vleak.seeds import generator

batched = pytest.mark.parametrize("batched", [False, True], ids=["threads", "batched"])

Every = list[tuple[Problem, DescentSettings, Tensor]]


def smooth(iterations: int = 20, **changes: Any) -> Every:
    """Return three descents that may run together."""
    pairs = zip(problems(build(Smooth)), starts(), strict=True)
    return [(problem, make_settings(problem, iterations, **changes), start) for problem, start in pairs]


def assert_as_alone(together: Sequence[Descent], alone: Sequence[Descent], iterations: int) -> None:
    """Check descents against others that run so many iterations by themselves."""
    for descent, other in zip(together, alone, strict=True):
        assert_alike(descent.state, other.run(iterations))


# ---- numbers


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "c3d_tiny" else pytest.mark.slow) for name in SMALL_MODELS],
)
@pytest.mark.parametrize(
    ("distance", "clips", "masked"),
    [
        ("cosine", 1, True),
        pytest.param("l2", 2, False, marks=pytest.mark.slow),
        pytest.param("cosine", 2, True, marks=pytest.mark.slow),
        pytest.param("l2", 1, True, marks=pytest.mark.slow),
    ],
)
def test_batched_trials_give_the_numbers_of_their_runs_alone(
    name: str, distance: str, clips: int, masked: bool
) -> None:
    every = [
        (problem, make_settings(problem, learning_rate=0.02 + 0.01 * trial), start)
        for trial, (problem, start) in enumerate(
            zip(problems(built_in(name), clips, masked=masked, distance=distance), starts(clips), strict=True)
        )
    ]
    together = descents_of(every)
    run_descents(together, 20, batched=True)
    assert len({id(batch_of(loop)) for loop in together}) == 1
    assert_as_alone(together, descents_of(every), 20)


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=pytest.mark.slow if rule == "gauss_newton" else ()) for rule in RULES]
)
def test_every_rule_is_batched(rule: Any) -> None:
    every = smooth(8, rule=rule, learning_rate=0.02)
    together = descents_of(every)
    run_descents(together, 8, batched=True)
    assert all(isinstance(loop.runner, TrialRunner) for loop in together)
    assert_as_alone(together, descents_of(every), 8)


def test_levels_are_batched_one_after_the_other() -> None:
    every = [
        (problem, replace(settings, patience=patience), start)
        for (problem, settings, start), patience in zip(
            smooth(12, coarse=1, coarse_share=0.5, tolerance=0.5), (0, 2, 0), strict=True
        )
    ]
    together = descents_of(every)
    run_descents(together, 1, batched=True)
    assert len({id(batch_of(loop)) for loop in together}) == 1
    run_descents(together, 11, batched=True, every=4)
    first, second, third = (loop.runner for loop in together)
    assert isinstance(first, TrialRunner)
    assert isinstance(third, TrialRunner)
    assert first.batch is third.batch
    # The second settled early at the coarse level, and so went on before the others.
    assert not isinstance(second, TrialRunner)
    assert_as_alone(together, descents_of(every), 12)


def test_threads_give_exactly_the_numbers_of_the_runs_alone() -> None:
    every = smooth()
    for state, loop in zip(run_descents(descents_of(every), 20, workers=3), descents_of(every), strict=True):
        expected = loop.run(20)
        assert state.history == expected.history
        assert torch.equal(state.x, expected.x)


def test_rows_of_features_are_batched_too() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, CLASSES)).double()
    rows = [torch.rand(5, 12, generator=generator("rows", i), dtype=torch.float64) for i in range(4)]
    labels = torch.tensor([0, 1, 2, 3, 4])
    update = update_of(model, rows[0], labels)
    problem = Problem(model, nn.functional.cross_entropy, labels, update)
    every = [(problem, DescentSettings(iterations=10, learning_rate=0.01), start) for start in rows[1:]]
    together = descents_of(every)
    run_descents(together, 10, batched=True)
    assert batch_of(together[0]) is batch_of(together[2])
    assert_as_alone(together, descents_of(every), 10)


# ---- ends


def falling(problem: Problem, pull: float) -> DescentSettings:
    """Return a descent that a pull to black drives over the cliff."""
    descent = make_settings(problem, rule="sign", schedule="steps", learning_rate=0.02, prior_weight=pull)
    return replace(descent, prior=torch.zeros(3, 4, 8, 8))


@batched
def test_nan_in_one_trial_ends_that_one_only(batched: bool) -> None:
    first, second, third = problems(build(Cliff))
    bright, dark, brighter = starts()
    every = [
        (first, falling(first, 0.0), bright),
        (second, falling(second, 1e9), dark),
        (third, falling(third, 0.0), 0.5 + 0.5 * brighter),
    ]
    states = run_descents(descents_of(every), 20, batched=batched, every=7)
    expected = [loop.run(20) for loop in descents_of(every)]
    assert [state.nan_at is None for state in expected] == [True, False, True]
    assert 2 < (expected[1].nan_at or 0) < 20
    for state, other in zip(states, expected, strict=True):
        assert_alike(state, other)


@batched
@pytest.mark.parametrize("every", [1, 4, 100])
def test_each_trial_settles_by_its_own_objective(batched: bool, every: int) -> None:
    ends = [(3, 0.05), (0, 0.05), (2, 0.02)]
    trials = [
        (problem, replace(settings, patience=patience, tolerance=tolerance), start)
        for (problem, settings, start), (patience, tolerance) in zip(smooth(60), ends, strict=True)
    ]
    states = run_descents(descents_of(trials), 60, batched=batched, every=every)
    expected = [loop.run(60) for loop in descents_of(trials)]
    assert [state.settled for state in expected] == [True, False, True]
    assert len({len(state.history) for state in expected}) == 3
    for state, other in zip(states, expected, strict=True):
        assert_alike(state, other)


# ---- stops, progress, and going on


@batched
def test_a_stop_ends_all_and_they_may_be_taken_up_again(batched: bool) -> None:
    every = smooth(9)
    loops = descents_of(every)
    seen: list[int] = []
    states = run_descents(
        loops, 9, workers=1, progress=seen.append, stop=lambda: len(seen) > 0, every=2, batched=batched
    )
    done = sum(len(state.history) for state in states)
    assert seen == [done]
    assert 0 < done < 27
    loops[1].run(1)  # one of them alone, between two runs of all
    assert sum(len(loop.state.history) for loop in loops) == done + 1
    run_descents(loops, 9, workers=1, progress=seen.append, batched=batched)
    assert seen[-1] == 27
    assert seen == sorted(seen)
    assert_as_alone(loops, descents_of(every), 9)


@batched
def test_no_trials_no_iterations(batched: bool) -> None:
    assert run_descents([], 5, batched=batched) == []
    (problem, *_), start = problems(build(Smooth)), starts()[0]
    loops = [Descent(problem, make_settings(problem), start) for _ in range(2)]
    for state in run_descents(loops, 0, batched=batched):
        assert (state.history, state.best_objective) == ([], math.inf)
    with pytest.raises(InputError, match="every >= 1"):
        run_descents(loops, 1, every=0, batched=batched)
    with pytest.raises(InputError, match="iterations >= 0"):
        run_descents(loops, -1, batched=batched)


def test_trials_run_in_threads_of_their_own() -> None:
    problem = problems(build(Smooth))[0]
    loops = [Descent(problem, make_settings(problem, 4), start) for start in starts()]
    threads = set[int]()

    def stop() -> bool:
        threads.add(threading.get_ident())
        return False

    run_descents(loops, 4, workers=3, stop=stop, every=1)
    assert threading.get_ident() not in threads


# ---- who is batched


def companions(change: Callable[[Descent], object] | None = None) -> list[Descent]:
    """Return three loops that may run together, the last one changed."""
    loops = descents_of(smooth(8))
    if change is not None:
        change(loops[2])
    return loops


def test_a_trial_that_has_begun_goes_on_by_itself() -> None:
    loops, alone = companions(lambda loop: loop.run(3)), companions()
    run_descents(loops, 8, batched=True)
    assert [isinstance(loop.runner, TrialRunner) for loop in loops] == [True, True, False]
    assert_as_alone(loops, alone, 8)


def test_copies_of_a_model_are_one_but_other_weights_are_not() -> None:
    every = smooth(4)
    models = [copy.deepcopy(every[0][0].model) for _ in range(3)]
    with torch.no_grad():
        next(models[2].parameters()).mul_(1.01)
    every = [(replace(p, model=m), d, s) for (p, d, s), m in zip(every, models, strict=True)]
    together = descents_of(every)
    run_descents(together, 4, batched=True)
    assert [isinstance(loop.runner, TrialRunner) for loop in together] == [True, True, False]
    assert_as_alone(together, descents_of(every), 4)


def test_what_does_not_fit_together_runs_one_after_the_other(monkeypatch: Any) -> None:
    def full(starts: object) -> None:
        raise torch.OutOfMemoryError("no memory for all of them")

    monkeypatch.setattr("vleak.descent.scheduler.make_batch", full)
    loops, alone = companions(), companions()
    run_descents(loops, 8, batched=True)
    assert_as_alone(loops, alone, 8)


def test_what_cannot_be_mapped_runs_one_after_the_other(monkeypatch: Any) -> None:
    monkeypatch.setattr("vleak.descent.scheduler.make_batch", lambda starts: None)
    loops, alone = companions(), companions()
    run_descents(loops, 8, batched=True)
    assert not any(isinstance(loop.runner, TrialRunner) for loop in loops)
    assert_as_alone(loops, alone, 8)


def test_the_reference_engine_is_never_batched() -> None:
    problem = problems(build(Smooth))[0]
    loops = [Descent(problem, make_settings(problem, 2), start, engine="reference") for start in starts()]
    run_descents(loops, 2, batched=True)
    assert not any(isinstance(loop.runner, TrialRunner) for loop in loops)
    assert [len(loop.state.history) for loop in loops] == [2, 2, 2]


def test_many_trials_become_several_batches(monkeypatch: Any) -> None:
    monkeypatch.setattr("vleak.descent.scheduler._BATCH_SIZE", 2)
    loops = companions()
    run_descents(loops, 2, batched=True)
    assert [isinstance(loop.runner, TrialRunner) for loop in loops] == [True, True, False]


# ---- groups: the descents of several attacks


def groups_of(descents: Sequence[Descent], iterations: int = 6, **second: Any) -> tuple[Group, Group, Group]:
    """Return a group for each of three descents; the second one with further settings."""
    one, two, three = descents
    return Group([one], iterations), Group([two], iterations, **second), Group([three], iterations)


def copies() -> list[Descent]:
    """Return three descents, each on a copy of the model, as attacks on three clips have them."""
    return descents_of([(replace(p, model=copy.deepcopy(p.model)), d, start) for p, d, start in smooth(6)])


def test_groups_become_one_batch_with_the_numbers_of_their_runs_alone() -> None:
    descents = copies()
    run_groups(groups_of(descents), batched=True)
    assert len({id(batch_of(descent)) for descent in descents}) == 1
    assert_as_alone(descents, copies(), 6)


def test_on_a_cpu_groups_run_by_themselves() -> None:
    descents = copies()
    run_groups(groups_of(descents))
    for descent, alone in zip(descents, copies(), strict=True):
        assert not isinstance(descent.runner, TrialRunner)
        assert torch.equal(descent.state.x, alone.run(6).x)


@batched
def test_what_fails_in_one_group_is_kept_there(batched: bool) -> None:
    def fail(done: int) -> None:
        raise RuntimeError(f"no room for {done}")

    descents, alone = copies(), copies()
    groups = groups_of(descents, progress=fail, every=2)
    run_groups(groups, batched=batched)
    assert [str(group.error) for group in groups] == ["None", "no room for 2", "None"]
    assert len(descents[1].state.history) == 2
    assert_as_alone(descents[::2], alone[::2], 6)


def test_an_operator_that_fails_in_one_group_ends_that_one(monkeypatch: Any) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    descents = copies()
    descents[0].run(1)  # so that it goes on by itself
    monkeypatch.setattr(descents[0].runner, "run", fail, raising=False)
    groups = groups_of(descents, 5)
    run_groups(groups, batched=True)
    assert [str(group.error) for group in groups] == ["out of luck", "None", "None"]
    assert_as_alone(descents[1:], copies()[1:], 5)


@batched
def test_each_group_is_stopped_by_its_own(batched: bool) -> None:
    descents, asked = copies(), []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    run_groups(groups_of(descents, stop=stop, every=1), batched=batched)
    assert [len(descent.state.history) for descent in descents] == [6, 2, 6]
    assert_alike(run_descents(descents[1:2], 4)[0], copies()[1].run(6))  # and taken up again


@batched
def test_ctrl_c_ends_all_groups_and_loses_no_iteration(batched: bool) -> None:
    def press(done: int) -> None:
        raise KeyboardInterrupt

    descents = copies()
    with pytest.raises(KeyboardInterrupt):
        run_groups(groups_of(descents, progress=press, every=2), batched=batched, workers=1)
    assert len(descents[1].state.history) == 2
    run_groups(groups_of(descents, 4), batched=batched)
    assert_alike(descents[1].state, copies()[1].run(6))


@pytest.mark.slow
def test_restarts_of_an_attack_run_batched_answer_as_alone(monkeypatch: Any) -> None:
    model = build(Smooth)
    clip, label = draw(1, "clip"), torch.tensor([1])
    update = Client(model).update(clip, label, generator(1))
    knowledge = Knowledge(clip_shape=(3, 4, 8, 8), batch_size=1, classes=6, labels=label)
    observation = Observation(model, update, knowledge)
    attack = Matching(iterations=8, restarts=2, coarse=1)
    alone = attack.reconstruct(observation, generator(1, "attack"))
    batched = partial(run_descents, batched=True)
    monkeypatch.setattr("vleak.attacks.base.run_descents", batched)
    together = attack.reconstruct(observation, generator(1, "attack"))
    torch.testing.assert_close(together.clips, alone.clips, rtol=1e-3, atol=1e-3)
    assert together.iterations == alone.iterations == 16
