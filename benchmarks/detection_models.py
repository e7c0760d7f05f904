"""Models that detection.py inspects: honest ones of all kinds and states, and those with a plant."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from honest_models import NETWORKS, RECTIFIED, honest_model, trained_on
from planted_models import PLANTS, has_batch_norm

import vleak
from vleak.data import ClipSet
from vleak.guarding import inspect_model

CLASSES, BATCH, ROUND = 6, 4, 20
"""Classes of the clips, clips of a client's batch, steps of training in a round."""
STATES = {"untrained": 0, "early": 20, "late": 300}
LARGE = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "x3d_s", "slowfast")
"""Networks whose long training takes most of the time: they are inspected untrained and early alone."""
PLANTED = (*(name for name in NETWORKS if not name.startswith(LARGE)), "r3d_18:width=8", RECTIFIED)
"""Networks that get plants: all small ones and one with batch norm throughout."""


def model_cells(seed: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the key of every model that is inspected, and what inspects it; what takes long comes last."""
    for name in sorted((*NETWORKS, RECTIFIED), key=lambda name: name.startswith(LARGE)):
        large = name.startswith(LARGE)
        for state in ("untrained", "early") if large else STATES:
            for draw in range(2 if large or state == "late" else 4):
                mode = "train" if draw % 2 and state != "untrained" else "eval"
                place = (name, state, mode, seed + draw)
                yield f"honest {place}", partial(_honest, place)
                if not draw and (name in PLANTED if state == "untrained" else state == "late"):
                    for plant in _plants(name):
                        yield f"{plant} {place}", partial(_planted, plant, place)


def _plants(name: str) -> list[str]:
    batch_norm = name.startswith(("cnn_gru", *LARGE))
    return [plant for plant in PLANTS if batch_norm or plant != "batch-norm statistics"]


def _honest(place: tuple[str, str, str, int]) -> dict[str, Any]:
    model, before = _model(*place)
    return {"plant": None, **_figures(model, before, place)}


def _planted(plant: str, place: tuple[str, str, str, int]) -> dict[str, Any]:
    model, _ = _model(*place)
    make, check = PLANTS[plant]
    data = _data(place[0], place[3])
    # The attack that singles a clip out has succeeded: whether it is seen then is what is asked.
    known = data.clips[:BATCH] if check == "dominant_clip" else data.public_clips
    planted = make(model, known, place[3])
    return {
        "plant": plant,
        "check": check,
        **_figures(planted, model if check == "round_change" else None, place),
    }


def _figures(model: nn.Module, before: nn.Module | None, place: tuple[str, str, str, int]) -> dict[str, Any]:
    data, begin = _data(place[0], place[3]), time.process_time()
    found = inspect_model(
        model, data.clips[:BATCH], data.labels[:BATCH], public_clips=data.public_clips, earlier=before,
        seed=place[3],
    )  # fmt: skip
    return {
        "network": place[0], "state": place[1], "mode": place[2], "cpu_s": time.process_time() - begin,
        "figures": {finding.check: finding.figure for finding in found},
    }  # fmt: skip


@cache
def _data(name: str, seed: int) -> ClipSet:
    frames, size = (8, 24) if name.startswith("s3d") else (4, 16)  # the least that s3d takes
    return vleak.load_clips("synthetic", clips=BATCH, frames=frames, size=size, seed=seed, public=48)


_KEPT: dict[tuple[str, str, str, int], tuple[nn.Module, nn.Module]] = {}


def _model(name: str, state: str, mode: str, seed: int) -> tuple[nn.Module, nn.Module]:
    """Return an honest model and the one of the round before; the last one is kept."""
    place = (name, state, mode, seed)
    if place not in _KEPT:
        _KEPT.clear()
        data, steps = _data(name, seed), STATES[state]
        model = honest_model(name, data.public_clips, CLASSES, seed)
        mode = mode if has_batch_norm(model) else "eval"
        if steps > ROUND:
            trained_on(model, data.public_clips, data.public_labels, steps - ROUND, seed, mode)
        before = copy.deepcopy(model)
        if steps:
            trained_on(model, data.public_clips, data.public_labels, ROUND, seed + 1, mode)
        _KEPT[place] = (model, before)
    return _KEPT[place]
