"""Typed records that several test files share."""

from __future__ import annotations

from typing import Any

from vleak.results.records import Cell, RunHeader, RunRecord


def make_cell(index: int = 0, gain: float = 0.0, identified: bool = False, **changes: Any) -> Cell:
    """A scored cell; changes replace fields, "attack" may be a name, parts are merged with the defaults."""
    attack = changes.pop("attack", {})
    parts: dict[str, dict[str, Any]] = {
        "attack": {"name": "matching", "adaptive": True, "seconds": 2.0},
        "defense": {"name": "none", "label": "none"},
        "knowledge": {"public_clips": 48},
        "scores": {
            "psnr_db": 15.0 + gain,
            "psnr_gain_db": gain,
            "ssim": 0.5,
            "ssim_gain": 0.1,
            "motion_psnr_db": 12.0,
            "identified": identified,
            "candidates": 12,
            "label_correct": identified,
            "baselines": {"grey": {"psnr_db": 11.0, "ssim": 0.1}},
            "best_baseline": "grey",
        },
        "update": {"bytes": 1000, "cosine_to_undefended": 1.0, "changed_fraction": 0.0},
    }
    given = {"attack": {"name": attack} if isinstance(attack, str) else attack} | changes
    record = {
        "id": f"c{index}",
        "pipeline": "raw",
        "model": "c3d",
        "training_state": "untrained",
        "clip": f"clip@{index}",
        "clip_index": index,
        "seed": index,
        **{key: value for key, value in given.items() if key not in parts or value is None},
        **{key: part | given.get(key, {}) for key, part in parts.items() if given.get(key, {}) is not None},
    }
    return Cell.model_validate(record)


def make_header(**changes: Any) -> RunHeader:
    """A header of a run of three clips; changes are merged into its parts, as in ``settings={"seed": 7}``."""
    content: dict[str, Any] = {
        "environment": {
            "vleak": "1", "torch": "2", "python": "3.11", "platform": "Linux", "extension": "built",
            "device": "cpu",
        },
        "settings": {
            "data": "synthetic", "pipeline": "raw", "model": "c3d", "extractor": "c3d_small", "head": "mlp",
            "loss": "bce", "training_state": "untrained", "defenses": ["none"], "attacks": ["matching"],
            "clips": 3, "frames": 4, "size": 5, "stride": 2, "segments": 32, "reference_frames": [0],
            "enhance": "none", "restarts": 1, "iterations": 3, "labels": "inferred", "seed": 0,
            "device": "cpu", "engine": "native",
        },
        "data": {
            "name": "synthetic", "clips": 3, "public_clips": 48, "public_source": "other seeds",
            "classes": ["a", "b"], "labels": [0, 1, 0], "names": ["x", "y", "z"], "notes": [], "sha256": "a",
        },
    }  # fmt: skip
    model = {
        "name": "c3d", "pipeline": "raw", "training_state": "untrained", "parameters": 10,
        "training_steps": 0, "weights_sha256": "b", "train_accuracy": 0.5, "held_out_accuracy": None,
        "chance": 0.5,
    }  # fmt: skip
    content = {key: part | changes.get(key, {}) for key, part in content.items()}
    return RunHeader.model_validate(content | {"models": [model | changes.get("model", {})]})


def make_run(*cells: Cell, planned: int | None = -1) -> RunRecord:
    """A run of cells, by default a whole one."""
    count = len(cells) if planned == -1 else planned
    return RunRecord.model_validate(dict(make_header()) | {"planned_cells": count, "cells": cells})
