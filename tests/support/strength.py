"""Strength of matching and of the default attack on small cases, and the table that the guard compares with.

    python tests/support/strength.py            measures every case and writes strength.json

Run it, on an idle machine or not, where a change of the attack is meant to change its figures, and say in the
commit what they were.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from planted_run import hallway
from torch import Tensor, nn

from vleak.attacks import (
    ATTACKS,
    BASELINES,
    Attack,
    Hooks,
    Knowledge,
    Observation,
    Reconstruction,
    Work,
    answerable,
)
from vleak.data import ClipSet, clip_set, load_clips
from vleak.defenses import parse_defenses
from vleak.descent.loop import Descent, DescentSettings
from vleak.federated import Client
from vleak.metrics import identification_rank, psnr
from vleak.models import build_model, train, training_steps
from vleak.seeds import generator

TABLE = Path(__file__).with_suffix(".json")
MATCHING, DEFAULT = "matching", "strongest"
"""Attacks that are guarded: the one that the strongest mostly runs, in detail, and the default."""
LOSS_DB = 0.5
"""Loss of gain that is too much."""
_SEED, _CANDIDATES, _PUBLIC = 4321, 8, 24


class Strength(NamedTuple):
    """Mean gain over the best baseline in dB, and clips recognised."""

    gain_db: float
    recognised: int


@dataclass(frozen=True)
class Case:
    """One small case: a defense, a model and its training state, and the first clips of a fixed scene.

    Attributes:
        name: in the table.
        defense: as on the command line.
        state: training state.
        clips: how many are attacked, each alone.
        frames, size: of the clips.
        room: whether all clips are of one room, whose mean says much; otherwise each has a scene of its own.
        attack: that is guarded by it.
        guards: what this case shows to be lost where it is taken away, a key of ``MUTATIONS``.
        quick: whether the quick tests run it.
    """

    name: str
    defense: str = "none"
    state: str = "untrained"
    clips: int = 4
    frames: int = 4
    size: int = 16
    room: bool = False
    attack: str = MATCHING
    guards: tuple[str, ...] = ()
    quick: bool = False


CASES = {
    case.name: case
    for case in (
        Case("quick", clips=2, guards=("strong pull",), quick=True),
        Case("undefended", frames=8, size=32, guards=("no coarse levels", "strong pull")),
        Case("early", state="early", guards=("strong pull",)),
        Case("dp", defense="dp:noise_multiplier=0.01", guards=("strong pull",)),
        Case("pruned", defense="prune:fraction=0.99"),
        Case("one room", room=True, guards=("strong pull",)),
        Case("one room, dp", defense="dp:noise_multiplier=0.3", room=True, guards=("weak pull",)),
        Case("default", clips=2, attack=DEFAULT),
        Case("default, dp", defense="dp:noise_multiplier=0.03", room=True, attack=DEFAULT),
        Case("default, rounded", defense="compress:codec=qsgd,bits=2", state="early", attack=DEFAULT),
        Case("one room, pruned", defense="prune:fraction=0.999", room=True, guards=("weak pull",)),
    )
}


def measure(case: Case, attack: Attack | None = None) -> Strength:
    """Return how much an attack gets out of a case, by default the one that is guarded."""
    data, gains, recognised = scene(case), list[float](), 0
    for index in range(case.clips):
        observation = observe(case, index)
        made = ATTACKS.build(case.attack) if attack is None else attack
        answer = made.reconstruct(observation, generator("strength", index)).clips[0]
        truth = data.clips[index]
        best = max(psnr(guess, truth) for guess in guesses(observation))
        gains.append(psnr(answer, truth) - best)
        recognised += identification_rank(answer, data.clips, index) == 1
    return Strength(round(sum(gains) / len(gains), 2), recognised)


def falls_short(found: Strength, expected: Strength) -> bool:
    """Return whether more than half a decibel or a recognition is lost."""
    return found.gain_db < expected.gain_db - LOSS_DB or found.recognised < expected.recognised


@cache
def scene(case: Case) -> ClipSet:
    given = {"clips": _CANDIDATES, "public": _PUBLIC}
    if not case.room:
        return load_clips("synthetic", frames=case.frames, size=case.size, seed=_SEED, **given)
    clips = hallway(_CANDIDATES + _PUBLIC, case.frames, case.size)
    clips = clips[torch.randperm(len(clips), generator=generator("strength", "room"))]
    labels = torch.arange(len(clips)) % 6
    return clip_set(
        clips[:_CANDIDATES], labels[:_CANDIDATES], public=clips[_CANDIDATES:],
        public_labels=labels[_CANDIDATES:],
    )  # fmt: skip


@cache
def network(case: Case) -> nn.Module:
    data = scene(case)
    model = build_model("c3d_tiny", frames=case.frames, size=case.size, classes=len(data.classes), seed=_SEED)
    steps, numbers = training_steps(case.state), generator("strength", case.state)
    train(model, data.public_clips, data.public_labels, steps, numbers)
    return model


def observe(case: Case, index: int) -> Observation:
    """Return what the server of an adaptive attacker has of one clip."""
    data, (defense,) = scene(case), parse_defenses(case.defense)
    client = Client(network(case), defense=defense)
    update = client.update(
        data.clips[index][None], data.labels[index][None], generator("strength", case.name, index)
    )
    knowledge = Knowledge(
        clip_shape=tuple(data.clips.shape[1:]), batch_size=1, classes=len(data.classes),
        public_clips=data.public_clips.clone(), public_groups=data.public_groups, simulate=client.update,
    )  # fmt: skip
    return Observation(client.model, update, knowledge, client.channel(update))


def guesses(observation: Observation) -> list[Tensor]:
    """Return the answers of the baselines."""
    names, unused = answerable(observation.knowledge), generator("unused")
    return [BASELINES.build(name).reconstruct(observation, unused).clips[0] for name in names]


class Altered(Attack):
    """An attack whose descents have other settings."""

    name = "altered"
    local_steps = several_rounds = True

    def __init__(self, inner: Attack, change: Callable[[DescentSettings], DescentSettings]) -> None:
        """Change the settings of every descent of an attack."""
        self._inner, self._change = inner, change

    def prepare(
        self, observation: Observation, generator: torch.Generator, hooks: Hooks
    ) -> Work | Reconstruction:
        """Return the work of the attack, altered."""
        return self._altered(self._inner.prepare(observation, generator, hooks))

    def finish(self, work: Work, hooks: Hooks) -> Work | Reconstruction:
        """Return what the attack makes of it, altered where it goes on."""
        return self._altered(self._inner.finish(work, hooks))

    def _altered(self, work: Work | Reconstruction) -> Work | Reconstruction:
        if not isinstance(work, Work):
            return work
        descents = [
            Descent(d.problem, self._change(d.settings), d.state.x, engine=d.engine) for d in work.descents
        ]
        return replace(work, descents=descents)


def weighed(factor: float) -> Attack:
    """Return the guarded attack with another weight of the pull towards the mean public clip."""
    return Altered(ATTACKS.build(MATCHING), lambda s: replace(s, prior_weight=s.prior_weight * factor))


MUTATIONS: dict[str, Callable[[], Attack]] = {
    "no coarse levels": lambda: ATTACKS.build(MATCHING, coarse=0),
    "strong pull": lambda: weighed(10.0),
    "weak pull": lambda: weighed(0.1),
}
"""What weakens the guarded attack, each in a way that a change of its code might."""


def table() -> dict[str, Strength]:
    """Return the figures that the guard compares with."""
    content = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: Strength(**figures) for name, figures in content.items()}


def write_table() -> None:
    """Measure every case and write the table."""
    found = {name: measure(case)._asdict() for name, case in CASES.items()}
    TABLE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_table()
