"""Run folders with real scores of made-up reconstructions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vleak.metrics import identification_rank, motion_psnr, psnr, ssim
from vleak.results.pictures import picture_names
from vleak.seeds import generator


class PlantedDefense(NamedTuple):
    """Defense whose reconstructions hold a known share of the truth; sizes in bytes."""

    label: str
    name: str
    epsilon: float | None
    bound: float | None
    share: float
    size: int


DEFENSES = (
    PlantedDefense("none", "none", None, None, 0.96, 400_000),
    PlantedDefense("dp σ=0.1", "dp", 47.0, 1.0, 0.72, 400_000),
    PlantedDefense("dp σ=0.5", "dp", 10.0, 0.73, 0.12, 400_000),
    PlantedDefense("dp σ=1", "dp", 4.9, 0.35, 0.0, 400_000),
    PlantedDefense("prune 90 %", "prune", None, None, 0.85, 60_000),
    PlantedDefense("prune 99 %", "prune", None, None, 0.5, 6_200),
    PlantedDefense("compress sign", "compress", None, None, 0.66, 12_600),
)


def hallway(count: int, frames: int = 8, size: int = 32) -> Tensor:
    """Clips of one hallway with a lamp, a door and somebody who walks by."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    lamp = torch.exp(-((x - 0.75) ** 2 + (y - 0.2) ** 2) / 0.08)
    wall = torch.stack(
        [0.35 + 0.4 * lamp + 0.1 * y, 0.3 + 0.3 * lamp + 0.05 * x, 0.32 + 0.15 * lamp + 0.1 * x]
    )
    wall[:, size // 3 :, size // 8 : size // 3] *= 0.55
    clips = wall[None, :, None].repeat(count, 1, frames, 1, 1)
    for n in range(count):
        shirt = torch.rand(3, generator=generator("shirt", n))
        for t in range(frames):
            left = (0.1 + 0.06 * (n % 12)) * size + (1 if n % 2 else -1) * t * size / 40
            body = ((x * size - left).abs() < size / 9) & (y > 0.35 + 0.02 * (n % 5))
            head = (x * size - left) ** 2 + ((y - 0.27) * size) ** 2 < (size / 11) ** 2
            clips[n, :, t, body] = shirt[:, None]
            clips[n, :, t, head] = torch.tensor([0.85, 0.66, 0.53])[:, None]
    return (clips + 0.01 * torch.randn(clips.shape, generator=generator("grain"))).clamp(0, 1)


def plant_run(
    folder: Path,
    *,
    clips: int = 12,
    frames: int = 8,
    size: int = 32,
    defenses: Sequence[PlantedDefense] = DEFENSES,
) -> dict[str, Any]:
    """Write the folder of a run, and return the content of its results.json."""
    all_clips = hallway(clips + 12, frames, size)
    private, public = all_clips[:clips], all_clips[clips:]
    baselines = {"grey": torch.full_like(private[0], 0.5), "public_mean": public.mean(0)}
    known = [
        {n: {"psnr_db": psnr(clip, truth), "ssim": ssim(clip, truth)} for n, clip in baselines.items()}
        for truth in private
    ]
    (folder / "reconstructions").mkdir(parents=True)
    np.save(folder / "clips.npy", (private * 255).round().byte().numpy())
    cells = []
    for index in range(clips):
        for name, answer in baselines.items():
            cells.append(plant_cell(folder, defenses[0], name, index, answer, private, known[index]))
        for defense in defenses:
            answer = reconstruct(private[index], defense, index, baselines["public_mean"])
            cells.append(plant_cell(folder, defense, "matching", index, answer, private, known[index]))
    results = header(clips, frames, size) | {"planned_cells": len(cells), "cells": cells}
    store(folder, results)
    return results


def reconstruct(clip: Tensor, defense: PlantedDefense, index: int, mean: Tensor) -> Tensor:
    blur = torch.nn.functional.avg_pool3d(clip[None], (1, 3, 3), 1, (0, 1, 1))[0]
    noise = torch.randn(blur.shape, generator=generator(defense.label, index))
    answer = defense.share * blur + (1 - defense.share) * mean + 0.3 * (1 - defense.share) ** 2 * noise
    return answer.clamp(0, 1)


def header(clips: int, frames: int, size: int) -> dict[str, Any]:
    """Return the content of results.json but for its cells."""
    return {
        "schema_version": 2,
        "environment": {
            "vleak": "0.1.0", "torch": "2.13.0", "python": "3.11", "platform": "Linux", "extension": "native",
            "device": "cpu",
        },
        "settings": {
            "data": "synthetic", "pipeline": "raw", "model": "c3d_tiny", "extractor": "", "head": "",
            "loss": "", "training_state": "untrained", "defenses": ["dp", "prune"], "attacks": ["matching"],
            "clips": clips, "frames": frames, "size": size, "stride": 2, "segments": 32,
            "reference_frames": [0], "enhance": "none", "restarts": 1, "iterations": 150,
            "labels": "inferred", "seed": 0, "device": "cpu", "engine": "native",
        },
        "data": {
            "name": "hallway", "clips": clips, "public_clips": 12,
            "public_source": "other seeds", "classes": ["walk", "fall"],
            "labels": [n % 2 for n in range(clips)], "names": [f"walk@{n}" for n in range(clips)],
            "notes": ["Frames were cropped to a square."], "sha256": "0",
        },
        "models": [
            {
                "name": "c3d_tiny", "pipeline": "raw", "training_state": "untrained", "parameters": 98_114,
                "training_steps": 0, "weights_sha256": "0", "train_accuracy": 0.5, "held_out_accuracy": 0.52,
                "chance": 0.5,
            }
        ],
    }  # fmt: skip


def plant_cell(
    folder: Path,
    defense: PlantedDefense,
    attack: str,
    index: int,
    answer: Tensor,
    private: Tensor,
    known: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """Write the picture of one cell, and return its record as JSON; ``known`` are scores of the baselines."""
    identity = f"c3d_tiny.untrained/{defense.label}/{attack}/walk@{index}"
    media, _ = picture_names(identity)
    np.save(folder / media, (answer * 255).round().byte().numpy())
    baseline = attack in known
    guess = None if baseline else defense.share > 0.2 or index % 2 == 0
    unsure = defense.label == "dp σ=0.5" and index % 3 == 0
    return {
        "id": identity,
        "media": media,
        "pipeline": "raw",
        "model": "c3d_tiny",
        "training_state": "untrained",
        "defense": {
            "name": defense.name, "label": defense.label, "settings": {"strength": defense.label},
            "epsilon": defense.epsilon, "delta": 1e-5 if defense.epsilon else None, "unit": "one clip",
            "adjacency": "add or remove",
        },
        "attack": {
            "name": attack, "baseline": baseline, "adaptive": not baseline, "iterations": 150, "restarts": 1,
            "seconds": 3.1,
        },
        "knowledge": {"defense": not baseline, "public_clips": 12},
        "clip": f"walk@{index}",
        "clip_index": index,
        "seed": index,
        "scores": scores(answer, index, private, known) | {"label_correct": guess},
        "certificate": {"kind": "identification", "bound": defense.bound} if defense.bound else None,
        "update": {
            "bytes": defense.size, "cosine_to_undefended": min(1.0, defense.share + 0.15),
            "changed_fraction": 1.0,
        },
        "flags": ["still improving at the end"] if unsure else [],
        "status": "ok",
    }  # fmt: skip


def scores(answer: Tensor, index: int, private: Tensor, known: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return the scores of one reconstruction as JSON."""
    truth = private[index]
    best = max(known, key=lambda name: known[name]["psnr_db"])
    rank = identification_rank(answer, private, index)
    level, similarity = psnr(answer, truth), ssim(answer, truth)
    return {
        "psnr_db": level,
        "psnr_gain_db": level - known[best]["psnr_db"],
        "ssim": similarity,
        "ssim_gain": similarity - max(score["ssim"] for score in known.values()),
        "motion_psnr_db": motion_psnr(answer, truth),
        "residual_correlation": 0.5,
        "best_baseline": best,
        "baselines": known,
        "identified": rank == 1 and len(private) > 1,
        "rank": rank,
        "candidates": len(private),
    }


def store(folder: Path, results: dict[str, Any]) -> None:
    """Write results.json."""
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
