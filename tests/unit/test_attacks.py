"""Attacks: they attack, they never see the truth, and they use what they are told."""

from __future__ import annotations

import ast
import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Conv, Residual, build
from torch import Tensor, nn

from vleak import attacks
from vleak.attacks import (
    ATTACKS,
    NULL_ATTACKS,
    Attack,
    Grey,
    Knowledge,
    Matching,
    MatchingBlind,
    Observation,
    PublicMean,
    Reconstruction,
    answerable,
    infer_labels,
    inverter,
    matching,
    order,
    priors,
)
from vleak.attacks.adaptive import Channel, observe_channel
from vleak.attacks.linkage import link_rank, link_scores
from vleak.attacks.matching import NEAR_ZERO, NOT_A_NUMBER, NOT_FALLING, STILL_FALLING, health
from vleak.data import ClipSet, load_clips
from vleak.defenses import DEFENSES, Compress, DpSgd, Prune
from vleak.descent.loop import Descent, State
from vleak.errors import InputError
from vleak.federated import Client, Defense, Update, client
from vleak.models import MODELS, build_model
from vleak.seeds import generator

FRAMES, SIZE, CLASSES = 4, 16, 6
SHAPE = (3, FRAMES, SIZE, SIZE)

models = pytest.mark.parametrize("name", MODELS)
every_attack = pytest.mark.parametrize("attack", [a for a in ATTACKS if "frames" in ATTACKS[a].takes])
matchings = pytest.mark.parametrize("attack", ["matching", "matching_blind"])
EVERY_DEFENSE = [
    defense for name in DEFENSES for defense in (DEFENSES[name].sweep()[0], DEFENSES[name].sweep()[-1])
]


@cache
def scene(clips: int = 8, frames: int = FRAMES, size: int = SIZE, public: int = 12) -> ClipSet:
    return load_clips("synthetic", clips=clips, frames=frames, size=size, seed=5, public=public)


@cache
def built_in(name: str, seed: int = 0, frames: int = FRAMES, size: int = SIZE) -> nn.Module:
    return build_model(name, frames=frames, size=size, classes=CLASSES, seed=seed)


def send(
    model: nn.Module, clips: Tensor, labels: Tensor, defense: Defense = Defense(), *seed: object
) -> Update:
    return Client(model, defense=defense).update(clips, labels, generator("send", *seed))


def observe(
    model: nn.Module,
    clips: Tensor,
    classes: Tensor,
    defense: Defense = Defense(),
    *,
    told: bool = True,
    **known: Any,
) -> Observation:
    """Let a client send its update, and return what a server that is told of the defense has."""
    telling = {"defense": defense.name, "defense_settings": defense.settings()} if told else {}
    settings = {"public_clips": scene().public_clips, **telling, **known}
    knowledge = Knowledge(
        clip_shape=tuple(clips.shape[1:]), batch_size=len(clips), classes=CLASSES, **settings
    )
    return Observation(model, send(model, clips, classes, defense), knowledge)


def observe_clip(index: int = 0, name: str = "c3d_tiny", seed: int = 0, **known: Any) -> Observation:
    return observe(
        built_in(name, seed), scene().clips[index : index + 1], scene().labels[index : index + 1], **known
    )


def psnr(answer: Tensor, truth: Tensor) -> float:
    return -10 * math.log10(float((answer - truth).square().mean()))


def run(attack: Attack, observation: Observation, *seed: object, **hooks: Any) -> Reconstruction:
    return attack.reconstruct(observation, generator("attack", *seed), **hooks)


def best_null(observation: Observation, truth: Tensor) -> float:
    names = answerable(observation.knowledge)
    return max(psnr(run(NULL_ATTACKS[name](), observation).clips, truth) for name in names)


def same_answer(first: Reconstruction, second: Reconstruction) -> bool:
    """Tell whether two answers are the same to the last bit, the wall time aside."""
    rest = [dataclasses.replace(a, clips=None, labels=None, seconds=0.0) for a in (first, second)]
    return (
        torch.equal(first.clips, second.clips)
        and torch.equal(first.labels, second.labels)
        and repr(rest[0]) == repr(rest[1])
    )


# ---- attacks attack


@matchings
@models
def test_attack_moves_its_data_and_beats_every_null_attacker(attack: str, name: str) -> None:
    for seed in range(3):
        observation, truth = observe_clip(seed, name, seed), scene().clips[seed : seed + 1]
        first, last = (run(ATTACKS[attack](iterations=i), observation, seed) for i in (1, 60))
        assert (first.clips - last.clips).abs().mean() > 0.02
        assert last.objective < 0.5 * first.objective
        assert psnr(last.clips, truth) > best_null(observation, truth) + 1
        assert last.labels.tolist() == scene().labels[seed : seed + 1].tolist()


@matchings
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_answer_is_complete(attack: str, engine: str) -> None:
    answer = run(ATTACKS[attack](iterations=7, restarts=2, engine=engine), observe_clip())
    assert answer.clips.shape == (1, *SHAPE)
    assert answer.clips.dtype == torch.float32
    assert ((answer.clips >= 0) & (answer.clips <= 1)).all()
    assert (answer.engine, answer.iterations, answer.restarts) == (engine, 14, 2)
    assert len(answer.history) == 7
    assert answer.objective == min(answer.history)
    assert answer.seconds > 0


def test_batch_is_rebuilt_clip_by_clip() -> None:
    clips, labels = scene().clips[:2], torch.tensor([1, 4])
    observation = observe(built_in("c3d_tiny"), clips, labels, labels=labels)
    answer = run(Matching(iterations=80), observation)
    assert answer.clips.shape == clips.shape
    gaps = torch.stack([(answer.clips - clip).square().mean((1, 2, 3, 4)) for clip in clips])
    assert gaps[0, 0] < gaps[1, 0]
    assert gaps[1, 1] < gaps[0, 1]


@pytest.mark.parametrize("settings", [{"distance": "l2"}, {"rule": "sign_adam", "schedule": "steps"}])
def test_every_setting_attacks(settings: dict[str, Any]) -> None:
    observation, truth = observe_clip(), scene().clips[:1]
    answer = run(Matching(iterations=60, **settings), observation)
    assert psnr(answer.clips, truth) > best_null(observation, truth) + 1


@every_attack
def test_determinism_by_generator_alone(attack: str) -> None:
    observation, made = observe_clip(), ATTACKS[attack](iterations=5, restarts=2)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = run(made, observation, 0)
    assert same_answer(first, run(made, observation, 0))
    if first.iterations:  # without a descent there is nothing to draw
        assert not torch.equal(first.clips, run(made, observation, 1).clips)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())


@matchings
def test_restarts_side_by_side_are_restarts_one_after_the_other(
    attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, answers = ATTACKS[attack](iterations=8, restarts=4), []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        answers.append(run(made, observe_clip()))
    assert same_answer(*answers)
    assert answers[0].iterations == 32


@matchings
def test_progress_counts_all_restarts_and_stop_ends_them(
    attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # so that they run one after the other
    made, seen = ATTACKS[attack](iterations=14, restarts=3), []
    run(made, observe_clip(), progress=seen.append)
    assert seen == [10, 14, 24, 28, 38, 42]
    seen.clear()
    answer = run(made, observe_clip(), progress=seen.append, stop=lambda: len(seen) == 3)
    assert seen == [10, 14, 24]
    assert (answer.iterations, answer.restarts) == (24, 2)
    assert answer.clips.shape == (1, *SHAPE)
    answer = run(made, observe_clip(), stop=lambda: True)
    assert (answer.iterations, answer.restarts, len(answer.history)) == (0, 0, 0)
    assert math.isnan(answer.objective)
    assert torch.isfinite(answer.clips).all()


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"restarts": 0}])
def test_no_iterations_or_restarts_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Matching(**settings)


def test_attention_needs_nothing_from_the_caller() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3 * 8 * 8, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 5)

        def forward(self, clips: Tensor) -> Tensor:
            return self.head(self.layer(self.embed(clips.transpose(1, 2).flatten(2))).mean(1))

    clips = torch.rand(1, 3, 4, 8, 8, generator=generator("clips"))
    observation = observe(build(Attends).eval(), clips, torch.tensor([2]), public_clips=None)
    assert len(run(Matching(iterations=3), observation).history) == 3


def test_mode_of_the_client_is_the_mode_of_the_attack_and_the_model_stays_as_it_is() -> None:
    clips, labels = torch.rand(2, 3, 4, 8, 8, generator=generator("clips")), torch.tensor([2, 4])
    objectives = {}
    for client_mode in ("eval", "train"):
        for own in ("eval", "train", "mixed"):
            model = build(lambda: Residual(nn.BatchNorm3d)).train(own == "train")
            model.norm.train(own != "eval")
            update = Client(model, mode=client_mode).update(clips, labels, generator(0))
            before = {name: value.clone() for name, value in model.state_dict().items()}
            flags = [module.training for module in model.modules()]
            knowledge = Knowledge(clip_shape=tuple(clips.shape[1:]), batch_size=2, classes=5)
            answer = run(Matching(iterations=3), Observation(model, update, knowledge))
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            assert flags == [module.training for module in model.modules()]
            objectives[client_mode, own] = answer.objective
    assert len({objectives["eval", own] for own in ("eval", "train", "mixed")}) == 1
    assert len({objectives["train", own] for own in ("eval", "train", "mixed")}) == 1
    assert objectives["eval", "eval"] != objectives["train", "eval"]


# ---- null attackers


def test_null_attackers_say_what_they_promise_whatever_the_update() -> None:
    granted = torch.tensor([3])
    references = torch.rand(1, 3, 2, SIZE, SIZE, generator=generator("references"))
    for null in map(NULL_ATTACKS.__getitem__, NULL_ATTACKS):
        answers = [
            run(null(), observe_clip(index, labels=granted, references=references)) for index in (0, 1)
        ]
        assert same_answer(*answers)
        assert (answers[0].engine, answers[0].iterations, answers[0].adaptive) == ("none", 0, False)
        assert math.isnan(answers[0].objective)
        assert answers[0].labels.tolist() == [3]
    assert (run(Grey(), observe_clip()).clips == 0.5).all()
    expected = scene().public_clips.mean(0, keepdim=True)
    torch.testing.assert_close(run(PublicMean(), observe_clip()).clips, expected)
    assert run(Grey(), observe_clip()).labels.tolist() == [0]


@pytest.mark.parametrize("public", [None, torch.empty(0, *SHAPE)], ids=["none", "empty"])
def test_without_public_clips_there_is_no_mean_and_the_attack_starts_from_grey(public: Tensor | None) -> None:
    observation = observe_clip(public_clips=public)
    with pytest.raises(InputError, match="public clips"):
        run(PublicMean(), observation)
    start = run(Matching(iterations=1), observation).clips
    assert (start - 0.5).abs().max() <= 0.1
    assert abs(start.mean() - 0.5) < 0.01


# ---- the truth is out of reach


def reachable(root: object) -> Iterator[Tensor]:
    """Yield every tensor that can be had from an object: attributes, containers, closures, autograd."""
    seen: set[int] = set()
    queue = [root]
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, (str, bytes, int, float, type, type(None))):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
            queue += [item.grad if item.is_leaf else None, item._base, item.grad_fn]
        elif isinstance(item, np.ndarray):
            yield torch.from_numpy(item)
        elif isinstance(item, dict):
            queue += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            queue += item
        elif isinstance(item, partial):
            queue += [item.func, item.args, item.keywords]
        else:
            if type(item).__module__.startswith("torch.autograd") or "Backward" in type(item).__name__:
                queue += [getattr(item, name) for name in dir(item) if name.startswith("_saved")]
                queue += [following for following, _ in getattr(item, "next_functions", ())]
            queue += [cell.cell_contents for cell in getattr(item, "__closure__", None) or ()]
            queue += [getattr(item, "__self__", None), getattr(item, "__defaults__", None)]
            queue.append(getattr(item, "__dict__", None))
            queue += [getattr(item, name, None) for name in getattr(type(item), "__slots__", ())]


def holds(tensor: Tensor, truth: Tensor) -> bool:
    """Tell whether a tensor holds the truth, in another shape or precision too, or shares its memory."""
    if tensor.untyped_storage().data_ptr() == truth.untyped_storage().data_ptr():
        return True
    flat = tensor.detach().flatten().double()
    return flat.numel() == truth.numel() and torch.allclose(flat, truth.flatten().double(), atol=1e-3)


def leaks(observation: Observation, truth: Tensor) -> bool:
    return any(holds(tensor, truth) for tensor in reachable(observation))


@pytest.mark.parametrize("defense", EVERY_DEFENSE, ids=repr)
@models
def test_the_truth_cannot_be_reached_from_an_observation(name: str, defense: Defense) -> None:
    truth = scene().clips[:1].clone()
    observation = observe(built_in(name), truth, scene().labels[:1], defense)
    assert not leaks(observation, truth)
    assert len(list(reachable(observation))) > len(observation.update.tensors)


def test_the_search_for_the_truth_finds_it_where_it_is_planted() -> None:
    truth = scene().clips[:1].clone()
    clean = observe(
        build_model("lrcn", frames=FRAMES, size=SIZE, classes=CLASSES, seed=0), truth, scene().labels[:1]
    )
    assert not leaks(clean, truth)
    tensors, facts = clean.update.tensors, clean.update.facts
    saved = (truth.clone().requires_grad_() ** 2).sum()
    for planted in (
        dataclasses.replace(clean, update=Update(tensors, 0, [truth.flatten()])),
        dataclasses.replace(clean, update=Update(tensors, 0, lambda: truth)),
        dataclasses.replace(clean, update=Update({**tensors, "head.bias": saved}, 0, facts)),
        dataclasses.replace(clean, update=Update({**tensors, "head.bias": truth[0, 0, 0, 0]}, 0, facts)),
        dataclasses.replace(clean, knowledge=dataclasses.replace(clean.knowledge, public_clips=truth.half())),
    ):
        assert leaks(planted, truth)
    clean.model.features[0].register_buffer("last_input", truth.clone())
    assert leaks(clean, truth)


class ForgetsTheEnd(nn.Module):
    """A model that never looks at the last frame, so that many truths have one update."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Conv()

    def forward(self, clips: Tensor) -> Tensor:
        return self.body(torch.cat([clips[:, :, :-1], torch.zeros_like(clips[:, :, -1:])], dim=2))


@every_attack
@pytest.mark.parametrize("defense", EVERY_DEFENSE, ids=repr)
def test_the_answer_stays_when_the_truth_changes_and_the_observation_does_not(
    attack: str, defense: Defense
) -> None:
    model, truth = build(ForgetsTheEnd).eval(), torch.rand(1, 3, 4, 8, 8, generator=generator("truth"))
    other = truth.clone()
    other[:, :, -1] = 1 - other[:, :, -1]
    answers = []
    for clips in (truth, other):
        public = torch.rand(3, 3, 4, 8, 8, generator=generator("public"))
        observation = observe(model, clips, torch.tensor([3]), defense, public_clips=public)
        answers.append(run(ATTACKS[attack](iterations=6, restarts=2), observation))
        # Whoever kept the clip itself would from now on see another one.
        clips.fill_(0.25)
        answers.append(run(ATTACKS[attack](iterations=6, restarts=2), observation))
    assert all(same_answer(answers[0], answer) for answer in answers[1:])


@pytest.mark.parametrize("truth_first", [True, False])
def test_the_smallest_objective_is_chosen_even_if_another_restart_is_the_truth(
    truth_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    observation, truth = observe_clip(), scene().clips[:1]
    wrong = 1 - truth
    states = [
        State(truth, truth, best_objective=0.2, history=[1.0, 0.2]),
        State(wrong, wrong, best_objective=0.1, history=[1.0, 0.1]),
        State(wrong, wrong * 0.5, best_objective=0.3, history=[1.0, 0.3]),
    ]
    queue = iter(states if truth_first else [*states[1:], states[0]])

    class Planted:
        engine = "native"

        def __init__(self, *_: object, **__: object) -> None:
            self.state = next(queue)

        def run(self, *_: object, **__: object) -> State:
            return self.state

    monkeypatch.setattr(matching, "Descent", Planted)
    answer = run(Matching(iterations=2, restarts=3), observation)
    assert torch.equal(answer.clips, wrong)
    assert (answer.objective, answer.history) == (0.1, (1.0, 0.1))


def test_restarts_start_apart_and_the_best_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Tensor, Descent]] = []

    def spy(problem: Any, descent: Any, start: Tensor, **options: Any) -> Descent:
        made.append((start, Descent(problem, descent, start, **options)))
        return made[-1][1]

    monkeypatch.setattr(matching, "Descent", spy)
    answer = run(Matching(iterations=10, restarts=3), observe_clip())
    starts, objectives = [start for start, _ in made], [loop.state.best_objective for _, loop in made]
    assert all((a - b).abs().max() > 0.1 for a, b in pairwise(starts))
    assert len(set(objectives)) == 3
    assert answer.objective == min(objectives)
    assert torch.equal(answer.clips, made[objectives.index(min(objectives))][1].state.best)


def imports(path: Path) -> set[str]:
    """Return every vleak module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} has a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("vleak")}


def test_attacks_import_nothing_that_holds_the_truth() -> None:
    folder = Path(attacks.__file__).parent
    seen, queue = set(), [f"vleak.attacks.{path.stem}" for path in folder.glob("*.py")]
    while queue:
        name = queue.pop()
        path = folder.parent.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not path.is_file() or name == "vleak":
            continue
        seen.add(name)
        queue += imports(path)
    assert "vleak.descent.loop" in seen
    for name in seen:
        assert not name.startswith(("vleak.data", "vleak.metrics", "vleak.evaluation", "vleak.report")), name


# ---- labels


@models
def test_label_of_one_clip_is_exact(name: str) -> None:
    for seed in range(3):
        for label in range(CLASSES):
            observation = observe(
                built_in(name, seed), scene().clips[label : label + 1], torch.tensor([label])
            )
            assert infer_labels(observation).tolist() == [label]


@models
@pytest.mark.parametrize(
    "labels", [[0, 1], [3, 3], [0, 0, 3], [1, 1, 1, 4], [4] * 8, [2, 5, 5, 0, 0, 0, 1, 3]]
)
@pytest.mark.parametrize("public", [True, False])
def test_labels_of_a_batch_are_counted_on_an_untrained_model(
    name: str, labels: list[int], public: bool
) -> None:
    for seed in range(2):
        known = {} if public else {"public_clips": None}
        observation = observe(
            built_in(name, seed), scene().clips[: len(labels)], torch.tensor(labels), **known
        )
        assert infer_labels(observation).tolist() == sorted(labels)


class Head(nn.Module):
    """A head on features of either sign, or on positive ones; with normalisation as wide as the classes."""

    def __init__(self, outputs: int = CLASSES, *, bias: bool, positive: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, CLASSES, 3, padding=1)
        self.norm = nn.GroupNorm(2, CLASSES)
        self.head = nn.Linear(CLASSES, outputs, bias=bias)
        self.squash = torch.relu if positive else torch.tanh

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.squash(self.norm(self.conv(clips))).mean((2, 3, 4)))


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_label_of_one_clip_with_and_without_a_bias(bias: bool, positive: bool) -> None:
    for sign in (1, -1):
        model = build(partial(Head, bias=bias, positive=positive))
        with torch.no_grad():
            model.norm.bias.fill_(sign * 0.3)
        for label in range(CLASSES):
            observation = observe(model, scene().clips[label : label + 1], torch.tensor([label]))
            assert infer_labels(observation).tolist() == [label], (sign, label)


class HeadFirst(Head):
    """The head is registered before layers that have a row a class too."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__(bias=bias, positive=True)
        self.conv, self.norm = self._modules.pop("conv"), self._modules.pop("norm")


@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layer_is_the_last_that_runs(bias: bool) -> None:
    model = build(partial(HeadFirst, bias=bias))
    assert list(dict(model.named_parameters()))[-1] == "norm.bias"
    for label in range(CLASSES):
        for clip in scene().clips[:, None]:
            assert infer_labels(observe(model, clip, torch.tensor([label]))).tolist() == [label]


def test_an_auxiliary_head_that_runs_last_is_not_the_last_layer() -> None:
    class Auxiliary(Head):
        def __init__(self) -> None:
            super().__init__(bias=True, positive=True)
            self.aside = nn.Linear(CLASSES, CLASSES)

        def forward(self, clips: Tensor) -> Tensor:
            logits = super().forward(clips)
            self.aside(logits)
            return logits

    model = build(Auxiliary)
    for label in range(CLASSES):
        assert infer_labels(observe(model, scene().clips[:1], torch.tensor([label]))).tolist() == [label]


def test_labels_of_a_batch_without_a_bias() -> None:
    model = build(partial(Head, bias=False, positive=True))
    observation = observe(model, scene().clips[:4], torch.tensor([1, 1, 5, 1]))
    assert infer_labels(observation).tolist() == [1, 1, 1, 5]


def test_label_stays_below_the_classes_of_the_data() -> None:
    model = build(partial(Head, 40, bias=True, positive=True))
    for label in range(CLASSES):
        observation = observe(model, scene().clips[:1], torch.tensor([label]))
        assert infer_labels(observation).tolist() == [label]
        batch = observe(model, scene().clips[:3], torch.tensor([label] * 3))
        assert infer_labels(batch).tolist() == [label] * 3


def test_without_a_row_for_every_class_the_label_is_zero() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, clips: Tensor) -> Tensor:
            return self.scale * clips.flatten(1)[:, :CLASSES]

    observation = observe(Scaled(), scene().clips[:2], torch.tensor([3, 4]))
    assert infer_labels(observation).tolist() == [0, 0]


@matchings
def test_granted_labels_are_used_and_inferred_ones_where_none_are_granted(attack: str) -> None:
    made, right = ATTACKS[attack](iterations=5), scene().labels[:1]
    inferred = run(made, observe_clip())
    granted = run(made, observe_clip(labels=right))
    wrong = run(made, observe_clip(labels=(right + 1) % CLASSES))
    assert same_answer(inferred, granted)
    assert wrong.labels.tolist() == ((right + 1) % CLASSES).tolist()
    assert wrong.objective > 2 * granted.objective


# ---- knowing the defense


def flat(update: Update) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in update.tensors.values()])


def knowledge_of(defense: Defense, batch_size: int = 1) -> Knowledge:
    return Knowledge(
        clip_shape=SHAPE,
        batch_size=batch_size,
        classes=CLASSES,
        defense=defense.name,
        defense_settings=defense.settings(),
    )


@pytest.mark.parametrize("defense", EVERY_DEFENSE, ids=repr)
def test_attacker_who_is_not_told_has_a_plain_channel(defense: Defense) -> None:
    observation = observe_clip(defense=defense, told=False)
    assert observe_channel(observation.update, observation.knowledge) == Channel()
    assert not run(Matching(iterations=1), observation).adaptive
    told = observe_clip(defense=defense)
    assert run(Matching(iterations=1), told).adaptive


@pytest.mark.parametrize("defense", EVERY_DEFENSE, ids=repr)
def test_blind_matching_is_matching_that_was_not_told(defense: Defense) -> None:
    untold = run(Matching(iterations=2), observe_clip(defense=defense, told=False))
    assert same_answer(run(MatchingBlind(iterations=2), observe_clip(defense=defense)), untold)


def test_plain_channel_asks_for_nothing() -> None:
    for channel in (Channel(), observe_channel(observe_clip().update, knowledge_of(Defense()))):
        assert (channel.masks, channel.noise_ratio) == (None, 0.0)
        assert (channel.smoothness, channel.prior_weight) == (1.0, 0.0)


@models
@pytest.mark.parametrize("noise", [0.0005, 0.002, 0.01])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_noise_ratio_under_dp_is_the_true_one(name: str, noise: float, batch_size: int) -> None:
    clips, labels = scene().clips[:batch_size], scene().labels[:batch_size]
    quiet, loud = (DpSgd(noise_multiplier=n, max_grad_norm=0.5) for n in (0.0, noise))
    signal, sent = (flat(send(built_in(name), clips, labels, defense)) for defense in (quiet, loud))
    true = float((sent - signal).norm() / signal.norm())
    update = send(built_in(name), clips, labels, loud)
    assert 0.02 < true < 30
    assert observe_channel(update, knowledge_of(loud, batch_size)).noise_ratio == pytest.approx(
        true, rel=0.15
    )


def test_noise_ratio_under_dp_of_a_known_signal() -> None:
    signal = torch.zeros(40_000)
    signal[:4] = 0.5
    defense = DpSgd(noise_multiplier=0.02, max_grad_norm=1.0)
    for factor, expected in ((1.0, 4.0), (0.5, 2.0), (0.0, 0.0)):
        scaled = DpSgd(noise_multiplier=0.02 * factor, max_grad_norm=1.0)
        noise = factor * 0.02 * torch.randn(40_000, generator=generator("noise"))
        update = Update({"w": signal + noise}, 0)
        assert observe_channel(update, knowledge_of(scaled)).noise_ratio == pytest.approx(expected, rel=0.1)
    hopeless = Update({"w": 0.02 * torch.randn(40_000, generator=generator("noise"))}, 0)
    assert 5 < observe_channel(hopeless, knowledge_of(defense)).noise_ratio < math.inf


@models
def test_pruned_update_is_matched_where_it_survived(name: str) -> None:
    defense = Prune(fraction=0.9)
    observation = observe_clip(name=name, defense=defense)
    channel = observe_channel(observation.update, observation.knowledge)
    assert channel.masks is not None
    for key, tensor in observation.update.tensors.items():
        assert torch.equal(channel.masks[key], tensor != 0)
    kept = sum(int(mask.sum()) for mask in channel.masks.values())
    assert kept == pytest.approx(0.1 * flat(observation.update).numel(), rel=0.01)
    told, untold = (
        run(Matching(iterations=3), observe_clip(name=name, defense=defense, told=t)) for t in (True, False)
    )
    assert not torch.equal(told.clips, untold.clips)


def test_rounding_to_int8_is_estimated_from_the_scales() -> None:
    gradient = {
        "a": torch.rand(30_000, generator=generator("a")) * 2 - 1,
        "b": 1e-3 * torch.rand(20_000, generator=generator("b")),
        "empty": torch.zeros(3),
    }
    defense = Compress(codec="int8")
    sent = Update(defense.transmit(gradient, generator(0)).tensors, 0)
    true = (flat(sent) - flat(Update(gradient, 0))).norm() / flat(sent).norm()
    assert observe_channel(sent, knowledge_of(defense)).noise_ratio == pytest.approx(float(true), rel=0.02)


@models
def test_rounding_to_int8_of_a_gradient_is_not_underestimated(name: str) -> None:
    defense = Compress(codec="int8")
    observation = observe_clip(name=name, defense=defense)
    plain = flat(observe_clip(name=name).update)
    true = float((flat(observation.update) - plain).norm() / plain.norm())
    # Entries far below a step lose less than the step's share, so the estimate may lie above.
    assert true < observe_channel(observation.update, observation.knowledge).noise_ratio < 2 * true


# At 2 bits the last bucket of c3d_tiny_pool, six entries with half of all energy, may arrive as zeros: its
# norm is lost then.
@pytest.mark.parametrize(
    ("name", "bits"),
    [(name, bits) for name in MODELS for bits in (2, 3, 4, 8) if (name, bits) != ("c3d_tiny_pool", 2)],
)
def test_noise_of_qsgd_is_estimated_from_what_arrived(name: str, bits: int) -> None:
    defense, data, model = Compress(codec="qsgd", bits=bits), scene(3, 8, 32, 24), built_in(name, 0, 8, 32)
    plain, sent = (send(model, data.clips[:1], data.labels[:1], d) for d in (Defense(), defense))
    true = float((flat(sent) - flat(plain)).norm() / flat(plain).norm())
    # The balance of energies is blurred by the largest entries, which matters where there is little noise.
    estimate = observe_channel(sent, knowledge_of(defense)).noise_ratio
    assert estimate == pytest.approx(true, rel=0.15, abs=0.1)


def test_noise_of_qsgd_on_even_entries() -> None:
    # No entry of the first buckets is rounded to one step, and the last bucket is not full.
    gradient = {"w": torch.cat([torch.full((4096,), 0.3), torch.tensor([0.5, -0.4])])}
    defense = Compress(codec="qsgd", bits=8, bucket=16)
    sent = Update(defense.transmit(gradient, generator(0)).tensors, 0)
    true = float((flat(sent) - gradient["w"]).norm() / gradient["w"].norm())
    assert 0.001 < true < 0.02
    assert observe_channel(sent, knowledge_of(defense)).noise_ratio == pytest.approx(true, abs=0.02)


def test_more_noise_means_more_prior() -> None:
    channels = [Channel(adaptive=True, noise_ratio=ratio) for ratio in (0.0, 0.01, 0.1, 0.5, 1.0, 3.0, 30.0)]
    for earlier, later in pairwise(channels):
        assert earlier.smoothness <= later.smoothness
        assert earlier.prior_weight < later.prior_weight
    assert channels[0].smoothness < channels[3].smoothness < math.inf


@pytest.mark.parametrize(("distance", "unit"), [("cosine", 1.0), ("l2", None)])
def test_channel_reaches_the_descent(
    distance: Any, unit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(matching, "Descent", lambda problem, descent, start, **_: made.append(descent) or Descent(  # noqa: E501
        problem, descent, start))  # fmt: skip
    defense = DpSgd(noise_multiplier=0.002)
    observation = observe_clip(defense=defense)
    attack = Matching(iterations=1, distance=distance)
    run(attack, observation)
    run(attack, observe_clip(defense=defense, told=False))
    channel = observe_channel(observation.update, observation.knowledge)
    unit = unit or float(flat(observation.update).square().sum())
    told, untold = made
    assert channel.smoothness > 1
    assert told.spatial == pytest.approx(unit * attack.spatial * channel.smoothness)
    assert told.temporal == pytest.approx(unit * attack.temporal * channel.smoothness)
    assert told.spatial > untold.spatial
    pull = channel.prior_weight / observation.knowledge.public_variance()
    assert told.prior_weight - untold.prior_weight == pytest.approx(unit * pull, rel=1e-4)


def test_public_variance_is_that_of_a_pixel_about_the_mean() -> None:
    def knowing(*levels: float) -> Knowledge:
        clips = torch.stack([torch.full((3, 2, 8, 8), level) for level in levels])
        return Knowledge(clip_shape=(3, 2, 8, 8), batch_size=1, classes=2, public_clips=clips)

    assert knowing(0.2, 0.6).public_variance() == pytest.approx(0.08)  # unbiased: 2 * 0.2^2
    assert knowing(0.5).public_variance() == pytest.approx(1 / 12)
    assert knowing(0.5, 0.5).public_variance() == pytest.approx(1e-6)


@pytest.mark.parametrize(
    "noise", [pytest.param(0.002, marks=pytest.mark.slow), 0.01, pytest.param(0.03, marks=pytest.mark.slow)]
)
def test_knowing_of_dp_is_no_disadvantage(noise: float) -> None:
    data, model = scene(3, 8, 32, 24), built_in("c3d_tiny", 0, 8, 32)
    gains = {True: 0.0, False: 0.0}
    for index in range(3):
        clip, label = data.clips[index : index + 1], data.labels[index : index + 1]
        for told in gains:
            observation = observe(
                model, clip, label, DpSgd(noise_multiplier=noise), told=told, public_clips=data.public_clips
            )
            gains[told] += psnr(run(Matching(iterations=50), observation, index).clips, clip) / 3
    assert gains[True] > gains[False] + 1


@pytest.mark.parametrize(
    ("name", "noise"),
    [
        *(("c3d_tiny", noise) for noise in (0.001, 0.003, 0.01)),
        pytest.param("lrcn", 0.001, marks=pytest.mark.slow),
        ("lrcn", 0.003),
        pytest.param("lrcn", 0.01, marks=pytest.mark.slow),
    ],
)
def test_knowing_of_dp_is_no_disadvantage_on_small_clips(name: str, noise: float) -> None:
    gains = {True: 0.0, False: 0.0}
    for index in range(4):
        for told in gains:
            observation = observe_clip(index, name, defense=DpSgd(noise_multiplier=noise), told=told)
            answer = run(Matching(iterations=60), observation, index)
            gains[told] += psnr(answer.clips, scene().clips[index : index + 1]) / 4
    assert gains[True] > gains[False] - 1


def test_more_pixels_an_entry_means_more_prior() -> None:
    few, many = (Channel(adaptive=True, noise_ratio=0.1, pixels=n, entries=10_000) for n in (1000, 8000))
    assert few.smoothness - 1 == pytest.approx((many.smoothness - 1) / 8)
    assert few.prior_weight == pytest.approx(many.prior_weight / 8)
    observation = observe_clip(defense=DpSgd(noise_multiplier=0.002))
    channel = observe_channel(observation.update, observation.knowledge)
    assert (channel.pixels, channel.entries) == (math.prod(SHAPE), flat(observation.update).numel())


# ---- health flags


def descent(*history: float, nan_at: int | None = None) -> State:
    x = torch.zeros(1)
    finite = [value for value in history if not math.isnan(value)]
    return State(x, x, min(finite, default=math.inf), list(history), nan_at)


FALLING = [1.0, 0.6, 0.4, 0.3, 0.25, 0.22, 0.21, 0.205, 0.201, 0.2]


@pytest.mark.parametrize(
    ("state", "flags"),
    [
        (descent(*FALLING), ()),
        (descent(*FALLING, 0.6, 0.7), ()),
        (descent(*FALLING[:4]), (STILL_FALLING,)),
        (descent(*[1 - 0.05 * i for i in range(20)]), (STILL_FALLING,)),
        # Much of the fall, but next to nothing of what is left.
        (descent(1.0, *[0.98] * 18, 0.975), ()),
        (descent(1.0, *[0.98] * 18, 0.965), (STILL_FALLING,)),
        (descent(1.0, 0.995, 0.992, 0.991), (NOT_FALLING,)),
        (descent(1.0, 1.5, 2.0), (NOT_FALLING,)),
        (descent(1.0), (NOT_FALLING,)),
        (descent(), (NOT_FALLING,)),
        (descent(1.0, 0.5, math.nan, nan_at=3), (NOT_A_NUMBER,)),
        (descent(math.nan, nan_at=1), (NOT_A_NUMBER,)),
    ],
)
def test_flags_of_known_histories(state: State, flags: tuple[str, ...]) -> None:
    assert health(state) == flags


def test_flags_are_about_the_full_resolution() -> None:
    """Coarse clips may have smaller objectives, which say nothing of whether the fine ones go on falling."""
    falling = [1 - 0.05 * i for i in range(1, 20)]
    coarse = descent(1.0, 0.01, *falling)
    assert health(dataclasses.replace(coarse, best_objective=falling[-1], begun=2)) == (STILL_FALLING,)
    settled = descent(1.0, 0.01, *FALLING[1:])
    assert health(dataclasses.replace(settled, best_objective=min(FALLING), begun=2)) == ()


def test_healthy_attack_raises_no_flag() -> None:
    assert run(Matching(iterations=120), observe_clip()).flags == ()


def test_attack_that_is_cut_short_says_so() -> None:
    assert run(Matching(iterations=4), observe_clip()).flags == (STILL_FALLING,)


def test_attack_that_finds_no_signal_says_so() -> None:
    assert run(Matching(iterations=5, learning_rate=0.0), observe_clip()).flags == (NOT_FALLING,)


def test_vanished_gradient_is_flagged_and_answered_with_the_prior() -> None:
    observation = observe_clip()
    nothing = {name: torch.zeros_like(tensor) for name, tensor in observation.update.tensors.items()}
    observation = dataclasses.replace(observation, update=Update(nothing, 0, observation.update.facts))
    answer = run(Matching(iterations=5), observation)
    assert answer.flags == (NEAR_ZERO,)
    assert torch.equal(answer.clips, run(PublicMean(), observation).clips)
    assert run(Matching(iterations=5), observe_clip()).flags != (NEAR_ZERO,)


class Logarithm(nn.Module):
    """Not a number below a brightness; the clips that a client has are above it."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.head = nn.Linear(3 * 4 * 8 * 8, 5)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head((clips - self.floor).log().flatten(1))


@pytest.mark.parametrize(("floor", "survives"), [(0.35, True), (0.5, False)])
def test_not_a_number_is_flagged_and_the_answer_is_finite(floor: float, survives: bool) -> None:
    model = build(partial(Logarithm, floor)).eval()
    clips = 0.55 + 0.4 * torch.rand(1, 3, 4, 8, 8, generator=generator("bright"))
    observation = observe(model, clips, torch.tensor([1]), labels=torch.tensor([1]), public_clips=None)
    answer = run(Matching(iterations=30, learning_rate=0.3), observation)
    assert answer.flags == (NOT_A_NUMBER,)
    assert torch.isfinite(answer.clips).all()
    assert math.isfinite(answer.objective) == survives
    assert math.isnan(answer.objective) != survives
    assert (len(answer.history) > 1) == survives


# ---- refusals


Change = Callable[[Observation], Observation]


def knowing(**changes: Any) -> Change:
    return lambda seen: dataclasses.replace(seen, knowledge=dataclasses.replace(seen.knowledge, **changes))


def receiving(tensors: Callable[[dict[str, Tensor]], dict[str, Tensor]], **facts: Any) -> Change:
    def change(seen: Observation) -> Observation:
        old = seen.update
        sent = Update(tensors(old.tensors), 0, dataclasses.replace(old.facts, **facts))
        return dataclasses.replace(seen, update=sent)

    return change


REFUSED: dict[str, tuple[Change, list[str]]] = {
    "another model": (
        lambda seen: dataclasses.replace(seen, model=built_in("lrcn")),
        ["update", "'features.0.weight'", "the model it was made with"],
    ),
    "a tensor missing": (
        receiving(lambda tensors: {k: v for k, v in tensors.items() if k != "head.bias"}),
        ["'head.bias'", "lacks"],
    ),
    "a tensor too many": (receiving(lambda tensors: {**tensors, "more": torch.zeros(1)}), ["'more'"]),
    "NaN": (
        receiving(lambda tensors: {**tensors, "head.bias": torch.full((6,), math.nan)}),
        ["'head.bias'", "NaN"],
    ),
    "an unknown loss": (receiving(dict, loss="hinge"), ["unknown loss", "'hinge'"]),
    "labels of another batch": (knowing(labels=torch.tensor([1, 2])), ["1 labels", "(2,)"]),
    "a label too large": (knowing(labels=torch.tensor([6])), ["labels", "0 to 5", "[6]"]),
    "a label below 0": (knowing(labels=torch.tensor([-1])), ["labels", "0 to 5", "[-1]"]),
    "another batch size": (knowing(batch_size=2), ["batch_size is 2", "tells of 1"]),
    "dp of unknown strength": (
        knowing(defense="dp", defense_settings={"noise_multiplier": 1.0}),
        ["'dp'", "with max_grad_norm;", "defense.settings()"],
    ),
    "compression of unknown kind": (knowing(defense="compress", defense_settings={}), ["with codec;"]),
    "compression of unknown strength": (
        knowing(defense="compress", defense_settings={"codec": "qsgd", "bits": 4}),
        ["with bucket;"],
    ),
    "no clip": (knowing(batch_size=0), ["positive", "(0, 3, 4, 16, 16)"]),
    "public clips of another size": (
        knowing(public_clips=torch.zeros(2, 3, 4, 8, 8)),
        ["public clips", "(3, 4, 16, 16)", "(2, 3, 4, 8, 8)"],
    ),
}


@every_attack
@pytest.mark.parametrize("case", REFUSED)
def test_observations_that_do_not_fit_are_refused(attack: str, case: str) -> None:
    change, words = REFUSED[case]
    with pytest.raises(InputError) as caught:
        run(ATTACKS[attack](iterations=2), change(observe_clip()))
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_losses_are_those_of_the_client() -> None:
    for module in (matching, priors, inverter, order):
        assert module.LOSSES is client.LOSSES
    assert set(client.LOSSES) == {"bce", "cross_entropy", "ranking"}


def test_attack_that_returns_another_shape_is_refused() -> None:
    class Short(Grey):
        def _reconstruct(self, observation: Observation, *rest: Any) -> Reconstruction:
            answer = super()._reconstruct(observation, *rest)
            return dataclasses.replace(answer, clips=answer.clips[0])

    with pytest.raises(InputError, match="grey"):
        run(Short(), observe_clip())


# ---- linkage


def candidates(name: str) -> list[list[Update]]:
    """Every clip under every label: who holds the clips does not hold their labels."""
    data, model = scene(), built_in(name)
    labels = torch.arange(len(data.classes))
    return [[send(model, clip[None], label[None]) for label in labels] for clip in data.clips]


def vector(*values: float) -> Update:
    return Update({"a": torch.tensor(values[:2]), "b": torch.tensor(values[2:])}, 0)


@models
@pytest.mark.parametrize(
    "defense", [Defense(), DpSgd.sweep()[0], Prune.sweep()[-1], Compress.sweep()[-1]], ids=repr
)
def test_linkage_is_exact_behind_weak_defenses(name: str, defense: Defense) -> None:
    data, known = scene(), candidates(name)
    for index in range(len(known)):
        update = send(built_in(name), data.clips[index][None], data.labels[index][None], defense, index)
        assert link_rank(link_scores(update, known, knowledge_of(defense)), index) == 1


def test_linkage_is_chance_when_the_noise_is_huge() -> None:
    known, hits, draws = candidates("c3d_tiny_pool"), 0, 240
    defense = DpSgd(noise_multiplier=1e3)
    for draw in range(draws):
        numbers, index = generator("huge", draw), draw % len(known)
        honest = known[index][int(scene().labels[index])].tensors
        noisy = {k: t + 1e3 * torch.randn(t.shape, generator=numbers) for k, t in honest.items()}
        hits += link_rank(link_scores(Update(noisy, 0), known, knowledge_of(defense)), index) == 1
    chance = 1 / len(known)
    assert abs(hits / draws - chance) < 4 * math.sqrt(chance * (1 - chance) / draws)


def test_rank_is_pessimistic() -> None:
    scores = torch.tensor([0.5, 0.9, 0.5, 0.1])
    assert [link_rank(scores, index) for index in range(4)] == [3, 1, 3, 4]
    assert link_rank(torch.zeros(5), 2) == 5
    assert link_rank(torch.tensor([1.0, math.nan, 0.0]), 0) == 3
    assert link_rank(torch.tensor([math.inf, 0.0]), 0) == 2


def test_under_dp_the_likelihood_ranks() -> None:
    sent = vector(0.9, 0.05, 0.0)
    aligned, long = vector(0.45, 0.025, 0.0), vector(3.0, 0.4, 0.0)
    scores = link_scores(sent, [[aligned], [long]], knowledge_of(DpSgd(max_grad_norm=1.0)))
    clipped = torch.tensor([3.0, 0.4]).double() / math.sqrt(9.16)
    expected = [-(0.45**2 + 0.025**2), -float((clipped - torch.tensor([0.9, 0.05])).square().sum())]
    assert scores.tolist() == pytest.approx(
        [(each + 0.8125) / 2 for each in expected], rel=1e-5
    )  # + |sent|^2
    assert [link_rank(scores, index) for index in (0, 1)] == [2, 1]
    # Without the defense the direction ranks, and there the other one is exact.
    plain = link_scores(sent, [[aligned], [long]], knowledge_of(Defense()))
    assert [link_rank(plain, index) for index in (0, 1)] == [1, 2]
    assert plain[0].item() == pytest.approx(1.0)


def test_labels_that_are_not_known_are_summed_over() -> None:
    sent, far, near = vector(1.0, 0.0, 0.0), vector(-1.0, 0.0, 0.0), vector(0.6, 0.8, 0.0)
    told = knowledge_of(DpSgd(noise_multiplier=1.0))
    scores = link_scores(sent, [[sent, far], [near, near]], told)
    one, other = math.log(math.exp(0.5) + math.exp(-1.5)), math.log(2 * math.exp(0.1))
    assert scores.tolist() == pytest.approx([one, other], rel=1e-5)
    plain = link_scores(sent, [[far, sent], [near, near]], knowledge_of(Defense()))
    assert plain.tolist() == pytest.approx([1.0, 0.6])


def test_pruned_entries_do_not_count() -> None:
    sent = vector(1.0, 0.0, 2.0)
    same, other = vector(1.0, 9.0, 2.0), vector(1.0, 0.0, 1.0)
    scores = link_scores(sent, [[same], [other]], knowledge_of(Prune(fraction=0.5)))
    assert scores[0].item() == pytest.approx(1.0)
    assert [link_rank(scores, index) for index in (0, 1)] == [1, 2]
    assert link_rank(link_scores(sent, [[same], [other]], knowledge_of(Defense())), 0) == 2


def test_linkage_goes_by_names_not_by_order() -> None:
    sent = vector(1.0, 2.0, 3.0, 4.0)
    swapped = Update(dict(reversed(sent.tensors.items())), 0)
    assert link_scores(sent, [[swapped]], knowledge_of(Defense())).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([], ["at least one update"]),
        ([vector(1.0, 2.0, 3.0), vector(1.0, 2.0, 3.0, 4.0)], ["candidate 1", "other tensors"]),
        ([Update({"c": torch.zeros(3)}, 0)], ["candidate 0", "other tensors"]),
    ],
    ids=["none", "another shape", "another model"],
)
def test_linkage_refuses_what_cannot_be_compared(others: list[Update], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        link_scores(vector(1.0, 2.0, 3.0), [[each] for each in others], knowledge_of(Defense()))
    assert all(word in str(caught.value) for word in words), caught.value
