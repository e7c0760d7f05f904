"""Observations of tiny clips, and what the tests of attacks measure of the answers."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vleak.attacks import ATTACKS, BASELINES, Attack, Knowledge, Observation, Reconstruction, answerable
from vleak.data import ClipSet, load_clips
from vleak.defenses import DEFENSES, Defense, NoDefense
from vleak.federated import Client, Update, steps
from vleak.models import build_model
from vleak.seeds import generator

FRAMES, SIZE, CLASSES = 4, 16, 6
SHAPE = (3, FRAMES, SIZE, SIZE)
KINDS = [
    name for name in DEFENSES if name not in ("mixup", "secure_sum", "dp_hooks")
]  # refuse one clip, some models
STRONGEST = [DEFENSES[name].sweep()[-1] for name in KINDS]
WEAKEST = [DEFENSES[name].sweep()[0] for name in KINDS]


@cache
def scene(clips: int = 8, frames: int = FRAMES, size: int = SIZE, public: int = 12) -> ClipSet:
    return load_clips("synthetic", clips=clips, frames=frames, size=size, seed=5, public=public)


@cache
def built_in(name: str, seed: int = 0, frames: int = FRAMES, size: int = SIZE) -> nn.Module:
    return build_model(name, frames=frames, size=size, classes=CLASSES, seed=seed)


def send(
    model: nn.Module, clips: Tensor, labels: Tensor, defense: Defense = NoDefense(), *seed: object
) -> Update:
    defense = steps.with_public(defense, scene().public_clips, scene().public_labels)
    return Client(model, defense=defense).update(clips, labels, generator("send", *seed))


def observe(
    model: nn.Module,
    clips: Tensor,
    classes: Tensor,
    defense: Defense = NoDefense(),
    *,
    adaptive: bool = True,
    rehearse: bool = False,
    **known: Any,
) -> Observation:
    """Let a client send its update, and return what a server has.

    An adaptive one has the channel that the defense states, and on request the client's own code.
    """
    settings = {"public_clips": scene().public_clips, **known}
    public = settings["public_clips"]
    if public is not None:
        own = public is scene().public_clips
        labels = scene().public_labels if own else torch.zeros(len(public), dtype=torch.int64)
        defense = steps.with_public(defense, public, labels)
    client = Client(model, defense=defense)
    update = client.update(clips, classes, generator("send"))
    if adaptive and rehearse:
        settings["simulate"] = client.update
    knowledge = Knowledge(
        clip_shape=tuple(clips.shape[1:]), batch_size=len(clips), classes=CLASSES, **settings
    )
    return Observation(client.model, update, knowledge, client.channel(update) if adaptive else None)


def observe_clip(index: int = 0, name: str = "c3d_tiny", seed: int = 0, **known: Any) -> Observation:
    return observe(
        built_in(name, seed), scene().clips[index : index + 1], scene().labels[index : index + 1], **known
    )


def psnr(answer: Tensor, truth: Tensor) -> float:
    return -10 * math.log10(float((answer - truth).square().mean()))


def run(attack: Attack, observation: Observation, *seed: object, **hooks: Any) -> Reconstruction:
    return attack.reconstruct(observation, generator("attack", *seed), **hooks)


def short(name: str, iterations: int, restarts: int = 1, engine: str = "native") -> Attack:
    """Return an attack of so many iterations and restarts, which learns little, where it has any of these."""
    wanted = {"iterations": iterations, "restarts": restarts, "engine": engine, "steps": 60, "copies": 3}
    return ATTACKS.build(name, **{k: v for k, v in wanted.items() if k in ATTACKS.find(name).settings})


def best_baseline(observation: Observation, truth: Tensor) -> float:
    names = answerable(observation.knowledge)
    return max(psnr(run(BASELINES.build(name), observation).clips, truth) for name in names)


def same_answer(first: Reconstruction, second: Reconstruction) -> bool:
    """Tell whether two answers are the same to the last bit, the wall time aside."""
    rest = [dataclasses.replace(a, clips=None, labels=None, seconds=0.0) for a in (first, second)]
    return (
        torch.equal(first.clips, second.clips)
        and torch.equal(first.labels, second.labels)
        and repr(rest[0]) == repr(rest[1])
    )


def flat(update: Update) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in update.tensors.values()])


def gap_of(answer: Tensor, truth: Tensor) -> Tensor:
    """Return the mean squared gap of every rebuilt clip from every true one, (true, rebuilt)."""
    return torch.stack([(answer - clip).square().mean((1, 2, 3, 4)) for clip in truth])
