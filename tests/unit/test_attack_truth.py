"""The truth is out of reach of an attack, and no choice of its own looks at it."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacking import (
    CLASSES,
    FRAMES,
    SIZE,
    STRONGEST,
    WEAKEST,
    built_in,
    observe,
    observe_clip,
    run,
    same_answer,
    scene,
    short,
)
from tiny import Conv, build
from torch import Tensor, nn

from vleak import attacks
from vleak.attacks import Matching, Observation
from vleak.attacks.matching import matching
from vleak.defenses import Defense, DpSgd, DpVideo, NoDefense, OptimalNoise
from vleak.descent.loop import Descent, State
from vleak.federated import Update
from vleak.models import SMALL_MODELS, build_model
from vleak.seeds import generator

CASES = [
    *((name, NoDefense()) for name in SMALL_MODELS),
    *(("c3d_tiny", defense) for defense in (*WEAKEST[1:], *STRONGEST[1:])),
]
FRAME_ATTACKS = [
    "matching", "matching_blind", "deep_prior", "decoder", "inverter", "refinement", "retrieval"
]  # fmt: skip


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


@pytest.mark.parametrize(("name", "defense"), CASES, ids=repr)
def test_the_truth_cannot_be_reached_from_an_observation(name: str, defense: Defense) -> None:
    truth = scene().clips[:1].clone()
    observation = observe(built_in(name), truth, scene().labels[:1], defense, rehearse=True)
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


# Not behind windows, in which the last frame takes the place of earlier ones, nor behind noise that is spread
# by probes as long as the clip: there the last frame is in the observation.
CHANNELS = [defense for defense in STRONGEST if not isinstance(defense, DpVideo | OptimalNoise)]
# A channel is read before the descent, whatever runs it and how long; what the native engine sees, every
# attack shows.
ANSWERS = [("matching", defense, "reference") for defense in CHANNELS]
ANSWERS += [(attack, DpSgd.sweep()[0], "native") for attack in FRAME_ATTACKS]
ANSWERS += [pytest.param("matching", defense, "native", marks=pytest.mark.slow) for defense in CHANNELS]


@pytest.mark.parametrize(("attack", "defense", "engine"), ANSWERS, ids=repr)
def test_the_answer_stays_when_the_truth_changes_and_the_observation_does_not(
    attack: str, defense: Defense, engine: str
) -> None:
    made = short(attack, 6 if engine == "native" else 2, 2, engine)
    model, truth = build(ForgetsTheEnd).eval(), torch.rand(1, 3, 4, 8, 8, generator=generator("truth"))
    other = truth.clone()
    other[:, :, -1] = 1 - other[:, :, -1]
    answers = []
    for clips in (truth, other):
        public = torch.rand(3, 3, 4, 8, 8, generator=generator("public"))
        observation = observe(model, clips, torch.tensor([3]), defense, rehearse=True, public_clips=public)
        answers.append(run(made, observation))
    # Whoever kept the clip itself would from now on see another one.
    other.fill_(0.25)
    answers.append(run(made, observation))
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
    files = [path.relative_to(folder.parent).with_suffix("") for path in folder.rglob("*.py")]
    seen, queue = set(), [".".join(["vleak", *path.parts]) for path in files]
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
        assert not name.startswith(
            ("vleak.data", "vleak.metrics", "vleak.evaluation", "vleak.report", "vleak.defenses")
        ), name
