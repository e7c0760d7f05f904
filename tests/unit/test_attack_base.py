"""The base of attacks: settings, several reconstructions together, and attacks that break the contract."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from attacking import SHAPE, observe_clip, run, same_answer, scene

from vleak.attacks import (
    ATTACKS,
    Attack,
    Grey,
    Hooks,
    Matching,
    Observation,
    Reconstruction,
    Task,
    Work,
    reconstruct_all,
)
from vleak.descent.problem import RULES
from vleak.errors import InputError, VleakError
from vleak.seeds import generator


def task(attack: Attack, index: int = 0, **known: Any) -> Task:
    return Task(attack, observe_clip(index, **known), generator("attack", index))


# ---- several together


def test_together_is_as_alone_in_as_many_rounds_as_each_needs() -> None:
    frames = torch.rand(1, 3, 2, *SHAPE[2:], generator=generator("references"))
    attacks = [
        (Matching(iterations=4, engine="reference"), {}),
        (Matching(iterations=6, reference="mask", engine="reference"), {"references": frames}),
        (ATTACKS.build("decoder", iterations=4, steps=5, copies=1, engine="reference"), {}),
        (ATTACKS.build("inverter", copies=1), {}),
        (Grey(), {}),
    ]
    alone = [run(attack, observe_clip(i, **known), i) for i, (attack, known) in enumerate(attacks)]
    tasks = [task(attack, i, **known) for i, (attack, known) in enumerate(attacks)]
    for first, second in zip(alone, reconstruct_all(tasks), strict=True):
        assert isinstance(second, Reconstruction)
        assert same_answer(first, second)
        assert second.seconds > 0


class Failing(Attack):
    """Fails at a step of its own."""

    name: ClassVar[str] = "failing"

    def __init__(self, *, step: str = "prepare") -> None:
        self.step = step

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Work:
        if self.step == "prepare":
            raise ZeroDivisionError("prepare")
        return Matching(iterations=2).prepare(observation, generator, hooks)

    def finish(self, work: Work, hooks: Hooks) -> Work | Reconstruction:
        raise ZeroDivisionError("finish")


def test_what_fails_leaves_the_others_alone() -> None:
    def stop() -> bool:
        raise KeyError("stop")

    tasks = [task(Failing()), task(Matching(iterations=3)), task(Failing(step="finish"))]
    tasks.append(dataclasses.replace(task(Matching(iterations=3)), stop=stop))
    prepared, answer, finished, stopped = reconstruct_all(tasks)
    assert [str(error) for error in (prepared, finished)] == ["prepare", "finish"]
    assert isinstance(stopped, KeyError)
    assert isinstance(answer, Reconstruction)
    assert same_answer(answer, run(Matching(iterations=3), observe_clip(), 0))
    assert reconstruct_all([]) == []


def test_progress_goes_on_over_the_rounds_and_stop_ends_them() -> None:
    seen: list[int] = []
    attack = ATTACKS.build("decoder", iterations=24, restarts=2, steps=5, copies=1)
    run(attack, observe_clip(), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 48
    seen.clear()
    answer = run(attack, observe_clip(), progress=seen.append, stop=lambda: len(seen) == 1)
    assert answer.iterations == seen[-1] < 48
    assert torch.isfinite(answer.clips).all()


# ---- attacks from outside


class Answers(Attack):
    """Returns what a test wants."""

    name: ClassVar[str] = "answers"
    result: ClassVar[Any] = None

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Any:
        return self.result


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "attack 'answers' returned NoneType, expected a Reconstruction"),
        ({"clips": torch.zeros(*SHAPE)}, "attack 'answers' returned shape"),
        ({"clips": torch.full((1, *SHAPE), torch.nan)}, "attack 'answers' returned NaN or infinity"),
        ({"labels": torch.zeros(2, dtype=torch.long)}, "attack 'answers' returned labels of shape"),
        ({"labels": torch.zeros(1)}, "attack 'answers' returned labels of shape"),
    ],
)
def test_an_answer_that_is_none_is_refused_by_name(
    result: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"clips": torch.full((1, *SHAPE), 0.5), "labels": torch.zeros(1, dtype=torch.long)}
    monkeypatch.setattr(Answers, "result", result and Reconstruction(**{**answer, **result}))
    with pytest.raises(InputError, match=message):
        run(Answers(), observe_clip())
    refused, answer = reconstruct_all([task(Answers()), task(Grey())])
    assert isinstance(refused, InputError)
    assert isinstance(answer, Reconstruction)


def test_an_answer_of_the_attackers_own_tensors_is_copied_and_clamped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    public = scene().public_clips[:1] * 3 - 1
    monkeypatch.setattr(
        Answers, "result", Reconstruction(clips=public, labels=torch.zeros(1, dtype=torch.long))
    )
    answer = run(Answers(), observe_clip())
    assert answer.clips.data_ptr() != public.data_ptr()
    assert torch.equal(answer.clips, public.clamp(0, 1))


def test_an_attack_sees_labels_and_the_model_in_the_clients_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Observation] = []

    class Looks(Grey):
        baseline: ClassVar[bool] = False

        def prepare(self, observation: Observation, *rest: Any) -> Reconstruction:
            seen.append(observation)
            return super().prepare(observation, *rest)

    observation = observe_clip()
    run(Looks(), observation)
    assert observation.knowledge.labels is None
    assert seen[0].labels.tolist() == scene().labels[:1].tolist()
    assert not seen[0].model.training


# ---- settings


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_can_be_named(rule: str) -> None:
    attack = ATTACKS.build(f"matching:rule={rule},iterations=3,learning_rate=0.02,engine=reference")
    assert attack.settings()["rule"] == rule
    answer = run(attack, observe_clip())
    assert len(answer.history) == 3
    assert answer.objective < answer.history[0]


def test_every_setting_has_a_name_and_shows() -> None:
    for name in ATTACKS:
        attack = ATTACKS.build(name)
        assert attack.settings() == ATTACKS.find(name).settings
        assert all(f"{key}={value!r}" in repr(attack) for key, value in attack.settings().items())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("matching:rules=adam", ["setting of attack matching", "did you mean rule"]),
        ("matching:iterations=many", ["iterations takes a whole number"]),
        ("matching:reference=middle", ["unknown reference 'middle'"]),
        ("matching:iterations=0", ["at least 1"]),
        ("closed_form:iterations=3", ["closed_form has no settings"]),
    ],
)
def test_settings_that_are_wrong_are_refused(text: str, words: list[str]) -> None:
    with pytest.raises(VleakError) as caught:
        ATTACKS.build(text)
    assert all(word in str(caught.value) for word in words), caught.value


def test_threat_model_is_named() -> None:
    known = observe_clip(rehearse=True, labels=torch.tensor([1])).knowledge
    assert known.threat_model == "curious server with labels, public clips, the client's code"
    assert observe_clip(public_clips=None).knowledge.threat_model == "curious server"


# ---- what goes into a record


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective", torch.zeros(())),
        ("iterations", torch.ones(())),
        ("iterations", -1),
        ("flags", "one text"),
        ("flags", (1,)),
        ("engine", None),
    ],
)
def test_a_field_that_no_record_can_hold_is_refused(field: str, value: Any) -> None:
    class Odd(Grey):
        def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Any:
            return dataclasses.replace(super().prepare(observation, generator, hooks), **{field: value})

    with pytest.raises(InputError, match=rf"attack 'Odd' returned {field} of type"):
        run(Odd(), observe_clip(0))


@pytest.mark.parametrize("change", [{"descents": []}, {"descents": [object()]}, {"iterations": -1}])
def test_work_that_cannot_be_run_is_refused(change: dict[str, Any]) -> None:
    class Idle(Matching):
        def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Any:
            return dataclasses.replace(super().prepare(observation, generator, hooks), **change)

    first, second = reconstruct_all([task(Idle(iterations=2, engine="reference")), task(Grey())])
    assert isinstance(first, InputError)
    assert "attack 'Idle' returned Work of" in str(first)
    assert isinstance(second, Reconstruction)


def test_a_subclass_has_a_name_of_its_own() -> None:
    class Sharper(Matching):
        pass

    assert Sharper.name == "Sharper"
