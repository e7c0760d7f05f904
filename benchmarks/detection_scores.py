"""Updates that detection.py scores: clips behind defenses, and what the default attack then gets of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

from torch import nn

import vleak
from vleak.attacks import ATTACKS
from vleak.data import ClipSet
from vleak.defenses import parse_defenses
from vleak.federated import Client
from vleak.guarding import HonestFacts, attack_itself, honest_facts, warning_scores
from vleak.models import train, training_steps
from vleak.seeds import generator

CLIPS, FRAMES, SIZE, STATE = 8, 4, 16, "untrained"
DEFENSES = (
    "none",
    "dp:noise_multiplier=0.01",
    "dp:noise_multiplier=0.1",
    "dp:noise_multiplier=1.0",
    "prune:fraction=0.99",
    "prune:fraction=0.999",
    "compress:codec=sign",
)
BUDGET = 400
"""Iterations of the default attack's trials: half of its default."""


def score_cells(source: str, seed: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the key of every update that is scored, and what scores it and attacks it."""
    for defense in DEFENSES:
        for index in range(CLIPS):
            name = "synthetic" if source == "synthetic" else "videos"
            yield f"{name} {defense} {index}", partial(_scored, source, name, defense, index, seed)


def _scored(source: str, name: str, defense: str, index: int, seed: int) -> dict[str, Any]:
    data, model = _data(source, seed), _model(source, seed)
    client = Client(model, defense=parse_defenses(defense)[0])
    clips, labels = data.clips[index : index + 1], data.labels[index : index + 1]
    update = client.update(clips, labels, generator(seed, "detection", defense, index))
    known = {"classes": len(data.classes), "public_clips": data.public_clips}
    begin = time.process_time()
    short = attack_itself(client, update, clips, labels, seed=seed, **known)
    scores = warning_scores(update, _honest(source, index, seed), attack=short)
    took = time.process_time() - begin
    strongest = ATTACKS.build("strongest", budget=BUDGET)
    actual = attack_itself(client, update, clips, labels, attacks=[strongest], seed=seed + 1, **known)
    return {
        "data": name, "defense": defense, "clip": index, "cpu_s": took, "scores": scores.numbers(),
        "gain_db": actual.gain_db, "correlation": actual.correlation, "recognised": actual.recognised == 1,
        "candidates": actual.candidates,
    }  # fmt: skip


@cache
def _data(source: str, seed: int) -> ClipSet:
    return vleak.load_clips(source, clips=CLIPS, frames=FRAMES, size=SIZE, seed=seed)


@cache
def _model(source: str, seed: int) -> nn.Module:
    data = _data(source, seed)
    model = vleak.build_model("c3d_tiny", frames=FRAMES, size=SIZE, classes=len(data.classes), seed=seed)
    train(model, data.public_clips, data.public_labels, training_steps(STATE), generator(seed, STATE))
    return model


@cache
def _honest(source: str, index: int, seed: int) -> HonestFacts:
    data, row = _data(source, seed), slice(index, index + 1)
    return honest_facts(_model(source, seed), "cross_entropy", data.clips[row], data.labels[row], seed=seed)
